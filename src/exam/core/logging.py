"""Log lines, printed results and progress bars."""

import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain, islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from exam.core import distributed
from exam.core.security import redact

if TYPE_CHECKING:
    from tqdm import tqdm

T = TypeVar("T")
LOG_SECONDS = 60  # between two lines of progress
BAR_SECONDS = 10  # between two lines that stand for a bar where there is no terminal
log = logging.getLogger(__name__)


class RedactingFormatter(logging.Formatter):
    """Remove secrets and terminal control characters from log lines."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, with its exception if it has one."""
        return redact(super().format(record))


def setup_logging(level: str) -> None:
    """Send this project's log lines to standard error.

    Ranks above 0 log warnings only. The traceback of a bug is redacted, too.
    """
    sys.excepthook = _print_bug
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RedactingFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("exam")
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper() if distributed.rank() == 0 else logging.WARNING)
    logger.propagate = False


def print_result(text: str) -> None:
    """Print a result to standard output, on rank 0 only; the log goes to standard error."""
    if distributed.rank() == 0:
        sys.stdout.write(f"{redact(text)}\n")
        sys.stdout.flush()


def print_error(text: str) -> None:
    """Print a message to standard error, or report it to the launcher, which prints it."""
    folder = distributed.reports_folder()
    if folder is None:
        sys.stderr.write(f"{redact(text)}\n")
    else:
        (folder / str(distributed.rank())).write_text(redact(text), encoding="utf-8")


def _print_bug(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    print_error("".join(traceback.format_exception(kind, error, trace)).rstrip())


def quiet_libraries() -> None:
    """Silence the libraries' own messages; call this before they are imported.

    Tokenizers warn of forks that the data loader makes on purpose. The hub client draws bars and
    logs every retry.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # the last retry is reported as an error
    if not show_progress():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", message=".*pin_memory.*")


def show_progress() -> bool:
    """Tell whether standard error is a terminal and the log level includes `info`."""
    return sys.stderr.isatty() and logging.getLogger("exam").isEnabledFor(logging.INFO)


class _LogLines:
    """A file for a progress bar that logs each of its states as a line."""

    def write(self, text: str) -> None:
        if line := text.strip():
            log.info("%s", line)

    def flush(self) -> None:
        pass


def progress_bar(what: str, total: int | None, unit: str) -> "tqdm[Any]":
    """Return a progress bar in a terminal; elsewhere, a line every BAR_SECONDS in the log."""
    from tqdm import tqdm

    if show_progress():
        return tqdm(total=total, desc=what, unit=f" {unit}", leave=False)
    return tqdm(
        total=total,
        desc=what,
        leave=False,
        position=0,  # a bar inside another one would move the cursor
        disable=not log.isEnabledFor(logging.INFO),
        file=_LogLines(),
        mininterval=BAR_SECONDS,
        miniters=1,
        delay=BAR_SECONDS,
        bar_format=f"{{desc}}: {{n_fmt}} of {{total_fmt}} {unit}, {{remaining}} left",
    )


def track(items: Iterable[T], what: str, total: int | None, unit: str) -> Iterator[T]:
    """Yield the items and advance a progress bar, which starts with the first item."""
    iterator = iter(items)
    for first in islice(iterator, 1):
        with progress_bar(what, total, unit) as bar:
            for item in chain((first,), iterator):
                yield item
                bar.update()


@cache
def log_once(log: logging.Logger, level: int, message: str) -> None:
    """Log a line that a command comes upon several times."""
    log.log(level, "%s", message)


class ProgressLog:
    """Log the progress of a stage: one line a minute at `info`, the others at `debug`."""

    def __init__(self) -> None:
        """Start the first minute."""
        self._last = time.monotonic()

    def __call__(self, log: logging.Logger, message: str, *args: Any) -> None:
        """Log a message with its arguments."""
        is_due = time.monotonic() - self._last >= LOG_SECONDS
        if is_due:
            self._last = time.monotonic()
        log.log(logging.INFO if is_due else logging.DEBUG, message, *args)


log_progress = ProgressLog()
