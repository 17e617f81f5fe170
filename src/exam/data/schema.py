"""Rows as files have them made into questions, or refused with row and remedy."""

import logging
import string
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

log = logging.getLogger(__name__)

LETTERS = string.ascii_uppercase
CELLS = (str, int, float, Decimal, type(None))
FEATURES = Features(
    {
        "id": Value("string"),
        "prompt": Value("string"),
        "options": List(Value("string")),
        "label": Value("int64"),  # null where the answer is not known
        "context": Value("string"),  # a text that came with the question, else null
        "article": Value("string"),  # the article it was written from (qrels), else null
    }
)


def parse_questions(rows: Iterable[dict[str, Any]], data: Data, where: str) -> Dataset:
    """Map and validate the rows of one file; `where` names it in messages."""
    found: dict[str, list[Any]] = {name: [] for name in FEATURES}
    seen: dict[str, int] = {}
    equal = 0
    for number, row in enumerate(rows, 1):
        _check_columns(row, data, where)
        question = _question(row, number, data, where)
        key = question["id"]
        place = f"{where}, row {number} (id {key!r})"
        if key in seen:
            raise ExamError(
                f"{place}: row {seen[key]} has the same id.\nGive every question an id of its "
                "own, or number them with data.columns.id=null."
            )
        seen[key] = number
        equal += _count_equal_options(question, place, data.strict)
        for name, column in found.items():
            column.append(question[name])
    if not seen:
        raise ExamError(f"{where} holds no question.\nGive a file with at least one row.")
    if equal:
        log.warning(
            "%s: %d of %d questions have two equal options (data.strict=true refuses them)",
            where,
            equal,
            len(seen),
        )
    return Dataset.from_dict(found, features=FEATURES)


def _column(data: Data, name: str) -> str | None:
    return data.columns.get(name, name if len(name) == 1 else None)


def _check_columns(row: dict[str, Any], data: Data, where: str) -> None:
    """Refuse a row that lacks a column that every question needs."""
    have = ", ".join(row)
    for letter in data.options or ():
        if _column(data, letter) not in row:
            ways = f"Map another name with data.columns.{letter}=<name>"
            fewer = "".join(c for c in data.options or "" if _column(data, c) in row)
            if len(fewer) >= 2:
                ways += f", or set data.options={fewer}"
            raise ExamError(
                f"{where} has columns {have}; option '{letter}' is missing.\n"
                f"Every question needs the same options. {ways}."
            )
    beyond = LETTERS[len(data.options or "") :][:1]
    if data.options == LETTERS[: len(data.options or "")] and _text(row.get(beyond)):
        raise ExamError(
            f"{where} has columns {have}; data.options={data.options} leaves option {beyond} out.\n"
            f"Set data.options={data.options}{beyond}, or give that column another name."
        )
    for name in ("id", "prompt", *(() if data.options else ("options",))):
        column = data.columns.get(name)
        if column is None and name == "id":
            continue
        if column not in row:
            raise ExamError(
                f"{where} has columns {have}; {name} column '{column}' is missing.\n"
                f"Map another name with data.columns.{name}=<name>."
            )


def _question(row: dict[str, Any], number: int, data: Data, where: str) -> dict[str, Any]:
    _check_cells(row, number, data, where)
    id_column = data.columns.get("id")
    key = str(row[id_column]) if id_column else f"{Path(where).stem}-{number}"
    place = f"{where}, row {number} (id {key!r})"
    prompt = _text(row[str(data.columns["prompt"])])
    if not prompt:
        raise ExamError(f"{place}: the prompt is empty.\nFill it in, or delete the row.")
    texts, labels = _options(row, data, place)
    for label, text in zip(labels, texts, strict=True):
        if not text:
            raise ExamError(f"{place}: option {label} is empty.\nFill it in, or delete the row.")
    answer = _label(row, texts, labels, data, place)
    found = {
        "id": key,
        "prompt": prompt,
        "options": texts,
        "label": answer,
        "context": _text(row.get(data.columns.get("context") or "")) or None,
        "article": _text(row.get(data.columns.get("article") or "")) or None,
    }
    if data.shuffle_options:
        order = list(range(len(texts)))
        Random(digest(key)).shuffle(order)
        found |= permute_options(found, order)
    return found


def permute_options(question: dict[str, Any], order: list[int]) -> dict[str, Any]:
    """A question's options in another order, and where the right one then stands."""
    options, label = question["options"], question["label"]
    return {
        "options": [options[i] for i in order],
        "label": None if label is None else order.index(label),
    }


def _check_cells(row: dict[str, Any], number: int, data: Data, where: str) -> None:
    """Refuse cells that are no text or number, which would be read as Python spells them."""
    own = {c for name, c in data.columns.items() if c and (name != "options" or data.options)}
    own |= {str(_column(data, letter)) for letter in data.options or ()}
    for column in own & row.keys():
        if not isinstance(row[column], CELLS):
            raise ExamError(
                f"{where}, row {number}: {column} is a {type(row[column]).__name__}.\n"
                "Write a text, or map another column with data.columns."
            )
    id_column = data.columns.get("id")
    if id_column and _text(row[id_column]) == "":
        raise ExamError(
            f"{where}, row {number} has no id.\nGive every question one, or number them with "
            "data.columns.id=null."
        )


def _text(value: Any) -> str:
    """A cell without the space around it; what pandas writes for a missing text (NaN) is none."""
    missing = value is None or (isinstance(value, float) and isnan(value))
    return "" if missing else str(value).strip()


def _options(row: dict[str, Any], data: Data, place: str) -> tuple[list[str], list[str]]:
    """Texts and labels of a question's options, from letter columns or from one list column."""
    if data.options:
        return [_text(row[str(_column(data, c))]) for c in data.options], list(data.options)
    value = row[str(data.columns["options"])]
    own = value.get("label") if isinstance(value, dict) else None
    texts: Any = value.get("text") if isinstance(value, dict) else value
    listed = isinstance(texts, list) and all(isinstance(text, CELLS) for text in texts)
    if not listed or not 2 <= len(texts) <= 26:
        count = f"{len(texts)} of them" if listed else "no list of texts"
        raise ExamError(
            f"{place}: options are {count}.\nA question has 2 to 26: correct the row, or name "
            "the column of the list with data.columns.options=<name>."
        )
    labels = [str(label) for label in own] if own is not None else list(LETTERS[: len(texts)])
    if len(set(labels)) < len(labels) or len(labels) != len(texts):
        raise ExamError(
            f"{place}: {len(texts)} options have the labels {', '.join(labels)}.\n"
            "Give each one a label of its own."
        )
    return [_text(t) for t in texts], labels


def _label(
    row: dict[str, Any], texts: list[str], labels: list[str], data: Data, place: str
) -> int | None:
    """The index of the right option: by its label, its number from 0, or (`correct`) its text."""
    if data.columns.get("correct"):
        text = _text(row.get(str(data.columns["correct"])))
        if text and text not in texts:
            raise ExamError(
                f"{place}: the right option {text!r} is not among the options.\n"
                "Correct the row, or map another column with data.columns.correct=<name>."
            )
        return texts.index(text) if text else None
    value = row.get(data.columns.get("answer") or "")
    if _text(value) in labels:
        return labels.index(_text(value))
    if isinstance(value, int) and not isinstance(value, bool):
        if 0 <= value < len(texts):
            return value
        if value == -1:  # the hub's way of saying that the answer is withheld
            return None
    elif not _text(value):
        return None
    raise ExamError(
        f"{place}: answer {value!r} is not among the labels {', '.join(labels)}.\n"
        "Correct the row, or map another column with data.columns.answer=<name>."
    )


def _count_equal_options(question: dict[str, Any], place: str, strict: bool) -> int:
    options = question["options"]
    if len(set(options)) == len(options):
        return 0
    if strict:
        double = next(o for i, o in enumerate(options) if o in options[:i])
        raise ExamError(
            f"{place}: two options are equal ({double!r}).\n"
            "Correct the row, or accept such rows with data.strict=false."
        )
    return 1
