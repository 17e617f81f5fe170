"""Corpora: streaming, fetching by id."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from exam.config import Corpus, CorpusReader, CorpusSource
from exam.core.errors import ExamError
from exam.data.corpus import (
    Article,
    CorpusFile,
    article_id,
    corpus_files,
    corpus_key,
    count_articles,
    get_articles,
    iter_articles,
    title_and_first_sentence,
)

ROWS = [
    {"id": "1", "title": "Ant", "text": "An ant digs. It is small.", "categories": "[]"},
    {"id": "2", "title": "", "text": "No title here.", "categories": "[]"},
    {"id": "3", "title": "Empty", "text": "", "categories": "[]"},
]


@pytest.fixture
def wikipedia(tmp_path):
    folder = tmp_path / "wiki"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS[:1]), folder / "a.parquet")
    pq.write_table(pa.Table.from_pylist(ROWS[1:]), folder / "other.parquet")
    index = [{"id": "1", "file": "a.parquet"}]
    pq.write_table(pa.Table.from_pylist(index), folder / "wiki_2023_index.parquet")
    return Corpus(name="wikipedia", reader=CorpusReader.wikipedia, dir=str(folder))


def test_wikipedia_folder_streams_every_article_but_not_its_index(wikipedia, tmp_path):
    files = corpus_files(wikipedia, tmp_path)
    assert [f.source for f in files] == ["a.parquet", "other.parquet"]
    found = [a for f in files for a in iter_articles(f)]
    assert found == [Article(r["id"], r["title"], r["text"]) for r in ROWS]


def test_articles_are_fetched_by_id(wikipedia, tmp_path):
    other = corpus_files(wikipedia, tmp_path)[1]
    assert get_articles(other, ["3"]) == {"3": Article("3", "Empty", "")}


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    path = tmp_path / "twice.parquet"
    one = pa.array(["x"])
    pq.write_table(pa.table([one, one, one, one], names=["id", "title", "text", "text"]), path)
    columns = {name: name for name in ("id", "title", "text")}
    with pytest.raises(ExamError) as refused:
        list(iter_articles(CorpusFile(path, columns)))
    assert str(refused.value) == (
        f"{path}: column 'text' is there 2 times; text is required once.\n"
        "Map another one with corpus.columns.text=<name>."
    )


def test_an_article_that_is_no_longer_there_is_named(wikipedia, tmp_path):
    _, other = corpus_files(wikipedia, tmp_path)
    with pytest.raises(ExamError) as refused:
        get_articles(other, ["3", "nowhere"])
    assert str(refused.value) == (
        f"{other.path} no longer gives article 'nowhere'.\n"
        "It is damaged, or has changed while it was used: fetch it again."
    )


def test_number_ids_are_fetched_as_texts(tmp_path):
    pq.write_table(
        pa.table({"id": [7, 8], "title": ["x", "y"], "text": ["p", "q"]}), tmp_path / "n.parquet"
    )
    file = CorpusFile(tmp_path / "n.parquet", {"id": "id", "title": "title", "text": "text"})
    assert get_articles(file, ["8"]) == {"8": Article("8", "y", "q")}


def test_jsonl_with_mapped_columns_joins_a_second_corpus(wikipedia, tmp_path):
    (tmp_path / "notes.jsonl").write_text(json.dumps({"key": 9, "name": "N", "body": "B."}) + "\n")
    columns = {"id": "key", "title": "name", "text": "body"}
    notes = CorpusSource(CorpusReader.jsonl, str(tmp_path), "notes.jsonl", columns)
    wikipedia.also = [notes]
    files = corpus_files(wikipedia, tmp_path)
    assert [f.source for f in files] == ["a.parquet", "other.parquet", "notes.jsonl"]
    assert get_articles(files[2], ["9"]) == {"9": Article("9", "N", "B.")}


def test_a_text_is_an_article_titled_by_its_name(tmp_path):
    (tmp_path / "the_ant.txt").write_bytes(b"\xef\xbb\xbfAn ant digs.\r\nIt is small.")
    (tmp_path / "notes.md").write_text("not asked for")
    corpus = Corpus(name="c", reader=CorpusReader.text, dir=str(tmp_path))
    (file,) = corpus_files(corpus, tmp_path)
    ant = Article("the_ant.txt", "the ant", "An ant digs.\nIt is small.")
    assert (list(iter_articles(file)), count_articles([file])) == ([ant], 1)
    assert get_articles(file, ["the_ant.txt"]) == {"the_ant.txt": ant}
    assert corpus_key([file]) != corpus_key([CorpusFile(file.path, {"id": "id"})])


def test_a_text_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(ExamError) as refused:
        list(iter_articles(CorpusFile(tmp_path / "a.txt", {})))
    assert str(refused.value) == (
        f"{tmp_path / 'a.txt'} is no text in UTF-8 (unexpected end of data at byte 0).\n"
        "Save it as UTF-8, or leave it out: corpus.files=<pattern>."
    )


def test_corpus_key_follows_the_bytes(wikipedia, tmp_path):
    before = corpus_key(corpus_files(wikipedia, tmp_path))
    changed = [{**ROWS[0], "text": "An ant sleeps."}]
    pq.write_table(pa.Table.from_pylist(changed), tmp_path / "wiki" / "a.parquet")
    after = corpus_key(corpus_files(wikipedia, tmp_path))
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_missing_corpus_is_refused(tmp_path):
    with pytest.raises(ExamError) as caught:
        corpus_files(Corpus(name="x", reader=CorpusReader.wikipedia, dir=str(tmp_path)), tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} holds no wikipedia corpus (*.parquet).\nGive its folder with "
        "corpus.dir=<folder>, its files with corpus.files=<pattern>."
    )


def test_truncated_file_is_refused(wikipedia, tmp_path):
    path = tmp_path / "wiki" / "a.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(
        ExamError, match=r"a\.parquet is not a whole Parquet file.*\nFetch it again"
    ):
        corpus_files(wikipedia, tmp_path)


def test_jsonl_without_a_column_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": 1, "text": "x"}\n')
    file = CorpusFile(tmp_path / "a.jsonl", {"id": "id", "title": "title", "text": "text"})
    with pytest.raises(ExamError) as caught:
        list(iter_articles(file))
    assert str(caught.value) == (
        f"{tmp_path}/a.jsonl, article 1 has no 'title'.\n"
        "Map another name with corpus.columns.id=, .title= or .text=<name>."
    )


def test_lead_is_title_and_first_sentence():
    assert (
        title_and_first_sentence(Article("1", "Ant", "An ant digs. It is small."))
        == "Ant. An ant digs"
    )
    assert title_and_first_sentence(Article("1", "", "An ant digs. It is small.")) == "An ant digs."
    assert title_and_first_sentence(Article("1", "Ant", " ")) == "Ant"
    assert title_and_first_sentence(Article("1", "", "")) == ""


def test_derived_ids_are_stable():
    assert article_id("Quasar") == "ab99b20e1d2d"
