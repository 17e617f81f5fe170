"""The right options that a file's answers name, read in one form for the whole file."""

import re
import unicodedata
from dataclasses import dataclass, replace
from typing import Any

from exam.config import AnswerForm
from exam.core.errors import ExamError
from exam.data.cells import SCALARS, cell_text, fold, read_literal, whole_number
from exam.data.options import ColumnError, Options, is_mark

MARKS = " \t()[]{}<>.:;,*\"'`。、"  # around a label
AROUND = MARKS + "-–—"  # between a label and its text
LEAD = re.compile(
    r"(?:the )?(?:correct |right |best )?(?:option|answer|choice)(?: is)?[\s_:.#-]*", re.IGNORECASE
)
SEVERAL = re.compile(r"\s*(?:[,;|/&+\n]|\band\b)\s*")
MEANING = {
    AnswerForm.letter: "labels of the options",
    AnswerForm.index0: "numbers counted from 0",
    AnswerForm.index1: "numbers counted from 1",
    AnswerForm.text: "texts of the options",
}


LISTED = 10  # files of a conflict


class AmbiguityError(ExamError):
    """Answers that fit several forms; `settings` lists those that choose one."""

    def __init__(self, message: str, settings: list[str]) -> None:
        """Keep the settings."""
        super().__init__(f"{message}\nSet {' or '.join(settings)}")
        self.settings = settings


@dataclass(frozen=True)
class Answer:
    """The answer of a row, the options that it may name, and the row's place in messages."""

    value: Any
    options: Options
    location: str


Labels = list[int | None]


def read_labels(
    answers_of: dict[str, list[Answer]], form: AnswerForm
) -> tuple[Labels, AnswerForm | None]:
    """Return the position of each right option, and the one form of the answers of all files.

    `answers_of` has the answers of each file by its name. The position is None where the answer is
    unknown, and the form where all are.

    Raises:
        ExamError: an answer names no option or several, two forms fit all files, or none does.
    """
    answers_of = {name: list(map(_unwrap, answers)) for name, answers in answers_of.items()}
    answers = [answer for part in answers_of.values() for answer in part]
    read = _fit_forms(answers, form)
    if not read:
        fitting = {name: [*_fit_forms(part, form)] for name, part in answers_of.items()}
        raise (
            _explain_conflict(fitting) if all(fitting.values()) else _explain_misfit(answers, form)
        )
    first = next(iter(read))
    if any(labels != read[first] for labels in read.values()):
        raise _explain_ambiguity(answers, read)
    is_known = any(label is not None for label in read[first])
    return read[first], first if is_known else None


def _fit_forms(answers: list[Answer], form: AnswerForm) -> dict[AnswerForm, Labels]:
    """Return the positions that all answers name, in each form that fits them."""
    forms = list(MEANING) if form is AnswerForm.auto else [form]
    read = {name: labels for name in forms if (labels := _read_form(answers, name)) is not None}
    if AnswerForm.letter in read:  # the labels may be numbers themselves
        read = {name: read[name] for name in read if name in (AnswerForm.letter, AnswerForm.text)}
    return read


def _read_form(answers: list[Answer], form: AnswerForm) -> Labels | None:
    """Return the positions that answers name in a form; None if one names no option."""
    labels: Labels = []
    for answer in answers:
        label = _find(answer, form)
        if label is None and not _is_unknown(answer):
            return None
        labels.append(label)
    return labels


def _unwrap(answer: Answer) -> Answer:
    """Replace a list of one value by the value, and a list of marks by the marked label.

    An answer that equals the text of an option stays a text.
    """
    value, options = answer.value, answer.options
    if isinstance(value, str) and _match_text(cell_text(value), options.texts) is not None:
        return answer
    if isinstance(value, str) and isinstance(literal := read_literal(value), list):
        value = literal
    if isinstance(value, list) and len(value) == len(options.names) and all(map(is_mark, value)):
        marked = [name for name, mark in zip(options.names, value, strict=True) if mark]
        value = marked
    if isinstance(value, list) and len(value) <= 1:
        value = value[0] if value else None
    return replace(answer, value=value)


def _find(answer: Answer, form: AnswerForm) -> int | None:
    """Return the option that an answer names in a form; None if it names none."""
    options, text = answer.options, _text(answer)
    names = options.names
    if form is AnswerForm.text:
        label = _match_text(text, options.texts)
        return _match_labelled(_bare(text), names, options.texts) if label is None else label
    if form is not AnswerForm.letter:
        first = 0 if form is AnswerForm.index0 else 1
        names = [str(first + position) for position in range(len(names))]
    return _match_label(whole_number(text), names, options.texts)


def _text(answer: Answer) -> str:
    return cell_text(answer.value) if isinstance(answer.value, SCALARS) else ""


def _match_text(text: str, texts: list[str]) -> int | None:
    if text in texts:
        return texts.index(text)
    return _only([i for i, option in enumerate(texts) if fold(option) == fold(text) != ""])


def _match_label(text: str, names: list[str], texts: list[str]) -> int | None:
    """Match C, c, C., (C), Option C, and C) followed by the text of option C."""
    if text in names:
        return names.index(text)
    bare, labels = _bare(text), list(map(fold, names))
    if bare in labels:
        return _only([i for i, label in enumerate(labels) if label == bare])
    return _match_labelled(bare, names, texts)


def _bare(text: str) -> str:
    """Return a text without the words and marks around a label."""
    bare = unicodedata.normalize("NFKC", text).strip(MARKS)
    if (lead := LEAD.match(bare)) is not None:
        bare = bare[lead.end() :].strip(MARKS)
    return fold(bare)


def _match_labelled(bare: str, names: list[str], texts: list[str]) -> int | None:
    """Match C) followed by the text of option C."""
    return _only(
        [
            i
            for i, (label, option) in enumerate(zip(map(fold, names), texts, strict=True))
            if bare.startswith(label)
            and not (rest := bare[len(label) :])[:1].isalnum()
            and rest.strip(AROUND) == fold(option).strip(AROUND)
        ]
    )


def _only(hits: list[int]) -> int | None:
    return hits[0] if len(hits) == 1 else None


def _is_unknown(answer: Answer) -> bool:
    """Return whether the answer is empty, or the -1 by which hub data sets withhold it."""
    text = _text(answer)
    return isinstance(answer.value, SCALARS) and (not text or whole_number(text) == "-1")


def _explain_ambiguity(answers: list[Answer], read: dict[AnswerForm, Labels]) -> AmbiguityError:
    """Say what the first answer means in each form that fits the file."""
    row = next(i for i in range(len(answers)) if len({labels[i] for labels in read.values()}) > 1)
    texts: dict[int | None, str] = dict(enumerate(map(repr, answers[row].options.texts)))
    readings = [
        f"{texts.get(labels[row], 'unknown')} if answers are {MEANING[form]}"
        for form, labels in read.items()
    ]
    settings = [f"data.answer={form.value}" for form in read]
    return AmbiguityError(
        f"{answers[row].location}: answer {_text(answers[row])!r} means {', '.join(readings)}; all "
        "answers fit each reading.",
        settings,
    )


def _explain_conflict(fitting: dict[str, list[AnswerForm]]) -> ExamError:
    """Name the files whose answers fit no common form, and the forms that fit each."""
    parts = [
        f"{name}: {' or '.join(MEANING[form] for form in forms)}" for name, forms in fitting.items()
    ]
    more = f"; … and {len(parts) - LISTED} more" if len(parts) > LISTED else ""
    return ExamError(
        f"The answers of {len(parts)} files are in different forms: "
        f"{'; '.join(parts[:LISTED])}{more}.\n"
        "Write the answers of all files in one form: labels, texts, or numbers counted from 0."
    )


def _explain_misfit(answers: list[Answer], form: AnswerForm) -> ExamError:
    """Name the first answer that does not fit a form, or the one that most answers fit."""
    fitting = [name for name in MEANING if _read_form(answers, name) is not None]
    read = {name: [_find(answer, name) for answer in answers] for name in MEANING}
    if form is AnswerForm.auto:
        form = max(MEANING, key=lambda name: sum(label is not None for label in read[name]))
    pairs = zip(answers, read[form], strict=True)
    misfits = [answer for answer, label in pairs if label is None and not _is_unknown(answer)]
    several = [answer for answer in misfits if _names_several(answer)]
    if several and not fitting:
        return ExamError(
            f"{several[0].location}: answer {several[0].value!r} names several options, as "
            f"{len(several)} of {len(answers)} answers do.\n"
            "exam scores one right option: keep one in each row, or delete these rows."
        )
    answer = misfits[0]
    shown = repr(answer.value)
    if not isinstance(answer.value, str):
        shown = f"{answer.value} ({type(answer.value).__name__})"
    count = len(answer.options.names)
    required = {
        AnswerForm.letter: f"not among the labels {', '.join(answer.options.names)}",
        AnswerForm.index0: f"not among the numbers 0 to {count - 1}",
        AnswerForm.index1: f"not among the numbers 1 to {count}",
        AnswerForm.text: "not the text of exactly one option",
    }[form]
    remedy = (
        "Write the label, the number or the text of the right option, or map another column with "
        "data.columns.answer=<name>"
    )
    position = next((p for other in MEANING if (p := _find(answer, other)) is not None), None)
    if fitting:
        remedy = f"Set {' or '.join(f'data.answer={other.value}' for other in fitting)}"
    elif position is not None:
        name = answer.options.names[position]
        required += f", but other answers are {MEANING[form]}"
        remedy = f"Answer all questions in one form; this may be option {name}."
    message = f"{answer.location}: answer {shown} is {required}.\n{remedy}"
    is_other_column = (
        not fitting and position is None and all(label is None for label in read[form])
    )
    return ColumnError(message, ["answer"]) if is_other_column else ExamError(message)


def _names_several(answer: Answer) -> bool:
    """Return whether an answer is a list of labels, such as `A,C`, `A|C`, `AC` or `[A, C]`."""
    text = _text(answer)
    parts = list(text) if text.isupper() and text.isalpha() else SEVERAL.split(text)
    if isinstance(answer.value, list):
        parts = list(map(cell_text, answer.value))
    forms = (AnswerForm.letter, AnswerForm.index0, AnswerForm.index1)
    return len(parts) > 1 and all(
        any(_find(replace(answer, value=part), form) is not None for form in forms)
        for part in parts
    )
