"""`exam retrieve`: find passages for questions, and score them."""

from pathlib import Path

from exam.config import Retrieve
from exam.core import distributed
from exam.core.artifacts import Stage, log_reused, open_stage
from exam.core.errors import ExamError
from exam.core.files import read_json, write_json
from exam.core.logging import print_result
from exam.core.trainer import REPORT, RESULTS
from exam.data.questions import read_questions, warn_of_repeats
from exam.evaluation.results import check_k, log_scores, metric_key
from exam.evaluation.retrieval import (
    CURVES_UP_TO,
    compare_contexts,
    format_retrieval_table,
    rank_contexts,
)
from exam.generation.generate import QUESTIONS, generate_if_used
from exam.pipelines.preflight import check_models
from exam.readers.lexical import FEATURES
from exam.report.compare import write_retrieval_report
from exam.retrieval.contexts import ContextSet
from exam.retrieval.retriever import Retrieval


def run_retrieve(config: Retrieve) -> dict[str, ContextSet]:
    """Find and score passages for every question of the data.

    Under `torchrun`, all processes build the indexes; rank 0 does the rest.

    Returns:
        The contexts of `train`, `valid` and `test`, as far as the data has them.
    """
    check_models(config)
    retrieval, data = Retrieval.from_config(config), config.data
    if distributed.world_size() > 1:
        retrieval.build(generates=data.uses_generated_questions)
        if distributed.rank() > 0:
            return {}
    generation = generate_if_used(data, retrieval, config.generator)
    parts = {"train": data.train, "valid": data.valid, "test": data.test}
    parts = {name: entries for name, entries in parts.items() if entries is not None}
    if not parts:
        raise ExamError(f"data={data.name} has no questions.\nGive a file: data.test=<file>")
    contexts, scored = {}, {}
    for name, entries in parts.items():
        generated = generation.folder / QUESTIONS if generation else None
        questions = read_questions(data, entries, generated)
        if name != "train":
            warn_of_repeats(questions, name)
        if config.evaluate:
            check_k(config.metric.k, max(map(len, questions["options"])))
        stage = retrieval.contexts(questions, f"{data.name}-{name}", config.resume.value)
        log_scores(stage, name)
        contexts[name] = stage
        if any(questions["articles"]) or any(label is not None for label in questions["label"]):
            scored[name] = stage
    log_reused([*retrieval.stages, *([generation] if generation else []), *contexts.values()])
    for name, stage in scored.items() if config.evaluate else ():
        _evaluate(stage, None if name == "train" else scored.get("train"), config)
    return {name: ContextSet(stage) for name, stage in contexts.items()}


def _evaluate(stage: Stage, fitted_on: Stage | None, config: Retrieve) -> None:
    """Score contexts with the lexical reader in a separate stage; print and save the table."""
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
                figures["curves"] = {system.name: system.curves()}
            write_json(path, figures)
            write_retrieval_report(evaluation.folder / REPORT, figures, name)
            evaluation.finish([RESULTS, REPORT])
    print_result(f"{format_retrieval_table(read_json(path))}\n{path}\n{evaluation.folder / REPORT}")
