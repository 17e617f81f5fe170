"""Passages: they lose no text, overlap as configured, and never exceed their words."""

import json

from helpers import jsonl_corpus, refuses
from hypothesis import given
from hypothesis import strategies as st

from exam.config import Chunking
from exam.data.corpus import list_articles
from exam.data.sentences import sentence_offsets
from exam.retrieval.chunking import build_passages, chunk

TEXT = "One two three. Four five six. Seven eight nine. Ten eleven twelve."


def texts(text, **settings):
    return [text[a:b] for a, b in chunk(text, Chunking(**settings))]


def test_passages_hold_whole_sentences_and_share_the_last_one():
    assert texts(TEXT, chunk_words=6, overlap_sentences=1) == [
        "One two three. Four five six.",
        "Four five six. Seven eight nine.",
        "Seven eight nine. Ten eleven twelve.",
    ]
    assert texts(TEXT, chunk_words=6, overlap_sentences=0) == [
        "One two three. Four five six.",
        "Seven eight nine. Ten eleven twelve.",
    ]
    assert texts(TEXT, chunk_words=100, overlap_sentences=1) == [TEXT]


def test_a_sentence_longer_than_a_passage_is_split_between_words():
    long = "alpha beta gamma delta epsilon zeta eta."
    assert texts(long, chunk_words=3, overlap_sentences=0) == [
        "alpha beta gamma",
        "delta epsilon zeta",
        "eta.",
    ]


def test_no_passage_repeats_the_previous_one():
    # The shared sentence and the next one exceed the limit together: drop the shared one.
    passages = texts("a b c d e. f g h i j. k l m n o.", chunk_words=6, overlap_sentences=1)
    assert len(passages) == len(set(passages)) == 3


@given(
    st.lists(st.sampled_from(["Ab cd ef.", "Xy.", "One two three four five six."]), max_size=12),
    st.integers(1, 9),
    st.integers(0, 3),
)
def test_every_sentence_is_in_a_passage(sentences, words, overlap):
    text = " ".join(sentences)
    spans = chunk(
        text, Chunking(chunk_words=words, overlap_sentences=overlap, min_sentence_chars=1)
    )
    covered = {i for a, b in spans for i in range(a, b)}
    required = {
        i for a, b in sentence_offsets(text, 1) for i in range(a, b) if not text[i].isspace()
    }
    assert required <= covered
    assert [a for a, _ in spans] == sorted(a for a, _ in spans)
    assert all(len(text[a:b].split()) <= words for a, b in spans)


def corpus(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list_articles(jsonl_corpus(path), path.parent / "outputs")


def test_the_table_holds_the_range_of_each_passage(tmp_path):
    rows = [
        {"id": "1", "title": "Numbers", "text": TEXT},
        {"id": "2", "title": "Nothing", "text": ""},
        {"id": "3", "title": "", "text": "No title here."},
    ]
    source = corpus(tmp_path / "a.jsonl", rows)
    table = build_passages(
        source, Chunking(chunk_words=6, overlap_sentences=0), tmp_path / "outputs"
    )
    assert table.rows([2, 0]) == [
        {"article_id": "3", "title": "", "start": 0, "end": 14, "text": "No title here.",
         "source": "a.jsonl"},
        {"article_id": "1", "title": "Numbers", "start": 0, "end": 29,
         "text": "One two three. Four five six.", "source": "a.jsonl"},
    ]  # fmt: skip
    assert list(table.texts()) == [
        [
            "Numbers. One two three. Four five six.",
            "Numbers. Seven eight nine. Ten eleven twelve.",
            "No title here.",
        ]
    ]
    assert table.stage.metadata == {"articles": 3, "passages": 3}


def test_a_corpus_without_text_is_refused(tmp_path):
    source = corpus(tmp_path / "a.jsonl", [{"id": "1", "title": "Nothing", "text": ""}])
    with refuses("corpus=c has no text", "corpus.files="):
        build_passages(source, Chunking(), tmp_path / "outputs")
