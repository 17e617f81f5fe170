"""The table of a sweep: sorted by the questions that chose checkpoints, paired on the others."""

import numpy as np
import pytest

from exam.core.files import write_json
from exam.evaluation.predictions import Predictions, write_predictions
from exam.evaluation.results import format_table
from exam.pipelines.sweep import _pair_first, _sort_by_fold

LABELS = [0, 1, 2, 0]


def make_row(folder, name, first_choices, best, ids="abcd"):
    """A finished job's row; its reader ranks one option first in each question."""
    path = folder / name
    path.mkdir()
    logits = np.eye(3)[first_choices]
    write_predictions(
        path / "predictions.parquet", [Predictions([*ids], logits, LABELS, name, "c")]
    )
    score = float(np.mean(np.array(first_choices) == LABELS))
    row = {"system": name, "n": 4, "accuracy": score, "ci": [0.0, 1.0]}
    write_json(path / "results.json", {"rows": [row]})
    if best is not None:
        write_json(path / "training.json", {"best": best})
    return {**row, "results": str(path / "results.json")}


def test_jobs_are_sorted_by_the_fold_and_paired_on_the_reported_questions(tmp_path):
    rows = [
        make_row(tmp_path, "lucky", LABELS, best=0.5),  # right in all reported questions
        make_row(tmp_path, "chosen", [0, 1, 0, 1], best=0.7),
        make_row(tmp_path, "without", [0, 0, 0, 0], best=None),
        make_row(tmp_path, "other", LABELS, best=0.6, ids="wxyz"),
    ]
    ranked = _sort_by_fold(rows)
    assert [row["system"] for row in ranked] == ["chosen", "other", "lucky", "without"]
    assert [row.get("selection_score") for row in ranked] == [0.7, 0.6, 0.5, None]
    pairs = _pair_first(ranked, "accuracy")
    differences = {(pair["a"], pair["b"]): pair["difference"] for pair in pairs}
    assert differences == {("chosen", "lucky"): -0.5, ("chosen", "without"): pytest.approx(0.0)}
    table = format_table({"rows": ranked, "paired": pairs}).splitlines()
    assert table[0].endswith("accuracy on the checkpoint fold")
    assert table[1].split() == ["chosen", "4", "0.500", "[0.000,", "1.000]", "0.700"]


def test_answers_without_a_fold_keep_their_order(tmp_path):
    rows = [make_row(tmp_path, name, LABELS, best=None) for name in ("two", "one")]
    assert _sort_by_fold(rows) == rows
    assert "fold" not in format_table({"rows": rows, "paired": []})


def test_jobs_of_several_seeds_are_paired_over_seeds_and_questions(tmp_path):
    def make_job(name, *choices):
        """A job's row, with one reader for each seed."""
        for seed, first_choices in enumerate(choices):
            (tmp_path / "train").mkdir(exist_ok=True)
            make_row(tmp_path / "train", f"{name}{seed}", first_choices, best=None)
        folder = tmp_path / "seeds" / name
        folder.mkdir(parents=True)
        runs = [f"train/{name}{seed}" for seed in range(len(choices))]
        seeds = {"runs": runs, "groups": [0, 1, 2, 2]}
        write_json(folder / "results.json", {"rows": [], "seeds": seeds})
        return {"system": name, "results": str(folder / "results.json")}

    good = make_job("good", LABELS, LABELS)
    half = make_job("half", [0, 1, 0, 1], LABELS)
    third = make_job("third", LABELS, LABELS, LABELS)
    single = make_row(tmp_path, "single", [0, 0, 0, 0], best=None)
    pairs = _pair_first([good, half, third, single], "accuracy")
    assert [(pair["b"], pair["difference"], pair["n"]) for pair in pairs] == [
        ("half", 0.25, 4),
        ("single", 0.5, 4),
    ]
    low, high = pairs[0]["ci"]
    assert low < 0.0 < high  # two seeds differ more than four questions say
    assert _pair_first([{**third, "results": single["results"]}, good], "accuracy")
