"""Contexts compared without a neural reader; the lexical reader on the command line."""

import json
import re
import shutil

import numpy as np
import pytest
from helpers import make_place, setting, write_csv

import exam
from exam.config.compose import compose_config
from exam.core.artifacts import open_stage
from exam.core.errors import ExamError
from exam.evaluation.predictions import Predictions, write_predictions
from exam.pipelines.infer import run_infer
from exam.pipelines.retrieve import run_retrieve
from exam.pipelines.train import train_reader
from exam.report.compare import compare_context_folders, compare_runs

WORDS = "chunking.chunk_words=20"


@pytest.fixture(scope="module")
def retrieved(tmp_path_factory):
    """A folder with BM25 and TF-IDF contexts of train (40), valid (10) and test questions."""
    folder = make_place(tmp_path_factory.mktemp("compared"))
    articles = folder / "articles.jsonl"  # a number would point to two animals
    articles.write_text(re.sub(r" It is number \d\.", "", articles.read_text()))
    rows = [{"question": str(i), "article": f"a{i % 10}"} for i in range(40, 50)]
    write_csv(folder / "questions" / "valid_qrels.csv", rows)
    for retriever in ("bm25", "tfidf"):
        run_retrieve(compose_config("retrieve", *setting(folder, WORDS), f"retriever={retriever}"))
    return folder


@pytest.fixture
def place(retrieved, tmp_path):
    shutil.copytree(retrieved, tmp_path / "place")
    return tmp_path / "place"


def contexts(place, name):
    (folder,) = place.glob(f"outputs/contexts/kaggle-{name}-????????")
    return folder


def test_retrieve_evaluates_what_has_answers(retrieved):
    folders = sorted(p.name[:-18] for p in retrieved.glob("outputs/evaluation/[!.]*"))
    assert folders == ["kaggle-train-bm25", "kaggle-train-tfidf", "kaggle-valid-bm25",
                       "kaggle-valid-tfidf"]  # fmt: skip
    (path,) = retrieved.glob("outputs/evaluation/kaggle-valid-bm25-*/results.json")
    (row,) = json.loads(path.read_text())["rows"]
    assert row["lexical_reader"] == contexts(retrieved, "train-bm25").name
    assert row["n"] == row["recall_at_5"]["n"] == row["supported"]["n"] == 10
    assert row["recall_at_5"]["value"] == 1.0
    assert row["map_at_3"] > 0.8  # the place stands beside the animal's name


def test_compare_pairs_contexts_and_draws_them(retrieved, tmp_path):
    folders = [contexts(retrieved, f"valid-{kind}") for kind in ("bm25", "tfidf")]
    fit_on = [contexts(retrieved, f"train-{kind}") for kind in ("bm25", "tfidf")]
    printed = compare_context_folders(folders, fit_on, tmp_path / "compared.json")
    figures = json.loads((tmp_path / "compared.json").read_text())
    assert (tmp_path / "compared.png").read_bytes().startswith(b"\x89PNG")
    assert [row["system"] for row in figures["rows"]] == [f.name for f in folders]
    metrics = {"recall_at_1", "recall_at_3", "mrr", "supported", "map_at_3"}
    assert metrics <= {pair["metric"] for pair in figures["paired"]}
    first, second = (row["mrr"]["value"] for row in figures["rows"])
    (pair,) = [pair for pair in figures["paired"] if pair["metric"] == "mrr"]
    assert pair["difference"] == pytest.approx(first - second)
    assert figures["seconds"].keys() == figures["curves"].keys() == {f.name for f in folders}
    recall = [p["value"] for p in figures["curves"][folders[0].name]["recall"]]
    assert recall == sorted(recall)
    lines = printed.splitlines()
    assert lines[0].split()[:3] == ["contexts", "recall_at_1", "recall_at_3"]
    assert lines[1].startswith(folders[0].name)
    assert any(line.startswith(f"map_at_3: {folders[0].name} − ") for line in lines)


def test_without_other_questions_the_reader_is_cross_fitted(retrieved, tmp_path):
    compare_context_folders([contexts(retrieved, "train-bm25")], [], tmp_path / "c.json")
    (row,) = json.loads((tmp_path / "c.json").read_text())["rows"]
    assert (row["lexical_reader"], row["n"]) == ("cross-fitted", 40)
    assert "mrr" not in row  # no qrels beside train.csv


def test_a_comparison_repeats_the_warnings_of_its_runs(tmp_path):
    folders = []
    for name in ("lucky", "flat"):
        with open_stage(tmp_path, "train", name, {"name": name}) as stage:
            answers = Predictions(["a", "b"], np.eye(2), [0, 1], name, "c")
            write_predictions(stage.folder / "predictions.parquet", [answers])
            stage.finish(
                ["predictions.parquet"], warnings=["flat did not learn"] * (name == "flat")
            )
        folders.append(stage.folder)
    evaluation = exam.evaluate(folders)
    assert evaluation.warnings == ["flat did not learn"]
    assert str(evaluation).endswith("\nwarning: flat did not learn")
    assert "\nwarning: flat did not learn\n" in compare_runs(folders, tmp_path / "c.json")
    assert json.loads((tmp_path / "c.json").read_text())["warnings"] == ["flat did not learn"]


@pytest.mark.parametrize(
    ("compared", "fit_on", "message"),
    [
        (["valid-bm25", "train-bm25"], [], "{valid-bm25} and {train-bm25} .* different questions"),
        (["valid-bm25"], ["valid-tfidf"], "{valid-tfidf} .*\n.* leave out --fit-on"),
        (["valid-bm25", "valid-tfidf"], ["train-bm25"], "--fit-on names 1 folders for 2"),
    ],
)
def test_contexts_that_do_not_compare_are_refused(retrieved, compared, fit_on, message):
    names = {n: contexts(retrieved, n) for n in ("valid-bm25", "valid-tfidf", "train-bm25")}
    for name, folder in names.items():
        message = message.replace(f"{{{name}}}", re.escape(str(folder)))
    with pytest.raises(ExamError, match=message):
        compare_context_folders([names[n] for n in compared], [names[n] for n in fit_on], None)


def test_lexical_reader_trains_and_answers_like_any_other(place):
    overrides = setting(place, WORDS, "retriever=bm25", "model=lexical")
    run = train_reader(compose_config("train", *overrides))
    files = {p.name for p in run.stage.folder.rglob("*") if p.is_file()}
    assert files == {
        "README.md", "config.yaml", "environment.json", "key.json", "manifest.json",
        "report.html", "learned.parquet", "lexical.json", "predictions.parquet", "results.json",
    }  # fmt: skip
    assert run.systems[-1].scores.mean() > 0.8  # a random order has .457
    again = train_reader(compose_config("train", *overrides))
    assert again.stage.reused
    data = [f"data.dir={place / 'questions'}", f"outputs={place / 'outputs'}"]
    answered, asked = (
        run_infer(compose_config("infer", f"ckpt={run.stage.folder}", "data=kaggle", *data, test))
        for test in ("data.test=valid.csv", "data.test=test.csv")
    )
    assert answered.systems[-1].scores.tolist() == run.systems[-1].scores.tolist()
    rows = (asked.stage.folder / "submission.csv").read_text().splitlines()
    assert rows[0] == "id,prediction"
    right = ["ABCDE"[i % 5] for i in range(50, 56)]
    assert [row.split(",")[1][0] for row in rows[1:]] == right
