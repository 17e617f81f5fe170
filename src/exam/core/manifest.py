"""What a finished folder is said to hold, and whether it still does."""

import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from exam.core.errors import ExamError
from exam.core.files import file_digest, not_as_written, read_json, read_signed, write_json
from exam.core.security import leads_out

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
VERIFIED = "verified.json"
NOTED: dict[str, Any] = {
    "key": dict,
    "facts": dict,
    "files": dict,
    "seconds": (int, float),
    "peak_mib": (int, float),
}
HASH = re.compile(r"[0-9a-f]{64}")
LARGE = 64 << 20  # bytes from which a file is not hashed again while its time stamps stand still


def fingerprint(path: Path) -> dict[str, Any]:
    """A file's length and hash."""
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a stage's manifest; the files it names lie in its folder.

    Raises:
        ExamError: it is not the one that was written, or names files elsewhere.
    """
    found = read_signed(path)
    wrong = [name for name, kind in NOTED.items() if not isinstance(found.get(name), kind)]
    if wrong:
        raise not_as_written(path, f"{wrong[0]} is a {type(found.get(wrong[0])).__name__}")
    if out := [name for name in found["files"] if leads_out(name)]:
        raise not_as_written(path, f"{out[0]!r} leads out of its folder")
    return found


def readable(paths: Iterable[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Folders with what their manifests say, the newest first; broken ones are passed over."""
    for path in sorted(paths, key=lambda path: -path.stat().st_mtime):
        try:
            yield path.parent, read_manifest(path)
        except ExamError as error:
            log.warning("not reused: %s", str(error).splitlines()[0])


def verify(folder: Path, manifest: dict[str, Any], key: dict[str, Any]) -> None:
    """Refuse a finished folder whose key or files are not those its manifest describes."""
    if manifest["key"] != key:
        keys = ", ".join(differences(manifest["key"], key))
        raise ExamError(
            f"{folder} holds another configuration's result ({keys}).\n"
            "Delete that folder and run the command again."
        )
    stamps = _verified(folder)
    for name, expected in manifest["files"].items():
        path = folder / name
        if name in stamps and path.is_file() and _stamp(path) == stamps[name]:
            continue
        found = fingerprint(path) if path.is_file() else None
        if found is None or found != expected:
            state = "is missing" if found is None else "is not the file that was written"
            raise ExamError(
                f"{path} {state}.\nDelete the folder {folder} and run the command again."
            )
    note_verified(folder, list(manifest["files"]))


def _stamp(path: Path) -> list[int]:
    """What changes whenever a file is written, copied or replaced."""
    state = path.stat()
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]


def note_verified(folder: Path, files: list[str]) -> None:
    """Note the large files whose bytes were hashed: 10 GB take half a minute, at every use.

    A copied folder is hashed once more; one that cannot be written to, every time.
    """
    large = {n: _stamp(folder / n) for n in files if (folder / n).stat().st_size >= LARGE}
    if large != _verified(folder) and os.access(folder, os.W_OK):
        write_json(folder / VERIFIED, large)


def _verified(folder: Path) -> dict[str, list[int]]:
    """The noted large files with their stamps; none where the note is broken."""
    with suppress(ExamError):
        noted = read_json(folder / VERIFIED) if (folder / VERIFIED).is_file() else {}
        return noted if isinstance(noted, dict) else {}
    return {}


def cache_miss_reason(root: Path, name: str, key: dict[str, Any]) -> str:
    """Return why a stage is done: the keys that differ from its nearest finished sibling."""
    differing = []
    for folder, manifest in readable(root.glob(f"{name}-*/{MANIFEST}")):
        keys = differences(manifest["key"], key)
        if keys:
            differing.append((len(keys), folder.name, keys, manifest["seconds"]))
    if not differing:
        return "new"
    *_, keys, seconds = min(differing)
    return f"changed: {', '.join(keys[:4])} · {seconds:.1f} s before"


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Return dotted names at which two JSON values differ, with short values but no hashes."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            name
            for key in sorted(old.keys() | new.keys())
            for name in differences(old.get(key), new.get(key), f"{prefix}{key}.")
        ]
    if old == new:
        return []
    if HASH.fullmatch(str(old)) and HASH.fullmatch(str(new)):
        return [prefix[:-1]]
    return [f"{prefix[:-1]} ({_short(old)} → {_short(new)})"]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:8]}…"
