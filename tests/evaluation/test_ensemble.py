"""Ensembles and cascades on numbers worked out by hand."""

import numpy as np
import pytest

from exam.config import Cascade, Ensemble, EnsembleKind, Scale
from exam.evaluation.ensemble import (
    cascade_curve,
    combine_logits,
    fit_weights,
    has_enough_questions,
    merge_logits,
    select_share,
    select_uncertain,
)
from exam.evaluation.predictions import to_probabilities
from exam.metrics import map_at_k, rank_options

LOG = np.log


def of(kind, **more):
    return Ensemble(kind.value, kind, **more)


# Two readers: the first sure of A, the second mildly for B, then C.
A = LOG(np.array([[0.90, 0.06, 0.04]]))
B = LOG(np.array([[0.10, 0.50, 0.40]]))


def test_mean_of_probabilities_and_of_logits():
    mean = combine_logits([A, B], of(EnsembleKind.mean))
    assert to_probabilities(mean) == pytest.approx(np.array([[0.50, 0.28, 0.22]]))
    logits = combine_logits([A, B], of(EnsembleKind.mean, space=Scale.logit))
    assert logits == pytest.approx((A + B) / 2)
    weighted = combine_logits([A, B], of(EnsembleKind.mean), [1, 3])
    assert to_probabilities(weighted) == pytest.approx(np.array([[0.30, 0.39, 0.31]]))


def test_rank_is_the_mean_place():
    assert combine_logits([A, B], of(EnsembleKind.rank)) == pytest.approx(
        -np.array([[1.0, 0.5, 1.5]])
    )


def test_votes_give_three_two_and_one_points_and_weights_multiply_them():
    votes = combine_logits([A, B], of(EnsembleKind.vote))
    assert votes == pytest.approx(np.array([[3 + 1, 2 + 3, 1 + 2]]), abs=1e-6)
    weighted = combine_logits([A, B], of(EnsembleKind.vote), [3, 1])
    assert weighted == pytest.approx(np.array([[9 + 1, 6 + 3, 3 + 2]]), abs=1e-6)
    winner = combine_logits([A, B], of(EnsembleKind.vote, vote_points=[1, 0, 0]))
    assert rank_options(winner).tolist() == [[0, 1, 2]]  # a tie of votes: A is the more probable


def test_the_maximum_over_contexts_is_of_probabilities():
    result = combine_logits([A, B + 5], of(EnsembleKind.max_over_contexts))
    assert np.exp(result) == pytest.approx(np.array([[0.90, 0.50, 0.40]]))


@pytest.mark.parametrize("kind", [k for k in EnsembleKind if k is not EnsembleKind.fitted])
def test_options_that_a_question_lacks_stay_away(kind):
    short = np.array([[0.3, 0.1, -np.inf], [1.0, 2.0, 3.0]])
    result = combine_logits([short, short + 1], of(kind))
    assert np.isneginf(result).tolist() == [[False, False, True], [False, False, False]]
    assert rank_options(result).tolist() == [[0, 1, 2], [2, 1, 0]]


def noisy(labels, rate, seed):
    """Logits that put the right option first at a rate."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(len(labels), 5))
    sure = random.random(len(labels)) < rate
    logits[sure, labels[sure]] += 4
    return logits


def test_fitted_weights_prefer_the_reader_that_knows_more():
    labels = np.random.default_rng(0).integers(0, 5, 300)
    good, bad = noisy(labels, 0.7, 1), noisy(labels, 0.0, 2)
    result = fit_weights([bad, good], labels, 3, seed=0)
    assert sum(result.weights) == pytest.approx(1)
    assert result.weights[1] > 0.7
    alone = map_at_k(good, labels, 3)
    assert result.optimistic.mean() >= alone - 1e-9
    assert result.nested.mean() <= result.optimistic.mean()
    assert result.nested.mean() > alone - 0.03
    assert result.nested.shape == (300,)


def test_fitted_weights_follow_k():
    """The first member ranks every right option second: worthless for accuracy, not for MAP@2."""
    labels = np.zeros(40, dtype=np.int64)
    second = np.tile([1.0, 2.0, 0.0], (40, 1))
    never = np.tile([0.0, 1.0, 2.0], (40, 1))
    assert fit_weights([second, never], labels, 1, seed=0).optimistic.mean() == 0
    assert fit_weights([second, never], labels, 2, seed=0).optimistic.mean() == 0.5


def test_equal_weights_where_nothing_is_gained():
    labels = np.array([0, 1, 2, 3, 4] * 4)
    same = noisy(labels, 1.0, 3)
    assert fit_weights([same, same], labels, 3, seed=0).weights == [0.5, 0.5]


def test_how_many_weights_questions_carry():
    assert has_enough_questions(4, 500)
    assert not has_enough_questions(5, 500)


# Cascades.


def test_the_least_sure_are_asked_further():
    sure = LOG(np.array([[0.9, 0.1], [0.55, 0.45], [0.3, 0.7], [0.52, 0.48]]))
    assert select_uncertain(sure, Cascade(escalate_fraction=0.5), 1).tolist() == [1, 3]
    assert select_uncertain(sure, Cascade(threshold=0.75), 1).tolist() == [1, 2, 3]
    assert select_uncertain(sure, Cascade(escalate_fraction=[0.75, 0.25]), 2).tolist() == [3]
    assert select_share(np.zeros(4), 0.5).tolist() == [0, 1]
    changed = merge_logits(sure, np.array([1, 3]), np.zeros((2, 2)))
    assert changed.tolist() == [sure[0].tolist(), [0, 0], sure[2].tolist(), [0, 0]]


def test_a_further_reader_may_have_fewer_options():
    result = merge_logits(
        np.array([[1.0, 2.0, 3.0], [3.0, 2.0, -np.inf]]), np.array([1]), np.zeros((1, 2))
    )
    assert result.tolist() == [[1, 2, 3], [0, 0, -np.inf]]


def test_the_curve_begins_with_one_reader_and_ends_with_the_other():
    labels = np.random.default_rng(0).integers(0, 5, 60)
    cheap, expensive = noisy(labels, 0.3, 1), noisy(labels, 0.9, 2)
    result = cascade_curve(cheap, expensive, labels, (0.1, 2.0), 3)
    assert result[0]["map_at_3"] == pytest.approx(map_at_k(cheap, labels, 3))
    assert result[-1]["map_at_3"] == pytest.approx(map_at_k(expensive, labels, 3))
    assert [result[0]["seconds_a_question"], result[-1]["seconds_a_question"]] == [0.1, 2.1]
    assert [point["share"] for point in result] == pytest.approx(np.linspace(0, 1, 21).tolist())
