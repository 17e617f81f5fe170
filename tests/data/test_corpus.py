"""Corpora: which files are read, streaming articles, looking them up by id."""

import gzip
import json
import logging
from datetime import date

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import refuses

from exam.config import Corpus, CorpusFormat, CorpusSource
from exam.config.compose import compose_config
from exam.config.saved import load_run, save_run
from exam.core.errors import ExamError
from exam.data.articles import (
    Article,
    CorpusFile,
    get_articles,
    iter_articles,
    title_and_first_sentence,
)
from exam.data.corpus import article_id, corpus_files, corpus_key, list_articles

ROWS = [
    {"id": "1", "title": "Ant", "text": "An ant digs. It is small.", "categories": "[]"},
    {"id": "2", "title": "", "text": "No title here.", "categories": "[]"},
    {"id": "3", "title": "Empty", "text": "", "categories": "[]"},
]
COLUMNS = {name: name for name in ("id", "title", "text")}
ANTS = [Article("1", "Ant", "An ant digs."), Article("2", "Bee", "A bee flies.")]


def corpus_of(folder, form=CorpusFormat.jsonl, files=None, **columns):
    return Corpus(
        name="c", format=form, dir=str(folder), files=files, columns={**COLUMNS, **columns}
    )


def read(corpus, outputs):
    """Every article of a corpus, each looked up by its id too."""
    listed = list_articles(corpus, outputs)
    articles = [article for file in listed.files for article in iter_articles(file)]
    assert listed.table["id"].to_pylist() == [article.id for article in articles]
    assert listed.table["title"].to_pylist() == [article.title for article in articles]
    for file in listed.files:
        ids = [article.id for article in iter_articles(file)]
        assert list(get_articles(file, ids).values()) == list(iter_articles(file))
    return articles


def write_lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_articles(path, articles=ANTS):
    return write_lines(path, *map(vars, articles))


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
    assert read(wikipedia, tmp_path) == [Article(r["id"], r["title"], r["text"]) for r in ROWS]


def test_articles_are_looked_up_by_id(wikipedia, tmp_path):
    _, other = corpus_files(wikipedia, tmp_path)
    assert get_articles(other, ["3"]) == {"3": Article("3", "Empty", "")}
    with pytest.raises(ExamError, match=r"other\.parquet has no article 'nowhere' any more"):
        get_articles(other, ["3", "nowhere"])


def test_jsonl_with_mapped_columns_joins_a_second_corpus(wikipedia, tmp_path):
    write_lines(tmp_path / "notes.jsonl", {"key": 9, "name": "N", "body": "B."})
    columns = {"id": "key", "title": "name", "text": "body"}
    notes = CorpusSource(CorpusFormat.jsonl, str(tmp_path), "notes.jsonl", columns)
    wikipedia.extra_corpora = [notes]
    files = corpus_files(wikipedia, tmp_path)
    assert [f.source for f in files] == ["a.parquet", "other.parquet", "notes.jsonl"]
    assert get_articles(files[2], ["9"]) == {"9": Article("9", "N", "B.")}


def test_a_text_is_an_article_titled_by_its_name(tmp_path):
    (tmp_path / "the_ant.txt").write_bytes(b"\xef\xbb\xbfAn ant digs.\r\nIt is small.")
    (file,) = corpus_files(corpus_of(tmp_path, CorpusFormat.text), tmp_path)
    ant = Article("the_ant.txt", "the ant", "An ant digs.\nIt is small.")
    assert read(corpus_of(tmp_path, CorpusFormat.text), tmp_path) == [ant]
    assert get_articles(file, ["the_ant.txt"]) == {"the_ant.txt": ant}
    assert corpus_key([file]) != corpus_key([CorpusFile(file.path, {"id": "id"})])


def test_corpus_key_follows_the_bytes(wikipedia, tmp_path):
    before = corpus_key(corpus_files(wikipedia, tmp_path))
    changed = [{**ROWS[0], "text": "An ant sleeps."}]
    pq.write_table(pa.Table.from_pylist(changed), tmp_path / "wiki" / "a.parquet")
    after = corpus_key(corpus_files(wikipedia, tmp_path))
    assert before[0] != after[0]
    assert before[1] == after[1]


# Which files are read.


def test_texts_are_read_from_subfolders_and_told_apart_by_their_paths(tmp_path, caplog):
    caplog.set_level(logging.INFO, "exam")
    notes = tmp_path / "notes"
    names = (
        *("a/notes.txt", "b/NOTES.TXT", "top.md", "README.md", ".hidden.txt", ".git/x.txt"),
        *("page.html", "b/paper.pdf", "out/vocab.txt"),
    )
    for name in names:
        (notes / name).parent.mkdir(parents=True, exist_ok=True)
        (notes / name).write_text(f"Text of {name}.")
    articles = read(corpus_of(notes, CorpusFormat.text), notes / "out")
    assert [(a.id, a.title) for a in articles] == [
        ("a/notes.txt", "notes"),
        ("b/NOTES.TXT", "NOTES"),
        ("top.md", "top"),
    ]
    line = f"corpus: {notes}, 3 files; left out 3 files (README.md, b/paper.pdf, page.html)"
    assert caplog.messages.count(line) == 1


def test_one_file_is_a_corpus(tmp_path):
    (tmp_path / "notes.text").write_text("An ant digs.")
    (tmp_path / "other.txt").write_text("A bee flies.")
    notes = corpus_of(tmp_path / "notes.text", CorpusFormat.text)
    assert read(notes, tmp_path / "o") == [Article("notes.text", "notes", "An ant digs.")]
    write_articles(tmp_path / "wiki.data")
    assert read(corpus_of(tmp_path / "wiki.data"), tmp_path / "o") == ANTS
    with refuses("corpus.files=*.jsonl", "corpus.files=null"):
        corpus_files(corpus_of(tmp_path / "wiki.data", files="*.jsonl"), tmp_path)


def test_patterns_match_neither_hidden_files_nor_a_readme(tmp_path):
    write_articles(tmp_path / "part1.jsonl")
    (tmp_path / "README.md").write_text("# Data\n")
    (tmp_path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    for files in ("*", ["*"], str(tmp_path / "*"), "part1.jsonl", str(tmp_path / "part1.jsonl")):
        assert read(corpus_of(tmp_path, files=files), tmp_path / "o") == ANTS
    readme = corpus_of(tmp_path, CorpusFormat.text, "README.md")
    assert read(readme, tmp_path / "o") == [Article("README.md", "README", "# Data\n")]


TABLE = "id{0}title{0}text\n1{0}Ant{0}An ant digs.\n2{0}Bee{0}A bee flies.\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("wiki.JSONL", "".join(json.dumps(vars(a)) + "\n" for a in ANTS)),
        ("wiki.json", json.dumps([vars(a) for a in ANTS])),
        ("wiki.csv", TABLE.format(",")),
        ("wiki.TSV", TABLE.format("\t")),
        ("wiki.csv.gz", gzip.compress(TABLE.format(",").encode(), mtime=0)),
        (
            "wiki.jsonl.gz",
            gzip.compress("".join(json.dumps(vars(a)) + "\n" for a in ANTS).encode(), mtime=0),
        ),
    ],
)
def test_tables_of_any_ending(tmp_path, name, content):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert read(corpus_of(tmp_path, files=name), tmp_path / "o") == ANTS


def test_a_parquet_file_is_known_by_its_content(tmp_path):
    pq.write_table(pa.Table.from_pylist([vars(a) for a in ANTS]), tmp_path / "part-0000")
    assert read(corpus_of(tmp_path, files="part-*"), tmp_path / "o") == ANTS


@pytest.mark.parametrize("name", ["wiki.jsonl", "WIKI.JSONL", "wiki.jsonl.gz"])
def test_json_lines_are_read_by_default_in_capitals_and_compressed(tmp_path, name):
    lines = "".join(json.dumps(vars(a)) + "\n" for a in ANTS).encode()
    (tmp_path / name).write_bytes(gzip.compress(lines) if name.endswith("gz") else lines)
    assert read(corpus_of(tmp_path), tmp_path / "o") == ANTS


def test_missing_corpora_are_refused(tmp_path):
    wikipedia, text = CorpusFormat.wikipedia, CorpusFormat.text
    with refuses(f"{tmp_path} holds no wikipedia corpus (*.parquet)", "corpus.dir=<folder>"):
        corpus_files(corpus_of(tmp_path, wikipedia), tmp_path)
    with refuses(f"{tmp_path / 'gone'} does not exist", "corpus.dir=<folder>"):
        corpus_files(corpus_of(tmp_path / "gone"), tmp_path)
    write_articles(tmp_path / "notes" / "a.jsonl")
    (tmp_path / "paper.pdf").write_bytes(b"%PDF-1.7")
    with refuses("(notes); it holds 1 file (paper.pdf)", f"corpus.dir={tmp_path / 'notes'}"):
        corpus_files(corpus_of(tmp_path, files="notes"), tmp_path)
    with refuses("holds no text corpus (*.txt, *.md); it holds 1 file (paper.pdf)", "corpus.dir="):
        corpus_files(corpus_of(tmp_path, text), tmp_path)
    with refuses("it holds 1 file (a.jsonl)", "corpus=jsonl", f"corpus.dir={tmp_path / 'notes'}"):
        corpus_files(corpus_of(tmp_path / "notes", wikipedia), tmp_path)


def test_truncated_files_are_refused_together(wikipedia, tmp_path):
    for name in ("a", "other"):
        path = tmp_path / "wiki" / f"{name}.parquet"
        path.write_bytes(path.read_bytes()[:-20])
    with refuses("2 files", "a.parquet is not a whole", "other.parquet is not a whole", "\nF"):
        corpus_files(wikipedia, tmp_path)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"%PDF-1.7\n", "a PDF"),
        (b"PK\x03\x04docx", "an archive"),
        (b"<!DOCTYPE html>\n<p>An ant digs.", "a web page"),
        (b"<?xml version='1.0'?>\n<HTML><body>An ant digs.", "a web page"),
        (b"\xef\xbb\xbf<!doctype html>", "a web page"),
        (b"<?xml version='1.0'?><article>", "XML"),
        (b"{\\rtf1 An ant digs.}", "an RTF document"),
        (b"An ant\0digs.", "no text"),
        ("é".encode("latin-1"), "not UTF-8"),
    ],
)
def test_files_that_are_no_texts_are_refused(tmp_path, content, kind):
    (tmp_path / "a.txt").write_bytes(content)
    with refuses(f"{tmp_path / 'a.txt'} is {kind}", "UTF-8", "corpus.files=<pattern>"):
        list_articles(corpus_of(tmp_path, CorpusFormat.text), tmp_path / "o")


def test_a_text_about_tags_is_a_text(tmp_path):
    (tmp_path / "a.md").write_text("The tag <html> begins a page.")
    (article,) = read(corpus_of(tmp_path, CorpusFormat.text), tmp_path / "o")
    assert article.text == "The tag <html> begins a page."


def test_all_bad_files_are_listed_in_one_message(tmp_path):
    for n in range(30):
        (tmp_path / f"{n:02d}.txt").write_bytes(b"\xff" if n % 3 else b"An ant digs.")
    (tmp_path / "99.txt").write_bytes(b"%PDF-1.7")
    with refuses("21 files", "01.txt is not UTF-8", "29.txt is not UTF-8", "1 more") as error:
        list_articles(corpus_of(tmp_path, CorpusFormat.text), tmp_path / "o")
    assert str(error.value).count("Save it as UTF-8") == 1


# Columns.


@pytest.mark.parametrize(
    ("row", "columns", "expected"),
    [
        ({"id": 1, "text": "x"}, {}, Article("1", "", "x")),
        ({"_id": "1", "title": None, "text": "x"}, {}, Article("1", "", "x")),
        ({"id": 1, "title": "A", "text": ["x", "", "y"]}, {}, Article("1", "A", "x\ny")),
        ({"id": 7.0, "title": 1984, "text": None}, {}, Article("7", "1984", "")),
        ({"id": "1", "contents": '"A"\nx'}, {}, Article("1", "A", "x")),
        ({"id": "1", "contents": "a\nx"}, {}, Article("1", "", "a\nx")),
        ({"id": "1", "all": "a\nx"}, {"title": "all", "text": "all"}, Article("1", "a", "x")),
        ({"id": "1", "title": "A", "text": "x"}, {"title": None}, Article("1", "", "x")),
        ({"title": "A", "text": "x"}, {"id": None}, Article("c:1", "A", "x")),
        ({"id": "1", "": "0", "text": "x"}, {"title": None}, Article("1", "", "x")),
    ],
)
@pytest.mark.parametrize("form", ["lines", "parquet"])
def test_the_forms_of_an_article(tmp_path, row, columns, expected, form):
    path = tmp_path / "c"
    if form == "lines":
        write_lines(path, row)
    else:
        pq.write_table(pa.Table.from_pylist([row]), path)
    assert read(corpus_of(tmp_path, files="c", **columns), tmp_path / "o") == [expected]


def test_a_missing_title_in_some_rows_is_empty(tmp_path, caplog):
    rows = [{"id": 1, "title": "Ant", "text": "x"}, {"id": 2, "text": "y"}]
    write_lines(tmp_path / "a.jsonl", *rows)
    titles = [article.title for article in read(corpus_of(tmp_path), tmp_path / "o")]
    assert titles == ["Ant", ""]
    assert not caplog.messages


def test_a_corpus_without_titles_is_named_unless_it_is_meant(tmp_path, caplog):
    write_lines(tmp_path / "a.jsonl", {"id": 1, "name": "Ant", "text": "x"})
    list_articles(corpus_of(tmp_path), tmp_path / "o")
    assert "corpus.columns.title=null" in caplog.text
    with refuses("a.jsonl has a title (column 'heading')", "corpus.columns.title=null"):
        list_articles(corpus_of(tmp_path, title="heading"), tmp_path / "o")
    caplog.clear()
    list_articles(corpus_of(tmp_path, title=None), tmp_path / "o")
    list_articles(corpus_of(tmp_path, title="name"), tmp_path / "o")
    assert not caplog.messages


@pytest.mark.parametrize("removal", ["~corpus.columns.title", "corpus.columns.title=null"])
def test_titles_are_switched_off_also_in_a_restored_run(tmp_path, removal):
    write_articles(tmp_path / "a.jsonl")
    corpus = ["corpus=jsonl", f"corpus.dir={tmp_path}", removal]
    config = compose_config("train", "data=csv", "data.train=q.csv", *corpus)
    save_run(config, tmp_path / "config.yaml")
    restored = load_run(tmp_path / "config.yaml", compose_config("infer", "ckpt=run"))
    for source in (config.corpus, restored.corpus):
        assert [article.title for article in read(source, tmp_path / "o")] == ["", ""]


def test_columns_of_no_article_are_refused():
    with refuses("corpus.columns.body", "corpus.columns.text"):
        compose_config("retrieve", "corpus=jsonl", "+corpus.columns.body=x")
    with refuses("corpus.columns.text has no value", "corpus.columns.text=<name>"):
        compose_config("retrieve", "corpus=jsonl", "corpus.columns.text=null")


CELLS = [
    (pa.array(["7"], pa.string_view()), "7"),
    (pa.array(["7"], pa.large_string()), "7"),
    (pa.array(["7"]).dictionary_encode(), "7"),
    (pa.array([b"7"]), "7"),
    (pa.array([7], pa.uint8()), "7"),
    (pa.array([7.0]), "7"),
    (pa.array([7.5], pa.float32()), "7.5"),
    (pa.array([" 7.0"]), "7"),
    (pa.array([True]), "true"),
    (pa.array([date(2023, 7, 1)]), "2023-07-01"),
    (pa.array([7], pa.int32()).cast(pa.decimal128(12, 2)), "7"),
]


@pytest.mark.parametrize(("ids", "expected"), CELLS, ids=[str(cell.type) for cell, _ in CELLS])
def test_ids_of_every_type_that_arrow_can_write_as_text(tmp_path, ids, expected):
    texts = pa.array(["An ant digs."])
    table = pa.table({"id": ids, "title": texts, "text": texts})
    pq.write_table(table, tmp_path / "a.parquet", store_schema=True)
    file = CorpusFile(tmp_path / "a.parquet", COLUMNS)
    article = Article(expected, "An ant digs.", "An ant digs.")
    assert list(iter_articles(file)) == [article]
    assert get_articles(file, [expected]) == {expected: article}


@pytest.mark.parametrize("kind", [pa.string_view(), pa.large_string(), pa.list_(pa.string())])
def test_texts_of_every_type(tmp_path, kind):
    is_list = pa.types.is_list(kind)
    texts = pa.array([["x", "y"], None] if is_list else ["x\ny", None], kind)
    titles = pa.array(["A", None], pa.string_view())
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": ["1", "2"], "title": titles, "text": texts}), path)
    expected = [Article("1", "A", "x\ny"), Article("2", "", "")]
    assert read(corpus_of(tmp_path, files="*"), tmp_path / "o") == expected


@pytest.mark.parametrize(
    ("row", "observed", "remedy"),
    [
        ({"id": 1, "name": "x"}, "columns id, name, but no 'text'", "corpus.columns.text="),
        ({"title": "", "text": "x"}, "columns title, text, but no 'id'", "corpus.columns.id=null"),
        ({"id": 1, "text": {"a": "x"}}, "'text' holds", "corpus.columns.text="),
        ({"id": {"a": 1}, "text": "x"}, "'id' holds", "corpus.columns.id="),
        ({"id": 1, "text": [{"a": "x"}]}, "'text' holds", "corpus.columns.text="),
    ],
)
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_files_that_hold_no_articles_are_refused(tmp_path, row, observed, remedy, form):
    path = tmp_path / f"a.{form}"
    write = write_lines if form == "jsonl" else lambda p, r: pq.write_table(pa.table(columns(r)), p)

    def columns(row):
        return {name: pa.array([cell]) for name, cell in row.items()}

    write(path, row)
    with refuses(str(path), observed, remedy):
        list_articles(corpus_of(tmp_path, files="a.*"), tmp_path / "o")


def test_a_column_that_occurs_twice_is_refused(tmp_path):
    path, cells = tmp_path / "twice.parquet", pa.array(["x"])
    pq.write_table(pa.table([cells] * 4, names=["id", "title", "text", "text"]), path)
    with pytest.raises(ExamError, match=r"occurs 2 times.*\n.*corpus\.columns\.text="):
        list(iter_articles(CorpusFile(path, COLUMNS)))


# Ids.


def test_articles_of_two_files_with_one_id_are_refused_or_numbered(tmp_path):
    write_articles(tmp_path / "en.jsonl")
    write_articles(tmp_path / "more.jsonl", ANTS[::-1])
    with refuses("more.jsonl: article 1 has the id '2'", "en.jsonl", "corpus.columns.id=null"):
        list_articles(corpus_of(tmp_path), tmp_path / "o")
    ids = [article.id for article in read(corpus_of(tmp_path, id=None), tmp_path / "o")]
    assert ids == ["en.jsonl:1", "en.jsonl:2", "more.jsonl:1", "more.jsonl:2"]


def test_faulty_ids_of_all_files_are_listed(tmp_path):
    write_articles(tmp_path / "a.jsonl", [*ANTS, ANTS[0]])
    write_articles(tmp_path / "b.jsonl", [Article("3", "", "x"), Article("", "", "y")])
    observed = "2 files", "a.jsonl: article 3 has the id '1' of an earlier one"
    with refuses(*observed, "b.jsonl: article 2 has no id", "corpus.columns.id=null"):
        list_articles(corpus_of(tmp_path), tmp_path / "o")


def test_texts_of_two_corpora_with_one_name_are_told_apart_from_one_folder(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text(name)
    corpus = corpus_of(tmp_path / "a", CorpusFormat.text)
    corpus.extra_corpora = [CorpusSource(CorpusFormat.text, str(tmp_path / "b"))]
    with refuses("b/notes.txt", "'notes.txt'", "a/notes.txt", "corpus.dir=<folder above all>"):
        list_articles(corpus, tmp_path / "o")
    articles = read(corpus_of(tmp_path, CorpusFormat.text), tmp_path / "o")
    assert [article.id for article in articles] == ["a/notes.txt", "b/notes.txt"]


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
