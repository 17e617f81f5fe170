"""Hashes, atomic writes, checksums, JSON files, and locks."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

from exam.core.errors import ExamError

log = logging.getLogger(__name__)

CHECKSUMS = ".checksums"  # of the partial results in a folder, one per line


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value; the order of its keys does not matter."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds.

    An `OSError` about the temporary path names `path` instead.
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
def atomic_directory(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`; rename it to `folder` if the block succeeds."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
    try:
        part.mkdir(parents=True)
        yield part
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def write_with_checksum(path: Path) -> Iterator[Path]:
    """Write a partial result atomically, and append its checksum to the folder's list."""
    with write_atomically(path) as temporary:
        yield temporary
        with path.with_name(CHECKSUMS).open("ab") as file:
            file.write(_checksum_line(path.name, temporary))


def checksum_matches(path: Path) -> bool:
    """Tell whether a partial result exists as it was written; warn if it has changed."""
    if not path.is_file():
        return False
    checksums = path.with_name(CHECKSUMS)
    if checksums.is_file() and _checksum_line(path.name, path) in checksums.read_bytes():
        return True
    log.warning("%s is not the file that was written", path)
    return False


def has_checksum(path: Path) -> bool:
    """Tell whether a partial result has a checksum, whatever the file holds now."""
    checksums = path.with_name(CHECKSUMS)
    return checksums.is_file() and f" {path.name}\n".encode() in checksums.read_bytes()


def _checksum_line(name: str, path: Path) -> bytes:
    """Return a line of CHECKSUMS; it starts on a new line even after an incomplete one."""
    return f"\n{file_digest(path)} {name}\n".encode()


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value atomically."""
    with write_atomically(path) as temporary:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file that this project wrote; refuse invalid JSON and infinite numbers."""
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text, parse_float=_finite, parse_constant=_finite)
        json.dumps(value, ensure_ascii=False).encode()  # refuse lone surrogates
    except (ValueError, RecursionError) as error:
        raise corrupt_file_error(path, str(error)) from None
    return value


def _finite(text: str) -> float:
    if not isfinite(value := float(text)):
        raise ValueError(f"it holds {text}")
    return value


def corrupt_file_error(path: Path, reason: str) -> ExamError:
    """Return the error for a JSON file whose content is not what was written."""
    return ExamError(
        f"{path} is not the JSON file that was written ({reason}).\n"
        f"Delete the folder {path.parent} and run the command again."
    )


def read_object(path: Path, *keys: str) -> dict[str, Any]:
    """Read a JSON object that this project wrote; refuse other values, or one without `keys`."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise corrupt_file_error(path, f"a {type(value).__name__}")
    lacking = [key for key in keys if key not in value]
    if lacking:
        raise corrupt_file_error(path, f"it has no {lacking[0]!r}")
    return value


def write_checksummed_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object together with its checksum."""
    value = json.loads(json.dumps(value))  # as it will be read
    write_json(path, {**value, "sha256": digest(value)})


def read_checksummed_json(path: Path) -> dict[str, Any]:
    """Read what `write_checksummed_json` wrote; refuse a file whose checksum does not match."""
    value: Any = read_json(path)
    if not isinstance(value, dict) or value.pop("sha256", None) != digest(value):
        raise ExamError(
            f"{path} is not the file that was written, or one of an earlier version.\n"
            f"Delete the folder {path.parent} and run the command again."
        )
    return value


@contextmanager
def lock(folder: Path) -> Iterator[Path]:
    """Keep other processes out of a folder; yield the path of the lock file beside it."""
    from filelock import FileLock, Timeout

    path = folder.with_name(f".{folder.name}.lock")
    file_lock = FileLock(path)
    try:
        file_lock.acquire(timeout=0)
    except Timeout:
        log.info("Waiting for another process that works on %s", folder)
        file_lock.acquire()
    try:
        yield path
    finally:
        file_lock.release()
