"""Several predictions of the same questions made into one."""

from dataclasses import dataclass

import numpy as np

from exam.config import Ensemble, EnsembleKind, Scale
from exam.evaluation.predictions import probabilities
from exam.metrics import Floats, Ints, average_precision, ranking

FOLDS = 5
POINTS = (3.0, 2.0, 1.0)  # of a voter's first, second and third choice
# Blends of more than four models overfitted 500 questions (the 21st place's write-up).
QUESTIONS_PER_WEIGHT = 125
TINY = 1e-9


def combined(
    members: list[Floats], ensemble: Ensemble, weights: list[float] | None = None
) -> Floats:
    """Scores of shape `(questions, options)` from each member's logits of that shape.

    Members count equally where no weights are given.

    Higher is better; `-inf` where a question has no such option. Of averaged and greatest
    probabilities they are the logarithms, so that softmax gives the (normalised) probabilities.
    """
    each = np.stack(members)
    missing = np.isneginf(each[0])
    given = np.ones(len(members)) if weights is None else np.asarray(weights)
    share = (given / given.sum())[:, None, None]
    if ensemble.kind is EnsembleKind.rank:
        found = -(share * _ranks(each)).sum(axis=0)
    elif ensemble.kind is EnsembleKind.vote:
        points = np.array([*(ensemble.vote_points or POINTS), *[0.0] * each.shape[2]])
        votes = (given[:, None, None] * points[_ranks(each)]).sum(axis=0)
        # Equal votes go to the more probable option, not to the first.
        found = votes + TINY * _mean(each, share, Scale.probability)
    elif ensemble.kind is EnsembleKind.max_over_contexts:
        found = np.log(np.maximum(_probabilities(each).max(axis=0), TINY))
    else:
        mean = _mean(each, share, ensemble.space)
        found = mean if ensemble.space is Scale.logit else np.log(np.maximum(mean, TINY))
    scores: Floats = np.where(missing, -np.inf, found)
    return scores


def _probabilities(each: Floats) -> Floats:
    return np.stack([probabilities(logits) for logits in each])


def _ranks(each: Floats) -> Ints:
    """Each option's place in each member's ranking, from 0."""
    return np.stack([np.argsort(ranking(logits), axis=1) for logits in each])


def _mean(each: Floats, share: Floats, of: Scale) -> Floats:
    values = (
        _probabilities(each) if of is Scale.probability else np.where(np.isneginf(each), 0.0, each)
    )
    mean: Floats = (share * values).sum(axis=0)
    return mean


@dataclass(frozen=True)
class Fitted:
    """Weights chosen for MAP@3 on questions with answers, and what that is worth."""

    weights: list[float]
    optimistic: Floats  # each question's score with the weights that it helped to choose
    nested: Floats  # the same with weights chosen on other folds


def fit_weights(members: list[Floats], labels: Ints, seed: int) -> Fitted:
    """Weights of the members' probabilities, each at least 0 and 1 in sum, that raise MAP@3 most.

    By differential evolution (Storn and Price, 1997), as MAP@3 has no gradient. Nested folds say
    what the choice is worth on questions that had no part in it.
    """
    from sklearn.model_selection import KFold

    each, nested = _probabilities(np.stack(members)), np.zeros(len(labels))
    folds = KFold(min(FOLDS, len(labels)), shuffle=True, random_state=seed)
    for inside, outside in folds.split(labels):
        weights = _best(each[:, inside], labels[inside], seed)
        nested[outside] = _scores(each[:, outside], labels[outside], weights)
    weights = _best(each, labels, seed)
    return Fitted(weights.tolist(), _scores(each, labels, weights), nested)


def _best(each: Floats, labels: Ints, seed: int) -> Floats:
    from scipy.optimize import differential_evolution

    def loss(weights: Floats) -> float:
        return -float(_scores(each, labels, weights).mean())

    number = len(each)
    equal = np.full(number, 1.0)
    drawn = np.random.default_rng(seed).random((10 * number, number))
    start = np.vstack([equal, np.eye(number), drawn])  # each alone, too
    bounds = [(0.0, 1.0)] * number
    found = differential_evolution(loss, bounds, init=start, rng=seed, maxiter=60, polish=False)
    # Where nothing is gained, equal weights are the better guess.
    chosen = found.x if found.fun < loss(equal) and found.x.sum() > 0 else equal
    weights: Floats = chosen / chosen.sum()
    return weights


def _scores(each: Floats, labels: Ints, weights: Floats) -> Floats:
    mean = np.tensordot(weights, each, axes=1)
    return average_precision(ranking(mean), labels)


def enough_questions(members: int, questions: int) -> bool:
    """Whether there are enough questions to fit that many weights."""
    return questions >= QUESTIONS_PER_WEIGHT * members
