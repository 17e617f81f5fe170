"""`exam inspect`: show the rows of questions, and the command that reads them."""

import re
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset

from exam.config import AnswerForm, Data, Source
from exam.core.errors import ExamError, spell_command
from exam.data.answers import AmbiguityError
from exam.data.cells import match_column
from exam.data.files import find_local_files, find_question_files, read_question_rows
from exam.data.headers import HeaderlessError
from exam.data.questions import read_hub_rows
from exam.data.schema import LETTERS, describe_positions, parse_questions, parse_rows
from exam.data.suggest import find_context, spell_setting, suggest_settings

SHOWN = 3  # rows
WIDTH = 90  # characters of a cell
FEW, FEWEST = 30, 4  # questions that need fewer folds, and that can be trained on
HUB = re.compile(r"[\w.-]+/[\w.-]+")  # owner/name
HUB_ROWS = 1000  # that are read
CHOICE = re.compile(r"data\.(hub_config|train|revision)=.")
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class _Source:
    """Rows, and the words of a command that read them for training and for answering."""

    name: str
    rows: Rows
    data: Data
    train: str
    test: str
    settings: list[str]
    count: str = ""


def inspect_files(names: list[str]) -> str:
    """Return what files or hub sets of questions hold, how exam reads them, and the command.

    Among the names, `data.hub_config=`, `data.train=` and `data.revision=` choose a part of a set.

    Raises:
        ExamError: a file or set is missing or is not a table.
    """
    settings = dict(
        name.removeprefix("data.").split("=", 1) for name in names if CHOICE.match(name)
    )
    sources: list[_Source] = []
    for name in names:
        if CHOICE.match(name):
            continue
        if HUB.fullmatch(name) and not find_local_files(Data(name="csv"), name):
            sources.append(_read_hub(name, settings))
        else:
            sources += map(_read, find_question_files(Data(name="csv"), name))
    return "\n\n".join(map(_inspect, sources))


def _inspect(source: _Source) -> str:
    rows, name = source.rows, source.name
    header = [*dict.fromkeys(name for row in rows for name in row)]
    count = source.count or f"{len(rows)} rows"
    lines = [f"{name}: {count}, {len(header)} columns: {', '.join(header)}"]
    for number, row in enumerate(rows[:SHOWN], 1):
        lines += ["", f"row {number}", *(f"  {name}: {_shorten(row[name])}" for name in row)]
    try:
        data, suggested = _find_settings(rows, header, source.data, name)
        readings = _parse(rows, header, data, name)
    except ExamError as error:
        return "\n".join([*lines, "", f"exam cannot read it: {error}"])
    context = None if data.columns.get("context") else find_context(rows, header)
    settings = [*source.settings, *([suggested] if suggested else [])]
    if context is not None:
        settings.append(spell_setting("columns.context", context))
    if left_out := _find_left_out(header, data, context):
        lines += ["", f"exam does not read {', '.join(left_out)}"]
    if len(readings) > 1:
        lines += ["", f"The answers fit {len(readings)} readings. Choose one of them."]
    for form, questions in readings.items():
        lines += ["", f"exam reads{f' with {form}' if form else ''}"]
        for question in questions.select(range(min(SHOWN, len(questions)))):
            lines += _format_question(question)
        chosen = [*settings, *([form] if form else [])]
        chosen += ["data.shuffle_options=true"] * bool(describe_positions(questions.to_list()))
        reading = " retriever=provided" * (context is not None)
        lines += ["", *_commands(source, questions, " ".join(chosen), reading)]
    return "\n".join(lines)


def _read(path: Path) -> _Source:
    """Return a file's rows, and the settings that read them if it has no header."""
    data, settings = Data(name="csv"), []
    try:
        rows = [*read_question_rows(data, path)]
    except HeaderlessError as error:
        header = error.header
        options = "".join(name for name in header if name in LETTERS)
        columns = data.columns if "id" in header else {**data.columns, "id": None}
        data = replace(data, header=header, options=options, columns=columns)
        settings = [f"'data.header=[{','.join(header)}]'", spell_setting("options", options)]
        settings += [] if "id" in header else ["data.columns.id=null"]
        rows = [*read_question_rows(data, path)]
    held_out = " data.valid=null data.valid_fraction=0.2"
    train = f"data=csv {spell_setting('train', str(path))}{held_out}"
    test = f"data=csv {spell_setting('test', str(path))}"
    return _Source(str(path), rows, data, train, test, settings)


def _read_hub(name: str, settings: dict[str, str]) -> _Source:
    """Return the first rows of a split of a hub data set, which may be in the cache."""
    split = settings.get("train", "train")
    parts = {key: value for key, value in settings.items() if key != "train"}
    data = Data(name="hub", source=Source.hub, hub=name, train=split)
    data.hub_config, data.revision = parts.get("hub_config"), parts.get("revision")
    rows = [*islice(read_hub_rows(data, split), HUB_ROWS)]
    words = " ".join(
        ["data=hub", spell_setting("hub", name), *(spell_setting(k, v) for k, v in parts.items())]
    )
    train = f"{words} {spell_setting('train', split)} data.valid=null data.valid_fraction=0.2"
    count = f"the first {len(rows)} rows of {split}"
    test = f"{words} {spell_setting('test', split)}"
    return _Source(f"{name} ({split})", rows, data, train, test, [], count)


def _find_left_out(header: list[str], data: Data, context: str | None) -> list[str]:
    """Return the columns that no setting reads."""
    names = [*data.columns.values(), *(data.columns.get(c) or c for c in data.options or "")]
    used = {part.partition(".")[0] for part in [*names, context] if part}
    return [column for column in header if not any(match_column(u, [column]) for u in used)]


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

    def attempt(other: Data) -> list[str] | None:
        try:
            _parse(rows, header, other, source)
        except ExamError:
            return None
        fitting[0] = other
        return []

    settings = suggest_settings(rows, header, data, missing, attempt)
    return fitting[0], settings


def _has(data: Data, part: str, header: list[str]) -> bool:
    name = data.columns[part]
    return name is None or bool(match_column(name, header))


def _parse(rows: Rows, header: list[str], data: Data, source: str) -> dict[str, Dataset]:
    """Return the questions of each reading that fits, by the setting that chooses it."""
    try:
        parse_rows(rows, header, data, source)
    except AmbiguityError as error:
        forms = {setting: AnswerForm(setting.partition("=")[2]) for setting in error.settings}
        choices = {setting: replace(data, answer=form) for setting, form in forms.items()}
        return {name: parse_questions(rows, other, source) for name, other in choices.items()}
    return {"": parse_questions(rows, data, source)}


def _format_question(question: dict[str, Any]) -> list[str]:
    """Format a question as it is read, with a mark at the right option."""
    lines = [f"  {question['id']}: {_shorten(question['prompt'])}"]
    for number, option in enumerate(question["options"]):
        mark = "*" if number == question["label"] else " "
        lines.append(f"  {mark} {LETTERS[number]} {_shorten(option)}")
    return lines


def _commands(source: _Source, questions: Dataset, settings: str, reading: str) -> list[str]:
    """Return the commands that train on the questions, if all are answered, and answer them."""
    count, end = len(questions), f" {settings}" if settings else ""
    lines = ["Answer them with a run:", f"  {spell_command('infer')} ckpt=RUN {source.test}{end}"]
    if count >= FEWEST and None not in questions["label"]:
        folds = " data.folds=2" if count < FEW else ""
        command = f"{spell_command('train')} {source.train}{folds}{end}{reading}"
        lines = ["Train on them:", f"  {command}", *lines]
    return lines


def _shorten(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= WIDTH else f"{text[:WIDTH]} …"
