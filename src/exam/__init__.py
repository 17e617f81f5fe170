"""exam: open-book multiple-choice exams with the Hugging Face Trainer."""

import signal
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from exam.ask import LoadedRun

__version__ = "0.2.0"

# Every command comes here first. Windows has neither, and would end in a traceback later.
if find_spec("resource") is None or not hasattr(signal, "SIGALRM"):
    sys.stderr.write("exam runs on Linux and macOS; on Windows, run it in WSL (wsl --install).\n")
    raise SystemExit(2)


def load(run: "str | Path", *overrides: str, outputs: "str | Path | None" = None) -> "LoadedRun":
    """A run of `exam train`, ready to answer: `load("outputs/train/…").answer(prompt, options)`.

    `overrides` are those of `exam infer`, `outputs` is where its index lies if not beside it.
    """
    from exam.ask import LoadedRun

    return LoadedRun(run, *overrides, outputs=outputs)
