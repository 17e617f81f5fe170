"""Several files of one split: answers in one form, qrels, names."""

import gzip
import json
import logging

import pytest
from helpers import refuses

from exam.config import Data
from exam.data.files import find_local_files
from exam.data.questions import find_qrels, read_questions

OPTIONS = ["soil", "sea", "caves", "ice"]


def write(folder, **answers_of):
    """Write a file of questions for each list of answers."""
    for name, answers in answers_of.items():
        rows = [{"prompt": f"{name} {a}?", "options": OPTIONS, "answer": a} for a in answers]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    columns = {"id": None, "prompt": "prompt", "answer": "answer", "options": "options"}
    return Data("q", dir=str(folder), columns=columns)


@pytest.mark.parametrize(
    ("first", "second", "labels"),
    [
        ([1, 2, 3, 0], [1, 3], [1, 2, 3, 0, 1, 3]),
        ([1, 2, 3, 4], [1, 3], [0, 1, 2, 3, 0, 2]),
        ([1, 2], [4, 3], [0, 1, 3, 2]),
        (["A", "D"], ["b", "(c)"], [0, 3, 1, 2]),
    ],
)
def test_files_of_a_split_are_read_in_one_form(tmp_path, caplog, first, second, labels):
    caplog.set_level(logging.INFO, "exam")
    data = write(tmp_path, a=first, b=second)
    for entries in ("*.jsonl", ["a.jsonl", "b.jsonl"]):
        assert read_questions(data, entries)["label"][:] == labels
    lines = [line for line in caplog.messages if "data.answer=" in line]
    assert len(lines) == (0 if first[0] == "A" else 2)
    assert all("a.jsonl, " in line and "b.jsonl: answers are numbers" in line for line in lines)


def test_files_that_differ_in_form_are_refused(tmp_path):
    data = write(tmp_path, a=[0, 1], b=[4, 1], c=[1, 2])
    with refuses("a.jsonl: numbers counted from 0", "b.jsonl: numbers counted from 1", "one form"):
        read_questions(data, "*.jsonl")
    with refuses("answer '1' means 'sea'", "data.answer=index0 or data.answer=index1"):
        read_questions(data, "c.jsonl")
    assert read_questions(data, ["b.jsonl", "c.jsonl"])["label"][:] == [3, 0, 0, 1]


@pytest.mark.parametrize("name", ["q.csv", "Q.CSV", "q.csv.gz", "q.tsv", "q.zip", "q.csv.zip", "q"])
@pytest.mark.parametrize("qrels", ["q_qrels.csv", "Q_QRELS.tsv", "q_qrels.csv.gz", "{}_qrels.csv"])
def test_qrels_lie_beside_files_of_any_ending(tmp_path, name, qrels):
    path = tmp_path / qrels.format(name)
    path.write_text("question,article\n1,a\n")
    assert find_qrels(tmp_path / name) == path
    assert find_qrels(tmp_path / "other.csv") is None
    (tmp_path / "more_questions.csv").write_text("x")
    files = find_local_files(Data("q", dir=str(tmp_path)), ".")
    assert [file.name for file in files] == ["more_questions.csv"]


def test_packed_files_are_named_without_their_endings(tmp_path):
    text = b"prompt,A,B,answer\nWhich?,x,y,A\n"
    for name in ("one.csv.gz", "two.csv.gz"):
        (tmp_path / name).write_bytes(gzip.compress(text))
    columns = {"id": None, "prompt": "prompt", "answer": "answer"}
    data = Data("q", dir=str(tmp_path), options="AB", columns=columns)
    assert read_questions(data, "one.csv.gz")["id"][:] == ["one-1"]
    assert read_questions(data, "*")["id"][:] == ["one:one-1", "two:two-1"]
