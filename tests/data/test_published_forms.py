"""Layouts of published data sets: the command that `exam inspect` prints reads them right."""

import json
import random
import re
import shlex

import pytest
from helpers import refuses

from exam.config import Data
from exam.config.compose import compose_config
from exam.data import inspect
from exam.data.inspect import inspect_files
from exam.data.questions import read_questions
from exam.data.schema import parse_questions

L = "ABCDEFGHIJ"
RANDOM = random.Random(0)
QUESTIONS = [
    (f"What grows in place {n}?", [f"{kind} {n}" for kind in ("fern", "moss", "tree", "reed")],
     n if n < 4 else RANDOM.randrange(4))
    for n in range(24)
]  # fmt: skip


def wrong(o, r):
    return [text for i, text in enumerate(o) if i != r]


def numbered(prefix, texts, first):
    return {f"{prefix}{n}": text for n, text in enumerate(texts, first)}


LAYOUTS = {
    "agieval": lambda q, o, r: {
        "passage": "A short story.", "question": q, "label": L[r], "other": None,
        "options": [f"({c}){text}" for c, text in zip(L, o, strict=False)]},
    "aqua": lambda q, o, r: {
        "question": q, "correct": L[r],
        "options": [f"{c}){t}" for c, t in zip(L, o, strict=False)]},
    "arc": lambda q, o, r: {
        "id": q, "question": q, "answerKey": "1234"[r] if "5" in q else L[r],
        "choices": {"text": o, "label": list("1234" if "5" in q else L[:4])}},
    "belebele": lambda q, o, r: {
        "link": "x", "question_number": 1, "flores_passage": "A short story.", "question": q,
        **numbered("mc_answer", o, 1), "correct_answer_num": str(r + 1)},
    "cmexam": lambda q, o, r: {
        "Question": q, "Answer": L[r], "Explanation": "Because of that.",
        "Options": "\n".join(f"{c} {t}" for c, t in zip(L, o, strict=False))},
    "cosmosqa": lambda q, o, r: {
        "id": q, "context": "A short story.", "question": q, "label": r,
        **numbered("answer", o, 0)},
    "dream": lambda q, o, r: {
        "dialogue": ["M: Hello", "W: Yes"], "question": q, "choice": o[:4], "answer": o[r]},
    "gpqa": lambda q, o, r: {
        "Question": q, "Correct Answer": o[r], **numbered("Incorrect Answer ", wrong(o, r), 1)},
    "logiqa": lambda q, o, r: {
        "context": "All men die.", "query": q, "options": o, "correct_option": r},
    "mathqa": lambda q, o, r: {
        "Problem": q, "Rationale": "x is y", "correct": "abcd"[r],
        "options": " , ".join(f"{c} ) {t}" for c, t in zip("abcd", o, strict=True))},
    "medqa": lambda q, o, r: {
        "question": q, "answer": o[r], "options": dict(zip(L, o, strict=False)), "answer_idx": L[r],
        "metamap_phrases": ["a", "b", "c", "d"]},
    "mmlu_pro": lambda q, o, r: {
        "question_id": q, "question": q, "options": [*o, *"uvwxyz"], "answer": L[r],
        "answer_index": r, "category": "x"},
    "opentdb": lambda q, o, r: {
        "question": q, "correct_answer": o[r], "incorrect_answers": wrong(o, r)},
    "quail": lambda q, o, r: {
        "context_id": "f1", "question_id": "3", "context": "A short story.", "question": q,
        "question_type": "Causality", "answers": o, "correct_answer_id": r},
    "race": lambda q, o, r: {
        "example_id": "x", "article": "A short story.", "question": q, "options": o,
        "answer": L[r]},
    "reversed": lambda q, o, r: {
        "question": q, **numbered("option", o, 1), "answer": r + 1},
    "sciq": lambda q, o, r: {
        "question": q, "distractor3": wrong(o, r)[2], "distractor1": wrong(o, r)[0],
        "distractor2": wrong(o, r)[1], "correct_answer": o[r], "support": "A short story."},
    "swag": lambda q, o, r: {
        "video-id": "v", "startphrase": q, "sent1": q[:9], "sent2": "He", "gold-source": "gold",
        **numbered("ending", o, 0), "label": r},
    "truthfulqa": lambda q, o, r: {
        "question": q, "mc1_targets": {"choices": [o[r], *wrong(o, r)], "labels": [1, 0, 0, 0]},
        "mc2_targets": {"choices": [o[r], *wrong(o, r)], "labels": [1, 1, 0, 0]}},
    "with letters": lambda q, o, r: {
        "Q": q, **dict(zip("abcd", o, strict=True)), "ans": "abcd"[r]},
}  # fmt: skip
PAIRS = {
    "copa": lambda q, o, r: {
        "premise": q, "choice1": o[0], "choice2": o[1], "question": "cause", "label": r},
    "piqa": lambda q, o, r: {"goal": q, "sol1": o[0], "sol2": o[1], "label": r},
    "winogrande": lambda q, o, r: {
        "sentence": q, "option1": o[0], "option2": o[1], "answer": str(r + 1)},
}  # fmt: skip
CONTEXTS = {"agieval", "belebele", "cosmosqa", "logiqa", "quail", "race", "sciq"}


def read_printed(text):
    line = next(line for line in text.splitlines() if re.match(r"  \S*exam train ", line))
    config = compose_config("train", *shlex.split(line)[2:])
    return config, read_questions(config.data, config.data.train)


@pytest.mark.parametrize("name", [*LAYOUTS, *PAIRS])
def test_a_published_layout_is_read_right_at_the_first_try(tmp_path, name):
    make = {**LAYOUTS, **PAIRS}[name]
    questions = [(q, o, r % 2 if name in PAIRS else r) for q, o, r in QUESTIONS]
    if name == "reversed":  # the order of columns is not that of the options
        rows = [dict([*make(*question).items()][::-1]) for question in questions]
    else:
        rows = [make(*question) for question in questions]
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    config, read = read_printed(inspect_files([str(path)]))
    assert read["prompt"][:] == [q for q, _, _ in questions]
    for question, (_, options, right) in zip(read, questions, strict=True):
        assert question["options"][question["label"]] == options[right]
        assert set(question["options"]) >= set(options[:2])
    assert len(set(read["label"])) > 1
    assert (read["context"][0] is not None) == (name in CONTEXTS)
    assert (config.retriever.name == "provided") == (name in CONTEXTS)


def test_what_is_not_read_is_named(tmp_path):
    rows = [PAIRS["copa"](q, o, r % 2) for q, o, r in QUESTIONS]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert "exam does not read question\n" in inspect_files([str(tmp_path / "q.jsonl")])


def test_a_right_option_at_one_position_is_warned_of(caplog):
    rows = [
        {"prompt": q, "options": [o[r], *wrong(o, r)], "answer": "A" if n else "B"}
        for n, (q, o, r) in enumerate(QUESTIONS)
    ]
    columns = {"id": None, "prompt": "prompt", "answer": "answer", "options": "options"}
    parse_questions(rows, Data("q", columns=columns), "q")
    assert "A in 23 of 24 answered questions (96%)" in caplog.text
    assert "data.shuffle_options=true" in caplog.text
    caplog.clear()
    parse_questions(rows, Data("q", columns=columns, shuffle_options=True), "q")
    parse_questions(rows[:19], Data("q", columns=columns), "q")
    assert "answered questions" not in caplog.text


@pytest.mark.parametrize(
    ("cell", "options"),
    [
        ("A. iron\nB. gold", ["iron", "gold"]),
        ("(A) iron; (B) gold, pure", ["iron", "gold, pure"]),
        ("A、铁 B、金", ["铁", "金"]),
        (["A. iron", "B. gold"], ["iron", "gold"]),
        (["A. iron", "gold"], ["A. iron", "gold"]),
        (["B. subtilis", "A. thaliana"], ["B. subtilis", "A. thaliana"]),
        (["A", "B"], ["A", "B"]),
    ],
)
def test_labels_inside_of_options_are_left_out(cell, options):
    columns = {"id": None, "prompt": "prompt", "answer": "answer", "options": "options"}
    for answer in ("B", 1, options[1], f"B) {options[1]}"):
        row = {"prompt": "?", "options": cell, "answer": answer}
        data = Data("q", columns=columns)
        if answer == 1:
            data.answer = data.answer.index0
        (question,) = parse_questions([row], data, "q")
        assert (question["options"], question["label"]) == (options, 1)


def test_a_text_that_labels_one_option_is_refused():
    columns = {"id": None, "prompt": "prompt", "answer": "answer", "options": "options"}
    with refuses("options is a text", "Write a list"):
        parse_questions([{"prompt": "?", "options": "A. iron", "answer": "A"}],
                        Data("q", columns=columns), "q")  # fmt: skip


def test_a_set_of_the_hub_is_shown_or_refused_in_one_line(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = [LAYOUTS["quail"](*question) for question in QUESTIONS]
    monkeypatch.setattr(inspect, "read_hub_rows", lambda data, split: rows)
    text = inspect_files(["some/quail", "data.hub_config=v1", "data.train=dev"])
    line = next(line for line in text.splitlines() if "exam train" in line)
    for word in ("data.hub=some/quail", "data.hub_config=v1", "data.train=dev"):
        assert word in line.split()
    config = compose_config("train", *shlex.split(line)[2:])
    assert (config.data.hub, config.data.train) == ("some/quail", "dev")
    assert parse_questions(rows, config.data, "q")["label"][:] == [r for _, _, r in QUESTIONS]
