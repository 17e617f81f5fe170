"""Suggest the settings that read a file whose columns have other names."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product, takewhile
from typing import Any

from exam.config import Data
from exam.data.cells import get_cell, match_column
from exam.data.options import KEY, LETTERS

# Common names; with a blank, each also stands for the one with an underscore or without either.
PROMPTS = (
    *("prompt", "question", "question.stem", "question stem", "question text", "stem", "query"),
    *("ctx", "problem", "goal", "premise", "input", "sentence", "text", "q"),
    *("题目", "问题", "問題"),
)
LISTS = (
    *("options", "choices", "endings", "mc1_targets", "question.choices", "candidates", "answers"),
    *("choice", "alternatives", "选项", "選択肢"),
)
ANSWERS = (
    *("answer", "answer key", "answer idx", "answer index", "label", "correct answer", "correct"),
    *("correct option", "correct answer num", "right answer", "cop", "gold", "target", "key"),
    *("答案", "正解"),
)
ANSWER_WORDS = {"ans", "answer", "correct", "gold", "label", "right", "solution"}
WRONG_WORDS = {"distractor", "distractors", "incorrect", "wrong"}
CONTEXT_WORDS = {"context", "passage", "article", "support", "paragraph", "story", "dialogue"}
NO_PROMPTS = CONTEXT_WORDS | {"explanation", "rationale", "solution", "id", "url"}
WORD = re.compile(r"[a-z]+|[A-Z]+(?![a-z])|[A-Z][a-z]+")
FEW = 10  # values of a column that some questions may share
PLAIN = re.compile(r"[A-Za-z0-9_./-]+")  # needs no quotes
DIGITS = [str(number) for number in range(len(LETTERS) + 1)]
Change = dict[str, str | None]  # data.<key>: its new value
Rows = list[dict[str, Any]]
Attempt = Callable[[Data], list[str] | None]


def suggest_settings(
    rows: Rows,
    header: list[str],
    data: Data,
    missing: list[str],
    attempt: Attempt,
) -> str | None:
    """Return the settings with which a file can be read; None if no column fits.

    `missing` names the parts of a question to look for. `attempt` reads the file, and returns None
    if it cannot, or the settings of which the user must choose one.
    """
    for change in _candidates(rows, header, data, missing):
        choices = attempt(apply_change(data, change))
        if choices is not None:
            settings = [spell_setting(key, value) for key, value in change.items()]
            return " or ".join(
                " ".join([*settings, *end]) for end in [[c] for c in choices] or [[]]
            )
    return None


def apply_change(data: Data, change: Change) -> Data:
    """Return `data` with the settings of a change."""
    columns = {k.removeprefix("columns."): v for k, v in change.items() if k.startswith("columns.")}
    return replace(
        data,
        columns={**data.columns, **columns},
        options=change.get("options", data.options),
        shuffle_options="shuffle_options" in change or data.shuffle_options,
    )


def find_context(rows: Rows, header: list[str]) -> str | None:
    """Return the column of the texts that come with the questions, if there is one."""
    names = [name for name in header if _words(name) & CONTEXT_WORDS and _is_prose(rows, name)]
    return next((name for name in names if "id" not in _words(name)), None)


def _candidates(rows: Rows, header: list[str], data: Data, missing: list[str]) -> Iterator[Change]:
    """Yield changes of settings, from likely to less likely."""
    base: Change = {"columns.id": None} if "id" in missing else {}
    prompts = _prompts(rows, header) if "prompt" in missing else [{}]
    options: list[Change] = [{}]
    if "options" in missing:
        options = [*_lettered(header), *_named(header, "options", LISTS), *_lists(rows, header)]
    answers = _answers(header, data, missing)
    for prompt in prompts:
        if "options" in missing:
            yield from ({**base, **prompt, **right} for right in _distractors(rows, header))
        for option, answer in product(options, answers):
            yield {**base, **prompt, **option, **answer}
    if "answer" in missing:  # the options may be marked, or the answers unknown
        yield from ({**base, **prompt, **option} for prompt in prompts for option in options)


def _prompts(rows: Rows, header: list[str]) -> list[Change]:
    """Return a change for each column that may hold the prompts.

    These are columns of common names, unless few values occur in all rows; else the column of the
    longest texts.
    """
    named = _named(header, "prompt", PROMPTS)
    varied = [change for change in named if _varies(rows, change["columns.prompt"])]
    if varied or not header:
        return varied
    texts = [c for c in header if not _words(c) & NO_PROMPTS and _is_prose(rows, c)]
    longest = sorted(texts, key=lambda c: -sum(len(str(get_cell(row, c))) for row in rows))
    return [{"columns.prompt": column} for column in longest[:1] if _varies(rows, column)] or named


def _answers(header: list[str], data: Data, missing: list[str]) -> list[Change]:
    """Return a change for each column that may hold the answers."""
    answer = data.columns.get("answer")
    has_answer = answer is not None and match_column(answer, header)
    named = _named(header, "answer", ANSWERS)
    others = [name for name in header if _words(name) & ANSWER_WORDS]
    changes: list[Change] = [*([{}] if has_answer else []), *named]
    changes += [{"columns.answer": name} for name in others]  # a second attempt fails alike
    return changes if changes or "answer" in missing else [{}]


def _distractors(rows: Rows, header: list[str]) -> list[Change]:
    """Return a change for a column of right texts beside columns, or a list, of wrong ones."""
    rights = [c for c in header if _words(c) & ANSWER_WORDS and not _words(c) & WRONG_WORDS]
    wrong = [c for c in header if _words(c) & WRONG_WORDS]
    series = [change for change in _lettered(wrong, shortest=1) if change]
    texts = [[str(v) for k, v in change.items() if k != "options"] for change in series]
    for column in wrong:
        count = max(
            (len(cell) for row in rows if isinstance(cell := get_cell(row, column), list)),
            default=0,
        )
        texts += [[f"{column}.{n}" for n in range(count)]] if count else []
    return [
        {
            "options": LETTERS[: len(names) + 1],
            "columns.correct": right,
            **{f"columns.{c}": name for c, name in zip(LETTERS, [right, *names], strict=False)},
            "shuffle_options": "true",
        }
        for names, right in product(texts, rights)
        if len(names) < len(LETTERS)
    ]


def _lists(rows: Rows, header: list[str]) -> list[Change]:
    """Return a change for each column of lists."""
    cells = {column: get_cell(rows[0], column) for column in header}
    return [{"columns.options": c} for c, cell in cells.items() if isinstance(cell, list) and cell]


def _words(name: str) -> set[str]:
    """Return the words of a name such as `correct_answer_id` or `correctAnswer`."""
    return {word.lower() for word in WORD.findall(name)}


def _is_prose(rows: Rows, column: str) -> bool:
    """Tell whether a column holds texts of several words, or of as many characters."""
    cells = [cell for row in rows if (cell := get_cell(row, column)) is not None]
    texts = [c for c in cells if isinstance(c, str) and (" " in c.strip() or len(c) > FEW)]
    return 2 * len(texts) > len(rows)


def _varies(rows: Rows, column: str | None) -> bool:
    """Tell whether more than a few values occur in a column, whatever the questions."""
    values = {str(get_cell(row, column)) for row in rows}
    return len(values) > min(FEW, len(rows) // 4)


def _named(header: list[str], part: str, names: tuple[str, ...]) -> list[Change]:
    """Return a change for each common name of a part that the file has."""
    changes: list[Change] = []
    for name in names:
        head, dot, rest = name.partition(".")
        spellings = dict.fromkeys([head, head.replace(" ", "_"), head.replace(" ", "")])
        columns = [column for spelling in spellings for column in match_column(spelling, header)]
        changes += [{f"columns.{part}": column + dot + rest} for column in columns]
    return changes


def _lettered(header: list[str], shortest: int = 2) -> list[Change]:
    """Return a change for each series of columns, such as `opa, opb` or `option1, option2`."""
    series: dict[str, dict[str, str]] = {}
    for name in header:
        if (parts := KEY.fullmatch(name)) is not None:
            series.setdefault(parts[1], {})[parts[2].upper()] = name
    changes: list[Change] = []
    for names in series.values():
        for labels in (LETTERS, DIGITS, DIGITS[1:]):
            run = [names[label] for label in takewhile(names.__contains__, labels)]
            if len(run) >= shortest:
                pairs = zip(LETTERS, run, strict=False)
                mapped: Change = {f"columns.{c}": name for c, name in pairs if name != c}
                changes.append({"options": LETTERS[: len(run)], **mapped})
                break
    return changes


def spell_setting(key: str, value: str | None) -> str:
    """Return a setting as a shell takes it."""
    if value is None or PLAIN.fullmatch(value):
        return f"data.{key}={'null' if value is None else value}"
    quoted = value.replace("\\", "\\\\").replace('"', '\\"').replace("'", "'\\''")
    return f"'data.{key}=\"{quoted}\"'"
