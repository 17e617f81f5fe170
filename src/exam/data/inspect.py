"""`exam inspect`: show the rows of question files, and the command that reads them."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset

from exam.config import AnswerForm, Data
from exam.core.errors import ExamError, spell_command
from exam.data.answers import AmbiguityError
from exam.data.cells import match_column
from exam.data.files import find_question_files, read_question_rows
from exam.data.headers import HeaderlessError
from exam.data.schema import LETTERS, parse_questions, parse_rows
from exam.data.suggest import spell_setting, suggest_settings

SHOWN = 3  # rows
WIDTH = 90  # characters of a cell
FEW, FEWEST = 30, 4  # questions that need fewer folds, and that can be trained on
Rows = list[dict[str, Any]]


def inspect_files(names: list[str]) -> str:
    """Return what question files hold, how exam reads them, and the command that does.

    Raises:
        ExamError: a file is missing or is not a table.
    """
    paths = [path for name in names for path in find_question_files(Data(name="csv"), name)]
    return "\n\n".join(_inspect(path) for path in paths)


def _inspect(path: Path) -> str:
    data, settings, rows = _read(path)
    header = [*dict.fromkeys(name for row in rows for name in row)]
    lines = [f"{path}: {len(rows)} rows, {len(header)} columns: {', '.join(header)}"]
    for number, row in enumerate(rows[:SHOWN], 1):
        lines += ["", f"row {number}", *(f"  {name}: {_shorten(row[name])}" for name in row)]
    try:
        data, suggested = _find_settings(rows, header, data, str(path))
        readings = _parse(rows, header, data, str(path))
    except ExamError as error:
        return "\n".join([*lines, "", f"exam cannot read it: {error}"])
    if len(readings) > 1:
        lines += ["", f"The answers fit {len(readings)} readings. Choose one of them."]
    for form, questions in readings.items():
        lines += ["", f"exam reads{f' with {form}' if form else ''}"]
        for question in questions.select(range(min(SHOWN, len(questions)))):
            lines += _format_question(question)
        chosen = [*settings, *([suggested] if suggested else []), *([form] if form else [])]
        lines += ["", *_commands(path, questions, " ".join(chosen))]
    return "\n".join(lines)


def _read(path: Path) -> tuple[Data, list[str], Rows]:
    """Return a file's rows, and the settings that read them if it has no header."""
    data = Data(name="csv")
    try:
        return data, [], [*read_question_rows(data, path)]
    except HeaderlessError as error:
        header = error.header
    options = "".join(name for name in header if name in LETTERS)
    columns = data.columns if "id" in header else {**data.columns, "id": None}
    data = replace(data, header=header, options=options, columns=columns)
    settings = [f"'data.header=[{','.join(header)}]'", spell_setting("options", options)]
    settings += [] if "id" in header else ["data.columns.id=null"]
    return data, settings, [*read_question_rows(data, path)]


def _find_settings(
    rows: Rows, header: list[str], data: Data, source: str
) -> tuple[Data, str | None]:
    """Return the configuration that reads the rows, and its settings as a shell takes them."""
    missing = [part for part in ("id", "prompt", "answer") if not _has(data, part, header)]
    if not all(match_column(letter, header) for letter in data.options or ""):
        missing.append("options")
    if not missing:
        return data, None
    fitting = [data]

    def attempt(other: Data) -> str | None:
        try:
            _parse(rows, header, other, source)
        except ExamError:
            return None
        fitting[0] = other
        return ""

    settings = suggest_settings(header, data, missing, attempt)
    return fitting[0], settings


def _has(data: Data, part: str, header: list[str]) -> bool:
    name = data.columns[part]
    return name is None or bool(match_column(name, header))


def _parse(rows: Rows, header: list[str], data: Data, source: str) -> dict[str, Dataset]:
    """Return the questions of each reading that fits, by the setting that chooses it."""
    try:
        parse_rows(rows, header, data, source)
    except AmbiguityError as error:
        forms = [AnswerForm(name) for name in re.findall(r"data\.answer=(\w+)", error.settings)]
        choices = {f"data.answer={form.value}": replace(data, answer=form) for form in forms}
        return {name: parse_questions(rows, other, source) for name, other in choices.items()}
    return {"": parse_questions(rows, data, source)}


def _format_question(question: dict[str, Any]) -> list[str]:
    """Format a question as it is read, with a mark at the right option."""
    lines = [f"  {question['id']}: {_shorten(question['prompt'])}"]
    for number, option in enumerate(question["options"]):
        mark = "*" if number == question["label"] else " "
        lines.append(f"  {mark} {LETTERS[number]} {_shorten(option)}")
    return lines


def _commands(path: Path, questions: Dataset, settings: str) -> list[str]:
    """Return the commands that train on the questions, if all are answered, and answer them."""
    count, end = len(questions), f" {settings}" if settings else ""
    test = spell_setting("test", str(path))
    lines = ["Answer them with a run:", f"  {spell_command('infer')} ckpt=RUN data=csv {test}{end}"]
    if count >= FEWEST and None not in questions["label"]:
        train = spell_setting("train", str(path))
        folds = " data.folds=2" if count < FEW else ""
        command = f"{spell_command('train')} data=csv {train} data.valid=null"
        held_out = f"data.valid_fraction=0.2{folds}"
        lines = ["Train on them:", f"  {command} {held_out}{end}", *lines]
    return lines


def _shorten(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= WIDTH else f"{text[:WIDTH]} …"
