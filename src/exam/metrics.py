"""Ranking metrics and their uncertainty; imports nothing of exam."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
RESAMPLES = 10_000
CROSSED_RESAMPLES = 2_000  # of trainings and questions
FEW = 100  # distinct values: counting them is faster than drawing every question


def metric_name(k: int) -> str:
    """Return the name of MAP@k in files and logs: `map_at_<k>`, and `accuracy` for k = 1."""
    return "accuracy" if k == 1 else f"map_at_{k}"


def metric_title(name: str) -> str:
    """Return the title of a metric in tables, such as `MAP@3` for `map_at_3`."""
    return name.replace("map_at_", "MAP@")


def find_metric(names: Iterable[str]) -> str | None:
    """Return the name of MAP@k among the columns of a result; None if no column has one."""
    return next((name for name in names if name == "accuracy" or name.startswith("map_at_")), None)


def rank_options(logits: Floats) -> Ints:
    """Return the options of `(…, options)` logits from best to worst; ties keep their order.

    Options that a question lacks have the logit `-inf` and come last.

    Raises:
        ValueError: a logit is NaN.
    """
    if np.isnan(logits).any():
        raise ValueError("logits contain NaN")
    return np.argsort(-np.asarray(logits, dtype=np.float64), axis=-1, kind="stable")


def count_ties(logits: Floats) -> int:
    """Count the questions with two equal finite logits, where the order of the options decides."""
    ordered = np.sort(logits, axis=1)
    equal = (ordered[:, 1:] == ordered[:, :-1]) & np.isfinite(ordered[:, 1:])
    return int(equal.any(axis=1).sum())


def average_precision(order: Ints, labels: Ints, k: int) -> Floats:
    """Return 1 / rank of each question's right option within the first `k` ranks, else 0.

    With one right option this is its average precision at k; the mean is MAP@k as the
    competition defines it. Shapes: order `(questions, options)`, labels `(questions,)`.
    """
    hits = order[:, :k] == labels[:, None]
    scores: Floats = hits @ (1.0 / np.arange(1, hits.shape[1] + 1))
    return scores


def map_at_k(logits: Floats, labels: Ints, k: int) -> float:
    """Return the mean average precision at k of logits `(questions, options)`."""
    return float(average_precision(rank_options(logits), labels, k).mean())


def random_average_precision(options: Ints, k: int) -> Floats:
    """Return the expected average precision at k of a random order, for numbers of options."""
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, k + 1))])
    expected: Floats = harmonic[np.minimum(options, k)] / options
    return expected


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` questions with its 95 % percentile-bootstrap interval."""

    n: int
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] (n = {self.n})"


def estimate(scores: Floats, seed: int = 0, groups: Ints | None = None) -> Estimate:
    """Estimate the mean of per-question scores, shape `(questions,)`.

    For a paired comparison pass differences. The interval is that of `scipy.stats.bootstrap`
    (percentile method). If scores have few distinct values, as average precision does, a resample
    is a draw of their counts from a multinomial distribution.

    Scores of several trainings, shape `(trainings, questions)`, are resampled over both. Questions
    of one of `groups` stay together.
    """
    if scores.ndim == 2 or groups is not None:
        return _estimate_crossed(np.atleast_2d(scores), seed, groups)
    n, value = len(scores), float(np.mean(scores))
    values, counts = np.unique(scores, return_counts=True)
    if len(values) == 1:
        return Estimate(n, value, value, value)
    random = np.random.default_rng(seed)
    if len(values) > FEW:
        from scipy.stats import bootstrap

        resampled = bootstrap(
            (scores,), np.mean, n_resamples=RESAMPLES, method="percentile", batch=500, rng=random
        )
        return Estimate(n, value, *map(float, resampled.confidence_interval))
    means = random.multinomial(n, counts / n, RESAMPLES) @ values / n
    return Estimate(n, value, *np.percentile(means, (2.5, 97.5)).tolist())


def _estimate_crossed(scores: Floats, seed: int, groups: Ints | None) -> Estimate:
    """Resample trainings and groups of questions independently (Owen 2007, "pigeonhole bootstrap").

    A bootstrap of S trainings understates their variance by a factor of (S - 1) / S, so that their
    deviations from the mean are first enlarged.
    """
    trainings, n = scores.shape
    means = scores.mean(axis=1, keepdims=True)
    value = float(means.mean())
    if trainings > 1:
        scores = scores + (means - value) * ((trainings / (trainings - 1)) ** 0.5 - 1)
    group = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(group)
    sums = np.stack([np.bincount(group, weights=row) for row in scores])
    random = np.random.default_rng(seed)
    resampled = []
    for _ in range(CROSSED_RESAMPLES):
        drawn = np.bincount(random.integers(len(sizes), size=len(sizes)), minlength=len(sizes))
        runs = random.integers(trainings, size=trainings)
        resampled.append((sums[runs] @ drawn).mean() / (sizes @ drawn))
    return Estimate(n, value, *np.percentile(resampled, (2.5, 97.5)).tolist())


def summarize(scores: Floats, groups: Ints | None = None) -> dict[str, Any]:
    """Return `estimate` as results.json keeps it: n, value, and the ends of the interval."""
    mean = estimate(scores, groups=groups)
    return {"n": mean.n, "value": mean.value, "ci": [mean.low, mean.high]}


def summarize_metric(scores: Floats, k: int, groups: Ints | None = None) -> dict[str, Any]:
    """Return `summarize` of average precision at k, with the value under the metric's name."""
    summary = summarize(scores, groups)
    return {"n": summary["n"], metric_name(k): summary["value"], "ci": summary["ci"]}


def count_questions_for(difference: float, spread: float) -> int:
    """Return the questions that a difference of means takes to leave a 95 % interval.

    `spread` is the standard deviation of a question's paired difference.
    """
    return round((1.96 * spread / difference) ** 2)


def recall_at_k(ranks: Floats, k: int) -> Floats:
    """Return 1 for each rank (from 1; inf if absent) within the first `k`, else 0."""
    return (ranks <= k).astype(np.float64)
