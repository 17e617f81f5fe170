"""Every remedy that a refusal prints is followed, and no second refusal comes."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from exam.config.compose import check_flags, compose_config
from exam.config.retrieval import Chunking
from exam.data.corpus import list_articles
from exam.data.files import check_paths
from exam.data.questions import read_questions
from exam.data.splits import read_split
from exam.pipelines.retrieve import run_retrieve
from exam.retrieval.chunking import build_passages
from remedies.config_rows import CONFIG
from remedies.data_rows import CORPORA, QUESTIONS, RETRIEVALS, SPLITS
from remedies.exempt import EXEMPT
from remedies.following import NAMED, Row, Words, refusal, remedies, templates

ENDED = re.compile(r"=[^\s(]*[\w>§]\.(?=\s|$)")
Run = Callable[[Words], object]


def compose(words: Words) -> None:
    check_flags(words[0], words[1:])
    compose_config(*words)


def read(words: Words) -> None:
    """Read the questions of a command."""
    config = compose_config(*words)
    check_paths(config)
    for entries in (config.data.train, config.data.valid, config.data.test):
        if entries is not None:
            read_questions(config.data, entries, None)


def split(words: Words) -> None:
    """Read and split the questions of a training."""
    config = compose_config(*words)
    check_paths(config)
    read_split(config.data, None)


def read_corpus(words: Words) -> None:
    """Read the articles of a command, and split them into passages."""
    config = compose_config(*words)
    articles = list_articles(config.corpus, Path("outputs"))
    build_passages(articles, Chunking(), Path("outputs"))


def retrieve(words: Words) -> None:
    config = compose_config(*words)
    check_paths(config)
    run_retrieve(config)


def follow(row: Row, run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Follow each choice of a row's remedy in a new folder."""
    words, number, choices = shlex.split(row.words), 0, 1
    while number < choices:
        (folder / str(number)).mkdir()
        monkeypatch.chdir(folder / str(number))
        for name, text in row.files.items():
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_text(text, encoding="utf-8", errors="surrogateescape")
        message = refusal(run, words)
        changes = remedies(message, row, words)
        choices = len(changes)
        assert changes, f"no setting, and no act of the row, follows:\n{message}"
        run(changes[number](words))
        number += 1


def name(row: Row) -> str:
    return f"{row.says}: {row.words}"


@pytest.mark.parametrize("row", CONFIG, ids=name)
def test_a_refused_configuration_composes_after_its_remedy(row, tmp_path, monkeypatch):
    follow(row, compose, tmp_path, monkeypatch)


@pytest.mark.parametrize("row", QUESTIONS, ids=name)
def test_refused_questions_are_read_after_their_remedy(row, tmp_path, monkeypatch):
    follow(row, read, tmp_path, monkeypatch)


@pytest.mark.parametrize("row", SPLITS, ids=name)
def test_refused_questions_are_split_after_their_remedy(row, tmp_path, monkeypatch):
    follow(row, split, tmp_path, monkeypatch)


@pytest.mark.parametrize("row", CORPORA, ids=name)
def test_a_refused_corpus_is_read_after_its_remedy(row, tmp_path, monkeypatch):
    follow(row, read_corpus, tmp_path, monkeypatch)


@pytest.mark.parametrize("row", RETRIEVALS, ids=name)
def test_a_refused_retrieval_ends_after_its_remedy(row, tmp_path, monkeypatch):
    follow(row, retrieve, tmp_path, monkeypatch)


def test_every_refusal_that_names_a_setting_is_followed_or_exempt():
    texts = templates()
    rows = [row.says for row in [*CONFIG, *QUESTIONS, *SPLITS, *CORPORA, *RETRIEVALS]]
    exempt = [part for parts in EXEMPT.values() for part in parts]
    named = {key: text for key, text in texts.items() if NAMED.search(text)}
    missing = {
        key: text for key, text in named.items() if not any(p in text for p in [*rows, *exempt])
    }
    assert missing == {}, "add a row, or an exemption with its reason"
    counts = {part: sum(part in text for text in texts.values()) for part in [*rows, *exempt]}
    assert [part for part in rows if not counts[part]] == [], "no refusal has this text"
    loose = [part for part in exempt if counts[part] != 1 and part not in texts.values()]
    assert loose == [], "each is a part of one text, or a whole text"


def test_no_setting_ends_in_a_full_stop():
    """A copied setting works: the stop would become a part of its value."""
    remedy_of = {key: text.partition("\n")[2] for key, text in templates().items()}
    glued = {key: remedy for key, remedy in remedy_of.items() if ENDED.search(remedy)}
    assert {key: text for key, text in glued.items() if not key.startswith("config/help")} == {}
