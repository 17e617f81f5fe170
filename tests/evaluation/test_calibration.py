"""Accuracy by letter and calibration on numbers worked out by hand."""

import numpy as np
import pytest

from exam.evaluation.calibration import count_questions_needed, summarize_predictions
from exam.evaluation.predictions import Predictions


def test_statistics_worked_out_by_hand():
    chances = [[0.72, 0.18, 0.1], [0.62, 0.28, 0.1], [0.1, 0.15, 0.75], [0.35, 0.33, 0.32]]
    statistics = summarize_predictions(
        Predictions(list("wxyz"), np.log(np.array(chances)), [0, 1, 2, 2], "r", "c"), 3
    )
    assert statistics["n"] == 4
    assert statistics["accuracy"]["value"] == 0.5
    assert statistics["map_at_3"]["value"] == pytest.approx((1 + 1 / 2 + 1 + 1 / 3) / 4)
    assert {k: v["value"] for k, v in statistics["by_right_option"].items()} == {
        "A": 1,
        "B": 0,
        "C": 0.5,
    }
    chosen = {k: v and v["value"] for k, v in statistics["by_chosen_option"].items()}
    assert chosen == {"A": pytest.approx(1 / 3), "B": None, "C": 1}
    assert statistics["by_place"] == [2, 1, 1]
    # Bins .7-.8: two right, mean .735; .6-.7: one wrong, .62; .3-.4: one wrong, .35.
    assert statistics["ece"] == pytest.approx((2 * 0.265 + 0.62 + 0.35) / 4)


def test_a_reader_compared_with_a_better_one_needs_few_questions():
    a, b = np.tile([1.0, 0.5], 50), np.tile([0.5, 0.5], 50)
    spread = np.std(a - b, ddof=1)
    assert count_questions_needed(a, b)["0.05"] == round((1.96 * spread / 0.05) ** 2)
