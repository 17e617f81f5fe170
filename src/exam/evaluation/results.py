"""Score systems beside baselines, compare them in pairs, and print and save the results."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from exam.config import DEFAULT_K, Ensemble, EnsembleKind, Train
from exam.core.artifacts import Stage
from exam.core.errors import ExamError
from exam.core.files import read_json, write_json
from exam.core.logging import print_result
from exam.core.trainer import REPORT, RESULTS, TRAINING
from exam.data.splits import group_repetitions
from exam.evaluation.ensemble import combine_logits
from exam.evaluation.predictions import (
    Predictions,
    make_predictions,
    read_all_predictions,
    write_predictions,
)
from exam.metrics import (
    Estimate,
    Floats,
    Ints,
    average_precision,
    estimate,
    find_metric,
    metric_name,
    metric_title,
    random_average_precision,
    rank_options,
    summarize_metric,
)
from exam.retrieval.contexts import read_support, score_some

log = logging.getLogger(__name__)

PREDICTIONS = "predictions.parquet"
RANDOM = "random order (expected)"
CONSTANT = "constant order (A, B, C)"
LONGEST = "longest option first"
LEXICAL = "lexical (word overlap with the passages)"
LEARNED_BELOW = 0.98  # of the loss of equal chances
NON_READING = 2  # rows that nothing is compared with: random and constant order


@dataclass(frozen=True)
class ScoredSystem:
    """A named row of a table.

    Attributes:
        name: The name of a run or baseline.
        scores: Each question's average precision at k, from 0 to 1; shape `(questions,)`, or
            `(trainings, questions)` for the mean of several trainings.
        k: The ranks that score; 1 is accuracy.
        groups: Near-duplicates have the same number; None if there are none.
    """

    name: str
    scores: Floats
    k: int
    groups: Ints | None = None

    @property
    def estimate(self) -> Estimate:
        """MAP@k with its 95 % interval over questions, and over trainings if there are several."""
        return estimate(self.scores, groups=self.groups)


@dataclass(frozen=True)
class Evaluation:
    """Runs scored on the same questions, beside baselines; `print` shows a table.

    Attributes:
        systems: Baselines first, then the runs in their order.
        pairs: The first run with each system that it is compared with.
        predictions: One for each run, all in the first one's order of questions.
        warnings: Why the runs' scores may mislead.
    """

    systems: list[ScoredSystem]
    pairs: list[tuple[ScoredSystem, ScoredSystem]]
    predictions: list[Predictions]
    warnings: Sequence[str] = ()

    @property
    def differences(self) -> dict[tuple[str, str], Estimate]:
        """Mean paired differences of MAP@k, by the names of the two systems."""
        return {(a.name, b.name): estimate_difference(a, b) for a, b in self.pairs}

    def __str__(self) -> str:
        return format_table(build_results(self.systems, self.pairs, [], self.warnings))


@dataclass(frozen=True)
class Run:
    """A finished run of a command; as a path, it is its folder.

    Attributes:
        stage: The run's folder, its key, and what it cost.
        stages: All stages that it depends on, and its own.
        systems: Baselines first, the reader last; empty where answers are unknown.
        selection_score: MAP@k of the questions that chose the checkpoint, never of those reported.
    """

    stage: Stage
    stages: list[Stage]
    systems: list[ScoredSystem]
    selection_score: float | None = None

    @property
    def folder(self) -> Path:
        """The folder with the model, predictions, results and report."""
        return self.stage.folder

    def __fspath__(self) -> str:
        return str(self.folder)

    def __str__(self) -> str:
        return str(self.folder)


# The metric of a run.


def metric_key(k: int) -> dict[str, int]:
    """Return the part of a stage's key that keeps `k`; the default changes no older key."""
    return {} if k == DEFAULT_K else {"k": k}


def read_k(stage: Stage) -> int:
    """Return the k that a stage remembers."""
    k: int = stage.key.get("k", DEFAULT_K)
    return k


def choose_k(k: int | None, remembered: Mapping[str, int], option: str) -> int:
    """Return `k`, or the k that all runs remember; `remembered` maps a run's name to its k.

    Without either, return the default.

    Raises:
        ExamError: the runs differ, and `k` is None; the message names the `option` that decides.
    """
    if k is not None or not remembered:
        return k or DEFAULT_K
    (first, k), *rest = remembered.items()
    for name, other in rest:
        if other != k:
            titles = [metric_title(metric_name(n)) for n in (k, other)]
            raise ExamError(
                f"{first} is scored by {titles[0]}, and {name} by {titles[1]}.\n"
                f"Choose one metric for all of them: {option}"
            )
    return k


def check_k(k: int, options: int) -> None:
    """Refuse a k above `options`, the greatest number of options of a question.

    The default suits questions with fewer options, too: all of them are ranked.

    Raises:
        ExamError: no question has that many options.
    """
    if k > max(options, DEFAULT_K):
        raise ExamError(
            f"metric.k={k}, but no question has more than {options} options.\n"
            f"Set metric.k to {options} or less; metric.k=1 is accuracy."
        )


# Scores.


def score_logits(name: str, logits: Floats, labels: list[int], k: int) -> ScoredSystem:
    """Score logits `(questions, options)` by MAP@k."""
    return ScoredSystem(name, average_precision(rank_options(logits), np.array(labels), k), k)


def non_reading_baselines(options: Ints, labels: list[int], k: int) -> list[ScoredSystem]:
    """Score random and constant order; `options` is each question's number of options."""
    constant = np.where(np.arange(options.max()) < options[:, None], 0.0, -np.inf)
    return [
        ScoredSystem(RANDOM, random_average_precision(options, k), k),
        score_logits(CONSTANT, constant, labels, k),
    ]


def score_baselines(
    questions: Dataset, support: list[list[float]] | None, k: int
) -> list[ScoredSystem]:
    """Score random and constant order, longest option first and, with `support`, word overlap."""
    labels = list(questions["label"])
    lengths = [[float(len(option)) for option in options] for options in questions["options"]]
    systems = [
        *non_reading_baselines(np.array([len(options) for options in lengths]), labels, k),
        score_logits(LONGEST, pad_scores(lengths), labels, k),
    ]
    if support is not None:
        systems.append(score_logits(LEXICAL, pad_scores(support), labels, k))
    return systems


def pad_scores(values: list[list[float]]) -> Floats:
    """Return lists of one value per option as an array, `-inf` for options that do not exist."""
    array = np.full((len(values), max(map(len, values))), -np.inf)
    for row, value in zip(array, values, strict=True):
        row[: len(value)] = value
    return array


def estimate_difference(a: ScoredSystem, b: ScoredSystem) -> Estimate:
    """Estimate the mean of a - b on the same questions."""
    return estimate(a.scores - b.scores, groups=b.groups if a.groups is None else a.groups)


def pair_systems(a: ScoredSystem, b: ScoredSystem) -> dict[str, Any]:
    """Return the mean of a - b on the same questions, with its interval."""
    mean = estimate_difference(a, b)
    difference = {"difference": mean.value, "ci": [mean.low, mean.high]}
    return {"a": a.name, "b": b.name, "n": mean.n, **difference}


def build_results(
    systems: list[ScoredSystem],
    pairs: list[tuple[ScoredSystem, ScoredSystem]],
    stages: list[Stage],
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the content of results.json; `warnings` say why scores may mislead."""
    return {
        "rows": [{"system": s.name, **summarize_metric(s.scores, s.k, s.groups)} for s in systems],
        "paired": [pair_systems(a, b) for a, b in pairs],
        "seconds": {_label(s): round(s.seconds, 1) for s in stages},
        "peak_mib": {_label(s): round(s.peak_mib) for s in stages},
        "reused": [_label(s) for s in stages if s.reused],
        **({"warnings": list(warnings)} if warnings else {}),
    }


def _label(stage: Stage) -> str:
    return f"{stage.kind}/{stage.folder.name}"


def format_table(results: dict[str, Any]) -> str:
    """Return `rows` and `paired` of results as plain text."""
    rows = results["rows"]
    metric = str(find_metric(rows[0]))
    title = metric_title(metric)
    width, column = max(len(row["system"]) for row in rows), max(len(title), 5)
    has_fold = any("selection_score" in row for row in rows)  # of a sweep
    fold = f"    {title} on the checkpoint fold" if has_fold else ""
    lines = [f"{'system':<{width}}     n   {title:<{column}}   95 % interval{fold}"]
    for row in rows:
        low, high = row["ci"]
        score = f"{row[metric]:<{column}.3f}   [{low:.3f}, {high:.3f}]"
        selection = f"   {row['selection_score']:.3f}" if "selection_score" in row else ""
        lines.append(f"{row['system']:<{width}} {row['n']:>5}    {score}{selection}")
    warnings = [f"warning: {text}" for text in results.get("warnings", [])]
    return "\n".join([*lines, *map(format_pair, results["paired"]), *warnings])


def format_pair(pair: dict[str, Any]) -> str:
    """Return a paired difference as plain text."""
    low, high = pair["ci"]
    verdict = "" if low > 0 or high < 0 else " (within noise)"
    interval = f"{pair['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
    return f"{pair['a']} − {pair['b']}: {interval}{verdict}"


# The folder of a run.


def write_answers(
    stage: Stage, config: Train, questions: Dataset, contexts: Stage, logits: Floats
) -> None:
    """Write predictions.parquet; logits of shape `(questions, options)`."""
    predictions = make_predictions(questions, logits, config.name, contexts.folder.name)
    write_predictions(stage.folder / PREDICTIONS, [predictions])


def load_answers(folder: Path) -> Predictions:
    """Return a run's predictions, averaged over option rotations."""
    predictions = read_all_predictions(folder / PREDICTIONS)
    mean = combine_logits([p.logits for p in predictions], Ensemble("mean", EnsembleKind.mean))
    return replace(predictions[0], logits=mean) if len(predictions) > 1 else predictions[0]


def score_systems(stage: Stage, questions: Dataset, contexts: Stage) -> list[ScoredSystem]:
    """Score the baselines and, last, the reader whose predictions the stage holds.

    Intervals are over groups of near-duplicate questions.
    """
    logits, labels, k = load_answers(stage.folder).logits, questions["label"], read_k(stage)
    baselines = score_baselines(questions, read_support(contexts, questions["id"]), k)
    systems = [*baselines, score_logits(stage.folder.name, logits, labels, k)]
    groups = group_repetitions(questions)
    if len(np.unique(groups)) < len(questions):
        return [replace(system, groups=groups) for system in systems]
    return systems


def write_scores(
    stage: Stage,
    questions: Dataset,
    contexts: Stage,
    stages: list[Stage],
    learned: Sequence[str] = (),
    warnings: Sequence[str] = (),
) -> list[ScoredSystem]:
    """Write results.json: the reader beside the baselines, paired with those that read.

    `learned` are the ids of the questions that the reader learned from. Return the baselines and,
    last, the reader.
    """
    *baselines, reader = score_systems(stage, questions, contexts)
    stage.measure()
    pairs = [(reader, row) for row in baselines[NON_READING:]]
    rows = [*baselines, *score_apart(reader, questions, learned), reader]
    results = build_results(rows, pairs, [*stages, stage], warnings)
    if reader.groups is not None:
        results["groups"] = reader.groups.tolist()
    write_json(stage.folder / RESULTS, results)
    return [*baselines, reader]


def read_groups(folder: Path) -> Ints | None:
    """Return the groups of near-duplicates of a run's questions, in their order; None without."""
    path = folder / RESULTS
    groups = read_json(path).get("groups") if path.is_file() else None
    return None if groups is None else np.array(groups)


def score_apart(
    reader: ScoredSystem, questions: Dataset, learned: Sequence[str]
) -> list[ScoredSystem]:
    """Score the questions that a reader learned from apart from the others, if there are any."""
    if not learned:
        return []
    is_learned = np.isin(questions["id"], learned)
    parts = {"questions it learned from": is_learned, "other questions": ~is_learned}
    return [
        replace(
            reader,
            name=f"{reader.name}: {name}",
            scores=reader.scores[part],
            groups=None if reader.groups is None else reader.groups[part],
        )
        for name, part in parts.items()
        if part.any()
    ]


def print_report(
    stage: Stage,
    questions: Dataset,
    contexts: Stage,
    stages: list[Stage],
    systems: list[ScoredSystem] | None = None,
) -> Run:
    """Print the saved results, and return the run; `systems` are its scores if they are known."""
    print_results(stage.folder)
    return Run(stage, [*stages, stage], systems or score_systems(stage, questions, contexts))


def print_results(folder: Path, *notes: str) -> None:
    """Print the table of a stage's results.json, then notes, then the paths of its files."""
    paths = [folder / name for name in (RESULTS, REPORT)]
    print_result("\n".join([format_table(read_json(paths[0])), *notes, *map(str, paths)]))


def describe_training(folder: Path) -> list[str]:
    """Return the warning that a run's training did not learn, if so."""
    path = folder / TRAINING
    figures = read_json(path) if path.is_file() else {}
    if "final_loss" not in figures:  # not trained, or by an earlier version
        return []
    loss, chances = figures["final_loss"], figures["equal_chances_loss"]
    warning = (
        f"{folder.name} did not learn: its training loss ended at {loss:.3f}, and equal chances "
        f"for all options give {chances:.3f}. Train with another seed, for more epochs, or with "
        "another trainer.learning_rate"
    )
    return [] if loss < LEARNED_BELOW * chances else [warning]


def list_warnings(stages: Iterable[Stage]) -> list[str]:
    """Return why the scores of finished stages may mislead."""
    return [text for stage in stages for text in stage.metadata.get("warnings", [])]


def log_warnings(stage: Stage) -> None:
    """Log why the scores of a stage may mislead, also when it is reused."""
    for text in list_warnings([stage]):
        log.warning("%s: %s", stage.kind, text)


def log_scores(stage: Stage, name: str, questions: Dataset | None = None) -> None:
    """Log the scores of contexts, or of some of their questions; at the level debug, intervals."""
    scores = stage.metadata["scores"] if questions is None else score_some(stage, questions)
    if scores:
        values = " · ".join(f"{metric} {score['value']:.3f}" for metric, score in scores.items())
        log.info("%s contexts: %s", name, values)
    for metric, score in scores.items():
        log.debug("%s: %s %s", name, metric, Estimate(score["n"], score["value"], *score["ci"]))
