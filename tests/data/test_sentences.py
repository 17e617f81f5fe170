"""Sentences: both builds of the splitter keep all text and agree; the second has its own key."""

import logging
import os
import sys
import unicodedata
from importlib import import_module

import pytest
from helpers import ROOT, exam, jsonl_corpus, make_articles, make_place, python, setting
from hypothesis import given
from hypothesis import strategies as st

from exam.config import Chunking
from exam.core.errors import ExamError
from exam.core.files import read_json
from exam.data import sentences
from exam.data.corpus import list_articles
from exam.data.sentences import BUILDS, Splitter, sentence_offsets, splitter
from exam.retrieval.chunking import build_passages

FALL_BACK = "livekit-blingfire"
# Drawn far more often than by chance: ends of sentences, what separates them, what passes for it.
TELLING = "ab .?!…\n\t\0\x85\u00a0\u2028\u200b\ufeff\u3000é漢😀。␠"


def builds():
    for package, module, function in BUILDS:
        yield package, getattr(import_module(module), function)


def is_blank(character):
    """Separators, control and format characters, and the signs that blingfire uses within."""
    return character.isspace() or unicodedata.category(character)[0] == "C" or character in "␠␤"


@pytest.fixture
def without(monkeypatch):
    """Have modules not load, as on a machine that they have no binary for."""

    def block(*modules):
        for module in modules:
            monkeypatch.setitem(sys.modules, module, None)
        splitter.cache_clear()

    yield block
    splitter.cache_clear()


def test_sentences_stand_where_their_offsets_say():
    text = "It is an α-helix. It ends here.\nNext line, 東京 is big! End"
    assert [text[a:b] for a, b in sentence_offsets(text, 4)] == [
        "It is an α-helix.",
        "It ends here.",
        "Next line, 東京 is big!",
    ]


WRAPPED = (
    "Otters live in rivers and they eat the fish that swim\n"
    "near the banks. They also play in the water with their\n"
    "young. Badgers dig."
)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Tools\n- a saw cuts\n- a nail holds", ["Tools", "- a saw cuts", "- a nail holds"]),
        ("mercury: liquid\r\niron: a hard one\r\n", ["mercury: liquid", "iron: a hard one"]),
        ("पारा द्रव है। लोहा ठोस है।", ["पारा द्रव है।", "लोहा ठोस है।"]),
        ("ទឹកជារាវ។ ដែករឹង។", ["ទឹកជារាវ។", "ដែករឹង។"]),
        ("水是液体。铁是金属。", ["水是液体。", "铁是金属。"]),
        (WRAPPED, [WRAPPED[:69], WRAPPED[70:115], "Badgers dig."]),
    ],
)
def test_lines_and_stops_of_all_scripts_end_sentences(text, sentences):
    assert [text[a:b] for a, b in sentence_offsets(text, 1)] == sentences


@given(st.text(TELLING + "।\r ", max_size=80))
def test_sentences_lose_no_text_and_do_not_overlap(text):
    offsets = sentence_offsets(text, 1)
    ends = [0, *[b for _, b in offsets]]
    starts = [*[a for a, _ in offsets], len(text)]
    assert all(b <= a for b, a in zip(ends, starts, strict=True))
    assert all(map(is_blank, "".join(text[b:a] for b, a in zip(ends, starts, strict=True))))


@pytest.mark.parametrize("package", [package for package, *_ in BUILDS])
@given(text=st.text(max_size=300) | st.text(TELLING, max_size=60))
def test_splitting_loses_no_text(package, text):
    if not text.strip():
        return
    _, offsets = dict(builds())[package](text)
    ends = [0, *[b for _, b in offsets]]
    starts = [*[a for a, _ in offsets], len(text)]
    assert all(b <= a for b, a in zip(ends, starts, strict=True))
    gaps = "".join(text[b:a] for b, a in zip(ends, starts, strict=True))
    assert all(map(is_blank, gaps)), ascii(gaps)


@given(st.text(min_size=1, max_size=300) | st.text(TELLING, min_size=1, max_size=60))
def test_both_builds_cut_at_the_same_places(text):
    if text.strip():
        first, second = (list(map(tuple, split(text)[1])) for _, split in builds())
        assert first == second


def test_the_preferred_splitter_joins_no_key():
    assert Splitter("blingfire", str.split).key == {}


def test_the_fall_back_is_logged_once_and_is_part_of_the_passages_key(without, tmp_path, caplog):
    path = make_articles(tmp_path / "articles.jsonl")
    corpus = list_articles(jsonl_corpus(path), tmp_path / "outputs")
    before = build_passages(corpus, Chunking(chunk_words=6), tmp_path / "outputs")
    without("blingfire")
    caplog.set_level(logging.INFO, "exam")
    after = build_passages(corpus, Chunking(chunk_words=6), tmp_path / "outputs")
    name = splitter().name
    assert "splitter" not in before.stage.key
    assert after.stage.key["splitter"] == name
    assert name.startswith(f"{FALL_BACK} 1.")
    assert after.stage.folder != before.stage.folder
    assert after.table.equals(before.table)
    lines = [r.message for r in caplog.records if r.name == sentences.__name__]
    assert len(lines) == 1
    assert lines[0].startswith("sentences: blingfire does not load (")
    assert lines[0].endswith(f"; using {name}")


def test_a_binary_for_another_processor_leads_to_the_fall_back(without, monkeypatch, tmp_path):
    (tmp_path / "blingfire.py").write_text("raise OSError('wrong ELF class')\n")
    monkeypatch.syspath_prepend(tmp_path)
    without()
    monkeypatch.delitem(sys.modules, "blingfire", raising=False)
    assert splitter().package == FALL_BACK
    assert splitter().failures == ("blingfire does not load (wrong ELF class)",)


def test_no_splitter_at_all_is_one_message(without):
    without("blingfire", "livekit.blingfire")
    with pytest.raises(ExamError) as caught:
        sentence_offsets("One. Two.", 1)
    first, remedy = str(caught.value).splitlines()
    assert first.startswith("No sentence splitter loads on this machine: blingfire does not load")
    assert remedy == f"Install one of them: pip install {FALL_BACK}"


@pytest.mark.slow
def test_retrieval_runs_with_the_fall_back(tmp_path, encoder):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['blingfire'] = None\n")
    folder = make_place(tmp_path / "place")
    overrides = setting(folder, "retriever=two_stage", f"encoder.name_or_path={encoder}")
    preferred = exam("retrieve", *overrides)
    path = os.pathsep.join([str(tmp_path), str(ROOT / "src")])
    fallen_back = python(str(ROOT / "retrieve.py"), *overrides, PYTHONPATH=path)
    assert (preferred.returncode, fallen_back.returncode) == (0, 0), fallen_back.stderr
    assert preferred.stderr.count("sentences: ") == 0
    assert fallen_back.stderr.count(f"; using {FALL_BACK} ") == 1
    keys = [read_json(p)["key"] for p in (folder / "outputs/index").glob("*/manifest.json")]
    assert sorted("splitter" in key for key in keys) == [False, True]
    ranked = [p.read_bytes() for p in (folder / "outputs/contexts").glob("*/contexts.parquet")]
    assert len(ranked) == 2 * len(set(ranked))
