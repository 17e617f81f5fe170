"""Corpora and questions that no retriever was made for: a clear refusal or a right result."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import jsonl_corpus, kaggle_rows, read_csv, refuses

from exam.config import Chunking, CorpusFormat, Encoder, Index, Retriever, RetrieverKind, Search
from exam.config.compose import compose_config
from exam.config.validate import validate
from exam.core.errors import ExamError
from exam.retrieval.contexts import read_contexts
from exam.retrieval.retriever import Retrieval

KINDS = ["two_stage", "bm25", "tfidf", "passages", "hybrid"]
TEXT = "The otter is an animal. It lives in the river. It eats fish."


@pytest.fixture(params=KINDS)
def retrieval(request, encoder, tmp_path):
    kind = RetrieverKind[request.param]
    members = {}
    if kind is RetrieverKind.hybrid:
        kinds = ("two_stage", "bm25", "tfidf")
        members = {k: Search(name=k, kind=RetrieverKind[k], top_k=3) for k in kinds}
    return Retrieval(
        jsonl_corpus(tmp_path / "corpus.jsonl"),
        Encoder(name="tiny", name_or_path=str(encoder)),
        Chunking(chunk_words=90, overlap_sentences=1),
        Retriever(name=kind.value, kind=kind, top_k=3, members=members),
        Index(),
        tmp_path / "outputs",
    )


@pytest.fixture
def questions(tmp_path):
    rows = kaggle_rows(3)
    rows[1] |= {"prompt": "Zzyx qwv?", "A": "xq", "B": "vj", "C": "kk", "D": "jj", "E": "ww"}
    return read_csv(tmp_path / "q.csv", rows)


def write(folder, *articles):
    rows = [dict(zip(("id", "title", "text"), a, strict=True)) for a in articles]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    "articles", [[], [("1", "", ""), ("2", "Otter", "")]], ids=["no article", "no text"]
)
def test_a_corpus_without_text(retrieval, questions, tmp_path, articles):
    write(tmp_path, *articles)
    if not articles:
        (tmp_path / "corpus.jsonl").write_text("[]")
    if articles and retrieval.retriever.kind is RetrieverKind.two_stage:
        assert read_contexts(retrieval.contexts(questions, "q")) == {}
        return
    with pytest.raises(ExamError, match=r"has no (articles|text)\.\nName"):
        retrieval.contexts(questions, "q")


def test_one_article_is_all_that_is_found(retrieval, questions, tmp_path):
    write(tmp_path, ("1", "Otter", TEXT))
    stage = retrieval.contexts(questions, "q")
    contexts = read_contexts(stage)
    for passages in contexts.values():
        assert {p["article_id"] for p in passages} == {"1"}
        assert [p["rank"] for p in passages] == list(range(1, len(passages) + 1))
        assert all(p["text"] in TEXT for p in passages)
    assert contexts["0"]
    assert stage.metadata["scores"]["supported"]["n"] == 3


def test_a_question_whose_words_occur_nowhere_harms_no_other(retrieval, questions, tmp_path):
    write(tmp_path, *((str(i), "", f"The {w} lives here {i}.") for i, w in enumerate("abcdefg")))
    contexts = read_contexts(retrieval.contexts(questions, "q"))
    alone = read_contexts(retrieval.contexts(questions.select([0, 2]), "q2"))
    for key in ("0", "2"):
        assert [p["passage_id"] for p in contexts[key]] == [p["passage_id"] for p in alone[key]]


def test_passages_of_a_hundred_thousand_characters(retrieval, questions, tmp_path):
    long = "otter river " * 8_334
    write(
        tmp_path, ("1", "Long", long), ("2", "", "x" * 100_000), ("3", "Otter", "It is an otter.")
    )
    stage = retrieval.contexts(questions, "q")
    found = {p["article_id"] for p in read_contexts(stage)["0"]}
    assert "1" in found
    assert stage.metadata["questions"] == 3


@pytest.mark.parametrize(("key", "state"), [(None, "no id"), ("1", "the id '1' of an earlier one")])
def test_articles_without_unique_ids_are_refused(retrieval, questions, tmp_path, key, state):
    write(tmp_path, ("1", "Otter", TEXT), (key, "Heron", "The heron lives in the marsh."))
    with refuses(f"article 2 has {state}", "corpus.columns.id="):
        retrieval.contexts(questions, "q")


def test_a_corpus_file_cut_in_the_middle_is_refused(retrieval, questions, tmp_path):
    write(tmp_path, *((str(i), "Heron", TEXT) for i in range(20)))
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ExamError, match=r"corpus\.jsonl, line \d+ is not JSON"):
        retrieval.contexts(questions, "q")
    retrieval.corpus.format, retrieval.corpus.files = CorpusFormat.wikipedia, "corpus.parquet"
    path = tmp_path / "corpus.parquet"
    rows = [{"id": str(i), "title": "Heron", "text": TEXT * i} for i in range(200)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ExamError, match=r"corpus\.parquet is not a whole Parquet file"):
        retrieval.contexts(questions, "q")


@pytest.mark.parametrize("kind", KINDS)
def test_more_passages_than_are_ranked_are_refused(kind):
    with refuses("context.num_passages=5", "retriever.top_k=4.", "retriever.top_k=5"):
        compose_config("train", f"retriever={kind}", "retriever.top_k=4", "context.num_passages=5")
    validate(
        compose_config("train", f"retriever={kind}", "retriever.top_k=5", "context.num_passages=5")
    )
