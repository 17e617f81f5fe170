"""The verbs' bodies: which stages run, in which order, on which files."""

from pathlib import Path

from exam.config import (
    Generate,
    Infer,
    Passages,
    Retrieve,
    Retriever,
    RetrieverKind,
    Stress,
    Task,
    Train,
)
from exam.core import distributed
from exam.core.artifacts import open_stage
from exam.core.errors import ExamError
from exam.core.files import read_json, write_json
from exam.core.logging import say
from exam.core.stage import Stage, log_reused
from exam.core.trainer import REPORT, RESULTS
from exam.data.questions import read
from exam.data.splits import read_split
from exam.evaluation.results import Run, check_k, log_scores, metric_key
from exam.evaluation.retrieval import (
    CURVES_UP_TO,
    compare_contexts,
    format_retrieval_table,
    rank_contexts,
    trace_depth,
)
from exam.generation.generate import QUESTIONS, generate, generated
from exam.pipelines.ensemble_infer import answered
from exam.pipelines.preflight import prepare
from exam.pipelines.stress import stressed
from exam.pipelines.tracking import conclude, tracked
from exam.pipelines.train import train_reader
from exam.readers.lexical import FEATURES
from exam.report.compare import write_retrieval_report
from exam.retrieval.contexts import ContextSet
from exam.retrieval.retriever import Retrieval


def run_retrieve(config: Retrieve) -> dict[str, ContextSet]:
    """Find and score passages for every question of the data (`exam retrieve`).

    Under `torchrun` all processes build the indexes; rank 0 does the rest.

    Returns:
        The contexts of `train`, `valid` and `test`, as far as the data has them.
    """
    config = prepare(config)
    retrieval, data = Retrieval.of(config), config.data
    if distributed.world_size() > 1:
        retrieval.build(generates=data.uses_generated_questions)
        if distributed.rank() > 0:
            return {}
    written = generated(data, retrieval, config.generator)
    sets = {"train": data.train, "valid": data.valid, "test": data.test}
    wanted = {name: entries for name, entries in sets.items() if entries is not None}
    if not wanted:
        raise ExamError(f"data={data.name} names no questions.\nGive a file: data.test=<file>")
    contexts, stages = {}, {}
    for name, entries in wanted.items():
        questions = read(data, entries, written.folder / QUESTIONS if written else None)
        if config.evaluate:
            check_k(config.metric.k, max(map(len, questions["options"])))
        stage = retrieval.contexts(questions, f"{data.name}-{name}", config.resume.value)
        log_scores(stage, name)
        contexts[name] = stage
        if {*questions["label"], *questions["article"]} - {None}:
            stages[name] = stage
    log_reused([*retrieval.stages, *([written] if written else []), *contexts.values()])
    for name, stage in stages.items() if config.evaluate else ():
        _evaluate(stage, None if name == "train" else stages.get("train"), config)
    return {name: ContextSet(stage) for name, stage in contexts.items()}


def _evaluate(stage: Stage, fitted_on: Stage | None, config: Retrieve) -> None:
    """Score contexts without a neural reader, as a stage of its own; print and save the table."""
    key = {
        "contexts": stage.hash,
        "fitted_on": None if fitted_on is None else fitted_on.hash,
        "features": list(FEATURES),
        **metric_key(config.metric.k),
    }
    outputs, name = Path(config.outputs), stage.folder.name
    with open_stage(outputs, "evaluation", name, key, config.resume.value) as evaluation:
        path = evaluation.folder / RESULTS
        if not evaluation.reused:
            system = rank_contexts(stage, config.metric.k, fitted_on)
            figures = compare_contexts([system])
            if len(system.questions) <= CURVES_UP_TO:
                figures["curves"] = trace_depth([system])
            write_json(path, figures)
            write_retrieval_report(evaluation.folder / REPORT, figures, name)
            evaluation.finish([RESULTS, REPORT])
    say(f"{format_retrieval_table(read_json(path))}\n{path}\n{evaluation.folder / REPORT}")


def run_generate(config: Generate) -> None:
    """`exam generate`: new questions from a corpus."""
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


def run_train(config: Train) -> Run:
    """Train a reader, a reranker or an encoder (`exam train`); only a reader's run has systems."""
    config = prepare(config)
    with tracked(config):
        if config.task is Task.reader:
            run = train_reader(config)
            found = read_json(run.stage.folder / RESULTS)["rows"][-1]
            conclude({**found, "selection_score": run.selection_score})
            return run
        return _train_retrieval(config)


def _train_retrieval(config: Train) -> Run:
    from exam.pipelines.train_retrieval import train_retrieval

    retrieval = Retrieval.of(config)
    written = generated(config.data, retrieval, config.generator)
    split = read_split(config.data, written.folder / QUESTIONS if written else None)
    return train_retrieval(config, retrieval, split)


def run_infer(infer: Infer) -> Run:
    """Answer questions with one run or several (`exam infer`)."""
    run = answered(infer)
    log_reused(run.stages)
    return run


def run_stress(stress: Stress) -> None:
    """`exam stress`: how a reader answers when what it is given is not as it should be."""
    stressed(stress)
