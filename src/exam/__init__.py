"""exam: open-book multiple-choice exams with the Hugging Face Trainer."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from exam.ask import LoadedRun

__version__ = "0.1.0"


def load(run: "str | Path", *overrides: str, outputs: "str | Path | None" = None) -> "LoadedRun":
    """A run of `train.py`, ready to answer: `load("outputs/train/…").answer(prompt, options)`.

    `overrides` are those of infer.py, `outputs` is where its index lies if not beside it.
    """
    from exam.ask import LoadedRun

    return LoadedRun(run, *overrides, outputs=outputs)
