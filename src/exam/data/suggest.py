"""Suggest the settings that read a file whose columns have other names."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from exam.config import Data
from exam.data.cells import match_column
from exam.data.options import KEY, LETTERS, is_sequence

# Common names; with a blank, each also stands for the one with an underscore or without either.
PROMPTS = (
    *("prompt", "question", "question.stem", "question stem", "question text", "stem", "query"),
    *("ctx", "problem", "input", "sentence", "text", "题目", "问题", "問題"),
)
LISTS = (
    *("options", "choices", "endings", "mc1_targets", "question.choices", "candidates", "answers"),
    *("alternatives", "选项", "選択肢"),
)
ANSWERS = (
    *("answer", "answer key", "answer idx", "answer index", "label", "correct answer", "correct"),
    *("correct option", "correct answer num", "right answer", "cop", "gold", "target", "key"),
    *("答案", "正解"),
)
PLAIN = re.compile(r"[A-Za-z0-9_./-]+")  # needs no quotes
Change = dict[str, str | None]  # data.<key>: its new value


def suggest_settings(
    header: list[str], data: Data, missing: list[str], attempt: Callable[[Data], str | None]
) -> str | None:
    """Return the settings with which a file can be read; None if no common name fits.

    `missing` names the parts of a question to look for. `attempt` reads the file, and returns None
    if it cannot, or what else the user must choose.
    """
    for change in _candidates(header, data, missing):
        columns = {**data.columns, **_columns_of(change)}
        options = change.get("options", data.options)
        choice = attempt(replace(data, columns=columns, options=options))
        if choice is not None:
            return " ".join(spell_setting(key, value) for key, value in change.items()) + choice
    return None


def _columns_of(change: Change) -> Change:
    return {
        key.removeprefix("columns."): value
        for key, value in change.items()
        if key.startswith("columns.")
    }


def _candidates(header: list[str], data: Data, missing: list[str]) -> Iterator[Change]:
    """Yield changes of settings, from likely to less likely."""
    base: Change = {"columns.id": None} if "id" in missing else {}
    prompts = _named(header, "prompt", PROMPTS) if "prompt" in missing else [{}]
    options = [*_lettered(header), *_named(header, "options", LISTS)]
    if "options" not in missing:
        options = [{}]
    answer = data.columns.get("answer")
    has_answer = answer is not None and match_column(answer, header)
    answers = [*([{}] if has_answer else []), *_named(header, "answer", ANSWERS)] or [{}]
    if "answer" in missing:
        answers = [change for change in answers if change]
    for prompt in prompts:
        for option in options:
            for part in answers:
                yield {**base, **prompt, **option, **part}


def _named(header: list[str], part: str, names: tuple[str, ...]) -> list[Change]:
    """Return a change for each common name of a part that the file has."""
    changes: list[Change] = []
    for name in names:
        head, dot, rest = name.partition(".")
        spellings = dict.fromkeys([head, head.replace(" ", "_"), head.replace(" ", "")])
        columns = [column for spelling in spellings for column in match_column(spelling, header)]
        changes += [{f"columns.{part}": column + dot + rest} for column in columns]
    return changes


def _lettered(header: list[str]) -> list[Change]:
    """Return a change for each series of columns, such as `opa, opb` or `option1, option2`."""
    series: dict[str, list[str]] = {}
    for name in header:
        if (parts := KEY.fullmatch(name)) is not None:
            series.setdefault(parts[1], []).append(name)
    changes: list[Change] = []
    for prefix, names in series.items():
        ends = [name.removeprefix(prefix) for name in names]
        while len(ends) > 1 and not is_sequence(ends):
            ends.pop()
        if len(ends) > 1:
            letters = LETTERS[: len(ends)]
            named = zip(letters, names, strict=False)
            mapped: Change = {f"columns.{c}": name for c, name in named if name != c}
            changes.append({"options": letters, **mapped})
    return changes


def spell_setting(key: str, value: str | None) -> str:
    """Return a setting as a shell takes it."""
    if value is None or PLAIN.fullmatch(value):
        return f"data.{key}={'null' if value is None else value}"
    quoted = value.replace("\\", "\\\\").replace('"', '\\"').replace("'", "'\\''")
    return f"'data.{key}=\"{quoted}\"'"
