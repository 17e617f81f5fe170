"""The verbs' bodies: which stages run, in which order, on which files."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from datasets import Dataset, concatenate_datasets

from exam import ranks
from exam.answers.contexts import comparison, ranked
from exam.answers.contexts import table as contexts_table
from exam.answers.predictions import read_predictions, write_predictions
from exam.answers.results import System, baselines, of_logits, results, table
from exam.answers.submission import write_submission
from exam.artefacts import Stage, finished, open_stage, read_json, write_json
from exam.compose import load_run, save_run
from exam.config import (
    Data,
    Evidence,
    Generate,
    Infer,
    Passages,
    ReaderKind,
    Reranker,
    Retrieve,
    Retriever,
    RetrieverKind,
    Task,
    Train,
    names,
    plain,
    trainer_values,
)
from exam.errors import ExamError
from exam.evidence import FILE as EVIDENCE
from exam.evidence import weigh_passages
from exam.generation import QUESTIONS, generate
from exam.metrics import Floats
from exam.questions import LETTERS, questions_digest, read
from exam.reader.features import saved_features, shuffle_options
from exam.reader.lexical import (
    FEATURES,
    LexicalReader,
    cross_fitted,
    fit,
    lexical_features,
    load_lexical,
    save_lexical,
)
from exam.reader.model import check_reachable, longest_input
from exam.reader.training import Reader, predict, train
from exam.retrieval.contexts import FILE as CONTEXTS
from exam.retrieval.contexts import read_support
from exam.retrieval.evaluation import figures
from exam.retrieval.rerank import check_reachable as check_reranker
from exam.retrieval.retrieval import Retrieval
from exam.runs import CHECKPOINTS, CONFIG, ENVIRONMENT, RESULTS, run_files
from exam.runtime import environment, say
from exam.splits import Split, read_split
from exam.weights import MODEL, identity

log = logging.getLogger(__name__)

PREDICTIONS = "predictions.parquet"
SUBMISSION = "submission.csv"
LEXICAL = "lexical.json"
Answer = Callable[[Dataset, Stage], Floats]  # logits of questions, read with a stage's contexts


@dataclass(frozen=True)
class Run:
    """A finished verb: its own stage, every stage it stands on, and what it found."""

    stage: Stage
    stages: list[Stage]
    systems: list[System]  # baselines first, the reader last; empty where answers are unknown


def _retrieval(
    config: Train | Retrieve | Generate, passages: Passages, retriever: Retriever
) -> Retrieval:
    return Retrieval(
        config.corpus,
        config.encoder,
        passages,
        retriever,
        config.index,
        Path(config.outputs),
        Reranker() if isinstance(config, Generate) else config.reranker,
    )


def _generated(config: Train | Retrieve, retrieval: Retrieval) -> Stage | None:
    """The generated questions, where the configuration asks for them."""
    return generate(retrieval, config.generator) if _generates(config.data) else None


def _generates(data: Data) -> bool:
    """Whether generated questions are among those asked for."""
    return "generated" in [*names(data.train), *names(data.valid), *names(data.test)]


def run_retrieve(config: Retrieve) -> None:
    """`retrieve.py`: contexts of every question the data name, and their scores.

    Under `torchrun` all processes build the indexes; rank 0 does the rest.
    """
    check_reranker(config.reranker)
    retrieval = _retrieval(config, config.passages, config.retriever)
    if ranks.world_size() > 1:
        retrieval.build(generates=_generates(config.data))
        if ranks.rank() > 0:
            return
    generated = _generated(config, retrieval)
    data = config.data
    sets = {"train": data.train, "valid": data.valid, "test": data.test}
    wanted = {name: entries for name, entries in sets.items() if entries is not None}
    if not wanted:
        raise ExamError(f"data={data.name} names no questions.\nGive a file: data.test=<file>")
    stages = {}
    for name, entries in wanted.items():
        questions = read(data, entries, generated.folder / QUESTIONS if generated else None)
        stage = retrieval.contexts(questions, f"{data.name}-{name}", config.resume.value)
        _log_scores(stage, name)
        if {*questions["label"], *questions["article"]} - {None}:
            stages[name] = stage
    for name, stage in stages.items() if config.evaluate else ():
        _evaluate(stage, None if name == "train" else stages.get("train"), config)


def _evaluate(stage: Stage, fitted_on: Stage | None, config: Retrieve) -> None:
    """Score contexts without a neural reader, as a stage of its own; print and save the table."""
    key = {
        "contexts": stage.hash,
        "fitted_on": None if fitted_on is None else fitted_on.hash,
        "features": list(FEATURES),
    }
    outputs, name = Path(config.outputs), stage.folder.name
    with open_stage(outputs, "evaluation", name, key, config.resume.value) as evaluation:
        path = evaluation.folder / RESULTS
        if not evaluation.reused:
            write_json(path, comparison([ranked(stage, fitted_on)]))
            evaluation.finish([RESULTS])
    say(f"{contexts_table(read_json(path))}\n{path}")


def _log_scores(stage: Stage, name: str) -> None:
    for metric, figure in stage.facts["scores"].items():
        low, high = figure["ci"]
        value = f"{figure['value']:.3f} [{low:.3f}, {high:.3f}]"
        log.info("%s: %s %s (n = %d)", name, metric, value, figure["n"])


def run_generate(config: Generate) -> None:
    """`generate.py`: new questions from a corpus."""
    retriever = Retriever(name="none", kind=RetrieverKind.none)
    retrieval = _retrieval(config, Passages(), retriever)
    stage = generate(retrieval, config.generator, config.resume.value)
    say(str(stage.folder / QUESTIONS))


def run_train(config: Train) -> None:
    """`train.py`: the reader, or what finds its contexts."""
    check_reranker(config.reranker, trained=config.task is not Task.reranker)
    if config.task is Task.reader:
        train_reader(config)
        return
    from exam.tune import train_retrieval

    retrieval = _retrieval(config, config.passages, config.retriever)
    generated = _generated(config, retrieval)
    split = read_split(config.data, generated.folder / QUESTIONS if generated else None)
    train_retrieval(config, retrieval, split)


def train_reader(config: Train) -> Run:
    """Retrieve, fine-tune, and score on the reported questions."""
    check_reachable(config.model)
    retrieval = _retrieval(config, config.passages, config.retriever)
    generated = _generated(config, retrieval)
    split = read_split(config.data, generated.folder / QUESTIONS if generated else None)
    pool = retrieval.contexts(split.pool, f"{config.data.name}-train")
    held_out = config.data.valid is None
    valid = pool if held_out else retrieval.contexts(split.valid, f"{config.data.name}-valid")
    _log_scores(valid, "valid")
    before = (*retrieval.stages, generated, pool, None if held_out else valid)
    stages = [stage for stage in before if stage is not None]
    parts = {"train": split.train, "dev": split.dev, "valid": split.valid}
    key = {
        "questions": {name: questions_digest(part) for name, part in parts.items()},
        "contexts": {"train": pool.hash, "valid": valid.hash},
        "context": asdict(config.context),
        "model": {**plain(config.model), "checkpoint": identity(config.model.name_or_path)},
        "trainer": trainer_values(config.trainer),
        "seed": config.seed,
    }
    outputs = Path(config.outputs)
    with open_stage(outputs, "train", config.name, key, config.resume.value) as stage:
        if not stage.reused:
            save_run(config, stage.folder / CONFIG)
            write_json(stage.folder / ENVIRONMENT, environment())
            lexical = config.model.kind is ReaderKind.lexical
            answer = (_fit_lexical if lexical else _fit)(config, stage, split, pool)
            _answer(answer, config, stage, split.valid, valid)
            _score(stage, split.valid, valid, stages)
            stage.finish(run_files(stage.folder), questions=len(split.train))
        shutil.rmtree(stage.folder / CHECKPOINTS, ignore_errors=True)
    return _report(stage, split.valid, valid, stages)


def _fit(config: Train, stage: Stage, split: Split, pool: Stage) -> Answer:
    """Train, and save model, tokenizer and trainer state."""
    folder = stage.folder
    texts = (t for q in split.train for t in [q["prompt"], *q["options"]])
    values = trainer_values(config.trainer)
    reader = Reader.load(config.model, values, folder / CHECKPOINTS, config.seed, texts)
    shuffled = shuffle_options(split.train, config.seed)
    features = {
        name: _features(reader, config, part, pool, f"{config.data.name}-{name}")
        for name, part in (("train", shuffled), ("dev", split.dev))
    }
    figures = train(reader, features["train"], features["dev"])
    log.info("train: %s", " · ".join(f"{k} {v}" for k, v in figures.items()))
    reader.model.save_pretrained(folder / MODEL)
    reader.tokenizer.save_pretrained(folder / MODEL)
    return _answering(reader, config)


def _answering(reader: Reader, config: Train) -> Answer:
    return lambda questions, contexts: predict(
        reader, _features(reader, config, questions, contexts, contexts.folder.name)
    )


def _fit_lexical(config: Train, stage: Stage, split: Split, pool: Stage) -> Answer:
    """Fit on all training questions, as no checkpoint is chosen; say how well that generalises."""
    questions = concatenate_datasets([split.train, split.dev])
    top_k, budget = config.context.top_k, config.model.max_length
    features, labels = lexical_features(questions, pool, top_k, budget), questions["label"]
    logits = cross_fitted(questions, features)
    if logits is not None:
        found = figures(of_logits("", logits, labels).scores)
        log.info(
            "train: cross-fitted MAP@3 %.3f [%.3f, %.3f] (n = %d)",
            found["value"],
            *found["ci"],
            found["n"],
        )
    reader = fit(features, np.array(labels))
    save_lexical(reader, stage.folder / MODEL / LEXICAL)
    return _answering_lexical(reader, config)


def _answering_lexical(reader: LexicalReader, config: Train) -> Answer:
    top_k, budget = config.context.top_k, config.model.max_length
    return lambda questions, contexts: reader.logits(
        lexical_features(questions, contexts, top_k, budget)
    )


def _features(
    reader: Reader, config: Train, questions: Dataset, contexts: Stage, name: str
) -> Dataset:
    limit = longest_input(reader.model, config.model.max_length)
    return saved_features(
        name,
        questions,
        contexts,
        config.context.top_k,
        reader.tokenizer,
        config.model.max_length,
        limit,
    )


def _answer(
    answer: Answer, config: Train, stage: Stage, questions: Dataset, contexts: Stage
) -> Floats:
    """Predict and write predictions.parquet; logits of shape `(questions, options)`."""
    logits = answer(questions, contexts)
    path = stage.folder / PREDICTIONS
    write_predictions(path, questions, logits, config.name, contexts.folder.name)
    return logits


def _systems(stage: Stage, questions: Dataset, contexts: Stage) -> list[System]:
    """The baselines and, last, the reader whose predictions the stage holds."""
    predictions = read_predictions(stage.folder / PREDICTIONS)
    reader = of_logits(stage.folder.name, predictions.logits, questions["label"])
    return [*baselines(questions, read_support(contexts, questions["id"])), reader]


def _score(stage: Stage, questions: Dataset, contexts: Stage, stages: list[Stage]) -> None:
    """Write results.json: the reader beside the baselines, paired with each but the random one."""
    *rows, reader = _systems(stage, questions, contexts)
    stage.measure()
    found = results([*rows, reader], [(reader, row) for row in rows[1:]], [*stages, stage])
    write_json(stage.folder / RESULTS, found)


def _report(stage: Stage, questions: Dataset, contexts: Stage, stages: list[Stage]) -> Run:
    """Print the saved results."""
    say(f"{table(read_json(stage.folder / RESULTS))}\n{stage.folder / RESULTS}")
    return Run(stage, [*stages, stage], _systems(stage, questions, contexts))


def run_infer(infer: Infer) -> Run:
    """`infer.py`: a run's reader answers other questions, retrieved and prepared as in training."""
    folder = Path(infer.ckpt)
    trained, config = _restored(infer)
    retrieval = _retrieval(config, config.passages, config.retriever)
    # The submission speaks of the options as the file has them.
    asked = replace(config.data, shuffle_options=False)
    questions = read(asked, asked.test or asked.valid)
    if not len(questions):
        raise ExamError(f"data={asked.name} names no questions.\nGive a file: data.test=<file>")
    contexts = retrieval.contexts(questions, f"{config.data.name}-test")
    stages = [*retrieval.stages, contexts]
    key = {
        "run": trained.hash,
        "weights": trained.files,
        "questions": questions_digest(questions),
        "contexts": contexts.hash,
        "context": asdict(config.context),
        "model": plain(config.model),
        "trainer": trainer_values(config.trainer),
    }
    outputs, name = Path(infer.outputs), f"{config.data.name}-{folder.name}"
    with open_stage(outputs, "infer", name, key, infer.resume.value) as stage:
        if not stage.reused:
            answer = _load(config, folder / MODEL, stage.folder)
            logits = _answer(answer, config, stage, questions, contexts)
            letters = config.data.options or LETTERS
            write_submission(stage.folder / SUBMISSION, questions["id"], logits, letters)
            files = [PREDICTIONS, SUBMISSION]
            if None not in questions["label"]:
                _score(stage, questions, contexts, stages)
                files.append(RESULTS)
            stage.finish(files, questions=len(questions))
    say(str(stage.folder / SUBMISSION))
    if (stage.folder / RESULTS).is_file():
        return _report(stage, questions, contexts, stages)
    return Run(stage, [*stages, stage], [])


def _load(config: Train, saved: Path, work: Path) -> Answer:
    """A run's reader, ready to answer."""
    if config.model.kind is ReaderKind.lexical:
        return _answering_lexical(load_lexical(saved / LEXICAL), config)
    model = replace(config.model, name_or_path=str(saved))
    reader = Reader.load(model, trainer_values(config.trainer), work, config.seed)
    return _answering(reader, config)


def run_evidence(evidence: Evidence) -> None:
    """`evidence.py`: what each training question's passages, each alone, add to a run's reader."""
    trained, config = _restored(evidence)
    if config.model.kind is ReaderKind.lexical:
        raise ExamError(
            f"{trained.folder} is a lexical reader; evidence is weighed by a transformer.\n"
            "Give another run: ckpt=<folder>"
        )
    questions = read(config.data, config.data.train)
    lacking = questions["label"][:].count(None)
    if lacking or not len(questions):
        raise ExamError(
            f"{lacking} of {len(questions)} questions of data.train have no answer to weigh "
            "passages by.\nGive questions with answers: data.train=<file>"
        )
    if evidence.contexts is not None:
        contexts = finished(Path(evidence.contexts))
        asked = contexts.key.get("questions")
        if CONTEXTS not in contexts.files or asked != questions_digest(questions):
            raise ExamError(
                f"{contexts.folder} holds no contexts of the questions of data.train.\n"
                "Give a folder that retrieve.py wrote for them, or leave out contexts=."
            )
    else:
        retrieval = _retrieval(config, config.passages, config.retriever)
        contexts = retrieval.contexts(questions, f"{config.data.name}-train")
    saved = replace(config.model, name_or_path=str(trained.folder / MODEL))
    stage = weigh_passages(
        replace(config, model=saved),
        trained,
        questions,
        contexts,
        evidence.depth,
        Path(evidence.outputs),
        evidence.resume.value,
    )
    say(str(stage.folder / EVIDENCE))


def _restored(infer: Infer) -> tuple[Stage, Train]:
    """A finished run of a reader, and its configuration with infer's overrides.

    Raises:
        ExamError: `ckpt` is no such folder, or an override is not one of its values.
    """
    folder = Path(infer.ckpt)
    trained = finished(folder)
    if CONFIG not in trained.files:
        raise ExamError(f"{folder} is no run of train.py.\nGive a folder of outputs/train.")
    config = load_run(folder / CONFIG, infer)
    check_reranker(config.reranker)
    _warn_of_versions(folder)
    return trained, config


def _warn_of_versions(folder: Path) -> None:
    """Name each package that may prepare the questions otherwise than at training."""
    then, now = read_json(folder / ENVIRONMENT), environment()
    for name in sorted(then.keys() & now.keys()):
        if then[name] != now[name] and name != "machine":
            log.warning("infer: %s is %s, the run was made with %s", name, now[name], then[name])
