"""Answers: every way in which people name the right option, in one form a file."""

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import refuses, write_csv

from exam.config import AnswerForm, Data
from exam.config.compose import compose_config
from exam.data.questions import read_questions
from exam.data.schema import parse_questions

GASES = ["argon", "helium", "carbon dioxide", "neon"]


def rows(answers, options=GASES):
    lettered = dict(zip("ABCDE", options, strict=False))
    return [
        {"id": f"q{i}", "prompt": f"Which gas is {i}?", **lettered, "answer": answer}
        for i, answer in enumerate(answers)
    ]


def labels(answers, form=AnswerForm.auto, options=GASES):
    data = Data("q", options="ABCDE"[: len(options)], answer=form)
    return parse_questions(rows(answers, options), data, "q.csv")["label"][:]


LETTERS = [
    *("C", " C ", "c", "C.", "(C)", "[c]", "C)", "C:", '"C"', "**C**", "Option C", "option (c)"),
    *("Answer: C", "The correct answer is C.", "Ｃ", "（Ｃ）", "C) carbon dioxide"),
    *("C. Carbon dioxide.", "(C) carbon  dioxide", "c - carbon dioxide", ["C"], '["C"]', "['C']"),
    *([0, 0, 1, 0], "[0 0 1 0]", [False, False, True, False]),
]


@pytest.mark.parametrize("answer", LETTERS, ids=str)
def test_a_label_as_people_write_it(answer):
    assert labels([answer, "A"]) == [2, 0]


@pytest.mark.parametrize("answer", ["carbon dioxide", "Carbon Dioxide", " carbon  dioxide"])
def test_a_text_as_people_write_it(answer, caplog):
    caplog.set_level("INFO")
    assert labels([answer, "argon"]) == [2, 0]
    assert "data.answer=text" in caplog.text


@pytest.mark.parametrize("kind", [int, float, str, lambda i: f"{i}.0", lambda i: f"({i})"])
@pytest.mark.parametrize("first", [0, 1])
def test_numbers_are_counted_from_where_they_begin(kind, first, caplog):
    caplog.set_level("INFO")
    numbers = [kind(first + label) for label in (0, 1, 2, 3, 1)]
    assert labels(numbers) == [0, 1, 2, 3, 1]
    assert f"data.answer=index{first}" in caplog.text


def test_letters_are_read_without_a_word(caplog):
    caplog.set_level("INFO")
    assert labels(["A", "D"]) == [0, 3]
    assert not caplog.messages


@pytest.mark.parametrize("answer", [None, "", " ", math.nan, "\u200b", -1, "-1", -1.0, [], "[]"])
def test_an_empty_or_withheld_answer_is_unknown(answer):
    assert labels([answer, "B"]) == [None, 1]
    assert labels([answer, answer]) == [None, None]
    assert labels([answer, 3, 0]) == [None, 3, 0]


def test_an_option_of_minus_one_may_be_the_right_text():
    options = ["-1", "5", "6", "7"]
    assert labels(["-1", "5", "7"], options=options) == [0, 1, 3]
    assert labels(["-1", "B"], options=options) == [None, 1]


def test_numbers_that_fit_two_readings_are_refused():
    answers = [1, 2, 3, 1]
    with refuses(
        "row 1 (id 'q0')", "'helium'", "'argon'", "data.answer=index0 or data.answer=index1"
    ):
        labels(answers)
    assert labels(answers, AnswerForm.index0) == [1, 2, 3, 1]
    assert labels(answers, AnswerForm.index1) == [0, 1, 2, 0]


def test_numbers_that_are_also_options_are_refused():
    options = ["4", "3", "2", "0"]
    with refuses("'4' means", "index1", "data.answer=text"):
        labels([4, 3, 2], options=options)
    assert labels([4, 3, 2], AnswerForm.text, options) == [0, 1, 2]
    assert labels([4, 3, 2], AnswerForm.index1, options) == [3, 2, 1]


def test_letters_that_are_also_options_are_refused():
    groups = ["0", "AB", "B", "A"]
    with refuses("'A' means '0' if", "'A' if", "data.answer=letter or data.answer=text"):
        labels(["A"], options=groups)
    assert labels(["A", "C"], options=groups) == [0, 2]  # no option is C
    assert labels(["A"], AnswerForm.text, groups) == [3]


def test_labels_of_the_file_are_no_numbers():
    row = {"id": "1", "prompt": "p", "answer": 2}
    choices = {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}
    data = Data("q", columns={"id": "id", "prompt": "prompt", "answer": "answer", "options": "o"})
    assert parse_questions([{**row, "o": choices}], data, "q")["label"][:] == [1]


@pytest.mark.parametrize(
    "answer",
    ["A,C", "A, C", "A|C", "A;C", "A and C", "AC", "1,3", ["A", "C"], "['A', 'C']", [1, 3]],
)
def test_several_answers_are_refused_as_such(answer):
    with refuses("row 2 (id 'q1')", "several options, as 1 of 3", "keep one in each row"):
        labels(["A", answer, "B"])


@pytest.mark.parametrize(
    ("answers", "observed", "remedy"),
    [
        (["A", "F"], "row 2 (id 'q1'): answer 'F' is not among the labels A, B, C, D", "Write"),
        (["A", "neon"], "'neon' is not among the labels", "this may be option D"),
        (["C) argon", "A"], "'C) argon' is not among", "Write the label"),
        ([0, 1, 7], "7 (int) is not among the numbers 0 to 3", "data.columns.answer=<name>"),
        ([0, 1.5], "1.5 (float)", "Write the label"),
        ([True, False], "True (bool)", "Write the label"),
        ([{"x": 1}], "(dict)", "Write the label"),
        (["neon", "xenon"], "'xenon' is not the text of exactly one option", "Write the label"),
    ],
)
def test_answers_that_name_no_option_are_refused(answers, observed, remedy):
    with refuses(observed, remedy):
        labels(answers)


@pytest.mark.parametrize(
    ("answers", "form", "works"),
    [
        ([1, 4], AnswerForm.index0, AnswerForm.index1),
        ([0, 3], AnswerForm.index1, AnswerForm.index0),
        (["A", "D"], AnswerForm.text, AnswerForm.letter),
        (["argon", "neon"], AnswerForm.letter, AnswerForm.text),
    ],
)
def test_a_form_that_does_not_fit_names_the_one_that_does(answers, form, works):
    with refuses(f"\nSet data.answer={works.value}"):
        labels(answers, form)
    assert labels(answers, works) == [0, 3]


def test_another_column_that_holds_the_answers_is_named():
    made = [{**row, "answer": "see key", "answerKey": "C"} for row in rows([None, None])]
    data = Data("q", options="ABCD")
    with refuses("'see key' is not among", "Set data.columns.answer=answerKey"):
        parse_questions(made, data, "q")
    data.columns["answer"] = "answerKey"
    assert parse_questions(made, data, "q")["label"][:] == [2, 2]


COLUMNS = {
    "int8": (pa.array([0, 3, 1], pa.int8()), [0, 3, 1]),
    "double": (pa.array([0.0, 3.0, None]), [0, 3, None]),
    "from_one": (pa.array([1, 4, 2]), [0, 3, 1]),
    "letters": (pa.array(["A", "D", "B"]).dictionary_encode(), [0, 3, 1]),
    "large_string": (pa.array(["A", "D", ""], pa.large_string()), [0, 3, None]),
    "texts": (pa.array(["argon", "neon", "helium"]), [0, 3, 1]),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_csv_parquet_and_jsonl_of_one_frame_read_alike(tmp_path, name):
    column, expected = COLUMNS[name]
    table = pa.Table.from_pylist(rows([None] * 3)).drop_columns("answer")
    table = table.append_column("answer", column)
    pq.write_table(table, tmp_path / "q.parquet")
    written = table.to_pylist()
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, written)))
    texts = [{k: "" if v is None else str(v) for k, v in row.items()} for row in written]
    write_csv(tmp_path / "q.csv", texts)
    data = Data("q", dir=str(tmp_path), options="ABCD")
    read = [read_questions(data, f"q.{form}").to_list() for form in ("csv", "parquet", "jsonl")]
    assert [row["label"] for row in read[0]] == expected
    assert read == [read[0]] * 3


@pytest.mark.parametrize(
    ("options", "answer", "label"),
    [
        (["[0, 1]", "[1, 0]"], "[0, 1]", 0),
        (["[2]", "[1]", "[0]", "[3]"], "[0]", 2),
        (["(2, 3)", "(1, 0)", "(0, 0)", "(5, 5)"], "(2, 3)", 0),
    ],
)
def test_an_answer_that_is_the_text_of_an_option_is_no_list(tmp_path, options, answer, label):
    letters = "ABCD"[: len(options)]
    row = {"id": "1", "prompt": "print?", **dict(zip(letters, options, strict=True))}
    path = write_csv(tmp_path / "q.csv", [{**row, "answer": answer}])
    words = [f"data.test={path}", f"data.options={letters}", "data.answer=text"]
    config = compose_config("train", "data=csv", *words)
    assert read_questions(config.data, config.data.test)[0]["label"] == label
