"""Write the notebook that answers an exam with a bundle."""

import json
import re
import shlex
from pathlib import Path

from exam.core.files import write_atomically

OTHER_PYTHON = (
    "This is Python {running}, and the bundle's wheels are for Python {python}. "
    "Make the bundle again with python={running}, or use it with Python {python}."
)
CHECK = """import sys

running = "{{}}.{{}}".format(*sys.version_info)
if running != "{python}":
    raise SystemExit("{message}".format(running=running))"""
LINE = """!{literal}
if _exit_code:
    raise SystemExit({message!r})"""


def format_commands(overrides: list[str], extra_packages: list[str]) -> list[str]:
    """Return shell lines that install the bundle and extra packages, and write submission.csv.

    `{bundle}` stands for the bundle's folder.
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


def write_notebook(path: Path, lines: list[str], folder: str, python: str) -> None:
    """Write a notebook that runs shell lines for a bundle in `folder`; a failing line ends it."""
    message = OTHER_PYTHON.format(python=python, running="{running}")
    code = [CHECK.format(python=python, message=message)]
    for line in (text.replace("{bundle}", folder) for text in lines):
        # IPython replaces single braces and dollars by Python values.
        literal = re.sub(r"[{}]|\$(?=\w)", r"\g<0>\g<0>", line)
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
