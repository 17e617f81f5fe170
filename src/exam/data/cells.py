"""Cells of question files as texts, numbers, lists and objects, whatever the file's format."""

import ast
import io
import json
import re
import tokenize
import unicodedata
import warnings
from collections.abc import Iterable
from decimal import Decimal
from itertools import accumulate, pairwise
from math import isnan
from typing import Any

from exam.core.errors import ExamError
from exam.data.tables import SpelledFloat

SCALARS = (str, int, float, Decimal, type(None))
INVISIBLE = {"Zs", "Zl", "Zp", "Cc", "Cf"}  # categories of Unicode
BLANK = set("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\ufe0e\ufe0f\uffa0")  # of other categories
WHOLE = re.compile(r"[-+]?\d+(\.0*)?")
WHOLE_ID = r"(-?[0-9]+)\.0+"  # 8.0: a number that passed through a column of floats
LITERALS = (tokenize.STRING, tokenize.NUMBER, tokenize.NAME)
NUMPY = ("array", "ndarray")  # their first argument holds the values


def cell_text(value: Any) -> str:
    """Return a cell as stripped text: empty for null, NaN, and texts that show nothing."""
    if value is None or (isinstance(value, float) and isnan(value)):
        return ""
    text = str(value).strip()
    return text if any(map(_is_visible, text)) else ""


def _is_visible(character: str) -> bool:
    return unicodedata.category(character) not in INVISIBLE and character not in BLANK


def fold(text: str) -> str:
    """Return a text for comparisons that ignore case, width, blanks and invisible characters."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    if folded.isascii() and folded.isprintable():
        return " ".join(folded.split())
    return " ".join("".join(c for c in folded if c.isspace() or _is_visible(c)).split())


def whole_number(text: str) -> str:
    """Return the integer of a text such as 2.0 as text; every other text as it came."""
    return str(int(float(text))) if WHOLE.fullmatch(text) and len(text) < 16 else text


def cell_keys(values: Iterable[Any]) -> list[str]:
    """Return a column of ids as texts; pandas turns integers beside a gap into floats."""
    keys = [str(int(v)) if _is_whole_float(v) else cell_text(v) for v in values]
    is_float = all(WHOLE.fullmatch(key) and "." in key for key in keys if key)
    return [key.partition(".")[0] for key in keys] if is_float else keys


def _is_whole_float(value: Any) -> bool:
    return type(value) is float and value.is_integer()


def read_text(value: Any) -> str:
    """Return a cell as a text: nothing and NaN as an empty one, a list as its paragraphs.

    Raises:
        TypeError: the value is a dictionary, or holds one.
    """
    if value is None or (isinstance(value, float) and isnan(value)):
        return ""
    if isinstance(value, list):
        return "\n".join(filter(None, map(read_text, value)))
    if isinstance(value, dict):
        raise TypeError("dictionary")
    return str(value)


def read_articles(value: Any, location: str) -> list[str]:
    """Return the ids of a cell that names articles: one, a list of them, or nothing.

    Raises:
        ExamError: the cell at that location holds a dictionary.
    """
    cells = value if isinstance(value, list) else [value]
    try:
        return [key for cell in cells if (key := normalize_id(read_text(cell)))]
    except TypeError as error:
        raise ExamError(
            f"{location}: the article holds a {error}.\nWrite an id, or a list of ids."
        ) from None


def normalize_id(text: str) -> str:
    """Return an id without blanks around it; a whole number without `.0`."""
    text = text.strip()
    whole = re.fullmatch(WHOLE_ID, text)
    return whole[1] if whole else text


def match_column(name: str, columns: Iterable[str]) -> list[str]:
    """Return the column of a name, or else those that differ only in case and blanks."""
    columns = list(columns)
    return [name] if name in columns else [c for c in columns if fold(c) == fold(name)]


def get_cell(row: Any, column: str | None) -> Any:
    """Return a row's cell.

    `question.stem` also names the value `stem` inside of `question`, `wrong.0` the first in a list.
    """
    if isinstance(row, str):
        row = read_literal(row)
    if isinstance(row, list):
        row = {str(number): item for number, item in enumerate(row)}
    if column is None or not isinstance(row, dict):
        return None
    if column in row:
        return row[column]
    head, dot, rest = column.partition(".")
    return get_cell(row.get(head), rest) if dot else None


def read_literal(text: str) -> Any:
    """Return the list or object that a text spells as JSON, Python or NumPy do; None otherwise."""
    text = text.strip()
    if not text.startswith(("[", "{", "(", *NUMPY)):
        return None
    try:
        return json.loads(text, parse_float=SpelledFloat)
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings(action="ignore", category=SyntaxWarning):
            source = _insert_commas(text)
            return _evaluate(ast.parse(source, mode="eval").body, source)
    except (ValueError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError):
        return None


def _insert_commas(text: str) -> str:
    """Separate adjacent values: NumPy prints none, and Python would join its strings."""
    lines = list(io.StringIO(text, newline=""))
    starts = [0, *accumulate(map(len, lines))]
    tokens = [
        token
        for token in tokenize.generate_tokens(iter(lines).__next__)
        if token.type != tokenize.NL
    ]
    ends = [
        starts[first.end[0] - 1] + first.end[1]
        for first, second in pairwise(tokens)
        if (first.type in LITERALS or first.string in ("]", "}", ")"))
        and (second.type in LITERALS or second.string in ("[", "{"))
    ]
    pieces = [text[start:end] for start, end in pairwise([0, *ends, len(text)])]
    return ",".join(pieces)


def _evaluate(node: ast.expr, source: str) -> Any:
    """Return the value of a literal, in which NumPy's `array(…)` and `np.str_(…)` may occur."""
    value: Any
    match node:
        case ast.Constant(value=float()) | ast.UnaryOp(op=ast.USub(), operand=ast.Constant()):
            spelling = str(ast.get_source_segment(source, node))
            value = int(spelling) if spelling[1:].isdecimal() else SpelledFloat(spelling)
        case ast.Constant(value=str() | int() | None as value):
            pass
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            value = [_evaluate(element, source) for element in elements]
        case ast.Dict(keys=keys, values=values):
            names = [_evaluate(key, source) for key in keys if key is not None]
            parts = [_evaluate(part, source) for part in values]
            value = dict(zip(map(str, names), parts, strict=True))
        case ast.Call(func=ast.Name(id="array") | ast.Attribute(value=ast.Name(id="np"))):
            value = _evaluate(node.args[0], source) if node.args else []
        case ast.Name(id="nan"):
            value = None
        case _:
            raise ValueError(f"{type(node).__name__} is not a value")
    return value


def describe(value: Any) -> str:
    """Name a cell's shape in words, for messages."""
    match value:
        case dict():
            shape = f"an object with {', '.join(map(str, value)) or 'nothing'}"
        case []:
            shape = "an empty list"
        case list():
            is_mixed = len({type(item) for item in value}) > 1
            inner = "values of several kinds" if is_mixed else describe(value[0])
            shape = f"a list of {len(value)} ({inner})"
        case bool():
            shape = f"true or false ({value})"
        case float() | Decimal():
            shape = f"a float ({value})"
        case str() if cell_text(value):
            shape = f"a text ({_shorten(value)!r})"
        case str() | None:
            shape = "empty"
        case _:
            name = type(value).__name__
            article = "an" if name[0] in "aeiou" else "a"
            shape = f"{article} {name} ({_shorten(str(value))})"
    return shape


def _shorten(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else f"{text[:limit]} …"
