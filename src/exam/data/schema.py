"""Validate the rows of a file and turn them into questions."""

import logging
import string
from collections import Counter
from collections.abc import Iterable
from decimal import Decimal
from math import isnan
from pathlib import Path
from random import Random
from typing import Any

from datasets import Dataset, Features, List, Value

from exam.config import Data
from exam.core.errors import ExamError
from exam.core.files import digest
from exam.data.option_order import choose_order

log = logging.getLogger(__name__)

LETTERS = string.ascii_uppercase
CELLS = (str, int, float, Decimal, type(None))
FEATURES = Features(
    {
        "id": Value("string"),
        "prompt": Value("string"),
        "options": List(Value("string")),
        "label": Value("int64"),  # null: the answer is unknown
        "context": Value("string"),  # a text that came with the question, or null
        "article": Value("string"),  # the article it was written from (qrels), or null
    }
)


def parse_questions(rows: Iterable[dict[str, Any]], data: Data, source: str) -> Dataset:
    """Map and validate the rows of one file, which messages call `source`.

    Raises:
        ExamError: there is no row, or one is not a question as `data` describes it.
    """
    questions: list[dict[str, Any]] = []
    row_of_id: dict[str, int] = {}
    repeats = 0
    for number, row in enumerate(rows, 1):
        _check_columns(row, data, source)
        _check_cells(row, number, data, source)
        id_column = data.columns.get("id")
        key = str(row[id_column]) if id_column else f"{Path(source).stem}-{number}"
        location = f"{source}, row {number} (id {key!r})"
        question = _parse_row(row, key, data, location)
        if key in row_of_id:
            raise ExamError(
                f"{location}: row {row_of_id[key]} has the same id.\n"
                "Give every question a different id, or number them with data.columns.id=null."
            )
        row_of_id[key] = number
        option, count = Counter(question["options"]).most_common(1)[0]
        if count > 1 and data.strict:
            raise ExamError(
                f"{location}: two options are equal ({option!r}).\n"
                "Correct the row, or accept such rows with data.strict=false."
            )
        repeats += count > 1
        questions.append(question)
    if not questions:
        raise ExamError(f"{source} holds no question.\nGive a file with at least one row.")
    if repeats:
        log.warning(
            "%s: %d of %d questions have two equal options (data.strict=true refuses them)",
            source,
            repeats,
            len(questions),
        )
    return Dataset.from_list(questions, features=FEATURES)


def _check_columns(row: dict[str, Any], data: Data, source: str) -> None:
    """Refuse a row that lacks a column that every question needs."""
    header, options = f"{source} has columns {', '.join(row)}", data.options or ""
    for letter in options:
        if data.columns.get(letter, letter) not in row:
            present = "".join(c for c in options if data.columns.get(c, c) in row)
            alternative = f", or set data.options={present}" if len(present) >= 2 else ""
            raise ExamError(
                f"{header}; option '{letter}' is missing.\nEvery question needs the same options. "
                f"Map another name with data.columns.{letter}=<name>{alternative}."
            )
    following = LETTERS[len(options) :][:1]
    if options and options == LETTERS[: len(options)] and _text(row.get(following)):
        raise ExamError(
            f"{header}; data.options={options} leaves option {following} out.\n"
            f"Set data.options={options}{following}, or give that column another name."
        )
    for name in ("id", "prompt", *(() if options else ("options",))):
        column = data.columns.get(name)
        if column not in row and not (column is None and name == "id"):
            raise ExamError(
                f"{header}; {name} column '{column}' is missing.\n"
                f"Map another name with data.columns.{name}=<name>."
            )


def _check_cells(row: dict[str, Any], number: int, data: Data, source: str) -> None:
    """Refuse an empty id, and cells that are neither text nor number."""
    columns = {c for name, c in data.columns.items() if c and (name != "options" or data.options)}
    columns |= {str(data.columns.get(letter, letter)) for letter in data.options or ()}
    for column in columns & row.keys():
        if not isinstance(row[column], CELLS):
            raise ExamError(
                f"{source}, row {number}: {column} is a {type(row[column]).__name__}.\n"
                "Write a text, or map another column with data.columns."
            )
    id_column = data.columns.get("id")
    if id_column and not _text(row[id_column]):
        raise ExamError(
            f"{source}, row {number} has no id.\nGive every question one, or number them with "
            "data.columns.id=null."
        )


def _parse_row(row: dict[str, Any], key: str, data: Data, location: str) -> dict[str, Any]:
    prompt = _text(row[str(data.columns["prompt"])])
    options, names = _parse_options(row, data, location)
    cells = [("the prompt", prompt)]
    cells += [(f"option {name}", text) for name, text in zip(names, options, strict=True)]
    for name, text in cells:
        if not text:
            raise ExamError(f"{location}: {name} is empty.\nFill it in, or delete the row.")
    question = {
        "id": key,
        "prompt": prompt,
        "options": options,
        "label": _parse_label(row, options, names, data, location),
        "context": _text(row.get(data.columns.get("context") or "")) or None,
        "article": _text(row.get(data.columns.get("article") or "")) or None,
    }
    if data.shuffle_options:
        order = list(range(len(options)))
        Random(digest(key)).shuffle(order)
        question |= permute_options(question, choose_order(options, order))
    return question


def permute_options(question: dict[str, Any], order: list[int]) -> dict[str, Any]:
    """Return a question's options in the given order, and the label that follows from it."""
    options, label = question["options"], question["label"]
    return {
        "options": [options[i] for i in order],
        "label": None if label is None else order.index(label),
    }


def _text(value: Any) -> str:
    """Return a cell as stripped text; null, and pandas' NaN for a missing text, are empty."""
    missing = value is None or (isinstance(value, float) and isnan(value))
    return "" if missing else str(value).strip()


def _parse_options(row: dict[str, Any], data: Data, location: str) -> tuple[list[str], list[str]]:
    """Return the texts and names of the options, from letter columns or from one list column."""
    if data.options:
        return [_text(row[str(data.columns.get(c, c))]) for c in data.options], list(data.options)
    value = row[str(data.columns["options"])]
    texts, names = (
        (value.get("text"), value.get("label")) if isinstance(value, dict) else (value, None)
    )
    if not isinstance(texts, list) or not all(isinstance(text, CELLS) for text in texts):
        texts, count = [], "not a list of texts"
    else:
        count = f"{len(texts)} texts"
    if not 2 <= len(texts) <= len(LETTERS):
        raise ExamError(
            f"{location}: options are {count}.\nA question has 2 to 26: correct the row, or name "
            "the column of the list with data.columns.options=<name>."
        )
    names = list(LETTERS[: len(texts)]) if names is None else [str(name) for name in names]
    if len(set(names)) < len(names) or len(names) != len(texts):
        raise ExamError(
            f"{location}: {len(texts)} options have the labels {', '.join(names)}.\n"
            "Give each option a different label."
        )
    return [_text(text) for text in texts], names


def _parse_label(
    row: dict[str, Any], options: list[str], names: list[str], data: Data, location: str
) -> int | None:
    """Return the index of the right option, given by name, index or text; None if unknown."""
    if data.columns.get("correct"):
        text = _text(row.get(str(data.columns["correct"])))
        if text and text not in options:
            raise ExamError(
                f"{location}: the right option {text!r} is not among the options.\n"
                "Correct the row, or map another column with data.columns.correct=<name>."
            )
        return options.index(text) if text else None
    value = row.get(data.columns.get("answer") or "")
    if _text(value) in names:
        return names.index(_text(value))
    # Hub data sets write -1 where the answer is withheld.
    if not _text(value) or (type(value) is int and value == -1):
        return None
    if type(value) is int and 0 <= value < len(options):
        return value
    raise ExamError(
        f"{location}: answer {value!r} is not among the labels {', '.join(names)}.\n"
        "Correct the row, or map another column with data.columns.answer=<name>."
    )
