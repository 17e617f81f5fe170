"""How a command ends: done, refused, out of room or interrupted; with one message and a code.

Whatever is written is written whole or not at all, so that a command may end anywhere.
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
from exam.core.logging import complain

CONTINUES = "The same command continues from what is finished."
NAMES = {signal.SIGINT: "Interrupted.", signal.SIGTERM: "Terminated."}
PATIENCE = 4  # seconds to unwind in
ROOM = "Make room there, and run the same command again: it continues from what is finished."
ELSEWHERE = "Change its permissions, or give a folder that can be written to: outputs=<folder>"
WAYS = {
    errno.ENOSPC: ROOM,
    errno.EDQUOT: ROOM,
    errno.EFBIG: "Raise the limit on the size of files (ulimit -f), and run the same command "
    "again: it continues from what is finished.",
    errno.EROFS: ELSEWHERE,
    errno.EACCES: ELSEWHERE,
    errno.EPERM: ELSEWHERE,
    errno.ENOTDIR: ELSEWHERE,
    errno.ENAMETOOLONG: "Give a shorter name.",
}
# What NumPy and torch say of a write that failed, without a number.
UNNUMBERED = re.compile(r"requested and \d+ written|PytorchStreamWriter|inline_container")
_received: list[int] = []


def ended(body: Callable[[], int], interrupted: str = CONTINUES) -> int:
    """Run a command's body.

    Returns:
        Its exit code; 2 after a user's mistake and where the system refused a file, of which the
        message alone is printed; 130 after Ctrl-C and 143 after SIGTERM, with what to do next.
    """
    _received.clear()
    before = {number: signal.getsignal(number) for number in (*NAMES, signal.SIGALRM)}
    # Ranks above 0 write nothing, and end at once.
    end = _interrupt if distributed.rank() == 0 else signal.SIG_DFL
    for number in NAMES:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, end)
    try:
        with explained():
            code = body()
    except BaseException as error:
        if _received or isinstance(error, KeyboardInterrupt):
            # A library may have made another error of the interruption.
            return _say_interrupted(interrupted)
        if isinstance(error, ExamError):
            complain(str(error))
            return 2
        if isinstance(error, ExitError):
            return error.code
        raise
    else:
        return _say_interrupted(interrupted) if _received else code
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)


def leave(code: int) -> int:
    """Return a command's exit code, or exit at once where other processes still run.

    Torch's exit handlers may wait for them.
    """
    if code and distributed.world_size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _interrupt(number: int, _: FrameType | None) -> NoReturn:
    """Unwind; what does not end meanwhile (a reply that is waited for) is left as if killed."""
    _received.append(number)
    signal.signal(signal.SIGALRM, _at_once)
    signal.alarm(PATIENCE)
    raise KeyboardInterrupt


def _at_once(*_: Any) -> NoReturn:
    code = _say_interrupted(CONTINUES)
    sys.stderr.flush()
    os._exit(code)


def _say_interrupted(then: str) -> int:
    number = _received[0] if _received else signal.SIGINT
    complain(f"{NAMES[signal.Signals(number)]} {then}".strip())
    return 128 + number


@contextmanager
def explained(place: Path | None = None) -> Iterator[None]:
    """Turn what the system refused to write or to open into one message.

    `place` is named where the error names no file. The libraries' writers each raise an error of
    their own.

    Raises:
        ExamError: a full disk, a read-only folder, a missing permission, a limit on files.
    """
    try:
        yield
    except ExamError:
        raise
    except Exception as error:
        code = None if _received else _refusal(error)
        if code is None:
            raise
        path = getattr(error, "filename", None)
        where = f" below {place}" if place else ""
        said = f"A file{where} could not be written: {str(error).splitlines()[0]}"
        raise ExamError(
            f"{f'{path}: {os.strerror(code)}.' if path else said}\n{WAYS[code]}"
        ) from error


def _refusal(error: BaseException) -> int | None:
    """The system's number of what an error tells of; None where it is of another kind."""
    if isinstance(error, OSError) and error.errno in WAYS:
        return error.errno
    text = str(error)
    for code, way in WAYS.items():
        if f"(os error {code})" in text or (way == ROOM and os.strerror(code) in text):
            return code
    if UNNUMBERED.search(text):
        return errno.ENOSPC
    return None if error.__cause__ is None else _refusal(error.__cause__)
