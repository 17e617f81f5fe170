"""The options of a question, from letter columns or from any common form of a list."""

import re
import string
from dataclasses import dataclass
from typing import Any

from exam.core.errors import ExamError
from exam.data.cells import SCALARS, cell_text, describe, fold, get_cell, read_literal

LETTERS = string.ascii_uppercase
# Names inside a list of objects, or of an object of lists.
TEXT = ("text", "texts", "choice", "choices", "option", "options", "value", "content", "answer")
LABEL = ("label", "labels", "key", "letter", "id")
MARK = ("correct", "is_correct", "iscorrect")
TRUE, FALSE = ("true", "1", "1.0", "yes"), ("false", "0", "0.0", "no", "")
KEY = re.compile(r"(.*?)([A-Za-z]|\d+)")  # of an object's options: A, a, 1, option_a, op1
WRITTEN = re.compile(r"[(（\[]?([A-Za-z])\s?[)）\].:：、．]\s*")  # a label before its option
INLINE = re.compile(rf"(?:^|(?<=[\s,;，；|])){WRITTEN.pattern}|^([A-Z])[ \t]+", re.MULTILINE)
BETWEEN = " \t\r\n,;，；|"  # options
EXAMPLE = 'a list such as ["first option", "second option"]'


@dataclass(frozen=True)
class Options:
    """A question's options.

    Attributes:
        texts: The options.
        names: The labels that an answer may name.
        right: The option that the list itself marks as right, if it does.
    """

    texts: list[str]
    names: list[str]
    right: int | None = None


@dataclass(frozen=True)
class _Listed:
    """What a list holds: texts, and labels or marks of 0 and 1 if it has them."""

    texts: list[str]
    labels: list[Any] | None = None
    marks: list[Any] | None = None


class ColumnError(ExamError):
    """A file whose columns differ from those that `data` names."""

    def __init__(self, message: str, missing: list[str], alternative: str = "") -> None:
        """Keep the parts to look for in other columns, and what else than those may be set."""
        super().__init__(message)
        self.missing = missing
        self.alternative = alternative


class _ShapeError(Exception):
    """What a cell holds instead of options, and a remedy."""


def read_lettered(row: dict[str, Any], columns: dict[str, str], location: str) -> Options:
    """Return the options of one column each; `columns` maps their labels to the columns."""
    for letter, column in columns.items():
        value = get_cell(row, column)
        if not isinstance(value, SCALARS):
            raise ExamError(
                f"{location}: option {letter} is {describe(value)}.\n"
                f"Write a text, or map another column with data.columns.{letter}=<name>"
            )
    texts = [cell_text(get_cell(row, column)) for column in columns.values()]
    return _check(texts, list(columns), location)


def read_listed(
    row: dict[str, Any], column: str, location: str, *, has_answer: bool = False
) -> Options:
    """Return the options that one column holds, in whichever form.

    The answer of the row wins over marks in the list.
    """
    try:
        listed = _read_value(get_cell(row, column), column)
        right = None if has_answer else _find_marked(listed)
    except _ShapeError as error:
        raise ColumnError(f"{location}: {error}", ["options"]) from None
    texts, names = listed.texts, list(LETTERS[: len(listed.texts)])
    if listed.labels is not None and right is None:
        names = _read_names(listed, location)
    return _check(texts, names, location, right)


def _check(texts: list[str], names: list[str], location: str, right: int | None = None) -> Options:
    """Drop blanks at the end, which stand for options that a question lacks; refuse others."""
    texts = _blank_labels(texts)
    count = _count(texts)
    texts = _strip_labels(texts[:count])
    for name, text in zip(names, texts, strict=False):
        if not text:
            raise ExamError(
                f"{location}: option {name} is empty, but option {names[count - 1]} is not.\n"
                "Fill it in, move the later options up, or delete the row."
            )
    if not 2 <= count <= len(LETTERS):
        raise ExamError(
            f"{location}: the number of options with a text is {count}.\n"
            f"A question has 2 to {len(LETTERS)}: correct the row, or delete it."
        )
    if right is not None and right >= count:
        raise ExamError(
            f"{location}: the option marked as right is empty.\nFill it in, or delete the row."
        )
    return Options(texts, names[:count], right)


def _blank_labels(texts: list[str]) -> list[str]:
    """Replace options of a label and nothing else by blanks, if the first has a label and a text.

    `C.` after `A. iron` and `B. gold` stands for no option.
    """
    labelled = [WRITTEN.match(text) for text in texts]
    if not texts or labelled[0] is None or not texts[0][labelled[0].end() :]:
        return texts
    return [
        "" if match and match[1].upper() == label and match.end() == len(text) else text
        for label, text, match in zip(LETTERS, texts, labelled, strict=False)
    ] + texts[len(LETTERS) :]


def _strip_labels(texts: list[str]) -> list[str]:
    """Return options such as `(A) iron, (B) gold` without their labels, if all have them."""
    bare = [
        text[match.end() :]
        for label, text in zip(LETTERS, texts, strict=False)
        if (match := WRITTEN.match(text)) and match[1].upper() == label and text[match.end() :]
    ]
    return bare if len(bare) == len(texts) else texts


def _split_labelled(text: str) -> list[str]:
    """Return the options of a text such as `A) iron, B) gold`, or with one line for each.

    All labels are written as the first one is. Return no options if one occurs twice.
    """
    matches = list(INLINE.finditer(text))
    if not matches or text[: matches[0].start()].strip():
        return []
    form = _label_form(matches[0])
    alike = [match for match in matches if _label_form(match) == form]
    lines = [m for m in alike if m.start() == text.rfind("\n", 0, m.start()) + 1]
    for starts in (lines, alike):
        names = [(match[1] or match[2]).upper() for match in starts]
        number = next((i for i, name in enumerate(names) if name != LETTERS[i : i + 1]), len(names))
        if number >= 2 and not {*names[number:]} & {*LETTERS[: number + 1]}:
            ends = [*(match.start() for match in starts[1:number]), len(text)]
            pairs = zip(starts[:number], ends, strict=True)
            return [text[match.end() : end].strip(BETWEEN) for match, end in pairs]
    return []


def _label_form(match: re.Match[str]) -> tuple[str, bool]:
    """Return the signs around a label, and whether it is a capital."""
    label = match[1] or match[2]
    return re.sub(r"\s", "", match[0]).replace(label, "", 1), label.isupper()


def _count(texts: list[str]) -> int:
    """Count the options without blanks at the end."""
    return max((number for number, text in enumerate(texts, 1) if text), default=0)


def _read_value(value: Any, column: str) -> _Listed:
    """Read a cell from the outside in.

    It may be a text that spells a list or labels its options, an Arrow map, an object of lists, an
    object of texts, a list of objects, or a list of texts.
    """
    if isinstance(value, str):
        value = read_literal(value) or _split_labelled(value) or value
    if isinstance(value, list) and value and all(isinstance(item, tuple) for item in value):
        value = dict(value)
    if isinstance(value, dict) and any(isinstance(v, list | dict) for v in value.values()):
        return _read_columns(value, column)
    if isinstance(value, dict):
        return _read_object(value, column)
    if isinstance(value, list) and value:
        if all(isinstance(item, dict) for item in value):
            return _read_objects(value, column)
        if all(isinstance(item, SCALARS) for item in value):
            return _Listed(list(map(cell_text, value)))
    raise _wrong(value, column)


def _read_columns(value: dict[str, Any], column: str) -> _Listed:
    """Read an object of lists, such as `{text: […], label: […]}`."""
    text, label, mark = (_find_key(value, names) for names in (TEXT, LABEL, MARK))
    lists = [value[key] for key in (text, label, mark) if key is not None]
    if text is None or not all(isinstance(part, list) for part in [*value.values(), *lists]):
        raise _wrong(value, column)
    if len({len(part) for part in lists}) > 1:
        raise _ShapeError(
            f"{column} has lists of different lengths ({', '.join(map(str, map(len, lists)))}).\n"
            "Give each option one label: correct the row, or delete it."
        )
    keys = [key for key in (text, label, mark) if key is not None]
    rows = [dict(zip(keys, values, strict=True)) for values in zip(*lists, strict=True)]
    return _read_objects(rows, column) if rows else _Listed([])


def _read_objects(rows: list[dict[str, Any]], column: str) -> _Listed:
    """Read a list of objects, such as `[{label: A, text: …}, …]`."""
    keys = {key: None for row in rows for key in row}
    text, label, mark = (_find_key(keys, names) for names in (TEXT, LABEL, MARK))
    if text is None or not all(isinstance(row.get(text), SCALARS) for row in rows):
        raise _wrong(rows, column)
    return _Listed(
        [cell_text(row.get(text)) for row in rows],
        None if label is None else [row.get(label) for row in rows],
        None if mark is None else _read_marks([row.get(mark) for row in rows], column),
    )


def _read_marks(values: list[Any], column: str) -> list[Any] | None:
    """Read marks of true and false, also as texts or only at the right option; None without any."""
    texts = [fold(cell_text(value)) for value in values]
    if not any(texts):
        return None
    if not {*texts} <= {*TRUE, *FALSE}:
        other = next(text for text in texts if text not in (*TRUE, *FALSE))
        raise _ShapeError(
            f"{column} marks an option with {other!r}, which says neither right nor wrong.\n"
            "Write true or false."
        )
    return [text in TRUE for text in texts]


def _read_object(value: dict[str, Any], column: str) -> _Listed:
    """Read `{A: text, …}`, whose keys are labels, or `{text: 1, text: 0, …}`."""
    parts = [KEY.fullmatch(str(key)) for key in value]
    prefixes = {part[1] for part in parts if part is not None}
    names = [part[2] for part in parts if part is not None]
    if len(prefixes) == 1 and len(names) == len(value) and is_sequence(names):
        return _Listed(list(map(cell_text, value.values())), names)
    if value and all(is_mark(part) for part in value.values()):
        return _Listed(list(map(cell_text, value)), marks=list(value.values()))
    raise _wrong(value, column)


def _find_key(row: dict[str, Any], names: tuple[str, ...]) -> str | None:
    by_name = {fold(str(key)): key for key in row}
    return next((by_name[name] for name in names if name in by_name), None)


def is_sequence(names: list[str]) -> bool:
    """Return whether names are A, B, C … or numbers from 0 or 1, in any order."""
    letters = list(LETTERS[: len(names)])
    numbers = [[str(first + i) for i in range(len(names))] for first in (0, 1)]
    return any({name.upper() for name in names} == set(row) for row in [letters, *numbers])


def is_mark(value: Any) -> bool:
    """Return whether a value says that an option is right or wrong: true, false, 1 or 0."""
    return isinstance(value, int | float) and value in (0, 1)


def _find_marked(listed: _Listed) -> int | None:
    """Return the option that marks, or labels of 0 and 1, declare right."""
    marks = listed.labels if listed.marks is None else listed.marks
    if marks is None or not all(map(is_mark, marks)):
        return None
    marked = [position for position, mark in enumerate(marks) if mark]
    if len(marked) != 1:
        raise _ShapeError(
            f"{len(marked)} of {len(marks)} options are marked as right.\n"
            "exam scores one right option: correct the row, or delete it."
        )
    return marked[0]


def _read_names(listed: _Listed, location: str) -> list[str]:
    """Return the labels of the options as texts."""
    labels = listed.labels or []
    names = list(map(cell_text, labels))
    used = names[: _count(listed.texts)]
    if len(set(used)) == len(used) and all(used):
        return names
    if all(map(is_mark, labels)):  # an answer beside the list tells which is right
        return list(LETTERS[: len(names)])
    raise ExamError(
        f"{location}: {len(names)} options have the labels {', '.join(names)}.\n"
        "Give each option a different label."
    )


def _wrong(value: Any, column: str) -> _ShapeError:
    """Say what a cell holds instead of options, and which value inside of it holds some."""
    remedy = f"Write {EXAMPLE}, or name its column with data.columns.options=<name>"
    for key, part in value.items() if isinstance(value, dict) else ():
        try:
            count = _count(_read_value(part, column).texts)
        except _ShapeError:
            continue
        if count >= 2:
            remedy = f"Set data.columns.options={column}.{key}, or write {EXAMPLE}."
            break
    return _ShapeError(f"{column} is {describe(value)}, where options must be a list.\n{remedy}")
