"""Result tables: systems with intervals, paired differences, baselines; printed and as JSON."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from exam.core.artifacts import Stage
from exam.evaluation.predictions import Predictions
from exam.metrics import (
    Estimate,
    Floats,
    Ints,
    K,
    average_precision,
    estimate,
    figures,
    random_average_precision,
    ranking,
)

RANDOM = "random order (expected)"
CONSTANT = "constant order (A, B, C)"
LONGEST = "longest option first"
LEXICAL = "lexical (word overlap with the passages)"
BLIND = 2  # rows that nothing is compared with: random and constant order


@dataclass(frozen=True)
class System:
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

    systems: list[System]
    pairs: list[tuple[System, System]]
    predictions: list[Predictions]

    @property
    def differences(self) -> dict[tuple[str, str], Estimate]:
        """Mean paired differences of MAP@3, by the names of the two systems."""
        return {(a.name, b.name): estimate(a.scores - b.scores) for a, b in self.pairs}

    def __str__(self) -> str:
        return table(results(self.systems, self.pairs, []))


def of_logits(name: str, logits: Floats, labels: list[int]) -> System:
    """A reader's row."""
    return System(name, average_precision(ranking(logits), np.array(labels), K))


def blind(options: Ints, labels: list[int]) -> list[System]:
    """What answers without reading: random order and constant order, of so many options each."""
    constant = np.where(np.arange(options.max()) < options[:, None], 0.0, -np.inf)
    return [
        System(RANDOM, random_average_precision(options, K)),
        of_logits(CONSTANT, constant, labels),
    ]


def baselines(questions: Dataset, support: list[list[float]] | None) -> list[System]:
    """Random and constant order, longest option first, and by words that the passages support.

    The last row only where there are passages.
    """
    labels = list(questions["label"])
    lengths = [[float(len(o)) for o in q] for q in questions["options"]]
    found = [
        *blind(np.array([len(q) for q in lengths]), labels),
        of_logits(LONGEST, padded(lengths), labels),
    ]
    if support is not None:
        found.append(of_logits(LEXICAL, padded(support), labels))
    return found


def padded(values: list[list[float]]) -> Floats:
    """Lists of one value per option as an array, `-inf` where a question has fewer."""
    array = np.full((len(values), max(map(len, values))), -np.inf)
    for row, value in zip(array, values, strict=True):
        row[: len(value)] = value
    return array


def paired(a: System, b: System) -> dict[str, Any]:
    """The mean of a - b on the same questions, with its interval."""
    own = figures(a.scores - b.scores)
    return {
        "a": a.name, "b": b.name, "n": own["n"], "difference": own["value"], "ci": own["ci"],
    }  # fmt: skip


def results(
    systems: list[System], pairs: list[tuple[System, System]], stages: list[Stage]
) -> dict[str, Any]:
    """The content of results.json."""
    return {
        "rows": [_row(system) for system in systems],
        "paired": [paired(a, b) for a, b in pairs],
        "seconds": {_label(s): round(s.seconds, 1) for s in stages},
        "peak_mib": {_label(s): round(s.peak_mib) for s in stages},
        "reused": [_label(s) for s in stages if s.reused],
    }


def _row(system: System) -> dict[str, Any]:
    own = figures(system.scores)
    return {"system": system.name, "n": own["n"], "map_at_3": own["value"], "ci": own["ci"]}


def _label(stage: Stage) -> str:
    return f"{stage.kind}/{stage.folder.name}"


def table(found: dict[str, Any]) -> str:
    """The results as plain text: `rows`, and the differences of `paired`."""
    width = max(len(row["system"]) for row in found["rows"])
    lines = [f"{'system':<{width}}     n   MAP@3   95 % interval"]
    for row in found["rows"]:
        low, high = row["ci"]
        lines.append(
            f"{row['system']:<{width}} {row['n']:>5}    {row['map_at_3']:.3f}   "
            f"[{low:.3f}, {high:.3f}]"
        )
    return "\n".join([*lines, *map(shown_pair, found["paired"])])


def shown_pair(pair: dict[str, Any]) -> str:
    """A paired difference as plain text."""
    low, high = pair["ci"]
    verdict = "" if low > 0 or high < 0 else " (within noise)"
    interval = f"{pair['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
    return f"{pair['a']} − {pair['b']}: {interval}{verdict}"
