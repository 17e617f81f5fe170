"""Files that later stages rely on: content-addressed folders, manifests, atomic writes.

A stage's folder is named by a hash of everything that determines its content. Its manifest is
written last, so a folder without one is unfinished, and a folder whose files no longer match
their manifest is refused.
"""

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exam import ranks
from exam.errors import ExamError
from exam.runtime import peak_memory_mib, reset_peak_memory
from exam.safety import check_folder, leads_out

log = logging.getLogger(__name__)

FORMAT = 2  # raised when the meaning of any artefact changes
MANIFEST = "manifest.json"
VERIFIED = "verified.json"
LARGE = 64 << 20  # bytes from which a file is not hashed again while its time stamps stand still
KEY = "key.json"
NAME = re.compile(r"[^/\\\0]{1,200}")  # of a folder
NOTED: dict[str, Any] = {
    "key": dict,
    "facts": dict,
    "files": dict,
    "seconds": (int, float),
    "peak_mib": (int, float),
}
_RECORDS: list[list["Stage"]] = []
_LOOKING: list[bool] = []  # not empty while nothing is to be worked on
_OPEN: list["Stage"] = []  # those being worked on: a peak is one since a stage was opened


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
    """Yield a temporary path beside `path`; move it into place when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value atomically."""
    with atomic(path) as temporary:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file that this project wrote."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _not_as_written(path, str(error)) from None


def _not_as_written(path: Path, reason: str) -> ExamError:
    return ExamError(
        f"{path} is not the JSON file that was written ({reason}).\n"
        f"Delete the folder {path.parent} and run the command again."
    )


def read_object(path: Path, *keys: str) -> dict[str, Any]:
    """Read a JSON object that this project wrote; it has at least these keys."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise _not_as_written(path, f"a {type(found).__name__}")
    lacking = [key for key in keys if key not in found]
    if lacking:
        raise _not_as_written(path, f"it has no {lacking[0]!r}")
    return found


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a stage's manifest; the files it names lie in its folder."""
    found = read_object(path, *NOTED)
    wrong = [name for name, kind in NOTED.items() if not isinstance(found[name], kind)]
    if wrong:
        raise _not_as_written(path, f"{wrong[0]} is a {type(found[wrong[0]]).__name__}")
    if out := [name for name in found["files"] if leads_out(name)]:
        raise _not_as_written(path, f"{out[0]!r} leads out of its folder")
    return found


@dataclass
class Stage:
    """One stage's folder while it is worked on or reused.

    `facts` holds the figures worth keeping (counts, metrics); `seconds` and `peak_mib` are those
    of the run that did the work, also when it is reused.
    """

    kind: str
    folder: Path
    key: dict[str, Any]
    reused: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    peak_mib: float = 0.0
    files: dict[str, Any] = field(default_factory=dict)
    _started: float = field(default_factory=time.perf_counter)

    @property
    def hash(self) -> str:
        """The hash of what determines this stage, for the keys of later stages."""
        return digest(self.key)

    def measure(self) -> None:
        """Note time and peak memory so far."""
        self.seconds = time.perf_counter() - self._started
        self.peak_mib = max(self.peak_mib, peak_memory_mib())

    def finish(self, files: list[str], **facts: Any) -> None:
        """Record `files` (names within the folder) and `facts`: the stage is now whole."""
        self.facts = facts
        self.measure()
        write_json(
            self.folder / MANIFEST,
            {
                "key": self.key,
                "facts": facts,
                "files": {name: _fingerprint(self.folder / name) for name in sorted(files)},
                "seconds": round(self.seconds, 2),
                "peak_mib": round(self.peak_mib, 1),
            },
        )
        _note_verified(self.folder, files)
        log.info("%s", self.line("done"))

    def line(self, verb: str) -> str:
        """One log line: what, where, how much, how long."""
        numbers = [f"{v:,} {k}" for k, v in self.facts.items() if isinstance(v, int)]
        cost = [f"{self.seconds:.1f} s", f"peak {self.peak_mib:,.0f} MiB"]
        return " · ".join([f"{self.kind} {verb}: {self.folder}", *numbers, *cost])


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}


def finished(folder: Path, key: dict[str, Any] | None = None) -> Stage:
    """A finished stage's folder, its files verified; `key`, where given, must be its own.

    Raises:
        ExamError: the folder is not finished, or not what was written.
    """
    if not (folder / MANIFEST).is_file():
        state = "is unfinished" if folder.is_dir() else "does not exist"
        raise ExamError(
            f"{folder} {state}: it has no {MANIFEST}.\n"
            "Give a finished run folder, or run the command that makes it again."
        )
    manifest = read_manifest(folder / MANIFEST)
    _verify(folder, manifest, key or manifest["key"])
    check_folder(folder)
    return Stage(
        folder.parent.name,
        folder,
        manifest["key"],
        reused=True,
        facts=manifest["facts"],
        seconds=manifest["seconds"],
        peak_mib=manifest["peak_mib"],
        files=manifest["files"],
    )


def _verify(folder: Path, manifest: dict[str, Any], key: dict[str, Any]) -> None:
    """Refuse a finished folder whose key or files are not those its manifest describes."""
    if manifest["key"] != key:
        keys = ", ".join(_differences(manifest["key"], key))
        raise ExamError(
            f"{folder} holds another configuration's result ({keys}).\n"
            "Delete that folder and run the command again."
        )
    stamps = _verified(folder)
    for name, expected in manifest["files"].items():
        path = folder / name
        if name in stamps and path.is_file() and _stamp(path) == stamps[name]:
            continue
        found = _fingerprint(path) if path.is_file() else None
        if found is None or found != expected:
            state = "is missing" if found is None else "is not the file that was written"
            raise ExamError(
                f"{path} {state}.\nDelete the folder {folder} and run the command again."
            )
    _note_verified(folder, list(manifest["files"]))


def _stamp(path: Path) -> list[int]:
    """What changes whenever a file is written, copied or replaced."""
    state = path.stat()
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]


def _note_verified(folder: Path, files: list[str]) -> None:
    """Note the large files whose bytes were hashed: 10 GB take half a minute, at every use.

    A copied folder is hashed once more; one that cannot be written to, every time.
    """
    large = {n: _stamp(folder / n) for n in files if (folder / n).stat().st_size >= LARGE}
    if large != _verified(folder) and os.access(folder, os.W_OK):
        write_json(folder / VERIFIED, large)


def _verified(folder: Path) -> dict[str, list[int]]:
    """The noted large files with their stamps."""
    noted: dict[str, list[int]] = {}
    if (folder / VERIFIED).is_file():
        noted = read_object(folder / VERIFIED)
    return noted


@contextmanager
def recording() -> Iterator[list["Stage"]]:
    """A list that every stage opened meanwhile joins, reused ones too."""
    found: list[Stage] = []
    _RECORDS.append(found)
    try:
        yield found
    finally:
        _RECORDS.remove(found)


class NotYetError(Exception):
    """A stage is missing, and one only looks."""


@contextmanager
def looking() -> Iterator[None]:
    """Open finished stages alone, and silently.

    Raises:
        NotYetError: from the first stage that would be worked on; its kind.
    """
    _LOOKING.append(True)
    try:
        yield
    finally:
        _LOOKING.pop()


def manifests(outputs: Path, kind: str) -> Iterator[dict[str, Any]]:
    """What is noted of a kind's finished stages, the newest first."""
    paths = (outputs / kind).glob(f"*/{MANIFEST}")
    yield from map(read_manifest, sorted(paths, key=lambda path: -path.stat().st_mtime))


@contextmanager
def open_stage(
    outputs: Path, kind: str, name: str, key: dict[str, Any], resume: str = "auto"
) -> Iterator[Stage]:
    """Open `outputs/<kind>/<name>-<hash8>`, reused when it is whole, else to be (re)done.

    With `resume="never"` a new numbered folder is made, whatever exists; with a folder's name that
    one is opened. A lock held by the process keeps two runs of one configuration apart; it ends
    with its process.

    Raises:
        ExamError: the named folder is no stage's, or one of another key.
    """
    from filelock import FileLock

    if not NAME.fullmatch(name):
        raise ExamError(
            f"{name[:50]!r} is to name a folder of {outputs / kind}, and cannot.\n"
            "Name data, corpus, encoder and retriever without slashes, and shortly."
        )
    key = {"format": FORMAT, **key}
    root = outputs / kind
    base = root / f"{name}-{digest(key)[:8]}"
    if _LOOKING:
        if not (base / MANIFEST).is_file():
            raise NotYetError(kind)
        yield finished(base, key)
        return
    root.mkdir(parents=True, exist_ok=True)
    if resume in ("auto", "never"):
        folder = _numbered(base) if resume == "never" else base
        folder.mkdir(exist_ok=True)
    else:
        folder = _named(Path(resume), key)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        for outer in _OPEN:
            outer.peak_mib = max(outer.peak_mib, peak_memory_mib())
        reset_peak_memory()
        stage = Stage(kind, folder, key)
        if (folder / MANIFEST).is_file():
            stage = finished(folder, key)
            log.info("%s", stage.line("reused"))
        else:
            log.info("%s: %s · %s", kind, folder, _why(root, name, folder, key))
            write_json(folder / KEY, key)
            _OPEN.append(stage)
        for record in _RECORDS:
            record.append(stage)
        try:
            yield stage
        finally:
            _OPEN[:] = [other for other in _OPEN if other is not stage]


@contextmanager
def shared_stage(
    outputs: Path, kind: str, name: str, key: dict[str, Any], resume: str = "auto"
) -> Iterator[Stage]:
    """A stage that all processes work on together; rank 0 alone opens, writes and finishes it."""
    if ranks.rank() > 0:
        folder, reused = ranks.told(None)
        yield finished(folder) if reused else Stage(kind, folder, key)
    else:
        with open_stage(outputs, kind, name, key, resume) as stage:
            ranks.told((stage.folder, stage.reused))
            yield stage
    ranks.wait()


def _named(folder: Path, key: dict[str, Any]) -> Path:
    """A folder that is to be gone on with, if it is one of this key."""
    if not (folder / KEY).is_file():
        state = f"has no {KEY}" if folder.is_dir() else "does not exist"
        raise ExamError(f"resume={folder} {state}.\nGive a run folder, or resume=auto.")
    differing = _differences(read_object(folder / KEY), key)
    if differing:
        raise ExamError(
            f"resume={folder} is a run of another configuration: {', '.join(differing)}.\n"
            "Give that configuration, or resume=auto."
        )
    return folder


def siblings(stage: Stage, apart_from: str) -> list[Path]:
    """Finished folders of the same kind whose keys differ in one entry alone, newest first."""
    wanted = {**stage.key, apart_from: None}
    manifests = sorted(
        stage.folder.parent.glob(f"*/{MANIFEST}"), key=lambda path: -path.stat().st_mtime
    )
    return [
        path.parent
        for path in manifests
        if {**read_manifest(path)["key"], apart_from: None} == wanted
    ]


def _numbered(base: Path) -> Path:
    """The first of base, base-2, base-3 … that this process is the one to make."""
    for number in range(1, 10_000):
        folder = base if number == 1 else base.with_name(f"{base.name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise ExamError(f"{base} has 10,000 numbered copies.\nDelete some of them.")


def _why(root: Path, name: str, folder: Path, key: dict[str, Any]) -> str:
    """Why the stage is (re)done, naming the keys that differ from its nearest finished sibling."""
    if (folder / KEY).is_file():
        return "continues an unfinished one"
    differing = []
    for path in root.glob(f"{name}-*/{MANIFEST}"):
        old = read_manifest(path)["key"]
        keys = _differences(old, key)
        if keys:
            differing.append((len(keys), path.parent.name, keys))
    if not differing:
        return "new"
    _, nearest, keys = min(differing)
    return f"redone, because {', '.join(keys[:4])} differs from {nearest}"


def _differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Dotted names at which two JSON values differ, with short values spelled out."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            name
            for key in sorted(old.keys() | new.keys())
            for name in _differences(old.get(key), new.get(key), f"{prefix}{key}.")
        ]
    if old == new:
        return []
    return [f"{prefix[:-1]} ({_short(old)} → {_short(new)})"]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:8]}…"
