"""A loaded run in Python and at the terminal, and the doctor."""

import io
import re
import shutil
import sys

import datasets
import pytest
from helpers import imported, make_place, refuses, tiny

from exam import load
from exam.cli import main
from exam.config.compose import compose_config
from exam.core.errors import ExamError
from exam.data.sentences import splitter
from exam.pipelines import doctor
from exam.pipelines.ask import Answer
from exam.pipelines.train import train_reader

OPTIONS = ["in the river", "on a cliff", "under the log"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = make_place(tmp_path_factory.mktemp("ask"))
    return train_reader(compose_config("train", *tiny(place))).stage.folder


@pytest.fixture(scope="module")
def loaded(run):
    return load(run)


def test_a_loaded_run_answers_from_its_index(run):
    before = set(run.parents[1].rglob("*"))
    answer = load(run).answer("Where does the otter number 0 live?", OPTIONS)
    assert sum(answer.probabilities) == pytest.approx(1)
    assert answer.best == OPTIONS[answer.probabilities.index(max(answer.probabilities))]
    assert answer.passages[0]["title"] == "Otter"
    assert set(run.parents[1].rglob("*")) == before


def test_a_moved_run_answers_alike(run, tmp_path):
    expected = load(run).answer("Where does the newt number 0 live?", OPTIONS)
    shutil.copytree(run.parents[1], tmp_path / "elsewhere")
    moved = tmp_path / "elsewhere" / "train" / run.name
    answer = load(moved).answer("Where does the newt number 0 live?", OPTIONS)
    assert answer.probabilities == pytest.approx(expected.probabilities, abs=1e-6)
    assert answer.passages == expected.passages


@pytest.fixture
def moved(run, tmp_path):
    """The folder that the run's articles are moved to during the test."""
    articles = run.parents[2] / "articles.jsonl"
    articles.rename(tmp_path / articles.name)
    yield tmp_path
    (tmp_path / articles.name).rename(articles)


def test_an_override_locates_moved_articles(run, moved):
    with pytest.raises(ExamError, match=r"holds no jsonl corpus \(articles\.jsonl\)"):
        load(run).answer("Where does the otter number 0 live?", OPTIONS)
    moved_run = load(run, f"run.corpus.dir={moved}", "run.context.num_passages=1")
    answer = moved_run.answer("Where does the otter number 0 live?", OPTIONS)
    assert [p["title"] for p in answer.passages] == ["Otter"]


def test_a_mistyped_override_is_one_message(run):
    with pytest.raises(ExamError, match="Unknown option corpus=nope"):
        load(run, "corpus=nope")


def test_one_option_is_refused(run):
    with pytest.raises(ExamError, match=r"1 options\.\nGive 2 to 26\."):
        load(run).answer("Where?", ["here"])


@pytest.mark.parametrize(
    ("prompt", "options", "parts"),
    [
        ("Where?", {"A": "here", "B": "there"}, ["type dict", "list(options.values())"]),
        ("Where?", "AB", ["the text 'AB'", '["here", "there"]']),
        ("Where?", {"here", "there"}, ["type set", '["here", "there"]']),
        ("Where?", 2, ["type int", '["here", "there"]']),
        ("Where?", ["here", 2], ["Option B", "type int", "list of texts"]),
        ("Where?", ["here", " "], ["Option B is empty", "list of texts"]),
        (["Where?", "When?"], ["here", "there"], ["type list", "answer_batch"]),
        (" ", ["here", "there"], ["prompt is empty", "the text of one question"]),
    ],
)
def test_what_is_no_question_is_refused(loaded, prompt, options, parts):
    with refuses(*parts):
        loaded.answer(prompt, options)


@pytest.mark.parametrize("batch", [{"Where?": ["here", "there"]}, "Where?", ["Where?"], [("a",)]])
def test_what_is_no_batch_is_refused(loaded, batch):
    with refuses("Question 1 of the batch", "answer_batch([("):
        loaded.answer_batch(batch)


def test_a_batch_is_answered_like_its_questions(loaded):
    questions = [
        ("Where does the otter number 0 live?", OPTIONS),
        ("Where does the newt number 0 live?", tuple(OPTIONS[:2])),
    ]
    answers = loaded.answer_batch(iter(questions))
    for answer, (prompt, options) in zip(answers, questions, strict=True):
        alone = loaded.answer(prompt, options)
        assert answer.options == list(options)
        assert answer.probabilities == pytest.approx(alone.probabilities, abs=1e-5)
        assert answer.passages[0]["title"] == alone.passages[0]["title"]
    assert loaded.answer_batch([]) == []


def test_an_answer_is_a_ranking():
    answer = Answer(["a", "b", "c"], [0.2, 0.6, 0.2], [{}])
    assert answer.ranking == [("b", 0.6), ("a", 0.2), ("c", 0.2)]
    assert answer.best == "b"
    assert repr(answer) == "Answer('b' 0.600, 'a' 0.200, 'c' 0.200; 1 passages)"


def test_an_answer_draws_no_bars(loaded, capfd):
    datasets.enable_progress_bars()
    loaded.answer("Where does the otter number 0 live?", OPTIONS)
    assert "%" not in capfd.readouterr().err
    assert not datasets.are_progress_bars_disabled()


def test_an_unfinished_run_is_refused(tmp_path):
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    with pytest.raises(ExamError, match=r"is unfinished: it has no manifest\.json"):
        load(tmp_path / "a" / "b" / "c")


def test_the_terminal_answers_questions(run, monkeypatch, capsys):
    typed = "Where does the otter number 0 live?\nin the river\non a cliff\n\nNext?\nalone\n\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    assert main(["ask", str(run)]) == 0
    out, err = capsys.readouterr()
    assert "in the river" in out
    assert "1. Otter" in out
    assert "The question has 1 options." in err


def test_the_doctor_names_what_is_missing(monkeypatch, capsys):
    versions = {"torch": "1.0", "blingfire": None}
    known = doctor._find_version
    monkeypatch.setattr(doctor, "_find_version", lambda name: versions.get(name, known(name)))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "torch                  1.0   → pip install 'torch>=2.10'" in out
    assert "blingfire              missing   → pip install 'blingfire>=0.1.8'" in out


def test_the_doctor_names_the_splitter_and_an_untested_python(monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 99, 0, "final", 0))
    monkeypatch.setitem(sys.modules, "blingfire", None)
    splitter.cache_clear()
    main(["doctor"])
    splitter.cache_clear()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(" · not tested; Python 3.11 to 3.13 are")
    pattern = r"sentences   livekit-blingfire \S+ · blingfire does not load \(.+\)"
    assert any(re.fullmatch(pattern, line) for line in lines)


def test_the_doctor_imports_nothing_heavy():
    heavy = ("torch", "transformers", "datasets", "faiss", "pyarrow", "altair", "hydra")
    assert imported("from exam.cli import main; main(['doctor'])", *heavy) == set()


@pytest.mark.slow
def test_a_deep_doctor_computes(capsys):
    assert main(["doctor", "--deep"]) == 0
    out = capsys.readouterr().out
    assert "GFLOP/s" in out
    assert "weights verified" in out
