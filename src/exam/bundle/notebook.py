"""Write the notebook that answers an exam with a bundle."""

import json
import re
import shlex
from collections.abc import Mapping
from glob import escape
from pathlib import Path
from typing import NamedTuple

from exam.core.files import write_atomically

OTHER_PYTHON = (
    "This is Python {running}, and the bundle's wheels are for Python {python}. "
    "Make the bundle again with python={running}, or use it with Python {python}."
)
CHECK = """import sys

running = "{{}}.{{}}".format(*sys.version_info)
if running != "{python}":
    raise SystemExit("{message}".format(running=running))"""
FIND = """from pathlib import Path

matches = [p for depth in range(6) for p in Path({root!r}).glob("*/" * depth + {pattern!r})]
if not matches:
    raise SystemExit({message!r})
{name} = str(matches[0]).removesuffix({suffix!r})"""
LINE = """!{literal}
if _exit_code:
    raise SystemExit({message!r})"""


class Place(NamedTuple):
    """The folder that holds `content`, somewhere below `root`."""

    root: str
    content: str


def format_commands(overrides: list[str], extra_packages: list[str]) -> list[str]:
    """Return shell lines that install the bundle and extra packages, and write submission.csv.

    `{bundle}` stands for the bundle's folder, and `{questions}` for that of the question files.
    """
    arguments = shlex.join([*overrides, "outputs=outputs"])
    packages = " ".join(extra_packages)
    offline = "HF_HUB_CACHE={bundle}/hub HF_HUB_OFFLINE=1"
    sources = "--quiet --no-index --find-links {bundle}/wheels"
    return [
        f"pip install {sources} openbook-exam {packages}".rstrip(),
        "python -m exam bundle unpack {bundle} outputs",
        f"{offline} python -m exam infer {arguments}",
        "cp $(ls -t outputs/*/*/submission.csv | head -1) submission.csv",
    ]


def write_notebook(path: Path, lines: list[str], places: Mapping[str, Place], python: str) -> None:
    """Write a notebook that runs shell lines; a failing line ends it.

    `{name}` in a line stands for the folder of the place of that name, which the notebook finds.
    """
    message = OTHER_PYTHON.format(python=python, running="{running}")
    code = [CHECK.format(python=python, message=message)]
    code += [
        FIND.format(
            name=name,
            root=place.root,
            pattern=escape(place.content),
            suffix=f"/{place.content}",
            message=f"{place.content} is not below {place.root}: attach the data set that holds it",
        )
        for name, place in places.items()
        if any(f"{{{name}}}" in line for line in lines)
    ]
    for line in lines:
        # IPython replaces single braces and dollars by Python values.
        literal = re.sub(r"[{}]|\$(?=\w)", r"\g<0>\g<0>", line)
        for name in places:
            literal = literal.replace(f"{{{{{name}}}}}", f"{{{name}}}")
        code.append(LINE.format(literal=literal, message=f"Failed: {line}"))
    notebook = {
        "cells": [
            _make_cell("markdown", 0, "Answer the exam offline with the attached bundle."),
            *(_make_cell("code", number, source) for number, source in enumerate(code, 1)),
        ],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(notebook, indent=1) + "\n", encoding="utf-8")


def _make_cell(kind: str, number: int, source: str) -> dict[str, object]:
    outputs: dict[str, object] = {"outputs": [], "execution_count": None} if kind == "code" else {}
    identity = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
    return {**identity, "source": source.splitlines(keepends=True), **outputs}
