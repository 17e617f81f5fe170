"""The process: logging, memory, versions."""

import ctypes
import logging
import os
import platform
import resource
import sys
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from exam.core import distributed
from exam.core.security import shown

if TYPE_CHECKING:
    from tqdm import tqdm

T = TypeVar("T")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
LOG_SECONDS = 60  # between two lines of progress
PACKAGES = (
    "torch",
    "transformers",
    "datasets",
    "sentencepiece",
    "tokenizers",
    "peft",
    "accelerate",
    "sentence-transformers",
    "faiss-cpu",
    "blingfire",
    "livekit-blingfire",
    "pyarrow",
    "numpy",
)


class ShownFormatter(logging.Formatter):
    """Lines without secrets, and without what drives a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and what follows it of an exception."""
        return shown(super().format(record))


def start_logging(level: str) -> None:
    """Send this project's log lines to standard error, one plain line each.

    Of several processes all but the first keep to warnings. A bug's traceback shows no secrets.
    """
    sys.excepthook = _complain_of_a_bug
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(ShownFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("exam")
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper() if distributed.rank() == 0 else logging.WARNING)
    logger.propagate = False


def say(text: str) -> None:
    """Print a result to standard output, once; the log goes to standard error."""
    if distributed.rank() > 0:
        return
    sys.stdout.write(f"{shown(text)}\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    """Print a user's mistake to standard error, or report it to the process that prints it."""
    folder = distributed.reports_folder()
    if folder is None:
        sys.stderr.write(f"{shown(text)}\n")
    else:
        (folder / str(distributed.rank())).write_text(shown(text), encoding="utf-8")


def _complain_of_a_bug(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    complain("".join(traceback.format_exception(kind, error, trace)).rstrip())


def quiet_libraries() -> None:
    """Silence what the libraries say of themselves before they are imported.

    Tokenizers warn of forks that the data loader makes on purpose; the hub client draws bars
    and tells of every retry.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # its retries; the last one is reported
    if not draws_bars():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", message=".*pin_memory.*")


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks in the process instead of returning them to the system.

    On a CPU the big activations of every step are otherwise mapped and cleared anew: that took
    two fifths of a MiniLM training step. Elsewhere this does nothing.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
    libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def start(level: str) -> None:
    """Set up a process that works: its log, quiet libraries, memory that it keeps."""
    start_logging(level)
    quiet_libraries()
    keep_freed_memory()


def draws_bars() -> bool:
    """Whether a person watches standard error, and has not asked for quiet."""
    return sys.stderr.isatty() and logging.getLogger("exam").isEnabledFor(logging.INFO)


def progress(what: str, total: int | None, unit: str = "it") -> "tqdm[Any]":
    """A progress bar, drawn for a person only."""
    from tqdm import tqdm

    return tqdm(total=total, desc=what, unit=f" {unit}", leave=False, disable=not draws_bars())


def watched(
    items: Iterable[T], what: str, total: int | None = None, unit: str = "it"
) -> Iterator[T]:
    """The items, with a progress bar over them."""
    with progress(what, total, unit) as bar:
        for item in items:
            yield item
            bar.update()


class ProgressLog:
    """Log lines of how far a stage is: one a minute, the others for debugging."""

    def __init__(self) -> None:
        """Begin the first minute."""
        self._last = time.monotonic()

    def __call__(self, log: logging.Logger, message: str, *args: Any) -> None:
        """Log a message with its arguments."""
        is_due = time.monotonic() - self._last >= LOG_SECONDS
        if is_due:
            self._last = time.monotonic()
        log.log(logging.INFO if is_due else logging.DEBUG, message, *args)


log_progress = ProgressLog()


def reset_peak_memory() -> None:
    """Start a new measurement of peak memory, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory_mib() -> float:
    """Peak resident memory in MiB since the last reset, or since the start where none is."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    line = next(row for row in status.splitlines() if row.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def environment() -> dict[str, str]:
    """Versions and machine, as saved beside a run."""
    found = {"python": platform.python_version(), "machine": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
