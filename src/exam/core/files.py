"""Hashes of values and files; files written whole or not at all; a folder for one process."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

from exam.core.errors import ExamError

log = logging.getLogger(__name__)

SEAL = ".{}.sha256"  # beside a file that an interrupted stage goes on with


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it into place when the block ends well.

    What the system refuses on the way carries the name of `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.filename is None or str(error.filename) == str(temporary):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def sealed(path: Path) -> Iterator[Path]:
    """`atomic` for what an interrupted stage goes on with: its hash is noted beside it."""
    with atomic(path) as temporary:
        yield temporary
        _seal(path).write_text(file_digest(temporary))


def is_sealed(path: Path) -> bool:
    """Whether a file is there as `sealed` left it; any other is removed, and the log says so."""
    if not path.is_file():
        return False
    seal = _seal(path)
    if seal.is_file() and seal.read_bytes() == file_digest(path).encode():
        return True
    log.warning("%s is not the file that was written: it is made again", path)
    path.unlink()
    return False


def _seal(path: Path) -> Path:
    return path.with_name(SEAL.format(path.name))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value atomically."""
    with atomic(path) as temporary:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file that this project wrote."""
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text, parse_float=_finite, parse_constant=_finite)
        json.dumps(value, ensure_ascii=False).encode()  # no halves of surrogate pairs
    except (ValueError, RecursionError) as error:
        raise not_as_written(path, str(error)) from None
    return value


def _finite(text: str) -> float:
    """A number of a file; none that is written here is infinite or NaN."""
    if not isfinite(value := float(text)):
        raise ValueError(f"it holds {text}")
    return value


def not_as_written(path: Path, reason: str) -> ExamError:
    """The error for a JSON file whose content is not what was written."""
    return ExamError(
        f"{path} is not the JSON file that was written ({reason}).\n"
        f"Delete the folder {path.parent} and run the command again."
    )


def read_object(path: Path, *keys: str) -> dict[str, Any]:
    """Read a JSON object that this project wrote; it has at least these keys."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise not_as_written(path, f"a {type(found).__name__}")
    lacking = [key for key in keys if key not in found]
    if lacking:
        raise not_as_written(path, f"it has no {lacking[0]!r}")
    return found


def write_signed(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object that vouches for itself."""
    value = json.loads(json.dumps(value))  # as it will be read
    write_json(path, {**value, "sha256": digest(value)})


def read_signed(path: Path) -> dict[str, Any]:
    """Read what `write_signed` wrote.

    Raises:
        ExamError: it is not that.
    """
    found: Any = read_json(path)
    if not isinstance(found, dict) or found.pop("sha256", None) != digest(found):
        raise ExamError(
            f"{path} is not the file that was written, or one of an earlier version.\n"
            f"Delete the folder {path.parent} and run the command again."
        )
    return found


@contextmanager
def lock(folder: Path) -> Iterator[Path]:
    """Keep other processes out of a folder; yield the lock's file, which lies beside it."""
    from filelock import FileLock, Timeout

    path = folder.with_name(f".{folder.name}.lock")
    file = FileLock(path)
    try:
        file.acquire(timeout=0)
    except Timeout:
        log.info("Waiting for another process that works on %s", folder)
        file.acquire()
    try:
        yield path
    finally:
        file.release()
