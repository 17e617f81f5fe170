"""Answers to questions that a run learned from are named, and scored apart."""

import csv
import json
import logging

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import kaggle_rows, make_place, setting, write_csv

from exam.config.compose import compose_config
from exam.core.artifacts import load_stage
from exam.core.logging import quiet_libraries
from exam.evaluation.learned import LEARNED
from exam.evaluation.predictions import read_predictions
from exam.metrics import average_precision, rank_options
from exam.pipelines.infer import run_infer
from exam.pipelines.stress import run_stress
from exam.pipelines.train import train_reader
from exam.report.compare import compare_runs

TOOLS = ["hammer", "saw", "drill", "chisel", "plane"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A lexical run, and a file of three training questions and five others."""
    folder = make_place(tmp_path_factory.mktemp("learned"))
    known = kaggle_rows(3)
    known[1] |= {"A": known[1]["B"], "B": known[1]["A"], "answer": "A"}  # in another order
    known[2]["prompt"] = known[2]["prompt"].replace("Question", "question").rstrip("?")
    new = [
        {
            "id": f"new{i}",
            "prompt": f"Which tool of the joiner has the serial number {i}?",
            **{letter: f"the {tool} {i}" for letter, tool in zip("ABCDE", TOOLS, strict=True)},
            "answer": "ABCDE"[i],
        }
        for i in range(5)
    ]
    write_csv(folder / "questions" / "mixed.csv", known + new)
    write_csv(folder / "questions" / "new.csv", new)
    write_csv(folder / "questions" / "known.csv", known)
    words = setting(folder, "retriever=bm25", "model=lexical")
    return folder, train_reader(compose_config("train", *words)).stage.folder


def command(place, verb, test, *more):
    folder, run = place
    words = ["data=kaggle", f"data.dir={folder / 'questions'}", f"outputs={folder / 'outputs'}"]
    return compose_config(verb, f"ckpt={run}", *words, f"data.test={test}", *more)


def test_a_run_holds_the_questions_it_learned_from(place):
    _, run = place
    assert LEARNED in load_stage(run).files
    ids = pq.read_table(run / LEARNED)["id"].to_pylist()
    assert sorted(ids, key=int) == [str(i) for i in range(40)]  # training and dev questions


def test_infer_scores_learned_questions_apart(place, caplog):
    quiet_libraries()
    with caplog.at_level(logging.INFO, logger="exam"):
        folder = run_infer(command(place, "infer", "mixed.csv")).stage.folder
        assert run_infer(command(place, "infer", "mixed.csv")).stage.reused
    warnings = [r.getMessage() for r in caplog.records if "learned from" in r.getMessage()]
    assert len(warnings) == 2  # also of reused answers
    assert all("3 of 8" in text and "0, 1, 2." in text for text in warnings)
    results = json.loads((folder / "results.json").read_text())
    answers = read_predictions(folder / "predictions.parquet")
    scores = average_precision(rank_options(answers.logits), np.array(answers.known), 3)
    by_name = {row["system"]: (row["n"], row["map_at_3"]) for row in results["rows"][-3:]}
    assert by_name == {
        f"{folder.name}: questions it learned from": (3, pytest.approx(scores[:3].mean())),
        f"{folder.name}: other questions": (5, pytest.approx(scores[3:].mean())),
        folder.name: (8, pytest.approx(scores.mean())),
    }
    assert "3 of 8" in results["warnings"][0]
    assert "3 of 8" in (folder / "report.html").read_text()


def test_new_questions_are_scored_as_before(place):
    folder = run_infer(command(place, "infer", "new.csv")).stage.folder
    results = json.loads((folder / "results.json").read_text())
    assert not any("learned" in row["system"] for row in results["rows"])
    assert "warnings" not in results


def test_learned_questions_only(place):
    folder = run_infer(command(place, "infer", "known.csv")).stage.folder
    rows = json.loads((folder / "results.json").read_text())["rows"]
    assert [row["n"] for row in rows] == [3] * len(rows)
    assert rows[-2]["system"].endswith("questions it learned from")


def test_stress_scores_learned_questions_apart(place, capsys):
    run_stress(command(place, "stress", "mixed.csv"))
    folder, run = place
    (stage,) = (folder / "outputs" / "stress").glob(f"{run.name}-*")
    rows = json.loads((stage / "results.json").read_text())["rows"]
    assert [(row["system"], row["n"]) for row in rows[-2:]] == [
        ("as given: questions it learned from", 3),
        ("as given: other questions", 5),
    ]
    assert "3 of 8" in capsys.readouterr().out


def test_repeated_questions_widen_no_less_than_single_ones(place):
    """Each question twice says as much as each once: the interval must not shrink."""
    folder, _ = place
    widths = {}
    once = list(csv.DictReader((folder / "questions" / "new.csv").open(encoding="utf-8")))
    for name, copies in {"once.csv": 1, "twice.csv": 2}.items():
        rows = [{**row, "id": f"{row['id']}-{i}"} for i in range(copies) for row in once]
        write_csv(folder / "questions" / name, rows)
        run = run_infer(command(place, "infer", name))
        rows = {
            row["system"]: row
            for row in json.loads((run.folder / "results.json").read_text())["rows"]
        }
        low, high = rows["longest option first"]["ci"]
        assert rows["longest option first"]["n"] == 5 * copies
        widths[name] = high - low
    assert widths["twice.csv"] == pytest.approx(widths["once.csv"], rel=0.2)


def test_compared_runs_keep_repetitions_together(place):
    widths = {}
    for name in ("once.csv", "twice.csv"):
        first = run_infer(command(place, "infer", name)).folder
        second = run_infer(command(place, "infer", name, "run.context.num_passages=1")).folder
        target = first / "compared.json"
        compare_runs([first, second], target)
        low, high = json.loads(target.read_text())["rows"][-1]["ci"]
        widths[name] = high - low
    assert widths["twice.csv"] == pytest.approx(widths["once.csv"], rel=0.2)
