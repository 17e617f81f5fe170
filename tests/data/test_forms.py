"""One set of questions in every form, kind of answer and kind of file reads the same."""

import csv
import gzip
import io
import json
from itertools import product

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from exam.config import Data
from exam.data.questions import read_questions

QUESTIONS = [  # prompt, options and the right one
    ("Which metal is liquid?", ["mercury", "iron, cast", 'a "tin"', "None"], 0),
    ("Which is largest?", ["Mars", "Jupiter", "Venus", "NA"], 1),
    ("Which one; what?", ["0.10", "0.1", "1.0", "01"], 2),
    ("Which\nlast?", ["ä", "水", "it's", "×"], 3),
]
LABELS = ["A", "B", "C", "D"]


def zipped(texts):
    return zip(LABELS, texts, strict=True)


OPTIONS = {  # columns of a row, and the settings that read them
    "letters": (lambda texts: dict(zipped(texts)), {"options": "ABCD"}),
    "capitals": (lambda texts: {c.lower(): text for c, text in zipped(texts)}, {"options": "ABCD"}),
    "series": (
        lambda texts: {f"op{c.lower()}": text for c, text in zipped(texts)},
        {"options": "ABCD", "columns": {c: f"op{c.lower()}" for c in LABELS}},
    ),
    "blank_last": (lambda texts: {**dict(zipped(texts)), "E": ""}, {}),
    "list": (lambda texts: {"choices": texts}, {"columns": {"options": "choices"}}),
    "objects": (
        lambda texts: {"choices": [{"label": c, "text": text} for c, text in zipped(texts)]},
        {"columns": {"options": "choices"}},
    ),
    "columns": (
        lambda texts: {"choices": {"text": texts, "label": LABELS}},
        {"columns": {"options": "choices"}},
    ),
    "dictionary": (
        lambda texts: {"choices": dict(zipped(texts))},
        {"columns": {"options": "choices"}},
    ),
    "nested": (
        lambda texts: {"more": {"choices": texts}},
        {"columns": {"options": "more.choices"}},
    ),
}
ANSWERS = {
    "letter": lambda texts, right: LABELS[right],
    "written": lambda texts, right: f"({LABELS[right].lower()})",
    "from_zero": lambda texts, right: right,
    "from_one": lambda texts, right: right + 1,
    "float": lambda texts, right: float(right),
    "text": lambda texts, right: texts[right],
}


def delimited(rows, path, delimiter=",", encoding="utf-8", nested=json.dumps):
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter)
    cells = [[nested(v) if isinstance(v, list | dict) else v for v in r.values()] for r in rows]
    writer.writerows([rows[0].keys(), *cells])
    path.write_bytes(text.getvalue().encode(encoding))


def lines(rows):
    return "\n".join(map(json.dumps, rows)).encode()


FILES = {
    "comma.csv": delimited,
    "semicolon.csv": lambda rows, path: delimited(rows, path, ";"),
    "python.csv": lambda rows, path: delimited(rows, path, nested=str),
    "excel.csv": lambda rows, path: delimited(rows, path, encoding="utf-16"),
    "tabs.tsv": lambda rows, path: delimited(rows, path, "\t"),
    "lines.jsonl": lambda rows, path: path.write_bytes(lines(rows)),
    "array.json": lambda rows, path: path.write_text(json.dumps(rows, indent=1)),
    "packed.jsonl.gz": lambda rows, path: path.write_bytes(gzip.compress(lines(rows))),
    "table.parquet": lambda rows, path: pq.write_table(pa.Table.from_pylist(rows), path),
}


@pytest.mark.parametrize(("name", "shape"), product(FILES, OPTIONS))
def test_every_form_reads_the_same(tmp_path, name, shape):
    write, settings = OPTIONS[shape]
    expected = [
        {"id": str(i), "prompt": prompt, "options": texts, "label": right}
        for i, (prompt, texts, right) in enumerate(QUESTIONS)
    ]
    columns = {"id": "id", "prompt": "prompt", "answer": "answer", **settings.get("columns", {})}
    data = Data("q", dir=str(tmp_path), **{**settings, "columns": columns})
    for answer in ANSWERS.values():
        rows = [
            {"id": i, "prompt": prompt, **write(texts), "answer": answer(texts, right)}
            for i, (prompt, texts, right) in enumerate(QUESTIONS)
        ]
        FILES[name](rows, tmp_path / name)
        read = read_questions(data, name).to_list()
        assert [{key: row[key] for key in expected[0]} for row in read] == expected
