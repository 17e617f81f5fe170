"""Tables: the same questions come back from every form, dialect, ending and compression."""

import bz2
import csv
import gzip
import io
import json
import lzma
import math
import zipfile
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from helpers import refuses

from exam.config import Data
from exam.data.articles import CorpusFile, iter_articles
from exam.data.questions import read_questions
from exam.data.tables import is_parquet, is_table, read_rows

NAMES = ["id", "prompt", "A", "B", "C", "answer"]
ROWS = [
    ["q0", "Which metal is liquid?", "tin", "mercury", "iron", "B"],
    ["q1", "Which value is; missing, here?", "None", "NA", "null", "A"],
    ["q2", 'What does "Wärme" \u2028 mean | 熱?', "a\tb", 'the "heat"', "0.10", "C"],
    ["q3", "Where is the\nsecond line?", "1e5", "007", "=1+1", ""],
]
RECORDS = [dict(zip(NAMES, row, strict=True)) for row in ROWS]
WANTED = [
    (row[0], row[1].strip(), [cell.strip() for cell in row[2:5]], "ABC".find(row[5] or "-"))
    for row in ROWS
]


def read(path: Path) -> list[tuple[str, str, list[str], int]]:
    questions = read_questions(Data(name="q", dir=str(path.parent), options="ABC"), path.name)
    labels = [-1 if label is None else label for label in questions["label"]]
    return [*zip(questions["id"], questions["prompt"], questions["options"], labels, strict=True)]


def as_csv(header: list[str], rows: list[list[str]], encoding="utf-8", **dialect: str) -> bytes:
    text = io.StringIO()
    csv.writer(text, **dialect).writerows([header, *rows])
    return text.getvalue().encode(encoding)


def zipped(name: str) -> Callable[[bytes], bytes]:
    def pack(content: bytes) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(name, content)
            archive.writestr("__MACOSX/._q", b"\0")
        return file.getvalue()

    return pack


def as_parquet(kind: pa.DataType) -> bytes:
    file = io.BytesIO()
    columns = zip(*ROWS, strict=True)
    pq.write_table(pa.table([pa.array(c, pa.string()).cast(kind) for c in columns], NAMES), file)
    return file.getvalue()


def forms() -> Iterator[tuple[str, str, bytes]]:
    """Yield each way to write the questions, and its file's name and bytes."""
    encodings = ("utf-8", "utf-8-sig", "utf-16", "utf-32")
    for delimiter, encoding, end in product(",;\t|", encodings, ["\n", "\r\n"]):
        content = as_csv(NAMES, ROWS, encoding, delimiter=delimiter, lineterminator=end)
        yield f"{delimiter!r} {encoding} {end!r}", "q.csv", content
    plain = as_csv(NAMES, ROWS)
    blank = [""] * len(NAMES)
    variants = {
        "quoted": as_csv(NAMES, ROWS, quoting=csv.QUOTE_ALL),
        "sep": b"sep=;\r\n" + as_csv(NAMES, ROWS, delimiter=";"),
        "sep utf-16": "SEP=|\n".encode("utf-16") + as_csv(NAMES, ROWS, "utf-16-le", delimiter="|"),
        "empty columns": as_csv([*NAMES, "", " "], [[*row, "", ""] for row in ROWS]),
        "surplus cells": as_csv(NAMES, [[*row, "", " "] for row in ROWS]),
        "empty rows": as_csv(NAMES, [blank, ROWS[0], ["  "], *ROWS[1:], blank, []]),
        "empty rows first": b",,,\n\n" + plain,
        "index": as_csv(["", *NAMES], [[str(i), *row] for i, row in enumerate(ROWS)]),
        "blanks in the header": as_csv([f" {name}\t" for name in NAMES], ROWS),
        "blanks before quotes": as_csv(
            NAMES, ROWS, quoting=csv.QUOTE_ALL, delimiter="\0", lineterminator="\n"
        ).replace(b"\0", b", "),
    }
    variants["capitals"] = as_csv(["ID", "Prompt", "a", "b", "c", "Answer"], ROWS)
    for name, content in variants.items():
        yield name, "q.csv", content
    arrays = {
        "array": json.dumps(RECORDS),
        "indented": json.dumps(RECORDS, indent=2, ensure_ascii=False),
        "wrapped": json.dumps({"data": RECORDS}),
        "wrapped and indented": json.dumps({"questions": RECORDS}, indent=1),
        "blank rows": json.dumps([{}, *RECORDS, dict.fromkeys(NAMES)]),
    }
    lines = "\n".join(map(json.dumps, RECORDS)) + "\n\n"
    for name, text in {**arrays, "lines": lines}.items():
        for ending in (".json", ".jsonl", ".JSON"):
            yield f"{name} {ending}", f"q{ending}", text.encode()
    for ending, content in {
        ".CSV": plain,
        ".txt": plain,
        ".TSV": as_csv(NAMES, ROWS, delimiter="\t"),
        ".ndjson": lines.encode(),
        ".data": lines.encode(),
        "": plain,
    }.items():
        yield f"ending {ending}", f"q{ending}", content
    packers = {
        ".gz": gzip.compress, ".GZ": gzip.compress, "": gzip.compress, ".bz2": bz2.compress,
        ".xz": lzma.compress, ".csv.zip": zipped("q.csv"),
    }  # fmt: skip
    for ending, pack in packers.items():
        yield f"csv packed {ending}", f"q.csv{ending}", pack(plain)
        if "zip" not in ending:
            yield f"jsonl packed {ending}", f"q.jsonl{ending}", pack(lines.encode())
            yield f"parquet packed {ending}", f"q.parquet{ending}", pack(as_parquet(pa.string()))
    for kind in (
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int8(), pa.string()),
    ):
        for name in ("q.parquet", "q.PARQUET", "q.csv", "q"):
            yield f"{kind} {name}", name, as_parquet(kind)


FORMS = {name: (file, content) for name, file, content in forms()}


def test_the_forms_are_many():
    assert len(FORMS) >= 60


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_questions(tmp_path, form):
    name, content = FORMS[form]
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name) == WANTED


LABELS = ["ABC".find(row[5] or "-") for row in ROWS]
ANSWERS = {
    "letter": [row[5] for row in ROWS],
    "(b)": [f"({row[5].lower()})" if row[5] else "" for row in ROWS],
    "B.": [f"{row[5]}." if row[5] else None for row in ROWS],
    "from 0": [None if label < 0 else label for label in LABELS],
    "from 1": [None if label < 0 else label + 1 for label in LABELS],
    "floats": [None if label < 0 else float(label) for label in LABELS],
    "text": [row[2 + label] if row[5] else None for row, label in zip(ROWS, LABELS, strict=True)],
}
SHAPES = {
    "list": lambda texts: texts,
    "objects": lambda texts: [{"label": c, "text": t} for c, t in zip("ABC", texts, strict=True)],
    "lists": lambda texts: {"text": texts, "label": ["A", "B", "C"]},
    "letters": lambda texts: dict(zip("ABC", texts, strict=True)),
    "small letters": lambda texts: dict(zip("abc", texts, strict=True)),
}


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_options_and_answers_gives_the_same_questions(tmp_path, shape, answer):
    rows = [
        {"id": row[0], "prompt": row[1], "options": SHAPES[shape](row[2:5]), "answer": value}
        for row, value in zip(ROWS, ANSWERS[answer], strict=True)
    ]
    config = Data(name="q", dir=str(tmp_path), options=None)
    config.columns["options"] = "options"
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "q.parquet")
    for spell in (json.dumps, repr):
        cells = [[r["id"], r["prompt"], spell(r["options"]), r["answer"]] for r in rows]
        content = as_csv(["id", "prompt", "options", "answer"], cells, "utf-8-sig", delimiter=";")
        (tmp_path / f"{spell.__name__}.csv.gz").write_bytes(gzip.compress(content))
    for name in ("q.jsonl", "q.parquet", "dumps.csv.gz", "repr.csv.gz"):
        questions = read_questions(config, name)
        assert questions["options"][:] == [wanted[2] for wanted in WANTED]
        assert [-1 if n is None else n for n in questions["label"]] == LABELS


def test_a_folder_of_save_to_disk_gives_the_same_questions(tmp_path):
    Dataset.from_list(RECORDS).save_to_disk(tmp_path / "saved")
    assert list(read_rows(tmp_path / "saved")) == RECORDS


@pytest.mark.parametrize(
    ("content", "observed", "remedy"),
    [
        (b"id,prompt\n1,a,b\n", "line 2: row 1 has 3 fields, the header 2", "Quote fields"),
        (b"id,prompt,A\n\n1,a\n", "line 3: row 1 has 2 fields, the header 3", "every field"),
        (b"sep=;\nid;prompt\n1;a;b\n", "line 3: row 1 has 3 fields", "Quote fields"),
        (b"id,,A\n1,x,y\n", "line 2: row 1 holds 'x' in column 2, which has no name", "Name the"),
        (b"id,prompt,\n1,a,b\n", "row 1 has 3 fields, the header 2", "Quote fields"),
        ("id,prompt\n1,a\n".encode("utf-16-le"), "UTF-16 without a byte-order mark", "as UTF-8"),
        (gzip.compress(b"id,prompt\n1,a\n" * 99, mtime=0)[:-20], "is damaged", "Fetch it again"),
        (zipped("a.csv")(b"x")[:-8], "is an archive, not a table", "Unpack it"),
        (b"\xd0\xcf\x11\xe0", "is an old Office document", "Save it as CSV UTF-8"),
        (b"<!DOCTYPE html><html>", "is a web page", "Fetch the file itself"),
        (b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS", "git lfs pull"),
        (b"\n\n<html>", "is a web page", "Fetch"),
    ],
)  # fmt: skip
def test_what_is_not_a_table_is_refused(tmp_path, content, observed, remedy):
    (tmp_path / "q.csv").write_bytes(content)
    with refuses("q.csv", observed, "\n", remedy):
        list(read_rows(tmp_path / "q.csv"))


def test_an_excel_workbook_and_an_archive_of_files_are_refused(tmp_path):
    for names, observed in (
        (["xl/workbook.xml"], "is an Excel workbook"),
        (["a.csv", "b.csv"], "an archive of 2 files"),
        (["[Content_Types].xml", "word/document.xml"], "is a Word document"),
        (["mimetype", "META-INF/container.xml", "a.xhtml"], "is an EPUB"),
    ):
        with zipfile.ZipFile(tmp_path / "q.xlsx", "w") as archive:
            for name in names:
                archive.writestr(name, "x")
        with refuses("q.xlsx", observed):
            list(read_rows(tmp_path / "q.xlsx"))


def test_a_document_is_made_a_table_of_questions_or_a_text_of_a_corpus(tmp_path):
    for name, content in (
        ("a.pdf", b"%PDF-1.7"),
        ("a.csv", gzip.compress(b"%PDF-1.7")),
        ("a.jsonl", b"\x89PNG\r\n"),
        ("a.json", b"{\\rtf1 text}"),
    ):
        (tmp_path / name).write_bytes(content)
        with refuses(name, "not a table", "table (CSV, JSON Lines or Parquet)"):
            list(read_rows(tmp_path / name))
        corpus = CorpusFile(tmp_path / name, {"id": "id", "title": None, "text": "text"})
        with refuses(name, "not a table", "corpus=text"):
            list(iter_articles(corpus))


@pytest.mark.parametrize("name", ["q.jsonl", "q.json", "q.csv"])
def test_blank_lines_are_skipped_and_a_blank_file_has_no_questions(tmp_path, name):
    (tmp_path / name).write_bytes(b"\n \t\r\n" + "\xa0\n".encode() * 2)
    with refuses(f"{name} holds no question", "Give a file with at least one row"):
        read(tmp_path / name)
    (tmp_path / name).write_bytes(b'\n\r\n{"a": 1}\n\n{"a": 2}\n')
    if name != "q.csv":
        assert list(read_rows(tmp_path / name)) == [{"a": 1}, {"a": 2}]


def test_numbers_of_json_keep_their_spelling(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"a": 0.10, "b": 1e5, "c": NaN, "d": -2.50}\n')
    ((a, b, c, d),) = (row.values() for row in read_rows(tmp_path / "q.jsonl"))
    assert (str(a), str(b), str(d)) == ("0.10", "1e5", "-2.50")
    assert (a, b, d) == (0.1, 100000.0, -2.5)
    assert math.isnan(c)


def test_names_tell_tables_from_other_files(tmp_path):
    names = ["a.csv", "A.CSV", "a.tsv", "a.jsonl.gz", "a.json", "a.parquet", "a.csv.ZIP"]
    assert all(is_table(tmp_path / name) for name in names)
    assert not any(is_table(tmp_path / name) for name in ("README.md", ".DS_Store", "a.gz", "a"))


def test_parquet_is_known_by_its_content(tmp_path):
    (tmp_path / "q.csv").write_bytes(as_parquet(pa.string()))
    (tmp_path / "q.PARQUET").write_bytes(b"id,prompt\n")
    (tmp_path / "q.jsonl").write_bytes(b"{}")
    assert [is_parquet(tmp_path / f"q.{e}") for e in ("csv", "PARQUET", "jsonl")] == [
        True,
        True,
        False,
    ]


def test_json_of_rows_beside_other_values_and_of_pandas(tmp_path):
    rows = [{"id": f"{i}", "prompt": f"p{i}?", "A": "x", "B": "y", "answer": "A"} for i in range(3)]
    path = tmp_path / "q.json"
    columns = {name: {str(i): row[name] for i, row in enumerate(rows)} for name in rows[0]}
    for value in ({"version": "1.0", "data": rows}, columns, {"questions": rows}):
        path.write_text(json.dumps(value), encoding="utf-8")
        assert list(read_rows(path)) == rows
    row = {**rows[0], "data": [{"text": "x"}], "others": ["y"]}
    path.write_text(json.dumps(row), encoding="utf-8")
    assert list(read_rows(path)) == [row]
