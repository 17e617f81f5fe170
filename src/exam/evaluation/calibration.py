"""Figures of a reader beyond its score: accuracy by letter, calibration, questions needed."""

from typing import Any

import numpy as np

from exam.data.schema import LETTERS
from exam.evaluation.predictions import Predictions, to_probabilities
from exam.metrics import (
    Floats,
    average_precision,
    count_questions_for,
    metric_name,
    rank_options,
    summarize,
)

BINS = 10
GAINS = (0.005, 0.01, 0.02, 0.05)  # of the metric


def summarize_predictions(found: Predictions, k: int) -> dict[str, Any]:
    """Figures of answered predictions, every mean with n and its 95 % interval.

    `by_right_option` tells how often the right option was first when it was A, B, …,
    `by_chosen_option` how often the first choice was right when it was A, B, …, `by_place` at which
    place the right option stood. `ece` is the expected calibration error of the first choice's
    probability in ten bins of equal width (Naeini and others, 2015).
    """
    labels = np.array(found.labels)
    order, chance = rank_options(found.logits), to_probabilities(found.logits)
    right = order[:, 0] == labels
    options = range(found.logits.shape[1])
    place = np.argsort(order, axis=1)[np.arange(len(labels)), labels]
    return {
        "n": len(labels),
        **{metric_name(n): _mean(average_precision(order, labels, n)) for n in (k, 5)},
        "accuracy": _mean(right),
        "by_right_option": {LETTERS[o]: _mean(right[labels == o]) for o in options},
        "by_chosen_option": {LETTERS[o]: _mean(right[order[:, 0] == o]) for o in options},
        "by_place": [int((place == p).sum()) for p in options],
        **_calibration(chance.max(axis=1), right),
    }


def _mean(values: Any) -> dict[str, Any] | None:
    """A mean with its interval; None of nothing."""
    return summarize(np.asarray(values, dtype=np.float64)) if len(values) else None


def _calibration(chance: Floats, right: Any) -> dict[str, Any]:
    place = np.minimum((chance * BINS).astype(int), BINS - 1)
    bins: list[dict[str, Any]] = [
        {
            "n": int(inside.sum()),
            "probability": float(chance[inside].mean()),
            "accuracy": _mean(right[inside]),
        }
        for number in range(BINS)
        if (inside := place == number).any()
    ]
    error = sum(b["n"] * abs(b["probability"] - b["accuracy"]["value"]) for b in bins)
    return {"ece": error / len(chance), "reliability": bins}


def count_questions_needed(a: Floats, b: Floats) -> dict[str, int]:
    """Return the questions that each gain of the metric takes to show, from the paired spread."""
    spread = float(np.std(a - b, ddof=1))
    return {f"{gain:g}": count_questions_for(gain, spread) for gain in GAINS}
