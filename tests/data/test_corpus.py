"""Corpora: streaming articles, looking them up by id."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import refuses

from exam.config import Corpus, CorpusFormat, CorpusSource
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
COLUMNS = {name: name for name in ("id", "title", "text")}


@pytest.fixture
def wikipedia(tmp_path):
    folder = tmp_path / "wiki"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS[:1]), folder / "a.parquet")
    pq.write_table(pa.Table.from_pylist(ROWS[1:]), folder / "other.parquet")
    index = [{"id": "1", "file": "a.parquet"}]
    pq.write_table(pa.Table.from_pylist(index), folder / "wiki_2023_index.parquet")
    return Corpus(name="wikipedia", format=CorpusFormat.wikipedia, dir=str(folder))


def test_wikipedia_folder_streams_every_article_but_not_its_index(wikipedia, tmp_path):
    files = corpus_files(wikipedia, tmp_path)
    assert [f.source for f in files] == ["a.parquet", "other.parquet"]
    articles = [article for file in files for article in iter_articles(file)]
    assert articles == [Article(r["id"], r["title"], r["text"]) for r in ROWS]


def test_articles_are_looked_up_by_id(wikipedia, tmp_path):
    _, other = corpus_files(wikipedia, tmp_path)
    assert get_articles(other, ["3"]) == {"3": Article("3", "Empty", "")}
    with pytest.raises(ExamError, match=r"other\.parquet has no article 'nowhere' any more"):
        get_articles(other, ["3", "nowhere"])


def test_number_ids_are_fetched_as_texts(tmp_path):
    pq.write_table(
        pa.table({"id": [7, 8], "title": ["x", "y"], "text": ["p", "q"]}), tmp_path / "n.parquet"
    )
    file = CorpusFile(tmp_path / "n.parquet", COLUMNS)
    assert get_articles(file, ["8"]) == {"8": Article("8", "y", "q")}


def test_jsonl_with_mapped_columns_joins_a_second_corpus(wikipedia, tmp_path):
    (tmp_path / "notes.jsonl").write_text(json.dumps({"key": 9, "name": "N", "body": "B."}) + "\n")
    columns = {"id": "key", "title": "name", "text": "body"}
    notes = CorpusSource(CorpusFormat.jsonl, str(tmp_path), "notes.jsonl", columns)
    wikipedia.extra_corpora = [notes]
    files = corpus_files(wikipedia, tmp_path)
    assert [f.source for f in files] == ["a.parquet", "other.parquet", "notes.jsonl"]
    assert get_articles(files[2], ["9"]) == {"9": Article("9", "N", "B.")}


def test_a_text_is_an_article_titled_by_its_name(tmp_path):
    (tmp_path / "the_ant.txt").write_bytes(b"\xef\xbb\xbfAn ant digs.\r\nIt is small.")
    (tmp_path / "notes.md").write_text("not asked for")
    corpus = Corpus(name="c", format=CorpusFormat.text, dir=str(tmp_path))
    (file,) = corpus_files(corpus, tmp_path)
    ant = Article("the_ant.txt", "the ant", "An ant digs.\nIt is small.")
    assert (list(iter_articles(file)), count_articles([file])) == ([ant], 1)
    assert get_articles(file, ["the_ant.txt"]) == {"the_ant.txt": ant}
    assert corpus_key([file]) != corpus_key([CorpusFile(file.path, {"id": "id"})])


def test_corpus_key_follows_the_bytes(wikipedia, tmp_path):
    before = corpus_key(corpus_files(wikipedia, tmp_path))
    changed = [{**ROWS[0], "text": "An ant sleeps."}]
    pq.write_table(pa.Table.from_pylist(changed), tmp_path / "wiki" / "a.parquet")
    after = corpus_key(corpus_files(wikipedia, tmp_path))
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_missing_corpus_is_refused(tmp_path):
    with refuses(f"{tmp_path} holds no wikipedia corpus (*.parquet)", "corpus.dir=<folder>"):
        corpus_files(Corpus(name="x", format=CorpusFormat.wikipedia, dir=str(tmp_path)), tmp_path)


def test_truncated_file_is_refused(wikipedia, tmp_path):
    path = tmp_path / "wiki" / "a.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ExamError, match=r"a\.parquet is not a whole Parquet file.*\nFetch it"):
        corpus_files(wikipedia, tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "observed", "remedy"),
    [
        ("a.jsonl", b'{"id": 1, "text": "x"}', "article 1 has no 'title'", "corpus.columns.title="),
        ("a.jsonl", b'{"id": 1, "title": "", "text": []}', "'text' is a list", "columns.text="),
        ("a.txt", "é".encode("latin-1"), "is not UTF-8", "corpus.files=<pattern>"),
    ],
)
def test_files_that_hold_no_articles_are_refused(tmp_path, name, content, observed, remedy):
    (tmp_path / name).write_bytes(content)
    with refuses(str(tmp_path / name), observed, remedy):
        list(iter_articles(CorpusFile(tmp_path / name, {} if name == "a.txt" else COLUMNS)))


def test_a_column_that_occurs_twice_is_refused(tmp_path):
    path, cells = tmp_path / "twice.parquet", pa.array(["x"])
    pq.write_table(pa.table([cells] * 4, names=["id", "title", "text", "text"]), path)
    with pytest.raises(ExamError, match=r"occurs 2 times.*\n.*corpus\.columns\.text="):
        list(iter_articles(CorpusFile(path, COLUMNS)))


@pytest.mark.parametrize(
    ("title", "text", "expected"),
    [
        ("Ant", "An ant digs. It is small.", "Ant. An ant digs"),
        ("", "An ant digs. It is small.", "An ant digs."),
        ("Ant", " ", "Ant"),
        ("", "", ""),
    ],
)
def test_title_and_first_sentence(title, text, expected):
    assert title_and_first_sentence(Article("1", title, text)) == expected


def test_derived_ids_are_stable():
    assert article_id("Quasar") == "ab99b20e1d2d"
