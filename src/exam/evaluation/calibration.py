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


def summarize_predictions(predictions: Predictions, k: int) -> dict[str, Any]:
    """Return the scores of answered predictions, every mean with n and its 95 % interval.

    `by_right_option` and `by_chosen_option` are the accuracy where the right option or the first
    choice is A, B, …; `by_place` counts the ranks of the right option. `ece` is the expected
    calibration error of the first choice's probability in ten bins of equal width (Naeini and
    others, 2015).
    """
    logits, labels = predictions.logits, np.array(predictions.labels)
    order, chance = rank_options(logits), to_probabilities(logits)
    right = order[:, 0] == labels
    options = range(logits.shape[1])
    rank = np.argsort(order, axis=1)[np.arange(len(labels)), labels]
    return {
        "n": len(labels),
        **{metric_name(n): _mean(average_precision(order, labels, n)) for n in (k, 5)},
        "accuracy": _mean(right),
        "by_right_option": {LETTERS[o]: _mean(right[labels == o]) for o in options},
        "by_chosen_option": {LETTERS[o]: _mean(right[order[:, 0] == o]) for o in options},
        "by_place": [int((rank == position).sum()) for position in options],
        **_calibration(chance.max(axis=1), right),
    }


def _mean(values: Any) -> dict[str, Any] | None:
    """Return the mean with its interval; None without values."""
    return summarize(np.asarray(values, dtype=np.float64)) if len(values) else None


def _calibration(chance: Floats, right: Any) -> dict[str, Any]:
    bin_of = np.minimum((chance * BINS).astype(int), BINS - 1)
    bins: list[dict[str, Any]] = [
        {
            "n": int(inside.sum()),
            "probability": float(chance[inside].mean()),
            "accuracy": _mean(right[inside]),
        }
        for number in range(BINS)
        if (inside := bin_of == number).any()
    ]
    error = sum(b["n"] * abs(b["probability"] - b["accuracy"]["value"]) for b in bins)
    return {"ece": error / len(chance), "reliability": bins}


def count_questions_needed(a: Floats, b: Floats) -> dict[str, int]:
    """Return the questions that each gain of the metric takes to show, from the paired spread."""
    spread = float(np.std(a - b, ddof=1))
    return {f"{gain:g}": count_questions_for(gain, spread) for gain in GAINS}
