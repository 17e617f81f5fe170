"""Tell the header of a table from a row of questions, and name columns without one."""

import re
from collections import Counter
from pathlib import Path
from string import ascii_uppercase

from exam.core.errors import ExamError

LONG_NAME, LONG_NAME_WORDS = 40, 5  # characters and words of a column's name
USUAL_NAMES = {"id", "prompt", "question", "options", "choices", "answer", "label"}
SENTENCE_ENDS = ("?", "？", "。", ":", "：", "_")


def check_names(path: Path, names: list[str]) -> None:
    """Refuse a header that names two columns alike."""
    for name, count in Counter(filter(None, names)).items():
        if count > 1:
            if looks_like_a_row(names):
                raise headerless_error(path, names)
            raise ExamError(
                f"{path} has {count} columns named '{name}'.\nRename all but one of them."
            )


def looks_like_a_row(names: list[str]) -> bool:
    """Tell whether the names of columns read like a row: a sentence, and no usual name."""
    folded = {name.casefold() for name in names}
    has_usual = bool(folded & USUAL_NAMES) or {"a", "b"} <= folded
    return not has_usual and any(map(_is_sentence, names))


def _is_sentence(text: str) -> bool:
    return (
        len(text) > LONG_NAME or len(text.split()) > LONG_NAME_WORDS or text.endswith(SENTENCE_ENDS)
    )


class HeaderlessError(ExamError):
    """A file of questions whose first row is not a header; `header` holds names for its columns."""

    def __init__(self, message: str, header: list[str]) -> None:
        """Keep the names."""
        super().__init__(message)
        self.header = header


def headerless_error(path: Path | str, names: list[str]) -> HeaderlessError:
    """Return the refusal of a file of questions whose first row is not a header."""
    cells = ", ".join(repr(name if len(name) < LONG_NAME else f"{name[:37]}…") for name in names)
    header = name_columns(names)
    settings = [f"data.header=[{','.join(header)}]"]
    settings.append(f"data.options={''.join(c for c in header if c in ascii_uppercase)}")
    settings += [] if "id" in header else ["data.columns.id=null"]
    return HeaderlessError(
        f"{path} has no header: its first row is {cells}.\n"
        f"Name its columns in order: {' '.join(settings)}",
        header,
    )


def name_columns(row: list[str]) -> list[str]:
    """Return names for the columns of a first row: an id, the prompt, options and the answer.

    An id stands before the sentence; the answer is a letter in the last column.
    """
    start = ["id", "prompt"] if len(row) > 3 and _is_sentence(row[1]) else ["prompt"]
    if _is_sentence(row[0]):
        start = ["prompt"]
    end = ["answer"] if re.fullmatch("[A-Za-z]", row[-1].strip()) else []
    return [*start, *ascii_uppercase[: len(row) - len(start) - len(end)], *end]


def check_is_first_row(path: Path, header: list[str], row: list[str]) -> None:
    """Refuse names for the columns of a file that names them itself."""
    names = {name.casefold() for name in header if name}
    same = [cell for cell in row if cell.strip().casefold() in names]
    if 2 * len(same) > len(names):
        raise ExamError(
            f"{path} has a header: {', '.join(row)}.\nRead its names with data.header=null"
        )
