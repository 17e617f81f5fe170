"""The notebook that answers an exam with a bundle, and the same steps as a script."""

import json
import shlex
from pathlib import Path

from exam.files import atomic


def commands(overrides: list[str], verb: list[str], gpus: int, also: list[str]) -> list[str]:
    """Shell lines that install the bundle, and `also` those packages, and write submission.csv.

    `{bundle}` stands for the bundle's folder; the last line's output is the submission's place.
    """
    launcher = f"torchrun --nproc-per-node {gpus} -m" if gpus > 1 else "python -m"
    asked = " ".join(shlex.quote(word) for word in [*verb, *overrides, "outputs=outputs"])
    offline = "HF_HUB_CACHE={bundle}/hub HF_HUB_OFFLINE=1"
    return [
        " ".join(["pip install --quiet --no-index --find-links {bundle}/wheels exam", *also]),
        "python -m exam.bundle.unpack {bundle} outputs",
        f"{offline} {launcher} exam infer {asked}",
        "cp $(ls -t outputs/*/*/submission.csv | head -1) submission.csv",
    ]


def write_notebook(path: Path, lines: list[str], place: str) -> None:
    """Write the lines as a notebook for `/kaggle/input/<place>`."""
    cells = [
        _cell("markdown", ["Answer the exam with the attached bundle: no network is needed."]),
        *(_cell("code", [f"!{line.replace('{bundle}', place)}"]) for line in lines),
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {
        "cells": cells,
        "metadata": {"kernelspec": kernel},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(notebook, indent=1) + "\n", encoding="utf-8")


def _cell(kind: str, source: list[str]) -> dict[str, object]:
    own: dict[str, object] = {"outputs": [], "execution_count": None} if kind == "code" else {}
    return {"cell_type": kind, "metadata": {}, "source": source, **own}
