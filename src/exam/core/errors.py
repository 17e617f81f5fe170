"""The exceptions that end a command, and the spelling of commands in their messages."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAM = "EXAM_PROGRAM"  # tells processes that `launch` starts how the first was started
LISTED = 20  # problems that a message names
SCRIPTS = ("train", "infer", "retrieve")  # in the root of a clone


class ExamError(Exception):
    """A mistake in a command, a file or an environment: observed → required → way out.

    The command line prints the message alone and exits with code 2; every other exception is a
    bug and keeps its traceback.
    """


@contextmanager
def collect_error(errors: list[ExamError]) -> Iterator[None]:
    """Add an error to a list, so that all files are checked before the first is reported."""
    try:
        yield
    except ExamError as error:
        errors.append(error)


def join_errors(errors: list[ExamError]) -> ExamError:
    """Return one error that names every problem of several files, and each remedy once."""
    if len(errors) == 1:
        return errors[0]
    parts = [str(error).partition("\n") for error in errors]
    remedies = dict.fromkeys(remedy for _, _, remedy in parts if remedy)
    problems = [problem for problem, _, _ in parts]
    if len(problems) > LISTED:
        problems = [*problems[:LISTED], f"… and {len(problems) - LISTED} more"]
    return ExamError("\n".join([f"{len(errors)} files cannot be read:", *problems, *remedies]))


class ExitError(Exception):
    """The end of a command whose message another process has printed."""

    def __init__(self, code: int) -> None:
        """Keep the exit code."""
        super().__init__(f"exit code {code}")
        self.code = code


def spell_command(command: str) -> str:
    """Return how to start a command, in the way that started this process.

    That is `python train.py` in a clone, `python -m exam train`, or `exam train`.
    """
    program = Path(os.environ.get(PROGRAM) or sys.argv[0])
    if program.parts[-2:] == ("exam", "__main__.py"):
        return f"python -m exam {command}"
    if command in SCRIPTS and program.name in [f"{script}.py" for script in SCRIPTS]:
        return f"python {command}.py"
    return f"exam {command}"
