"""Metrics on hand-worked cases."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exam.metrics import (
    average_precision,
    count_ties,
    estimate,
    find_metric,
    map_at_k,
    metric_name,
    metric_title,
    random_average_precision,
    rank_options,
    recall_at_k,
)


def test_average_precision_is_one_over_the_rank_within_k():
    logits = np.array([[5, 4, 3, 2, 1]] * 5, dtype=float)
    scores = average_precision(rank_options(logits), np.arange(5), k=3)
    assert scores.tolist() == pytest.approx([1, 1 / 2, 1 / 3, 0, 0])
    assert map_at_k(logits, np.arange(5), k=3) == pytest.approx((1 + 1 / 2 + 1 / 3) / 5)


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (1, [1, 0, 0, 0, 0]),
        (2, [1, 1 / 2, 0, 0, 0]),
        (5, [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]),
    ],
)
def test_other_k_on_hand_worked_ranks(k, expected):
    logits = np.array([[5, 4, 3, 2, 1]] * 5, dtype=float)
    scores = average_precision(rank_options(logits), np.arange(5), k)
    assert scores.tolist() == pytest.approx(expected)
    random = random_average_precision(np.array([5]), k)  # each rank is as likely as another
    assert random.tolist() == pytest.approx([np.mean(expected)])


def test_k_1_is_called_accuracy():
    assert [metric_name(k) for k in (1, 2, 5)] == ["accuracy", "map_at_2", "map_at_5"]
    titles = [metric_title(metric_name(k)) for k in (1, 2, 5)]
    assert titles == ["accuracy", "MAP@2", "MAP@5"]
    assert find_metric({"system": "s", "n": 4, "map_at_5": 0.5, "ci": [0, 1]}) == "map_at_5"
    assert find_metric({"system": "s", "recall_at_5": {}, "mrr": {}}) is None


def test_k_above_the_option_count_counts_every_rank():
    assert map_at_k(np.array([[1.0, 2.0]]), np.array([0]), k=3) == pytest.approx(1 / 2)


def test_equal_logits_are_ranked_in_option_order_and_counted():
    logits = np.array([[1.0, 1.0, 0.0], [3.0, 2.0, 1.0]])
    assert rank_options(logits).tolist() == [[0, 1, 2], [0, 1, 2]]
    assert count_ties(logits) == 1


def test_options_that_a_question_lacks_come_last_and_are_no_ties():
    logits = np.array([[-5.0, 1.0, -np.inf, -np.inf]])
    assert rank_options(logits).tolist() == [[1, 0, 2, 3]]
    assert count_ties(logits) == 0


def test_nan_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        rank_options(np.array([[np.nan, 1.0]]))


def test_random_order_of_five_options_scores_11_thirtieths():
    assert random_average_precision(np.array([5, 2]), k=3).tolist() == pytest.approx(
        [11 / 30, 0.75]
    )


@given(
    st.integers(2, 6).flatmap(
        lambda n: st.tuples(
            st.lists(st.integers(-3, 3), min_size=n, max_size=n), st.integers(0, n - 1)
        )
    ),
    st.integers(1, 8),
)
def test_map_equals_its_definition(case, k):
    logits, label = case
    rank = 1 + sum(v > logits[label] for v in logits)
    rank += sum(v == logits[label] for v in logits[:label])
    expected = 1 / rank if rank <= k else 0.0
    assert map_at_k(np.array([logits], dtype=float), np.array([label]), k) == pytest.approx(
        expected
    )


def test_interval_of_a_coin_is_that_of_the_binomial():
    scores = np.array([0.0, 1.0] * 200)
    interval = estimate(scores)
    assert interval.value == 0.5
    assert (interval.low, interval.high) == pytest.approx((0.451, 0.549), abs=0.006)
    assert estimate(scores) == interval  # seeded


def test_recall_counts_ranks_up_to_k():
    assert recall_at_k(np.array([1, 3, np.inf]), 3).tolist() == [1, 1, 0]


@pytest.mark.parametrize("n", [7, 40, 400])
@pytest.mark.parametrize("values", [3, 1000])
def test_intervals_are_those_of_scipy(n, values):
    from scipy.stats import bootstrap

    random = np.random.default_rng(5)
    scores = random.integers(0, values, n) / values
    interval = estimate(scores, seed=3)
    expected = bootstrap(
        (scores,), np.mean, n_resamples=10_000, method="percentile", batch=500, rng=random
    ).confidence_interval
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_equal_scores_have_no_interval():
    constant, single = estimate(np.full(40, 0.25)), estimate(np.array([0.5]))
    assert vars(constant) == {"n": 40, "value": 0.25, "low": 0.25, "high": 0.25}
    assert vars(single) == {"n": 1, "value": 0.5, "low": 0.5, "high": 0.5}


def test_the_interval_over_seeds_covers_their_spread():
    random = np.random.default_rng(0)
    questions = random.normal(0.5, 0.1, 400)
    seeds = np.array([-0.1, 0.0, 0.1])  # a standard error of 0.1 / √3
    several = estimate(questions + seeds[:, None])
    assert several.n == 400
    assert several.value == pytest.approx(estimate(questions).value)
    # three draws of three values: all the lowest one time in 27, after the correction by √(3/2)
    assert several.low == pytest.approx(several.value - 0.1 * 1.5**0.5, abs=0.015)
    assert several.high == pytest.approx(several.value + 0.1 * 1.5**0.5, abs=0.015)
    equal = estimate(np.tile(questions, (3, 1)))
    alone = estimate(questions)
    assert (equal.low, equal.high) == pytest.approx((alone.low, alone.high), abs=0.002)


def test_a_difference_of_one_seed_is_within_the_noise_of_three():
    random = np.random.default_rng(1)
    gains = random.normal(0, 0.3, (3, 250)) + np.array([0.19, 0.02, 0.04])[:, None]
    assert estimate(gains[0]).low > 0
    assert estimate(gains).low < estimate(gains.mean(axis=0)).low


def test_repeated_questions_do_not_narrow_the_interval():
    scores = np.random.default_rng(2).integers(0, 2, 100).astype(float)
    once, four = estimate(scores), np.tile(scores, 4)
    clustered = estimate(four, groups=np.tile(np.arange(100), 4))
    assert (clustered.low, clustered.high) == pytest.approx((once.low, once.high), abs=0.02)
    assert estimate(four).high - estimate(four).low < 0.6 * (once.high - once.low)
