"""`metric.k` from training to the submission, on questions with four options."""

import csv
import json

import pytest
from helpers import kaggle_rows, make_place, tiny, write_csv

from exam import evaluate
from exam.bundle.bundle import _format_overrides as list_overrides
from exam.config.compose import compose_config
from exam.config.saved import load_run
from exam.core.errors import ExamError
from exam.pipelines.infer import run_infer
from exam.pipelines.retrieve import run_retrieve
from exam.pipelines.stress import run_stress
from exam.pipelines.sweep import compare_jobs
from exam.pipelines.train import train_reader
from exam.report.compare import compare_folders


def four_options(n, start):
    rows = [row for row in kaggle_rows(2 * n, start) if row.pop("E") and row["answer"] != "E"]
    return rows[:n]


class Place:
    """A folder with questions of four options, a reader scored by accuracy, one by MAP@3."""

    def __init__(self, folder):
        questions = make_place(folder) / "questions"
        write_csv(questions / "train.csv", four_options(32, 0))
        write_csv(questions / "valid.csv", four_options(8, 70))
        write_csv(questions / "test.csv", four_options(6, 90))
        self.folder, self.outputs = folder, folder / "outputs"
        self.accuracy = self.train("metric.k=1").folder
        self.map_at_3 = self.train("model=lexical").folder

    def train(self, *overrides):
        choosing = ("trainer.eval_strategy=epoch", "trainer.save_strategy=epoch")
        best = "trainer.load_best_model_at_end=true"
        overrides = ("data.options=ABCD", *choosing, best, *overrides)
        return train_reader(compose_config("train", *tiny(self.folder, *overrides)))

    def command(self, name, *overrides):
        data = ["data=kaggle", f"data.dir={self.folder / 'questions'}", "data.options=ABCD"]
        return compose_config(name, f"outputs={self.outputs}", *data, *overrides)

    def infer(self, *overrides):
        return run_infer(self.command("infer", *overrides))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("metric"))


def results(run):
    return json.loads((run / "results.json").read_text())


def labels(run):
    with (run.folder / "submission.csv").open() as file:
        return [row["prediction"].split() for row in csv.DictReader(file)]


def test_a_run_with_k_1_is_scored_by_accuracy_everywhere(place, capsys):
    run = place.train("metric.k=1")
    assert run.stage.reused
    rows = {row["system"]: row for row in results(run.folder)["rows"]}
    assert rows["random order (expected)"]["accuracy"] == pytest.approx(1 / 4)
    assert rows["constant order (A, B, C)"]["accuracy"] == pytest.approx(2 / 8)
    assert not any("map_at" in key for row in rows.values() for key in row)
    reader = rows[run.folder.name]["accuracy"]
    assert reader == run.systems[-1].estimate.value
    history = json.loads((run.folder / "trainer_state.json").read_text())["log_history"]
    scores = [entry["eval_accuracy"] for entry in history if "eval_accuracy" in entry]
    assert run.selection_score == max(scores)
    assert "     n   accuracy   95 % interval" in capsys.readouterr().out
    assert "</strong> accuracy" in (run.folder / "report.html").read_text()
    card = (run.folder / "README.md").read_text()
    assert "| system | accuracy | 95 % interval |" in card
    assert "type: accuracy" in card
    assert "MAP@" not in card


def test_a_run_remembers_k_and_a_command_overrides_it(place):
    run = place.infer(f"ckpt={place.accuracy}")
    assert [len(row) for row in labels(run)] == [1] * 6
    again = place.infer(f"ckpt={place.accuracy}", "metric.k=2")
    assert [len(row) for row in labels(again)] == [2] * 6
    assert [row[:1] for row in labels(again)] == labels(run)
    rows = results(again.folder)["rows"]
    assert rows[0]["map_at_2"] == pytest.approx((1 + 1 / 2) / 4)
    assert [len(row) for row in labels(place.infer(f"ckpt={place.map_at_3}"))] == [3] * 6


def test_k_belongs_to_the_command(place):
    with pytest.raises(ExamError, match=r"metric\.k=<value>"):
        place.infer(f"ckpt={place.accuracy}", "++run.metric.k=2")


def test_k_above_the_options_of_every_question_is_refused(place):
    with pytest.raises(ExamError, match=r"metric\.k=5.*4 options\.\nSet metric\.k to 4 or less"):
        place.train("metric.k=5")
    with pytest.raises(ExamError, match=r"metric\.k=5"):
        place.infer(f"ckpt={place.accuracy}", "metric.k=5")
    with pytest.raises(ExamError, match=r"metric\.k=5"):
        compare_folders([place.accuracy], [], None, k=5)
    with pytest.raises(ExamError, match=r"metric\.k must be between 1 and 26 \(got 0\)"):
        place.command("infer", "ckpt=run", "metric.k=0")


def test_runs_that_remember_different_k_need_one_for_all(place, tmp_path):
    folders = [place.accuracy, place.map_at_3]
    with pytest.raises(ExamError, match=r"accuracy, and .* MAP@3\.\n.*--k 3"):
        compare_folders(folders, [], None)
    table = compare_folders(folders, [], tmp_path / "c.json", k=2)
    assert "   MAP@2   " in table
    figures = json.loads((tmp_path / "c.json").read_text())
    assert [row["map_at_2"] for row in figures["rows"]]
    assert set(figures["statistics"][place.accuracy.name]) >= {"accuracy", "map_at_2", "map_at_5"}
    scores = {s.name: s.estimate.value for s in evaluate(folders, k=1).systems}
    assert scores[place.accuracy.name] == results(place.accuracy)["rows"][-1]["accuracy"]


@pytest.mark.parametrize("combination", ["ensemble=mean", "cascade.escalate_fraction=0.5"])
def test_readers_that_remember_different_k_answer_together_by_one(place, combination):
    readers = f"ckpt=[{place.accuracy},{place.map_at_3}]"
    with pytest.raises(ExamError, match=r"metric\.k=3, or metric\.k=1 for accuracy"):
        place.infer(readers, combination)
    run = place.infer(readers, combination, "metric.k=2")
    assert [len(row) for row in labels(run)] == [2] * 6
    assert results(run.folder)["rows"][-1]["map_at_2"] == run.systems[-1].estimate.value
    saved = f"predictions=[{place.accuracy},{place.map_at_3}]"
    with pytest.raises(ExamError, match=r"metric\.k=3"):
        run_infer(compose_config("infer", saved, combination, f"outputs={place.outputs}"))
    again = compose_config("infer", saved, combination, f"outputs={place.outputs}", "metric.k=1")
    assert [len(row) for row in labels(run_infer(again))] == [1] * 8


def test_stress_and_retrieval_follow_k(place, capsys):
    run_stress(place.command("stress", f"ckpt={place.map_at_3}", "metric.k=1"))
    assert "   accuracy   " in capsys.readouterr().out
    settings = tiny(place.folder, "data.options=ABCD", "metric.k=1")
    without_reader = [s for s in settings if not s.startswith(("model", "trainer"))]
    run_retrieve(compose_config("retrieve", *without_reader))
    (path,) = place.outputs.glob("evaluation/*valid*/results.json")
    assert 0 <= results(path.parent)["rows"][0]["accuracy"] <= 1
    assert "accuracy" in capsys.readouterr().out


def test_jobs_with_different_k_are_not_ranked(place):
    jobs = [
        {"values": {"metric.k": str(k)}, "folder": folder}
        for k, folder in ((1, place.accuracy), (3, place.map_at_3))
    ]
    with pytest.raises(ExamError, match=r"MAP@3 and accuracy\.\n.*--k 3"):
        compare_jobs(jobs)
    assert "   accuracy   " in compare_jobs([jobs[0], jobs[0]])


def test_the_notebook_of_a_bundle_sets_k(place):
    assert "metric.k=2" in list_overrides(
        place.command("bundle", "ckpt=run", "out=b", "metric.k=2")
    )
    unset = list_overrides(place.command("bundle", "ckpt=run", "out=b"))
    assert not any("metric" in override for override in unset)


@pytest.mark.parametrize(("data", "k"), [("kaggle", 3), ("mmlu", 1), ("arc", 1), ("race", 1)])
def test_exams_that_are_scored_by_accuracy_bring_k_1(data, k):
    assert compose_config("train", f"data={data}").metric.k == k
    assert compose_config("train", f"data={data}", "metric.k=2").metric.k == 2
    restored = compose_config("infer", "ckpt=run", f"data={data}").metric.k
    assert restored == (1 if k == 1 else None)


def test_a_run_of_an_earlier_version_has_k_3(place, tmp_path):
    text = (place.accuracy / "config.yaml").read_text()
    assert "metric:\n  k: 1\n" in text
    older = tmp_path / "config.yaml"
    older.write_text(text.replace("metric:\n  k: 1\n", ""))
    assert load_run(older, compose_config("infer", "ckpt=run")).metric.k == 3
