"""The end of a command: one message and an exit code for errors, full disks and interruptions.

All files are written atomically, so a command may end anywhere.
"""

import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from exam.core import distributed
from exam.core.errors import ExamError, ExitError
from exam.core.logging import print_error

CONTINUES = "The same command continues from what is finished."
SIGNAL_MESSAGES = {signal.SIGINT: "Interrupted.", signal.SIGTERM: "Terminated."}
GRACE_SECONDS = 4  # to unwind after a signal
FREE_SPACE = "Make room there, and run the same command again: it continues from what is finished."
OTHER_FOLDER = "Change its permissions, or give a folder that can be written to: outputs=<folder>"
REMEDIES = {
    errno.ENOSPC: FREE_SPACE,
    errno.EDQUOT: FREE_SPACE,
    errno.EFBIG: "Raise the limit on the size of files (ulimit -f), and run the same command "
    "again: it continues from what is finished.",
    errno.EROFS: OTHER_FOLDER,
    errno.EACCES: OTHER_FOLDER,
    errno.EPERM: OTHER_FOLDER,
    errno.ENOTDIR: OTHER_FOLDER,
    errno.ENAMETOOLONG: "Give a shorter name.",
}
# NumPy and torch report a failed write without an error number.
WRITE_FAILURE = re.compile(r"requested and \d+ written|PytorchStreamWriter|inline_container")
_signals: list[int] = []


def run_command(body: Callable[[], int], interrupted: str = CONTINUES) -> int:
    """Run a command's body and return its exit code.

    The code is 2 after a user's mistake or a refused file, with the message only. It is 130 after
    Ctrl-C and 143 after SIGTERM, with `interrupted` as the next step.
    """
    _signals.clear()
    before = {number: signal.getsignal(number) for number in (*SIGNAL_MESSAGES, signal.SIGALRM)}
    # Ranks above 0 write nothing, and end at once.
    end = _interrupt if distributed.rank() == 0 else signal.SIG_DFL
    for number in SIGNAL_MESSAGES:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, end)
    try:
        with translate_os_errors():
            code = body()
    except BaseException as error:
        if _signals or isinstance(error, KeyboardInterrupt):
            # A library may have turned the interruption into another error.
            return _print_interrupted(interrupted)
        if isinstance(error, ExamError):
            print_error(str(error))
            return 2
        if isinstance(error, ExitError):
            return error.code
        raise
    else:
        return _print_interrupted(interrupted) if _signals else code
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_if_distributed(code: int) -> int:
    """Return a command's exit code; after an error, exit at once if other processes still run.

    Torch's exit handlers may wait for those processes.
    """
    if code and distributed.world_size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _interrupt(number: int, _: FrameType | None) -> NoReturn:
    """Unwind the stack; exit at once after GRACE_SECONDS, as on a request that does not return."""
    _signals.append(number)
    signal.signal(signal.SIGALRM, _force_exit)
    signal.alarm(GRACE_SECONDS)
    raise KeyboardInterrupt


def _force_exit(*_: Any) -> NoReturn:
    code = _print_interrupted(CONTINUES)
    sys.stderr.flush()
    os._exit(code)


def _print_interrupted(then: str) -> int:
    number = _signals[0] if _signals else signal.SIGINT
    print_error(f"{SIGNAL_MESSAGES[signal.Signals(number)]} {then}".strip())
    return 128 + number


@contextmanager
def translate_os_errors(folder: Path | None = None) -> Iterator[None]:
    """Turn an error of writing or opening a file, of any library, into one message.

    The message names `folder` if the error names no file.
    """
    try:
        yield
    except ExamError:
        raise
    except Exception as error:
        code = None if _signals else _error_number(error)
        if code is None:
            raise
        path = getattr(error, "filename", None)
        where = f" below {folder}" if folder else ""
        text = f"A file{where} could not be written: {str(error).splitlines()[0]}"
        raise ExamError(
            f"{f'{path}: {os.strerror(code)}.' if path else text}\n{REMEDIES[code]}"
        ) from error


def _error_number(error: BaseException) -> int | None:
    """Return the system's number of an error with a remedy; None for other errors."""
    if isinstance(error, OSError) and error.errno in REMEDIES:
        return error.errno
    text = str(error)
    for code, remedy in REMEDIES.items():
        is_full = remedy == FREE_SPACE and os.strerror(code) in text
        if f"(os error {code})" in text or is_full:
            return code
    if WRITE_FAILURE.search(text):
        return errno.ENOSPC
    return None if error.__cause__ is None else _error_number(error.__cause__)
