"""Options: every form in which files list them, and rows with fewer than others."""

import json
import shlex

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import refuses

from exam.config import AnswerForm, Data
from exam.config.compose import compose_config
from exam.core.errors import ExamError
from exam.data.questions import read_questions
from exam.data.schema import parse_questions

METALS = ["mercury", "it's iron", 'a "tin"', "None"]
LABELLED = [{"label": c, "text": text} for c, text in zip("ABCD", METALS, strict=True)]
PARTS = {"id": "id", "prompt": "prompt", "answer": "answer"}


def listed(options, answer="B", column="choices", **more):
    data = Data("q", columns={**PARTS, "options": column})
    row = {"id": "1", "prompt": "Which?", "choices": options, "answer": answer, **more}
    (question,) = parse_questions([row], data, "q")
    return question["options"], question["label"]


SHAPES = {
    "list": METALS,
    "objects": LABELLED,
    "keys_and_values": [{"key": row["label"], "value": row["text"]} for row in LABELLED],
    "texts_alone": [{"text": text} for text in METALS],
    "columns": {"text": METALS, "label": list("ABCD")},
    "dictionary": dict(zip("ABCD", METALS, strict=True)),
    "small_letters": dict(zip("abcd", METALS, strict=True)),
    "numbered": {f"option{i}": text for i, text in enumerate(METALS, 1)},
    "map": list(zip("ABCD", METALS, strict=True)),
    "longer_dictionary": {**dict(zip("ABCD", METALS, strict=True)), "E": None},
}
WRITERS = {
    "value": lambda value: value,
    "json": json.dumps,
    "json_indented": lambda value: json.dumps(value, indent=1),
    "python": str,
    "pandas": lambda value: str(with_arrays(value)),
}


def with_arrays(value):
    """Lists as pandas holds them after reading Parquet."""
    if isinstance(value, dict):
        return {key: with_arrays(part) for key, part in value.items()}
    return np.array(value, dtype=object) if isinstance(value, list) else value


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_gives_the_same_options(shape, write):
    answer = "2" if shape == "numbered" else "B"
    value = SHAPES[shape]
    if shape == "map" and write != "value":
        pytest.skip("only Arrow has maps")
    assert listed(WRITERS[write](value), answer) == (METALS, 1)


@pytest.mark.parametrize(
    "text",
    [
        "['mercury' 'iron'\n 'tin']",
        "array(['mercury', 'iron', 'tin'], dtype=object)",
        "[np.str_('mercury'), np.str_('iron'), np.str_('tin')]",
        "('mercury', 'iron', 'tin')",
        '["mercury", "iron", "tin"]',
    ],
)
def test_lists_written_in_a_cell(text):
    assert listed(text) == (["mercury", "iron", "tin"], 1)


@pytest.mark.parametrize("text", ["[0.10, 1.50, 20]", "[0.10 1.50 20]", '["0.10", "1.50", "20"]'])
def test_numbers_in_a_cell_keep_their_spelling(text):
    assert listed(text)[0] == ["0.10", "1.50", "20"]


def test_numbers_in_a_file_keep_their_spelling(tmp_path):
    row = '{"id": 1.0, "prompt": "p", "A": 0.10, "B": 1.50, "C": 2, "D": true, "answer": 1}'
    (tmp_path / "q.jsonl").write_text(row)
    (tmp_path / "q.csv").write_text("id,prompt,A,B,C,D,answer\n1.0,p,0.10,1.50,2,True,1\n")
    for name in ("q.jsonl", "q.csv"):
        data = Data("q", dir=str(tmp_path), options="ABCD", answer=AnswerForm.index1)
        (question,) = read_questions(data, name)
        assert question["options"] == ["0.10", "1.50", "2", "True"]
        assert question["id"] == "1"


def test_numbers_of_single_precision_read_as_they_print(tmp_path):
    row = {"id": ["1"], "prompt": ["p"], "answer": ["A"]}
    options = {c: pa.array([x], pa.float32()) for c, x in zip("ABC", (0.1, 2.5, 3), strict=True)}
    pq.write_table(pa.table({**row, **options}), tmp_path / "q.parquet")
    (question,) = read_questions(Data("q", dir=str(tmp_path), options="ABC"), "q.parquet")
    assert question["options"] == ["0.1", "2.5", "3.0"]


def test_ids_of_floats_meet_judgements_of_integers(tmp_path):
    table = {"id": [10.0, 11.0], "prompt": ["p", "q"], **{c: [c * 2] * 2 for c in "AB"}}
    pq.write_table(pa.table(table), tmp_path / "q.parquet")
    (tmp_path / "q_qrels.csv").write_text("question,article\n10,a\n11.0,b\n")
    questions = read_questions(Data("q", dir=str(tmp_path), options="AB"), "q.parquet")
    assert questions["id"][:] == ["10", "11"]
    assert questions["articles"][:] == [["a"], ["b"]]


MARKED = {
    "labels": {"choices": METALS, "labels": [0, 0, 1, 0]},
    "texts_to_marks": dict(zip(METALS, [0, 0, 1, 0], strict=True)),
    "objects": [{"text": t, "correct": t == METALS[2]} for t in METALS],
    "labels_and_marks": [{**row, "isCorrect": row["label"] == "C"} for row in LABELLED],
}


@pytest.mark.parametrize("shape", MARKED)
@pytest.mark.parametrize("write", WRITERS)
def test_options_that_are_marked_as_right(shape, write):
    assert listed(WRITERS[write](MARKED[shape]), None) == (METALS, 2)


def test_several_options_that_are_marked_as_right():
    with refuses("2 of 4 options are marked as right", "correct the row"):
        listed({"choices": METALS, "labels": [1, 0, 1, 0]}, None)


def test_two_options_labelled_0_and_1_with_an_answer():
    value = {"text": ["no", "yes"], "label": [0, 1]}
    assert listed(value, 0) == (["no", "yes"], 0)
    assert listed(value, 1) == (["no", "yes"], 1)
    assert listed(value, None) == (["no", "yes"], 1)


def test_names_inside_of_a_column():
    question = {"stem": "Which?", "choices": LABELLED}
    columns = {"id": None, "prompt": "question.stem", "options": "question.choices"}
    for value in (question, json.dumps(question), str(question)):
        rows = [{"question": value, "answerKey": "D"}]
        data = Data("q", columns={**columns, "answer": "answerKey"})
        (read,) = parse_questions(rows, data, "q")
        assert (read["prompt"], read["options"], read["label"]) == ("Which?", METALS, 3)
    row = {"question.stem": "Flat?", "question.choices": METALS}
    (read,) = parse_questions([row], Data("q", columns=dict(columns)), "q")
    assert read["prompt"] == "Flat?"
    letters = {**PARTS, **{c: f"options.{c}" for c in "ABCD"}}
    row = {"id": "1", "prompt": "p", "options": SHAPES["dictionary"], "answer": "C"}
    (read,) = parse_questions([row], Data("q", options="ABCD", columns=letters), "q")
    assert (read["options"], read["label"]) == (METALS, 2)


ARROW = {
    "structs": pa.array([LABELLED]),
    "map": pa.array([SHAPES["map"]], pa.map_(pa.string(), pa.string())),
    "struct": pa.array([SHAPES["longer_dictionary"]]),
    "columns": pa.array([SHAPES["columns"]]),
    "large_list": pa.array([METALS], pa.large_list(pa.large_string())),
    "dictionaries": pa.array([METALS], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
}


@pytest.mark.parametrize("name", ARROW)
def test_nested_columns_of_parquet(tmp_path, name):
    row = {"id": ["1"], "prompt": ["Which?"], "answer": ["B"], "choices": ARROW[name]}
    pq.write_table(pa.table(row), tmp_path / "q.parquet")
    data = Data("q", dir=str(tmp_path), columns={**PARTS, "options": "choices"})
    (question,) = read_questions(data, "q.parquet")
    assert (question["options"], question["label"]) == (METALS, 1)


def test_a_parquet_file_that_pandas_saved_as_csv(tmp_path):
    frame = pd.DataFrame(
        {"id": ["1"], "prompt": ["Which?"], "choices": [with_arrays(SHAPES["columns"])]}
    )
    frame.assign(answer="B").to_csv(tmp_path / "q.csv")
    data = Data("q", dir=str(tmp_path), columns={**PARTS, "options": "choices"})
    (question,) = read_questions(data, "q.csv")
    assert (question["options"], question["label"]) == (METALS, 1)


@pytest.mark.parametrize(
    ("options", "observed", "remedy"),
    [
        ("a|b|c", "a text ('a|b|c')", "Write a list such as"),
        (None, "is empty", "Write a list"),
        ([], "an empty list", "Write a list"),
        (3, "an int (3)", "Write a list"),
        ([["a"], ["b"]], "a list of 2 (a list of 1 (a text ('a')))", "Write a list"),
        ({"stem": "x", "choices": ["a", "b"]}, "an object with stem, choices", "choices.choices"),
        ({"stem": "x", "para": "y"}, "an object with stem, para", "Write a list"),
        ({"text": ["a", "b"], "label": ["A"]}, "different lengths (2, 1)", "correct the row"),
        ({"text": ["a", "b"], "label": ["A", "A"]}, "labels A, A", "a different label"),
        (["a"], "with a text is 1", "2 to 26"),
        (["a", "", "c"], "option B is empty, but option C is not", "Fill it in"),
        (["a", "\u200b", "c"], "option B is empty", "Fill it in"),
        (["a"] * 27, "with a text is 27", "2 to 26"),
        ([{"text": "a"}, {"text": ["b"]}], "a list of 2 (an object with text)", "Write a list"),
        ("['a', print('b')]", "a text", "Write a list"),
        ({"choices": ["a", "b", ""], "labels": [0, 0, 1]}, "marked as right is empty", "Fill"),
    ],
)  # fmt: skip
def test_options_that_are_not_a_list_are_refused(options, observed, remedy):
    with refuses("row 1 (id '1'): ", observed, "\n", remedy):
        listed(options, None)


def test_the_value_inside_of_a_column_is_named():
    value = {"stem": "x", "choices": ["a", "b"]}
    with refuses("Set data.columns.options=choices.choices"):
        listed(value)
    assert listed(value, column="choices.choices") == (["a", "b"], 1)


def lettered(rows, **values):
    made = [{"id": i, "prompt": "Which?", **row} for i, row in enumerate(rows)]
    return parse_questions(made, Data("q", **values), "q").to_list()


FULL = dict(zip("ABCDE", "vwxyz", strict=True))


@pytest.mark.parametrize(
    "blank", ["", " ", None, float("nan"), "\u200b", "\ufeff\u2060", "\u2800", "\u3164"]
)
def test_blanks_at_the_end_are_no_options(blank):
    rows = [
        FULL | {"answer": "E"},
        FULL | {"E": blank, "answer": "D"},
        FULL | {"D": blank, "E": blank},
    ]
    read = lettered(rows)
    assert [row["options"] for row in read] == [[*"vwxyz"], [*"vwxy"], [*"vwx"]]
    assert [row["label"] for row in read] == [4, 3, None]
    assert listed(["a", "b", blank], "B") == (["a", "b"], 1)
    with refuses("option C is empty, but option E is not", "Fill it in"):
        lettered([FULL | {"C": blank}])
    with refuses("answer 'E' is not among the labels A, B, C, D"):
        lettered([FULL | {"E": blank, "answer": "E"}])


def test_a_column_that_only_some_rows_have():
    rows = [{c: FULL[c] for c in "ABCD"}, FULL]
    assert [len(row["options"]) for row in lettered(rows)] == [4, 5]


def test_a_character_that_joins_letters_is_kept():
    text = "می\u200cخواهم"
    assert listed([text, "b"])[0] == [text, "b"]


FOUR = {"A": "w", "B": "x", "C": "y", "D": "z"}
NATURAL = {
    "arc": {"id": "1", "question": "p", "choices": LABELLED, "answerKey": "B"},
    "nested": {"question": {"stem": "p", "choices": LABELLED}, "answerKey": "B"},
    "medqa": {
        "question": "p",
        "answer": METALS[1],
        "options": SHAPES["dictionary"],
        "answer_idx": "B",
    },
    "truthfulqa": {"question": "p", "mc1_targets": {"choices": METALS, "labels": [0, 1, 0, 0]}},
    "medmcqa": {"question": "p", **{f"op{c.lower()}": text for c, text in FOUR.items()}, "cop": 0},
    "belebele": {
        "question": "p",
        **{f"mc_answer{i}": text for i, text in enumerate(FOUR.values(), 1)},
        "correct_answer_num": "4",
    },
    "hellaswag": {"ind": 4, "ctx": "p", "endings": METALS, "label": "0"},
    "quoted": {"题目": "p", "选项": METALS, "答案": "B"},
    "capitals": {"ID": 7, "Question": "p", **FOUR, "Answer": "B"},
    "blanks": {"Question Text": "p", **FOUR, "Correct Answer": "B"},
}


@pytest.mark.parametrize("name", NATURAL)
def test_the_refusal_gives_the_settings_that_read_the_file(name):
    row = NATURAL[name]
    with pytest.raises(ExamError) as caught:
        parse_questions([row], Data("q"), "q")
    remedy = str(caught.value).splitlines()[1].removeprefix("Set ").partition(", or")[0]
    data = compose_config("retrieve", "data=csv", "data.test=q.csv", *shlex.split(remedy)).data
    (question,) = parse_questions([row], data, "q")
    assert question["prompt"] == "p"
    assert len(question["options"]) == 4
    assert question["label"] is not None


def test_the_refusal_also_names_a_choice_that_is_left():
    row = {**NATURAL["medmcqa"], "cop": 2}
    with refuses("cop data.answer=index0 or ", "data.columns.answer=cop data.answer=index1"):
        parse_questions([row], Data("q"), "q")


@pytest.mark.parametrize(
    ("cell", "texts"),
    [
        ({"A": True, "B": False}, ["True", "False"]),
        ({"A": 0, "B": 1}, ["0", "1"]),
        ({"iron": 1, "tin": 0}, ["iron", "tin"]),
    ],
)
def test_labels_go_before_marks(tmp_path, cell, texts):
    rows = [{"id": "1", "prompt": "is it?", "options": cell, "answer": texts[1]}]
    if texts[0] == "iron":
        del rows[0]["answer"]
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(rows[0]), encoding="utf-8")
    words = ["data=csv", f"data.test={path}", "data.columns.options=options", "data.answer=text"]
    config = compose_config("train", *words)
    assert read_questions(config.data, config.data.test)[0]["options"] == texts


def read_options(tmp_path, value, **more):
    path = tmp_path / "q.jsonl"
    row = {"id": "1", "prompt": "which?", "options": value, **more}
    path.write_text(json.dumps(row), encoding="utf-8")
    words = ["data=csv", f"data.test={path}", "data.columns.options=options"]
    (question,) = read_questions(compose_config("train", *words).data, str(path))
    return question


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (
            "A) Hepatitis B: acute B) Hepatitis C: chronic C) none",
            ["Hepatitis B: acute", "Hepatitis C: chronic", "none"],
        ),
        ("A. Vitamin B. D\nB. Vitamin C. K\nC. Iron", ["Vitamin B. D", "Vitamin C. K", "Iron"]),
        ("a) iron, b) tin", ["iron", "tin"]),
    ],
)
def test_labels_of_one_form_divide_a_text(tmp_path, text, options):
    assert read_options(tmp_path, text, answer="A")["options"] == options


@pytest.mark.parametrize(
    "text",
    [
        "A. Vitamin B. B. Vitamin C. C. Iron",
        "a) see part b) of the law; b) see part c) of the law; c) neither",
    ],
)
def test_a_text_with_a_label_twice_is_refused(tmp_path, text):
    with refuses("options is a text", "list such as"):
        read_options(tmp_path, text, answer="A")


@pytest.mark.parametrize(
    ("marks", "label"),
    [
        ([True, None, None], 0),
        ([None, True, None], 1),
        (["false", "false", "true"], 2),
        (["no", "yes", "no"], 1),
        ([None, None, None], None),
    ],
)
def test_marks_of_every_spelling_name_the_right_option(tmp_path, marks, label):
    objects = [
        {"text": text} | ({} if mark is None else {"correct": mark})
        for text, mark in zip(["iron", "tin", "gold"], marks, strict=True)
    ]
    assert read_options(tmp_path, objects)["label"] == label


def test_marks_that_say_nothing_are_refused(tmp_path):
    with refuses("options marks an option with 'maybe'", "Write true or false"):
        read_options(tmp_path, [{"text": "a", "correct": "maybe"}, {"text": "b", "correct": "no"}])


def test_a_label_without_a_text_is_no_option(tmp_path):
    question = read_options(tmp_path, ["A. iron", "B. gold", "C. ", ""], answer="B")
    assert (question["options"], question["label"]) == (["iron", "gold"], 1)
    question = read_options(tmp_path, ["vitamin A.", "B.", "K"], answer="B")
    assert question["options"] == ["vitamin A.", "B.", "K"]
