"""Result tables: systems with intervals, paired differences, baselines; printed and as JSON."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from exam.config import Ensemble, EnsembleKind, Train
from exam.core.files import read_json, write_json
from exam.core.logging import say
from exam.core.stage import Stage
from exam.core.trainer import REPORT, RESULTS
from exam.evaluation.ensemble import combine
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
    K,
    average_precision,
    estimate,
    random_average_precision,
    rank_options,
    summarize,
)
from exam.retrieval.contexts import read_support

RANDOM = "random order (expected)"
CONSTANT = "constant order (A, B, C)"
LONGEST = "longest option first"
LEXICAL = "lexical (word overlap with the passages)"
NON_READING = 2  # rows that nothing is compared with: random and constant order


@dataclass(frozen=True)
class ScoredSystem:
    """A named row of a table.

    Attributes:
        name: The name of a run or baseline.
        scores: Each question's average precision at 3, from 0 to 1; shape `(questions,)`.
    """

    name: str
    scores: Floats

    @property
    def estimate(self) -> Estimate:
        """MAP@3 with its 95 % interval over questions."""
        return estimate(self.scores)


@dataclass(frozen=True)
class Evaluation:
    """Runs scored on the same questions, beside baselines; `print` shows a table.

    Attributes:
        systems: Baselines first, then the runs in their order.
        pairs: The first run with each system that it is compared with.
        predictions: One for each run, all in the first one's order of questions.
    """

    systems: list[ScoredSystem]
    pairs: list[tuple[ScoredSystem, ScoredSystem]]
    predictions: list[Predictions]

    @property
    def differences(self) -> dict[tuple[str, str], Estimate]:
        """Mean paired differences of MAP@3, by the names of the two systems."""
        return {(a.name, b.name): estimate(a.scores - b.scores) for a, b in self.pairs}

    def __str__(self) -> str:
        return format_table(build_results(self.systems, self.pairs, []))


def score_logits(name: str, logits: Floats, labels: list[int]) -> ScoredSystem:
    """A reader's row."""
    return ScoredSystem(name, average_precision(rank_options(logits), np.array(labels), K))


def non_reading_baselines(options: Ints, labels: list[int]) -> list[ScoredSystem]:
    """What answers without reading: random order and constant order, of so many options each."""
    constant = np.where(np.arange(options.max()) < options[:, None], 0.0, -np.inf)
    return [
        ScoredSystem(RANDOM, random_average_precision(options, K)),
        score_logits(CONSTANT, constant, labels),
    ]


def score_baselines(questions: Dataset, support: list[list[float]] | None) -> list[ScoredSystem]:
    """Random and constant order, longest option first, and by words that the passages support.

    The last row only where there are passages.
    """
    labels = list(questions["label"])
    lengths = [[float(len(o)) for o in q] for q in questions["options"]]
    found = [
        *non_reading_baselines(np.array([len(q) for q in lengths]), labels),
        score_logits(LONGEST, pad_scores(lengths), labels),
    ]
    if support is not None:
        found.append(score_logits(LEXICAL, pad_scores(support), labels))
    return found


def pad_scores(values: list[list[float]]) -> Floats:
    """Lists of one value per option as an array, `-inf` where a question has fewer."""
    array = np.full((len(values), max(map(len, values))), -np.inf)
    for row, value in zip(array, values, strict=True):
        row[: len(value)] = value
    return array


def pair_systems(a: ScoredSystem, b: ScoredSystem) -> dict[str, Any]:
    """The mean of a - b on the same questions, with its interval."""
    own = summarize(a.scores - b.scores)
    return {
        "a": a.name, "b": b.name, "n": own["n"], "difference": own["value"], "ci": own["ci"],
    }  # fmt: skip


def build_results(
    systems: list[ScoredSystem], pairs: list[tuple[ScoredSystem, ScoredSystem]], stages: list[Stage]
) -> dict[str, Any]:
    """The content of results.json."""
    return {
        "rows": [_row(system) for system in systems],
        "paired": [pair_systems(a, b) for a, b in pairs],
        "seconds": {_label(s): round(s.seconds, 1) for s in stages},
        "peak_mib": {_label(s): round(s.peak_mib) for s in stages},
        "reused": [_label(s) for s in stages if s.reused],
    }


def _row(system: ScoredSystem) -> dict[str, Any]:
    own = summarize(system.scores)
    return {"system": system.name, "n": own["n"], "map_at_3": own["value"], "ci": own["ci"]}


def _label(stage: Stage) -> str:
    return f"{stage.kind}/{stage.folder.name}"


def format_table(found: dict[str, Any]) -> str:
    """The results as plain text: `rows`, and the differences of `paired`."""
    width = max(len(row["system"]) for row in found["rows"])
    lines = [f"{'system':<{width}}     n   MAP@3   95 % interval"]
    for row in found["rows"]:
        low, high = row["ci"]
        lines.append(
            f"{row['system']:<{width}} {row['n']:>5}    {row['map_at_3']:.3f}   "
            f"[{low:.3f}, {high:.3f}]"
        )
    return "\n".join([*lines, *map(format_pair, found["paired"])])


def format_pair(pair: dict[str, Any]) -> str:
    """A paired difference as plain text."""
    low, high = pair["ci"]
    verdict = "" if low > 0 or high < 0 else " (within noise)"
    interval = f"{pair['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
    return f"{pair['a']} − {pair['b']}: {interval}{verdict}"


log = logging.getLogger(__name__)

PREDICTIONS = "predictions.parquet"


@dataclass(frozen=True)
class Run:
    """A finished run of a command; as a path, it is its folder.

    Attributes:
        stage: The run's folder, its key, and what it cost.
        stages: All stages that it depends on, and its own.
        systems: Baselines first, the reader last; empty where answers are unknown.
        selection_score: The score of the questions that chose the checkpoint, never of those
            reported.
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


def write_answers(
    stage: Stage, config: Train, questions: Dataset, contexts: Stage, logits: Floats
) -> None:
    """Write predictions.parquet; logits of shape `(questions, options)`."""
    found = make_predictions(questions, logits, config.name, contexts.folder.name)
    write_predictions(stage.folder / PREDICTIONS, [found])


def load_answers(folder: Path) -> Predictions:
    """What a run answers: its predictions, or their mean probability over orders of the options."""
    found = read_all_predictions(folder / PREDICTIONS)
    mean = combine([one.logits for one in found], Ensemble("mean", EnsembleKind.mean))
    return replace(found[0], logits=mean) if len(found) > 1 else found[0]


def score_systems(stage: Stage, questions: Dataset, contexts: Stage) -> list[ScoredSystem]:
    """Score the baselines and, last, the reader whose predictions the stage holds."""
    reader = score_logits(stage.folder.name, load_answers(stage.folder).logits, questions["label"])
    return [*score_baselines(questions, read_support(contexts, questions["id"])), reader]


def write_scores(stage: Stage, questions: Dataset, contexts: Stage, stages: list[Stage]) -> None:
    """Write results.json: the reader beside the baselines, paired with those that read."""
    *rows, reader = score_systems(stage, questions, contexts)
    stage.measure()
    found = build_results(
        [*rows, reader], [(reader, row) for row in rows[NON_READING:]], [*stages, stage]
    )
    write_json(stage.folder / RESULTS, found)


def print_report(stage: Stage, questions: Dataset, contexts: Stage, stages: list[Stage]) -> Run:
    """Print the saved results."""
    places = [stage.folder / name for name in (RESULTS, REPORT)]
    say("\n".join([format_table(read_json(places[0])), *map(str, places)]))
    return Run(stage, [*stages, stage], score_systems(stage, questions, contexts))


def log_scores(stage: Stage, name: str) -> None:
    """Log how well contexts were found; for debugging, with intervals."""
    scores = stage.facts["scores"]
    if scores:
        values = " · ".join(f"{metric} {figure['value']:.3f}" for metric, figure in scores.items())
        log.info("%s contexts: %s", name, values)
    for metric, figure in scores.items():
        low, high = figure["ci"]
        value = f"{figure['value']:.3f} [{low:.3f}, {high:.3f}]"
        log.debug("%s: %s %s (n = %d)", name, metric, value, figure["n"])
