"""Combine several readers' predictions, or escalate uncertain questions from reader to reader."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from exam.config import DEFAULT_K, Bundle, Ensemble, EnsembleKind, Infer, as_list, to_dict
from exam.core import distributed
from exam.core.artifacts import Stage, load_stage, shared_stage
from exam.core.errors import ExamError, spell_command
from exam.core.files import file_digest, read_json, write_json
from exam.core.logging import print_result
from exam.core.trainer import REPORT, RESULTS, list_run_files
from exam.data.schema import LETTERS
from exam.evaluation.ensemble import (
    FittedWeights,
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
    read_k,
    score_baselines,
    score_logits,
)
from exam.evaluation.submission import write_submission
from exam.metrics import Floats, Ints, metric_name, metric_title
from exam.report.charts import Chart, line_chart, write_png
from exam.report.run import write_results
from exam.retrieval.contexts import read_support

log = logging.getLogger(__name__)

SUBMISSION = "submission.csv"
CURVE = "cascade.png"
ONE_METRIC = f"metric.k={DEFAULT_K}, or metric.k=1 for accuracy."


@dataclass(frozen=True)
class ReaderOutput:
    """One reader's predictions, and their source.

    Predictions from files have no questions and contexts.
    """

    predictions: Predictions
    source: str  # a folder or file, for messages
    hash: str
    seconds: float = 0.0  # for each question
    stages: tuple[Stage, ...] = ()
    questions: Dataset | None = None
    contexts: Stage | None = None
    letters: str = LETTERS  # the options' labels in a submission
    k: int | None = None  # of MAP@k, as the run remembers it; None for a file

    @property
    def logits(self) -> Floats:
        """The reader's logits, `(questions, options)`."""
        return self.predictions.logits


Answer = Callable[[Ints | None], ReaderOutput]  # to some rows of the questions, or to all


@dataclass(frozen=True)
class EnsembleResult:
    """Combined logits, and the settings and figures that explain them."""

    name: str
    outputs: list[ReaderOutput]
    logits: Floats
    key: dict[str, Any]
    k: int  # of MAP@k
    mean: Floats | None = None  # the mean of probabilities, to compare with
    details: dict[str, Any] | None = None  # fitted weights, or a cascade's curve

    @property
    def predictions(self) -> Predictions:
        """The combined logits as the predictions of one reader."""
        return replace(
            self.outputs[0].predictions,
            logits=self.logits,
            reader=self.name,
            contexts="+".join(number_names(self.outputs)),
        )


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
            outputs.append(ReaderOutput(predictions, str(file), key, seconds_each, k=k))
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
    key = {"members": [o.hash for o in outputs], "ensemble": to_dict(ensemble), **metric_key(k)}
    weights, details = ensemble.weights, None
    if ensemble.kind is EnsembleKind.fitted:
        held_out = load_predictions(as_list(ensemble.fit_on))
        key["fit_on"] = [output.hash for output in held_out]
        weights, details = _fit_weights(ensemble, outputs, held_out, k)
    mean = combine_logits(logits, Ensemble("mean", EnsembleKind.mean))
    scores = combine_logits(logits, ensemble, weights)
    return _write(infer, EnsembleResult(ensemble.name, outputs, scores, key, k, mean, details))


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
    return _write_cascade(infer, outputs, logits, k, {"asked_further": counts})


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
    return _write_cascade(infer, outputs, logits, k, details)


def _write_cascade(
    infer: Infer, outputs: list[ReaderOutput], logits: Floats, k: int, details: dict[str, Any]
) -> Run:
    """Write and score a cascade's answers."""
    key = {"members": [o.hash for o in outputs], "cascade": to_dict(infer.cascade), **metric_key(k)}
    return _write(infer, EnsembleResult("cascade", outputs, logits, key, k, details=details))


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
    readers = number_names(outputs)
    weights = dict(zip(readers, fit.weights, strict=True))
    return fit.weights, {
        "fitted": {"weights": weights, **_score_fit(readers, logits, labels, fit, k)}
    }


def _score_fit(
    readers: list[str], logits: list[Floats], labels: list[int], fit: FittedWeights, k: int
) -> dict[str, Any]:
    """Score each reader, equal weights and the fitted ones on the held-out questions."""
    systems = [
        score_logits(name, row, labels, k) for name, row in zip(readers, logits, strict=True)
    ]
    best = max(systems, key=lambda system: float(system.scores.mean()))
    equal = combine_logits(logits, Ensemble("mean", EnsembleKind.mean))
    mean = score_logits("mean (equal weights)", equal, labels, k)
    optimistic = ScoredSystem(
        "fitted, weights from the same questions (optimistic)", fit.optimistic, k
    )
    nested = ScoredSystem("fitted, weights from other folds (honest)", fit.nested, k)
    figures = build_results(
        [*systems, mean, optimistic, nested], [(nested, best), (nested, mean)], []
    )
    return {"rows": figures["rows"], "paired": figures["paired"]}


def _shared_questions(held_out: Predictions, answered: Predictions) -> set[str]:
    """Return the shared ids, or none if labels differ: files often number questions from 0."""
    first, second = (dict(zip(p.ids, p.labels, strict=True)) for p in (held_out, answered))
    shared = first.keys() & second.keys()
    return shared if all(first[key] == second[key] for key in shared) else set()


def _write(infer: Infer, result: EnsembleResult) -> Run:
    """Write the predictions, the submission and, where labels are known, the scores."""
    outputs, folder = result.outputs, Path(infer.outputs)
    name = f"{len(outputs)}-{result.name}"
    inputs = list({stage.folder: stage for o in outputs for stage in o.stages}.values())
    systems, predictions = _score(result), result.predictions
    with shared_stage(folder, "ensemble", name, result.key, infer.resume.value) as stage:
        if not stage.reused and distributed.rank() == 0:
            write_predictions(stage.folder / PREDICTIONS, [predictions])
            write_submission(
                stage.folder / SUBMISSION,
                predictions.ids,
                predictions.logits,
                result.k,
                outputs[0].letters,
            )
            stage.measure()
            if systems:
                figures = _compare(result, systems, [*inputs, stage])
                write_json(stage.folder / RESULTS, figures)
                write_results(stage.folder / REPORT, stage.folder.name, figures)
            if result.details and "curve" in result.details:
                write_png(_cascade_charts(result.details["curve"], result.k), stage.folder / CURVE)
            stage.finish(list_run_files(stage.folder), questions=len(result.logits))
    print_result(str(stage.folder / SUBMISSION))
    if systems:
        print_result(f"{_format(read_json(stage.folder / RESULTS))}\n{stage.folder / RESULTS}")
        print_result(str(stage.folder / REPORT))
    return Run(stage, [*inputs, stage], systems)


def _score(result: EnsembleResult) -> list[ScoredSystem]:
    """Score the baselines, the readers, their mean and, last, the result; [] without labels."""
    first = result.outputs[0]
    labels, k = first.predictions.known, result.k
    if labels is None:
        return []
    if first.questions is None or first.contexts is None:
        systems = non_reading_baselines(np.isfinite(result.logits).sum(axis=1), labels, k)
    else:
        support = read_support(first.contexts, first.questions["id"])
        systems = score_baselines(first.questions, support, k)
    for name, output in zip(number_names(result.outputs), result.outputs, strict=True):
        systems.append(score_logits(name, output.logits, labels, k))
    if result.mean is not None:
        systems.append(score_logits("mean of probabilities", result.mean, labels, k))
    return [*systems, score_logits(result.name, result.logits, labels, k)]


def _compare(
    result: EnsembleResult, systems: list[ScoredSystem], stages: list[Stage]
) -> dict[str, Any]:
    """Compare the result with the best reader, and with the mean of probabilities."""
    *rest, final = systems
    means = [rest.pop()] if result.mean is not None else []
    best = max(rest[-len(result.outputs) :], key=lambda system: float(system.scores.mean()))
    figures = build_results(systems, [(final, system) for system in (best, *means)], stages)
    return figures | (result.details or {})


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


def _format(figures: dict[str, Any]) -> str:
    """Return the table, followed by the fitted weights and their scores."""
    lines = [format_table(figures)]
    if "fitted" in figures:
        weights = " · ".join(f"{n} {w:.2f}" for n, w in figures["fitted"]["weights"].items())
        lines += [
            "",
            f"weights, fitted on held-out questions: {weights}",
            format_table(figures["fitted"]),
        ]
    return "\n".join(lines)
