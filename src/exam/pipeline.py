"""The verbs' bodies: which stages run, in which order, on which files."""

from dataclasses import replace
from pathlib import Path

from datasets import Dataset

from exam import ranks
from exam.answers.context_scores import CURVES_UP_TO, comparison, curves, ranked
from exam.answers.context_scores import table as contexts_table
from exam.answers.scored import Run, log_scores
from exam.artefacts import open_stage
from exam.checkpoints import MODEL
from exam.config import (
    Bundle,
    Evidence,
    Generate,
    Infer,
    Passages,
    ReaderKind,
    Retrieve,
    Retriever,
    RetrieverKind,
    Stress,
    Task,
    Train,
)
from exam.errors import ExamError
from exam.evidence import FILE as EVIDENCE
from exam.evidence import weigh_passages
from exam.files import read_json, write_json
from exam.generation.questions import QUESTIONS, generate, generated
from exam.inference import restored
from exam.preflight import check_saved_reader, prepare
from exam.questions import questions_digest, read
from exam.reader.lexical import FEATURES
from exam.report.compared import write_contexts
from exam.retrieval.contexts import FILE as CONTEXTS
from exam.retrieval.retrieval import Retrieval
from exam.runs import REPORT, RESULTS
from exam.runtime import say
from exam.splits import read_split
from exam.stage import Stage, finished, log_reused
from exam.stress import stressed
from exam.together.infer import answered
from exam.tracker import conclude, tracked
from exam.train_reader import train_reader
from exam.workload import asks_for_generated


def run_retrieve(config: Retrieve) -> None:
    """`retrieve.py`: contexts of every question the data name, and their scores.

    Under `torchrun` all processes build the indexes; rank 0 does the rest.
    """
    config = prepare(config)
    retrieval, data = Retrieval.of(config), config.data
    if ranks.world_size() > 1:
        retrieval.build(generates=asks_for_generated(data))
        if ranks.rank() > 0:
            return
    written = generated(data, retrieval, config.generator)
    sets = {"train": data.train, "valid": data.valid, "test": data.test}
    wanted = {name: entries for name, entries in sets.items() if entries is not None}
    if not wanted:
        raise ExamError(f"data={data.name} names no questions.\nGive a file: data.test=<file>")
    contexts, stages = [], {}
    for name, entries in wanted.items():
        questions = read(data, entries, written.folder / QUESTIONS if written else None)
        stage = retrieval.contexts(questions, f"{data.name}-{name}", config.resume.value)
        log_scores(stage, name)
        contexts.append(stage)
        if {*questions["label"], *questions["article"]} - {None}:
            stages[name] = stage
    log_reused([*retrieval.stages, *([written] if written else []), *contexts])
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
            system = ranked(stage, fitted_on)
            figures = comparison([system])
            if len(system.questions) <= CURVES_UP_TO:
                figures["curves"] = curves([system])
            write_json(path, figures)
            write_contexts(evaluation.folder / REPORT, figures, name)
            evaluation.finish([RESULTS, REPORT])
    say(f"{contexts_table(read_json(path))}\n{path}\n{evaluation.folder / REPORT}")


def run_generate(config: Generate) -> None:
    """`generate.py`: new questions from a corpus."""
    config = prepare(config)
    retrieval = Retrieval(
        config.corpus,
        config.encoder,
        Passages(),
        Retriever(name="none", kind=RetrieverKind.none),
        config.index,
        Path(config.outputs),
    )
    stage = generate(retrieval, config.generator, config.resume.value)
    log_reused([*retrieval.stages, stage])
    say(str(stage.folder / QUESTIONS))


def run_train(config: Train) -> Run | None:
    """`train.py`: the reader, or what finds its contexts, of which no run is given back."""
    config = prepare(config)
    with tracked(config):
        if config.task is Task.reader:
            run = train_reader(config)
            found = read_json(run.stage.folder / RESULTS)["rows"][-1]
            conclude({**found, "chosen_by": run.chosen_by})
            return run
        _train_retrieval(config)
        return None


def _train_retrieval(config: Train) -> None:
    from exam.train_retrieval import train_retrieval

    retrieval = Retrieval.of(config)
    written = generated(config.data, retrieval, config.generator)
    split = read_split(config.data, written.folder / QUESTIONS if written else None)
    train_retrieval(config, retrieval, split)


def run_infer(infer: Infer) -> Run:
    """`infer.py`: what one run, or several, make of questions."""
    run = answered(infer)
    log_reused(run.stages)
    return run


def run_bundle(bundle: Bundle) -> None:
    """`python -m exam.bundle`: what a machine without a network needs to answer."""
    from exam.bundle.bundle import make_bundle

    make_bundle(bundle)


def run_stress(stress: Stress) -> None:
    """`stress.py`: how a reader answers when what it is given is not as it should be."""
    stressed(stress)


def run_evidence(evidence: Evidence) -> None:
    """`evidence.py`: what each training question's passages, each alone, add to a run's reader."""
    trained, config = restored(evidence)
    _check_weighs(trained, config)
    check_saved_reader(config, trained.folder / MODEL)
    questions = read(config.data, config.data.train)
    lacking = questions["label"][:].count(None)
    if lacking or not len(questions):
        raise ExamError(
            f"{lacking} of {len(questions)} questions of data.train have no answer to weigh "
            "passages by.\nGive questions with answers: data.train=<file>"
        )
    saved = config.model.at(trained.folder / MODEL)
    stage = weigh_passages(
        replace(config, model=saved),
        trained,
        questions,
        _weighed_contexts(evidence, config, questions),
        evidence.depth,
        Path(evidence.outputs),
        evidence.resume.value,
    )
    say(str(stage.folder / EVIDENCE))


def _check_weighs(trained: Stage, config: Train) -> None:
    """Refuse a run whose reader cannot weigh passages one by one."""
    if config.model.kind is not ReaderKind.transformer:
        raise ExamError(
            f"{trained.folder} is a run of model.kind={config.model.kind.value}; evidence is "
            "weighed by a transformer.\n"
            "Give another run: ckpt=<folder>"
        )
    ranks.check_single("evidence.py")
    if config.model.evidence:
        raise ExamError(
            f"{trained.folder} was trained with model.evidence=true, which measures options "
            "against all their passages; here each passage is read alone.\n"
            "Give a run without it: ckpt=<folder>"
        )


def _weighed_contexts(evidence: Evidence, config: Train, questions: Dataset) -> Stage:
    """The contexts that were given, or else what the run's own retrieval finds."""
    if evidence.contexts is None:
        return Retrieval.of(config).contexts(questions, f"{config.data.name}-train")
    contexts = finished(Path(evidence.contexts))
    asked = contexts.key.get("questions")
    if CONTEXTS not in contexts.files or asked != questions_digest(questions):
        raise ExamError(
            f"{contexts.folder} holds no contexts of the questions of data.train.\n"
            "Give a folder that retrieve.py wrote for them, or leave out contexts=."
        )
    return contexts
