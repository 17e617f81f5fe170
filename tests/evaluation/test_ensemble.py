"""Ensembles, cascades and statistics on numbers worked out by hand."""

import numpy as np
import pytest

from exam.config import Cascade, Ensemble, EnsembleKind, Scale
from exam.evaluation.calibration import count_questions_needed, summarize_predictions
from exam.evaluation.ensemble import (
    cascade_curve,
    combine_logits,
    fit_weights,
    has_enough_questions,
    merge_logits,
    select_share,
    select_uncertain,
)
from exam.evaluation.predictions import Predictions, to_probabilities
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
    found = combine_logits([A, B + 5], of(EnsembleKind.max_over_contexts))
    assert np.exp(found) == pytest.approx(np.array([[0.90, 0.50, 0.40]]))


@pytest.mark.parametrize("kind", [k for k in EnsembleKind if k is not EnsembleKind.fitted])
def test_options_that_a_question_lacks_stay_away(kind):
    short = np.array([[0.3, 0.1, -np.inf], [1.0, 2.0, 3.0]])
    found = combine_logits([short, short + 1], of(kind))
    assert np.isneginf(found).tolist() == [[False, False, True], [False, False, False]]
    assert rank_options(found).tolist() == [[0, 1, 2], [2, 1, 0]]


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
    found = fit_weights([bad, good], labels, 3, seed=0)
    assert sum(found.weights) == pytest.approx(1)
    assert found.weights[1] > 0.7
    alone = map_at_k(good, labels, 3)
    assert found.optimistic.mean() >= alone - 1e-9
    assert found.nested.mean() <= found.optimistic.mean()
    assert found.nested.mean() > alone - 0.03
    assert found.nested.shape == (300,)


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


def test_the_least_sure_are_asked_further():
    sure = LOG(np.array([[0.9, 0.1], [0.55, 0.45], [0.3, 0.7], [0.52, 0.48]]))
    assert select_uncertain(sure, Cascade(escalate_fraction=0.5), 1).tolist() == [1, 3]
    assert select_uncertain(sure, Cascade(threshold=0.75), 1).tolist() == [1, 2, 3]
    assert select_uncertain(sure, Cascade(escalate_fraction=[0.75, 0.25]), 2).tolist() == [3]
    assert select_share(np.zeros(4), 0.5).tolist() == [0, 1]
    changed = merge_logits(sure, np.array([1, 3]), np.zeros((2, 2)))
    assert changed.tolist() == [sure[0].tolist(), [0, 0], sure[2].tolist(), [0, 0]]


def test_a_further_reader_may_have_fewer_options():
    found = merge_logits(
        np.array([[1.0, 2.0, 3.0], [3.0, 2.0, -np.inf]]), np.array([1]), np.zeros((1, 2))
    )
    assert found.tolist() == [[1, 2, 3], [0, 0, -np.inf]]


def test_the_curve_begins_with_one_reader_and_ends_with_the_other():
    labels = np.random.default_rng(0).integers(0, 5, 60)
    cheap, dear = noisy(labels, 0.3, 1), noisy(labels, 0.9, 2)
    found = cascade_curve(cheap, dear, labels, (0.1, 2.0), 3)
    assert found[0]["map_at_3"] == pytest.approx(map_at_k(cheap, labels, 3))
    assert found[-1]["map_at_3"] == pytest.approx(map_at_k(dear, labels, 3))
    assert [found[0]["seconds_a_question"], found[-1]["seconds_a_question"]] == [0.1, 2.1]
    assert [point["share"] for point in found] == pytest.approx(np.linspace(0, 1, 21).tolist())


def test_statistics_worked_out_by_hand():
    chances = [[0.72, 0.18, 0.1], [0.62, 0.28, 0.1], [0.1, 0.15, 0.75], [0.35, 0.33, 0.32]]
    found = summarize_predictions(
        Predictions(list("wxyz"), LOG(np.array(chances)), [0, 1, 2, 2], "r", "c"), 3
    )
    assert found["n"] == 4
    assert found["accuracy"]["value"] == 0.5
    assert found["map_at_3"]["value"] == pytest.approx((1 + 1 / 2 + 1 + 1 / 3) / 4)
    assert {k: v["value"] for k, v in found["by_right_option"].items()} == {
        "A": 1,
        "B": 0,
        "C": 0.5,
    }
    chosen = {k: v and v["value"] for k, v in found["by_chosen_option"].items()}
    assert chosen == {"A": pytest.approx(1 / 3), "B": None, "C": 1}
    assert found["by_place"] == [2, 1, 1]
    # Bins .7-.8: two right, mean .735; .6-.7: one wrong, .62; .3-.4: one wrong, .35.
    assert found["ece"] == pytest.approx((2 * 0.265 + 0.62 + 0.35) / 4)


def test_a_reader_compared_with_a_better_one_needs_few_questions():
    a, b = np.tile([1.0, 0.5], 50), np.tile([0.5, 0.5], 50)
    spread = np.std(a - b, ddof=1)
    assert count_questions_needed(a, b)["0.05"] == round((1.96 * spread / 0.05) ** 2)
