"""Combine several readers' predictions, or escalate uncertain questions from reader to reader."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from exam.config import DEFAULT_K, Bundle, Ensemble, EnsembleKind, Infer, as_list, to_dict
from exam.core import distributed
from exam.core.artifacts import Stage, load_stage, shared_stage
from exam.core.errors import ExamError, spell_command
from exam.core.files import file_digest, read_json
from exam.core.logging import print_result
from exam.core.trainer import RESULTS, list_run_files
from exam.data.schema import LETTERS
from exam.evaluation.ensemble import (
    cascade_curve,
    combine_logits,
    fit_weights,
    has_enough_questions,
    merge_logits,
    select_uncertain,
)
from exam.evaluation.predictions import Predictions, align, read_all_predictions, write_predictions
from exam.evaluation.results import (
    PREDICTIONS,
    Run,
    ScoredSystem,
    build_results,
    format_table,
    metric_key,
    non_reading_baselines,
    print_results,
    read_k,
    score_logits,
)
from exam.evaluation.submission import write_submission
from exam.metrics import Floats, Ints, metric_name, metric_title
from exam.report.charts import Chart, line_chart, write_png
from exam.report.run import write_results

log = logging.getLogger(__name__)

SUBMISSION = "submission.csv"
CURVE = "cascade.png"
MEAN = Ensemble("mean", EnsembleKind.mean)
ONE_METRIC = f"metric.k={DEFAULT_K}, or metric.k=1 for accuracy."


@dataclass(frozen=True)
class ReaderOutput:
    """One reader's predictions, and their source; those of a file have no stages."""

    predictions: Predictions
    source: str  # a folder or file, for messages
    hash: str
    k: int | None  # of MAP@k, as the run remembers it; None for a file
    seconds: float  # for each question
    letters: str = LETTERS  # the options' labels in a submission
    stages: list[Stage] = field(default_factory=list)  # all that it depends on, and its own
    systems: list[ScoredSystem] = field(default_factory=list)  # baselines, reader; if labelled
    opened: list[Stage] = field(default_factory=list)  # of retrieval, also those of other stages

    @property
    def logits(self) -> Floats:
        """The reader's logits, `(questions, options)`."""
        return self.predictions.logits


Answer = Callable[[Ints | None], ReaderOutput]  # to some rows of the questions, or to all


def load_predictions(paths: list[str]) -> list[ReaderOutput]:
    """Load the predictions of files, or of the folders of runs."""
    outputs = []
    for path in map(Path, paths):
        stage = load_stage(path) if path.is_dir() else None
        file = path / PREDICTIONS if stage else path
        for predictions in read_all_predictions(file):
            seconds = stage.seconds if stage and stage.kind == "infer" else 0.0
            key = f"{file_digest(file)} {predictions.name}"
            seconds_each = seconds / len(predictions.ids)
            k = read_k(stage) if stage else None
            outputs.append(ReaderOutput(predictions, str(file), key, k, seconds_each))
    return outputs


def check_readers(infer: Infer | Bundle, readers: int) -> None:
    """Check, before any reader answers, that the ensemble or cascade fits their number.

    Raises:
        ExamError: there is neither an ensemble nor a cascade, or a single reader, or the number of
            weights, shares or held-out predictions does not match.
    """
    ensemble, share = infer.ensemble, infer.cascade.escalate_fraction
    if is_cascade(infer):
        if readers < 2 or (isinstance(share, list) and len(share) != readers - 1):
            raise ExamError(
                f"cascade.escalate_fraction={share} does not fit {readers} readers.\n"
                "Set two readers or more, and one share for each reader but the first."
            )
        return
    if ensemble is None or readers < 2:
        state = "no ensemble" if ensemble is None else f"ensemble={ensemble.name}"
        raise ExamError(
            f"The command has {readers} readers and {state}.\n"
            "Set two readers or more, and how to combine them: ensemble=mean, rank, vote, "
            "max_over_contexts or fitted."
        )
    if ensemble.weights is not None and len(ensemble.weights) != readers:
        raise ExamError(
            f"ensemble.weights has {len(ensemble.weights)} weights for {readers} readers.\n"
            "Set one for each reader, in their order."
        )
    if ensemble.kind is EnsembleKind.fitted:
        held_out = len(load_predictions(as_list(ensemble.fit_on)))
        if held_out != readers:
            raise ExamError(
                f"ensemble.fit_on has {held_out} predictions for {readers} readers.\n"
                "Set each reader's predictions of questions it was not trained on, in their "
                f"order: folders that {spell_command('train')} data.cross_validate=true wrote."
            )


def is_cascade(infer: Infer | Bundle) -> bool:
    """Tell whether readers answer one after the other."""
    return infer.cascade.escalate_fraction is not None or infer.cascade.threshold is not None


def combine(infer: Infer, outputs: list[ReaderOutput], k: int) -> Run:
    """Combine the readers' outputs as `infer.ensemble` says, and score the result by MAP@k."""
    ensemble: Any = infer.ensemble
    outputs = _align(outputs)
    logits = [output.logits for output in outputs]
    settings = {"ensemble": to_dict(ensemble)}
    weights, details = ensemble.weights, dict[str, Any]()
    if ensemble.kind is EnsembleKind.fitted:
        held_out = load_predictions(as_list(ensemble.fit_on))
        settings["fit_on"] = [output.hash for output in held_out]
        weights, details = _fit_weights(ensemble, outputs, held_out, k)
    mean = combine_logits(logits, MEAN)
    combined = combine_logits(logits, ensemble, weights)
    scores = [("mean of probabilities", mean), (ensemble.name, combined)]
    return _write(infer, outputs, scores, settings, k, details)


def run_cascade(infer: Infer, readers: Sequence[Answer], k: int) -> Run:
    """Answer all questions with the first reader, and the least certain ones with the next."""
    first = readers[0](None)
    outputs, logits, counts = [first], first.logits, []
    for number, answer in enumerate(readers[1:], 1):
        rows = select_uncertain(logits, infer.cascade, number)
        counts.append(len(rows))
        log.info("cascade: %d of %d questions go to reader %d", len(rows), len(logits), number + 1)
        if not len(rows):
            continue
        output = answer(rows)
        logits = merge_logits(logits, rows, output.logits)
        ids, labels = first.predictions.ids, first.predictions.labels
        answered = replace(output.predictions, ids=ids, logits=logits, labels=labels)
        outputs.append(replace(output, predictions=answered))
    settings, details = {"cascade": to_dict(infer.cascade)}, {"asked_further": counts}
    return _write(infer, outputs, [("cascade", logits)], settings, k, details)


def replay_cascade(infer: Infer, outputs: list[ReaderOutput], k: int) -> Run:
    """Compute a cascade from saved predictions, with the scores of other shares."""
    outputs = _align(outputs)
    logits, counts = outputs[0].logits, []
    for number, output in enumerate(outputs[1:], 1):
        rows = select_uncertain(logits, infer.cascade, number)
        counts.append(len(rows))
        logits = merge_logits(logits, rows, output.logits[rows])
    details: dict[str, Any] = {"asked_further": counts}
    labels = outputs[0].predictions.known
    if labels is not None:
        cheap, expensive = outputs[:2]
        costs = cheap.seconds, expensive.seconds
        details["curve"] = cascade_curve(cheap.logits, expensive.logits, np.array(labels), costs, k)
    settings = {"cascade": to_dict(infer.cascade)}
    return _write(infer, outputs, [("cascade", logits)], settings, k, details)


def _align(outputs: list[ReaderOutput]) -> list[ReaderOutput]:
    """Put all predictions into the order of the first reader's questions."""
    predictions = align([o.predictions for o in outputs], [o.source for o in outputs])
    return [replace(o, predictions=p) for o, p in zip(outputs, predictions, strict=True)]


def number_names(outputs: list[ReaderOutput]) -> list[str]:
    """Return the readers' names, numbered by position where several share a name."""
    readers = [output.predictions.name for output in outputs]
    return [
        f"{name} ({number})" if readers.count(name) > 1 else name
        for number, name in enumerate(readers, 1)
    ]


def _fit_weights(
    ensemble: Ensemble, outputs: list[ReaderOutput], held_out: list[ReaderOutput], k: int
) -> tuple[list[float], dict[str, Any]]:
    """Fit weights for MAP@k on held-out questions, and estimate their benefit.

    Raises:
        ExamError: the held-out predictions have no labels, or answer the same questions.
    """
    held_out = _align(held_out)
    labels = held_out[0].predictions.known
    shared = _shared_questions(held_out[0].predictions, outputs[0].predictions)
    if labels is None or shared:
        state = f"the ensemble answers question {min(shared)!r}" if shared else "no right options"
        raise ExamError(
            f"ensemble.fit_on={held_out[0].source}: {state}.\n"
            "Set predictions of other questions, whose right options are known."
        )
    if not has_enough_questions(len(outputs), len(labels)):
        log.warning(
            "ensemble: %d questions are too few to fit %d weights; trust only the nested score",
            len(labels),
            len(outputs),
        )
    logits = [output.logits for output in held_out]
    fit = fit_weights(logits, np.array(labels), k, ensemble.seed)
    names = number_names(outputs)
    readers, best = _score_readers(names, logits, labels, k)
    mean = score_logits("mean (equal weights)", combine_logits(logits, MEAN), labels, k)
    optimistic = ScoredSystem(
        "fitted, weights from the same questions (optimistic)", fit.optimistic, k
    )
    nested = ScoredSystem("fitted, weights from other folds (honest)", fit.nested, k)
    systems = [*readers, mean, optimistic, nested]
    figures = build_results(systems, [(nested, best), (nested, mean)], [])
    weights = dict(zip(names, fit.weights, strict=True))
    fitted = {"weights": weights, "rows": figures["rows"], "paired": figures["paired"]}
    return fit.weights, {"fitted": fitted}


def _score_readers(
    names: list[str], logits: list[Floats], labels: list[int], k: int
) -> tuple[list[ScoredSystem], ScoredSystem]:
    """Score each reader; also return the best."""
    pairs = zip(names, logits, strict=True)
    systems = [score_logits(name, values, labels, k) for name, values in pairs]
    return systems, max(systems, key=lambda system: float(system.scores.mean()))


def _shared_questions(held_out: Predictions, answered: Predictions) -> set[str]:
    """Return the shared ids, or none if labels differ: files often number questions from 0."""
    first, second = (dict(zip(p.ids, p.labels, strict=True)) for p in (held_out, answered))
    shared = first.keys() & second.keys()
    return shared if all(first[key] == second[key] for key in shared) else set()


def _write(
    infer: Infer,
    outputs: list[ReaderOutput],
    combined: list[tuple[str, Floats]],
    settings: dict[str, Any],
    k: int,
    details: dict[str, Any],
) -> Run:
    """Write the predictions, the submission and, where labels are known, the scores.

    `combined` holds names and logits to score, the result last. The result depends on `settings`,
    and `details` explain it.
    """
    name, logits = combined[-1]
    key = {"members": [output.hash for output in outputs], **settings, **metric_key(k)}
    contexts = "+".join(number_names(outputs))
    predictions = replace(outputs[0].predictions, logits=logits, reader=name, contexts=contexts)
    inputs = list({stage.folder: stage for o in outputs for stage in o.stages}.values())
    systems, pairs = _score(outputs, combined, k)
    label = f"{len(outputs)}-{name}"
    with shared_stage(Path(infer.outputs), "ensemble", label, key, infer.resume.value) as stage:
        folder = stage.folder
        if not stage.reused and distributed.rank() == 0:
            write_predictions(folder / PREDICTIONS, [predictions])
            write_submission(folder / SUBMISSION, predictions.ids, logits, k, outputs[0].letters)
            stage.measure()
            if systems:
                write_results(folder, build_results(systems, pairs, [*inputs, stage]) | details)
            if "curve" in details:
                write_png(_cascade_charts(details["curve"], k), folder / CURVE)
            stage.finish(list_run_files(folder), questions=len(logits))
    print_result(str(folder / SUBMISSION))
    if systems:
        print_results(folder, *_describe_fit(read_json(folder / RESULTS)))
    return Run(stage, [*inputs, stage], systems)


def _score(
    outputs: list[ReaderOutput], combined: list[tuple[str, Floats]], k: int
) -> tuple[list[ScoredSystem], list[tuple[ScoredSystem, ScoredSystem]]]:
    """Score the baselines, the readers and `combined`, the result last; nothing without labels.

    Also pair the result with the best reader and with the rest of `combined`.
    """
    labels = outputs[0].predictions.known
    if labels is None:
        return [], []
    options = np.isfinite(combined[-1][1]).sum(axis=1)
    baselines = outputs[0].systems[:-1] or non_reading_baselines(options, labels, k)
    logits = [output.logits for output in outputs]
    readers, best = _score_readers(number_names(outputs), logits, labels, k)
    *means, result = [score_logits(name, values, labels, k) for name, values in combined]
    groups = outputs[0].systems[-1].groups if outputs[0].systems else None
    result = replace(result, groups=groups)
    pairs = [(result, system) for system in (best, *means)]
    grouped = [replace(system, groups=groups) for system in (*readers, *means)]
    return [*baselines, *grouped, result], pairs


def _cascade_charts(points: list[dict[str, Any]], k: int) -> list[Chart]:
    """Plot MAP@k and, if known, the seconds for each question over the share escalated."""
    metric = metric_name(k)
    scores = [{"at": p["share"], "value": p[metric], "ci": p["ci"]} for p in points]
    lines, label = {metric_title(metric): scores}, "share of questions escalated"
    seconds = [(p["share"], p["seconds_a_question"]) for p in points]
    if any(value for _, value in seconds):
        lines["seconds per question"] = [{"at": x, "value": y, "ci": [y, y]} for x, y in seconds]
    return [
        line_chart(unit, "", label, unit, {unit: line}, log=False) for unit, line in lines.items()
    ]


def _describe_fit(figures: dict[str, Any]) -> list[str]:
    """Return lines with the fitted weights and their scores, if weights were fitted."""
    if "fitted" not in figures:
        return []
    weights = " · ".join(f"{n} {w:.2f}" for n, w in figures["fitted"]["weights"].items())
    line = f"weights, fitted on held-out questions: {weights}"
    return ["", line, format_table(figures["fitted"])]
