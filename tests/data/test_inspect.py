"""`exam inspect`: the command that it prints reads the file."""

import json
import re
import shlex

import pytest
from helpers import kaggle_rows, refuses

from exam.cli import main
from exam.config.compose import compose_config
from exam.data.files import check_paths
from exam.data.inspect import inspect_files
from exam.data.questions import read_questions

PLACES = ["in soil", "at sea", "in caves", "on ice"]
QUESTIONS = [
    {
        "question": f"Where does orchid number {n} grow?",
        "right": n // 2 % (4 - n % 2),
        "options": PLACES[: 4 - n % 2],
    }
    for n in range(12)
]


def lettered(names: list[str], answer: str) -> list[dict]:
    return [
        {"Question": q["question"], **dict(zip(names, q["options"], strict=False)),
         answer: names[q["right"]][-1]}
        for q in QUESTIONS if len(q["options"]) == len(names)
    ]  # fmt: skip


FILES = {
    "letters": lettered(["A", "B", "C", "D"], "Answer"),
    "small letters": lettered(["opa", "opb", "opc", "opd"], "cop"),
    "numbered": lettered(["option1", "option2", "option3", "option4"], "answer"),
    "a list": [
        {"question": q["question"], "choices": q["options"], "answer": "ABCD"[q["right"]]}
        for q in QUESTIONS
    ],
    "the right text": [
        {"uid": n, "question": q["question"], "choices": q["options"],
         "correct_answer": q["options"][q["right"]]}
        for n, q in enumerate(QUESTIONS)
    ],
    "an object": [
        {"question": {"stem": q["question"], "choices": [
            {"label": c, "text": text} for c, text in zip("ABCD", q["options"], strict=False)
        ]}, "answerKey": "ABCD"[q["right"]]}
        for q in QUESTIONS
    ],
    "kaggle": kaggle_rows(12),
}  # fmt: skip


def read_printed(text: str, *words: str):
    """Read the questions of the first printed command."""
    line = next(line for line in text.splitlines() if re.match(r"  \S*exam train ", line))
    overrides = shlex.split(line)[2:]
    config = compose_config("train", *overrides)
    check_paths(config)
    return read_questions(config.data, config.data.train)


@pytest.mark.parametrize("kind", FILES)
def test_the_printed_command_reads_the_questions(tmp_path, kind):
    path = tmp_path / "my questions (1).jsonl"
    path.write_text("\n".join(map(json.dumps, FILES[kind])))
    text = inspect_files([str(path)])
    assert f"{len(FILES[kind])} rows" in text
    questions = read_printed(text)
    assert len(questions) == len(FILES[kind])
    if kind != "kaggle":
        places = {q["question"]: q["options"][q["right"]] for q in QUESTIONS}
        for question in questions:
            assert question["options"][question["label"]] == places[question["prompt"]]


def test_a_file_without_a_header_gets_names_for_its_columns(tmp_path):
    lines = [",".join([q["question"], *PLACES, "ABCD"[q["right"]]]) for q in QUESTIONS]
    (tmp_path / "q.csv").write_text("\n".join(lines))
    questions = read_printed(inspect_files([str(tmp_path / "q.csv")]))
    assert questions["prompt"][:] == [q["question"] for q in QUESTIONS]
    assert questions["label"][:] == [q["right"] for q in QUESTIONS]


def test_answers_that_fit_two_readings_are_shown_in_both(tmp_path):
    rows = [{"question": f"{n}?", "choices": PLACES, "answer": 1 + n % 2} for n in range(6)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = inspect_files([str(tmp_path / "q.jsonl")])
    assert "Choose one" in text
    zero, one = (text.index(f"exam reads with data.answer=index{n}") for n in (0, 1))
    assert "* B at sea" in text[zero:one]
    assert "* A in soil" in text[one:]
    assert "data.answer=index1" in text[one:].splitlines()[-1]


def test_what_cannot_be_read_is_shown(tmp_path, capsys):
    (tmp_path / "q.csv").write_text("x,y\n1,2\n")
    assert main(["inspect", str(tmp_path / "q.csv")]) == 0
    printed = capsys.readouterr().out
    assert "1 rows, 2 columns: x, y" in printed
    assert "exam cannot read it" in printed
    with refuses("none.csv does not exist"):
        inspect_files(["none.csv"])
