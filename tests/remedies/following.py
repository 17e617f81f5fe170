"""Follow the remedies that a refusal prints, and list the refusals of the sources."""

import ast
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from exam.core.errors import ExamError

SOURCES = Path(__file__).parents[2] / "src" / "exam"
Words = list[str]  # a command and its settings
Change = Callable[[Words], Words]

SETTING = re.compile(
    r"""'~?[\w.+@/]+=(?:[^']|'\\'')*'"""  # quoted for a shell
    r"""|(?<![\w.<>/])~?[+a-zA-Z][\w.@]*=(?:"[^"]*"|\[[^\]]*\]|<[^>]+>(?:/<[^>]+>)?|[^\s,;()?])+"""
)
LEFT_OUT = re.compile(
    r"[Ll]eave (?:out ([\w.+]+)|(all but one of them|one of them|[\w.+]+) out\b(?!:))"
)
NAMED = re.compile(r"(?:[a-z_0-9]+|§)(?:\.(?:[a-zA-Z_0-9]+|§|<\w+>))*=(?=[\w<'\[§…/.{]|$)")
ELSE = re.compile(r"\. |\bor\b|\bneither\b|;|\n")


@dataclass(frozen=True)
class Row:
    """A command that is refused, and what its remedy leaves to you.

    `says` is a part of the refusal's text in the sources. `fill` has the values of placeholders.
    `act` does what a part of the remedy says in words: it changes files or words, and returns the
    words. `instead` lists the words that are replaced, where they are no settings or other ones.
    `skip` names settings that are not followed here, with the reason.
    """

    says: str
    words: str
    fill: dict[str, str] = field(default_factory=dict)
    act: dict[str, Change] = field(default_factory=dict)
    skip: dict[str, str] = field(default_factory=dict)
    instead: str = ""
    files: dict[str, str] = field(default_factory=dict)  # written into the folder of the command


def refusal(run: Callable[[Words], object], words: Words) -> str:
    """Return the message of a command that must be refused."""
    with pytest.raises(ExamError) as caught:
        run(words)
    return str(caught.value)


def remedies(message: str, row: Row, words: Words) -> list[Change]:
    """Return each change that the remedy offers: groups of settings, settings to leave out, acts.

    Settings beside each other belong together; "or", a semicolon and a new line separate choices.
    """
    observed, _, remedy = message.partition("\n")
    for part, value in row.fill.items():
        remedy = remedy.replace(part, value)
    changes: list[Change] = []
    for group in _groups(remedy):
        if not any(key in word for word in group for key in row.skip):
            unknown = [word for word in group if re.search(r"<[^>]*>|…", word)]
            assert not unknown, f"the row has no value for {unknown} in:\n{message}"
            changes.append(_set(group, row.instead.split()))
    for match in LEFT_OUT.finditer(remedy):
        name = match[1] or match[2]
        if name not in row.skip:
            changes += _leave_out(name, observed, words)
    for part, act in row.act.items():
        assert part in remedy, f"{part!r} is not a part of the remedy:\n{message}"
        changes.append(act)
    return changes


def _groups(remedy: str) -> list[Words]:
    """Return the settings of each choice."""
    groups: list[Words] = []
    end, keys = 0, set()
    for match in SETTING.finditer(remedy):
        word = shlex.split(match[0])[0] if match[0].startswith("'") else match[0]
        key = _key(word)
        if not groups or ELSE.search(remedy[end : match.start()]) or key in keys:
            groups, keys = [*groups, []], set()
        groups[-1].append(word)
        keys.add(key)
        end = match.end()
    return groups


def _leave_out(name: str, observed: str, words: Words) -> list[Change]:
    """Return the changes that leave a setting out, or those that the message observes."""
    keys = [_key(word) for word in words[1:]]
    names = [key for key in keys if re.search(rf"(?<![\w.]){re.escape(key)}(?![\w.])", observed)]
    if name == "one of them":
        return [_remove([key]) for key in names]
    if name == "all but one of them":
        return [_remove([other for other in names if other != key]) for key in names]
    if name not in ("it", "them"):
        names = [key for key in keys if f"{key}.".startswith(f"{name.lstrip('+')}.")]
    return [_remove(names)] if names else []


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def _set(settings: Words, instead: Words) -> Change:
    keys = {_key(word) for word in settings}
    keys |= {key.removeprefix("run.") for key in keys}  # the run's instead of the command's
    return lambda words: [
        *(word for word in words if word not in instead and _key(word) not in keys),
        *(word for word in settings if not word.startswith("~")),
    ]


def _remove(names: Words) -> Change:
    return lambda words: [words[0], *(word for word in words[1:] if _key(word) not in names)]


def templates() -> dict[str, str]:
    """Return the text of each refusal in the sources, by its place.

    Placeholders are `§`. Besides the arguments of `ExamError`, these are all sentences with a
    setting that are neither docstrings, help nor log lines.
    """
    texts = {}
    for path in sorted(SOURCES.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        parts, refused = set(), set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr | ast.JoinedStr):
                parts |= {id(part) for part in ast.walk(node) if part is not node}
            elif isinstance(node, ast.Call):
                inside = {id(part) for part in ast.walk(node)}
                function = ast.unparse(node.func)
                refused |= inside if function == "ExamError" else set()
                parts |= inside if function == "setting" or function.startswith("log.") else set()
        for node in ast.walk(tree):
            text = _template(node)
            is_sentence = " " in text and NAMED.search(text)
            if text and id(node) not in parts and (id(node) in refused or is_sentence):
                texts[f"{path.relative_to(SOURCES)}:{node.lineno}"] = text
    return texts


def _template(node: ast.AST) -> str:
    """Return a literal's text with placeholders; empty if it is none."""
    if isinstance(node, ast.JoinedStr):
        return "".join(p.value if isinstance(p, ast.Constant) else "§" for p in node.values)
    is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return re.sub(r"\{\w+\}", "§", node.value) if is_text else ""
