"""Validate the rows of a file and turn them into questions."""

import logging
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from datasets import Dataset, Features, List, Value

from exam.config import AnswerForm, Data
from exam.core.errors import ExamError, spell_command
from exam.core.files import digest
from exam.data.answers import MEANING, AmbiguityError, Answer, read_labels
from exam.data.cells import (
    SCALARS,
    cell_keys,
    cell_text,
    describe,
    get_cell,
    match_column,
    read_articles,
)
from exam.data.option_order import choose_order
from exam.data.options import LETTERS, ColumnError, Options, read_lettered, read_listed
from exam.data.suggest import suggest_settings
from exam.data.tables import base_name
from exam.data.words import visible_text

__all__ = ["FEATURES", "LETTERS", "parse_questions", "permute_options"]

log = logging.getLogger(__name__)

FEATURES = Features(
    {
        "id": Value("string"),
        "prompt": Value("string"),
        "options": List(Value("string")),
        "label": Value("int64"),  # null: the answer is unknown
        "context": Value("string"),  # a text that came with the question, or null
        "articles": List(Value("string")),  # the articles that answer it (qrels); none: unknown
    }
)
FEW, ONE_POSITION = 20, 0.8  # answers, and the share of one position that is warned of
MAX_NAMED = 3  # questions that a warning names
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Columns:
    """The columns of one file that hold the parts of a question; None: the file has none."""

    id: str | None
    prompt: str
    options: str | None
    letters: dict[str, str]
    answer: str | None
    context: str | None
    article: str | None


@dataclass(frozen=True)
class Draft:
    """The questions of one file before their answers are read; messages call it `source`."""

    source: str
    rows: Rows
    questions: Rows
    answers: list[Answer]


def parse_questions(rows: Iterable[dict[str, Any]], data: Data, source: str) -> Dataset:
    """Map and validate the rows of one file, which messages call `source`.

    Raises:
        ExamError: there is no row, or one is not a question as `data` describes it.
    """
    (questions,) = label_drafts([draft_questions(rows, data, source)], data)
    return questions


def draft_questions(rows: Iterable[dict[str, Any]], data: Data, source: str) -> Draft:
    """Map and validate all parts of the rows of one file but their answers.

    Raises:
        ExamError: there is no row, or one is not a question as `data` describes it.
    """
    rows = list(rows)
    if not rows:
        raise ExamError(f"{source} holds no question.\nGive a file with at least one row.")
    with _suggest_columns(rows, data, source):
        return _draft(rows, _header(rows), data, source)


def label_drafts(drafts: list[Draft], data: Data) -> list[Dataset]:
    """Return the questions of each file, whose answers are all read in one form.

    Raises:
        ExamError: an answer names no option or several, or the files differ in form.
    """
    if not drafts:
        return []
    with _suggest_columns(drafts[0].rows, data, drafts[0].source):
        form = _label(drafts, data)
    sources = [draft.source for draft in drafts]
    names = ", ".join(sources[:MAX_NAMED]) + " …" * (len(sources) > MAX_NAMED)
    if data.answer is AnswerForm.auto and form not in (None, AnswerForm.letter):
        meaning = MEANING[form]
        log.info("questions: %s: answers are %s (data.answer=%s)", names, meaning, form.value)
    if warning := describe_positions([q for draft in drafts for q in draft.questions]):
        log.warning(
            "questions: %s: %s",
            sources[0] if len(sources) == 1 else f"{len(sources)} files",
            warning,
        )
    for draft in drafts:
        _warn_of_equal_options(draft)
    return [Dataset.from_list(draft.questions, features=FEATURES) for draft in drafts]


def _header(rows: Rows) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


@contextmanager
def _suggest_columns(rows: Rows, data: Data, source: str) -> Iterator[None]:
    """Complete a refusal of a file's columns by the settings that read its rows."""
    try:
        yield
    except ColumnError as error:
        header = _header(rows)

        def attempt(other: Data) -> list[str] | None:
            try:
                parse_rows(rows, header, other, source)
            except AmbiguityError as ambiguity:
                return ambiguity.settings
            except ExamError:
                return None
            return []

        observed, _, remedy = str(error).partition("\n")
        if settings := suggest_settings(rows, header, data, error.missing, attempt):
            remedy = f"Set {settings}{error.alternative}"
        if Path(source).is_file():
            remedy += f"\nSee its rows: {spell_command('inspect')} {shlex.quote(source)}"
        raise ExamError(f"{observed}\n{remedy}") from None


def describe_positions(questions: Rows) -> str:
    """Name the position that most right options share; empty if they vary."""
    labels = [question["label"] for question in questions if question["label"] is not None]
    ((label, count),) = Counter(labels).most_common(1) or [(0, 0)]
    if len(labels) < FEW or count < ONE_POSITION * len(labels):
        return ""
    return (
        f"the right option is {LETTERS[label]} in {count} of {len(labels)} answered questions "
        f"({count / len(labels):.0%}), which a reader can learn; vary it with "
        "data.shuffle_options=true"
    )


def _warn_of_equal_options(draft: Draft) -> None:
    repeats = [
        question["id"]
        for question in draft.questions
        if len(set(map(visible_text, question["options"]))) < len(question["options"])
    ]
    if repeats:
        log.warning(
            "%s: %d of %d questions have two equal options (first: %s); data.strict=true refuses "
            "them",
            *(draft.source, len(repeats), len(draft.questions), ", ".join(repeats[:MAX_NAMED])),
        )


def parse_rows(rows: Rows, header: list[str], data: Data, source: str) -> Rows:
    """Return the questions of one file."""
    draft = _draft(rows, header, data, source)
    _label([draft], data)
    return draft.questions


def _draft(rows: Rows, header: list[str], data: Data, source: str) -> Draft:
    columns = _find_columns(rows, header, data, source)
    keys = _read_ids(rows, columns, source)
    draft = Draft(source, rows, [], [])
    for number, (key, row) in enumerate(zip(keys, rows, strict=True), 1):
        location = f"{source}, row {number} (id {key!r})"
        prompt = _read_text(row, columns.prompt, "prompt", location)
        if not prompt:
            raise ExamError(f"{location}: the prompt is empty.\nFill it in, or delete the row.")
        options = _read_options(row, columns, location)
        _check_equal_options(options, data, location)
        draft.answers.append(Answer(get_cell(row, columns.answer), options, location))
        context = _read_text(row, columns.context, "context", location)
        articles = read_articles(get_cell(row, columns.article), location)
        texts = {"id": key, "prompt": prompt, "context": context}
        draft.questions.append({**texts, "options": options.texts, "articles": articles})
    return draft


def _label(drafts: list[Draft], data: Data) -> AnswerForm | None:
    """Add labels to the questions of drafts; return the form of the answers if one is needed."""
    wanted = AnswerForm.text if data.columns.get("correct") else data.answer
    answers_of = {draft.source: draft.answers for draft in drafts}
    labels, form = read_labels(answers_of, wanted)
    questions = [question for draft in drafts for question in draft.questions]
    answers = [answer for draft in drafts for answer in draft.answers]
    for question, answer, label in zip(questions, answers, labels, strict=True):
        question["label"] = answer.options.right if label is None else label
        if data.shuffle_options:
            order = list(range(len(question["options"])))
            Random(digest(question["id"])).shuffle(order)
            if not data.columns.get("correct"):  # else the columns' order says which is right
                order = choose_order(answer.options.texts, order)
            question.update(permute_options(question, order))
    return form


def permute_options(question: dict[str, Any], order: list[int]) -> dict[str, Any]:
    """Return a question's options in the given order, and the label that follows from it."""
    options, label = question["options"], question["label"]
    return {
        "options": [options[i] for i in order],
        "label": None if label is None else order.index(label),
    }


def _find_columns(rows: Rows, header: list[str], data: Data, source: str) -> Columns:
    """Find the columns that `data` names in a file.

    A column may differ in case and blanks if exactly one does, or be a value inside of another.

    Raises:
        ExamError: columns are missing, or a filled option column is left out.
    """

    def find(name: str | None) -> str | None:
        matches = match_column(name, header) if name is not None else []
        if len(matches) > 1:
            raise ExamError(
                f"{source} has the columns {', '.join(map(repr, matches))} for {name!r}.\n"
                "Rename all but one of them."
            )
        is_nested = not matches and any(get_cell(row, name) is not None for row in rows)
        return name if is_nested else next(iter(matches), None)

    column = data.columns.get
    names = {letter: column(letter) or letter for letter in data.options or ""}
    letters = {letter: find(name) for letter, name in names.items()}
    required = {"id": column("id"), "prompt": column("prompt") or "prompt"}
    if data.options is None:
        required["options"] = column("options") or "options"
    parts = {part: find(name) for part, name in required.items()}
    missing = [part for part, name in required.items() if name is not None and parts[part] is None]
    absent = [letter for letter in letters if letters[letter] is None]
    if missing or absent:
        raise _missing_error(f"{source} has columns {', '.join(header)}", missing, absent, data)
    columns = Columns(
        id=parts["id"],
        prompt=str(parts["prompt"]),
        options=parts.get("options"),
        letters={letter: str(name) for letter, name in letters.items()},
        answer=find(column("correct") or column("answer")),
        context=find(column("context")),
        article=find(column("article")),
    )
    _check_left_out(rows, columns, find, data, source)
    return columns


def _missing_error(header: str, missing: list[str], absent: list[str], data: Data) -> ColumnError:
    """Name all missing columns in one message."""
    names = [f"{part} ({data.columns.get(part) or part})" for part in missing]
    names += [f"option {letter} ({data.columns.get(letter) or letter})" for letter in absent]
    settings = ["data.columns.id=null" if part == "id" else _map(part) for part in missing]
    has_some = 0 < len(absent) < len(data.options or "")  # the rest may have other names
    mapped = " ".join([*settings, *map(_map, absent)])
    remedy = f"Map them: {mapped}"
    if absent and not has_some:
        base, letters = " ".join([*settings, ""]), " ".join(map(_map, "AB"))
        remedy = (
            f"Set {base}data.options=null {_map('options')} {_map('answer')}, or, with a column "
            f"for each option, {base}data.options=AB {letters} {_map('answer')}; for a column "
            f"with the right option's text, {_map('correct')} instead of data.columns.answer"
        )
    return ColumnError(
        f"{header}; missing: {', '.join(names)}.\n{remedy}",
        [*missing, *(["options"] if absent else [])],
        f", or map the missing columns: {mapped}" if has_some else "",
    )


def _map(part: str) -> str:
    return f"data.columns.{part}=<name>"


def _check_left_out(
    rows: Rows, columns: Columns, find: Callable[[str | None], str | None], data: Data, source: str
) -> None:
    """Refuse filled option columns that follow those of `data.options`."""
    options = data.options or ""
    if not options or not LETTERS.startswith(options):
        return
    more = ""
    for letter in LETTERS[len(options) :]:
        name = find(letter)
        if name in columns.letters.values() or not any(cell_text(get_cell(r, name)) for r in rows):
            break
        more += letter
    if more:
        raise ExamError(
            f"{source}: data.options={options} leaves option {', '.join(more)} out.\n"
            f"Set data.options={options}{more}, or rename the columns."
        )


def _read_ids(rows: Rows, columns: Columns, source: str) -> list[str]:
    """Return the questions' ids: those of the file, or numbers from 1."""
    if columns.id is None:
        return [f"{base_name(Path(source).name)}-{number}" for number in range(1, len(rows) + 1)]
    cells = [get_cell(row, columns.id) for row in rows]
    for number, cell in enumerate(cells, 1):
        if not isinstance(cell, SCALARS) or not cell_text(cell):
            raise ExamError(
                f"{source}, row {number}: the id ({columns.id}) is {describe(cell)}.\n"
                "Give every question one, or number them with data.columns.id=null"
            )
    keys = cell_keys(cells)
    row_of_key: dict[str, int] = {}
    for number, key in enumerate(keys, 1):
        if row_of_key.setdefault(key, number) != number:
            raise ExamError(
                f"{source}, row {number} (id {key!r}): row {row_of_key[key]} has the same id.\n"
                "Give every question a different id, or number them with data.columns.id=null"
            )
    return keys


def _read_options(row: dict[str, Any], columns: Columns, location: str) -> Options:
    if columns.options is None:
        return read_lettered(row, columns.letters, location)
    has_answer = bool(cell_text(get_cell(row, columns.answer)))
    return read_listed(row, columns.options, location, has_answer=has_answer)


def _read_text(row: dict[str, Any], column: str | None, part: str, location: str) -> str | None:
    """Return a cell's text; None if it is empty or the file lacks the column."""
    value = get_cell(row, column)
    if not isinstance(value, SCALARS):
        raise ExamError(
            f"{location}: the {part} ({column}) is {describe(value)}.\n"
            f"Write a text, or map another column with data.columns.{part}=<name>"
        )
    return cell_text(value) or None


def _check_equal_options(options: Options, data: Data, location: str) -> None:
    """Refuse, with `data.strict`, two options that look the same."""
    if not data.strict:
        return
    text, count = Counter(map(visible_text, options.texts)).most_common(1)[0]
    if count > 1:
        raise ExamError(
            f"{location}: two options are equal ({text!r}).\n"
            "Correct the row, or accept such rows with data.strict=false"
        )
