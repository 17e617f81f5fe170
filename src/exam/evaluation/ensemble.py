"""Combine several readers' predictions of the same questions: ensembles and cascades."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from exam.config import Cascade, Ensemble, EnsembleKind, Scale
from exam.evaluation.predictions import to_probabilities
from exam.metrics import Floats, Ints, average_precision, rank_options, summarize_metric

FOLDS = 5
POINTS = (3.0, 2.0, 1.0)  # of a voter's first, second and third choice
# Blends of more than four models overfitted 500 questions (the 21st place's write-up).
QUESTIONS_PER_WEIGHT = 125
TINY = 1e-9
SHARES = np.linspace(0, 1, 21)


# Ensembles.


def combine_logits(
    members: list[Floats], ensemble: Ensemble, weights: list[float] | None = None
) -> Floats:
    """Combine each member's logits `(questions, options)` into scores of that shape.

    Members have equal weights by default. Higher scores are better; `-inf` marks options that a
    question lacks. Of averaged or maximal probabilities the scores are the logarithms, so that
    softmax gives the normalised probabilities.
    """
    logits = np.stack(members)
    probabilities = to_probabilities(logits)
    ranks = np.argsort(rank_options(logits), axis=-1)  # each option's rank, from 0
    weight = (np.ones(len(members)) if weights is None else np.asarray(weights))[:, None, None]
    share = weight / weight.sum()
    mean = (share * probabilities).sum(axis=0)
    if ensemble.kind is EnsembleKind.rank:
        scores = -(share * ranks).sum(axis=0)
    elif ensemble.kind is EnsembleKind.vote:
        points = np.array([*(ensemble.vote_points or POINTS), *[0.0] * logits.shape[2]])
        # Equal votes go to the more probable option, not to the first.
        scores = (weight * points[ranks]).sum(axis=0) + TINY * mean
    elif ensemble.kind is EnsembleKind.max_over_contexts:
        scores = np.log(np.maximum(probabilities.max(axis=0), TINY))
    elif ensemble.space is Scale.logit:
        scores = (share * np.where(np.isneginf(logits), 0, logits)).sum(axis=0)
    else:
        scores = np.log(np.maximum(mean, TINY))
    combined: Floats = np.where(np.isneginf(logits[0]), -np.inf, scores)
    return combined


@dataclass(frozen=True)
class FittedWeights:
    """Weights fitted on answered questions, and each question's score with them.

    Attributes:
        weights: One for each member; they sum to 1.
        optimistic: Scores of the questions that the weights were fitted on; shape `(questions,)`.
        nested: Scores with weights that were fitted on other folds; shape `(questions,)`.
    """

    weights: list[float]
    optimistic: Floats
    nested: Floats


def fit_weights(members: list[Floats], labels: Ints, k: int, seed: int) -> FittedWeights:
    """Fit weights of the members' probabilities that maximise MAP@k, at least 0 and 1 in sum.

    MAP@k has no gradient, so differential evolution (Storn and Price, 1997) searches them. Nested
    folds estimate the score on questions that took no part in the fit.
    """
    from sklearn.model_selection import KFold

    chances, nested = to_probabilities(np.stack(members)), np.zeros(len(labels))
    folds = KFold(min(FOLDS, len(labels)), shuffle=True, random_state=seed)
    for inside, outside in folds.split(labels):
        weights = _search_weights(chances[:, inside], labels[inside], k, seed)
        nested[outside] = _score(chances[:, outside], labels[outside], weights, k)
    weights = _search_weights(chances, labels, k, seed)
    return FittedWeights(weights.tolist(), _score(chances, labels, weights, k), nested)


def _search_weights(chances: Floats, labels: Ints, k: int, seed: int) -> Floats:
    from scipy.optimize import differential_evolution

    def loss(weights: Floats) -> float:
        return -float(_score(chances, labels, weights, k).mean())

    number = len(chances)
    equal = np.ones(number)
    drawn = np.random.default_rng(seed).random((10 * number, number))
    start = np.vstack([equal, np.eye(number), drawn])  # the identity holds each single member
    bounds = [(0.0, 1.0)] * number
    best = differential_evolution(loss, bounds, init=start, rng=seed, maxiter=60, polish=False)
    # Where nothing is gained, equal weights are the better guess.
    chosen = best.x if best.fun < loss(equal) and best.x.sum() > 0 else equal
    weights: Floats = chosen / chosen.sum()
    return weights


def _score(chances: Floats, labels: Ints, weights: Floats, k: int) -> Floats:
    mean = np.tensordot(weights, chances, axes=1)
    return average_precision(rank_options(mean), labels, k)


def has_enough_questions(members: int, questions: int) -> bool:
    """Return whether that many questions suffice to fit a weight for each member."""
    return questions >= QUESTIONS_PER_WEIGHT * members


# Cascades.


def uncertainty(logits: Floats) -> Floats:
    """Return 1 minus the best option's probability of each question, shape `(questions,)`."""
    lacking: Floats = 1 - to_probabilities(logits).max(axis=1)
    return lacking


def select_uncertain(logits: Floats, cascade: Cascade, stage: int) -> Ints:
    """Return the rows that reader number `stage` (from 1) answers, in ascending order.

    These are the least certain share of all questions, or all below the threshold.
    """
    lacking = uncertainty(logits)
    if cascade.threshold is not None:
        return np.flatnonzero(1 - lacking < cascade.threshold)
    share = cascade.escalate_fraction
    if isinstance(share, list):
        share = share[stage - 1]
    return select_share(lacking, share)


def select_share(lacking: Floats, share: float) -> Ints:
    """Return the rows of a share of all questions with the greatest uncertainty; ties by row."""
    return np.sort(np.argsort(-lacking, kind="stable")[: round(share * len(lacking))])


def merge_logits(logits: Floats, rows: Ints, other: Floats) -> Floats:
    """Replace some rows of logits by another reader's, which may have fewer options."""
    merged = logits.copy()
    merged[rows] = -np.inf
    merged[rows, : other.shape[1]] = other
    return merged


def cascade_curve(
    cheap: Floats, expensive: Floats, labels: Ints, seconds: tuple[float, float], k: int
) -> list[dict[str, Any]]:
    """Return MAP@k and seconds per question over the share that the expensive reader answers.

    `seconds` are those that the cheap and the expensive reader take for a question.
    """
    lacking, points = uncertainty(cheap), []
    for share in SHARES.tolist():
        rows = select_share(lacking, share)
        logits = merge_logits(cheap, rows, expensive[rows])
        cost = seconds[0] + seconds[1] * len(rows) / len(labels)
        summary = summarize_metric(average_precision(rank_options(logits), labels, k), k)
        points.append({"share": share, **summary, "seconds_a_question": cost})
    return points
