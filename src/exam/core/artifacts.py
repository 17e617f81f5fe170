"""Stage folders, named by content: locked, verified by a manifest, and reused.

A hash of everything that determines a stage's content names its folder. The manifest lists the
size and hash of each file and is written last, so a folder without one is unfinished. A folder
whose files differ from their manifest is refused.
"""

import logging
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exam.core import distributed
from exam.core.environment import peak_memory_mib, reset_peak_memory
from exam.core.errors import ExamError
from exam.core.files import (
    CHECKSUMS,
    corrupt_file_error,
    digest,
    file_digest,
    lock,
    read_checksummed_json,
    read_object,
    write_checksummed_json,
    write_json,
)
from exam.core.security import check_folder, escapes_directory

log = logging.getLogger(__name__)

FORMAT = 4  # raise it when the meaning of any artifact changes
KEY = "key.json"
MANIFEST = "manifest.json"
VERIFIED = "verified.json"
FOLDER_NAME = re.compile(r"[^/\\\0]{1,200}")
HASH = re.compile(r"[0-9a-f]{64}")
LARGE = 64 << 20  # bytes from which a file is hashed again only when its time stamps change
STAGE_FIELDS: dict[str, Any] = {
    "key": dict,
    "metadata": dict,
    "seconds": (int, float),
    "peak_mib": (int, float),
}
_open_stages: list["Stage"] = []  # peak memory is measured since the last one was opened


@dataclass
class Stage:
    """The folder of one stage.

    `metadata` holds counts and metrics. `seconds` and `peak_mib` are those of the run that did the
    work, also when the stage is reused.
    """

    kind: str
    folder: Path
    key: dict[str, Any]
    reused: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    peak_mib: float = 0.0
    files: dict[str, Any] = field(default_factory=dict)
    _started: float = field(default_factory=time.perf_counter)

    @property
    def hash(self) -> str:
        """The hash of the key, for the keys of later stages."""
        return digest(self.key)

    def measure(self) -> None:
        """Record the time and peak memory so far."""
        self.seconds = time.perf_counter() - self._started
        self.peak_mib = max(self.peak_mib, peak_memory_mib())

    def finish(self, files: list[str], **metadata: Any) -> None:
        """Write the manifest of `files` (names within the folder), which completes the stage."""
        self.metadata = metadata
        self.measure()
        write_manifest(
            self.folder / MANIFEST,
            files,
            key=self.key,
            metadata=metadata,
            seconds=round(self.seconds, 2),
            peak_mib=round(self.peak_mib, 1),
        )
        _record_verified(self.folder, files)
        (self.folder / CHECKSUMS).unlink(missing_ok=True)


@contextmanager
def open_stage(
    outputs: Path,
    kind: str,
    name: str,
    key: dict[str, Any],
    resume: str = "auto",
    log_level: int = logging.INFO,
) -> Iterator[Stage]:
    """Open `outputs/<kind>/<name>-<hash8>`, and reuse it if it is finished.

    `resume="never"` makes a new numbered folder; a folder's path opens that folder. A lock keeps
    out other processes with the same key. `log_level` is that of the line about a finished stage.

    Refuse a `name` that no folder can have, and a folder in `resume` that has no or another key.
    """
    if not FOLDER_NAME.fullmatch(name):
        raise ExamError(
            f"{name[:50]!r} cannot name a folder of {outputs / kind}.\n"
            "Give data, corpus, encoder and retriever short names without slashes."
        )
    key = {"format": FORMAT, **key}
    folder = _make_folder(outputs / kind / f"{name}-{digest(key)[:8]}", key, resume)
    if (folder / MANIFEST).is_file():
        yield load_stage(folder, key)
        return
    with lock(folder) as lock_file:
        try:
            if (folder / MANIFEST).is_file():
                yield load_stage(folder, key)
            else:
                stage = Stage(kind, folder, key)
                with _measure(stage, name, log_level):
                    yield stage
        finally:
            lock_file.unlink(missing_ok=True)  # a process that waits for it makes another


@contextmanager
def _measure(stage: Stage, name: str, log_level: int) -> Iterator[None]:
    """Measure an unfinished stage; log why it is done and, once finished, its summary."""
    for outer in _open_stages:
        outer.peak_mib = max(outer.peak_mib, peak_memory_mib())
    reset_peak_memory()
    folder, key = stage.folder, stage.key
    is_continued = (folder / KEY).is_file()
    for part in folder.rglob(".*.part"):  # of killed processes
        part.unlink()
    write_json(folder / KEY, key)
    reason = "continued" if is_continued else _cache_miss_reason(folder.parent, name, key)
    log.debug("%s: %s · %s", stage.kind, folder, reason)
    _open_stages.append(stage)
    try:
        yield
    finally:
        _open_stages.remove(stage)
    if (folder / MANIFEST).is_file():
        counts = [
            f"{value:,} {name}"
            for name, value in stage.metadata.items()
            if isinstance(value, int) and "_" not in name
        ]
        figures = " · ".join([*counts, f"{stage.seconds:.1f} s", reason])
        log.log(log_level, "%s done: %s", stage.kind, figures)


@contextmanager
def shared_stage(
    outputs: Path, kind: str, name: str, key: dict[str, Any], resume: str = "auto"
) -> Iterator[Stage]:
    """Open a stage for all processes; only rank 0 locks and finishes it."""
    if distributed.rank() > 0:
        folder, reused = distributed.broadcast_from_rank0(None)
        yield load_stage(folder) if reused else Stage(kind, folder, key)
    else:
        with ExitStack() as stack:
            with distributed.release_on_failure():
                stage = stack.enter_context(open_stage(outputs, kind, name, key, resume))
            distributed.broadcast_from_rank0((stage.folder, stage.reused))
            yield stage
    distributed.barrier()


def _make_folder(base: Path, key: dict[str, Any], resume: str) -> Path:
    """Return the folder to work in; create it unless `resume` names one."""
    base.parent.mkdir(parents=True, exist_ok=True)
    if resume == "never":
        return _make_numbered(base)
    if resume == "auto":
        base.mkdir(exist_ok=True)
        return base
    folder = Path(resume)
    if not (folder / KEY).is_file():
        state = f"has no {KEY}" if folder.is_dir() else "does not exist"
        raise ExamError(f"resume={folder} {state}.\nGive a run folder, or resume=auto")
    differing = differences(read_object(folder / KEY), key)
    if differing:
        raise ExamError(
            f"resume={folder} is a run of another configuration: {', '.join(differing)}.\n"
            "Give that configuration, or resume=auto"
        )
    return folder


def _make_numbered(base: Path) -> Path:
    """Create and return the first of base, base-2, base-3 … that does not exist."""
    for number in range(1, 10_000):
        folder = base if number == 1 else base.with_name(f"{base.name}-{number}")
        with suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise ExamError(f"{base} has 10,000 numbered copies.\nDelete some of them.")


def load_stage(folder: Path, key: dict[str, Any] | None = None) -> Stage:
    """Return a finished stage; refuse an unfinished folder, changed files, or another `key`."""
    check_finished(folder)
    manifest = read_manifest(folder / MANIFEST, STAGE_FIELDS)
    if key is not None and manifest["key"] != key:
        keys = ", ".join(differences(manifest["key"], key))
        raise ExamError(
            f"{folder} holds another configuration's result ({keys}).\n"
            "Delete that folder and run the command again."
        )
    _verify_files(folder, manifest["files"])
    check_folder(folder)
    log.debug("%s reused: %s", folder.parent.name, folder)
    values = {name: manifest[name] for name in (*STAGE_FIELDS, "files")}
    return Stage(folder.parent.name, folder, reused=True, **values)


def check_finished(folder: Path) -> None:
    """Refuse a folder without a manifest, which is written last."""
    if not (folder / MANIFEST).is_file():
        state = "is unfinished" if folder.is_dir() else "does not exist"
        raise ExamError(
            f"{folder} {state}: it has no {MANIFEST}.\n"
            "Give a finished run folder, or run the command that makes it again."
        )


def _verify_files(folder: Path, files: dict[str, Any]) -> None:
    """Refuse missing or changed files; hash a large one only if its time stamps have changed."""
    stamps = _read_verified(folder)
    changed = {
        name: expected
        for name, expected in files.items()
        if name not in stamps or _time_stamp(folder / name) != stamps[name]
    }
    if fault := find_fault(folder, changed):
        raise ExamError(f"{fault}.\nDelete the folder {folder} and run the command again.")
    _record_verified(folder, files)


def write_manifest(path: Path, files: Iterable[str], **content: Any) -> dict[str, Any]:
    """Write and return `content` with the size and hash of `files`, named relative to `path`."""
    manifest = {**content, "files": {name: _describe(path.parent / name) for name in sorted(files)}}
    write_checksummed_json(path, manifest)
    return manifest


def read_manifest(path: Path, fields: dict[str, Any] | None = None) -> dict[str, Any]:
    """Read what `write_manifest` wrote; `fields` are the required entries with their types.

    Refuse a changed file, and names that lead out of its folder.
    """
    manifest = read_checksummed_json(path)
    for name, kind in {"files": dict, **(fields or {})}.items():
        if not isinstance(manifest.get(name), kind):
            raise corrupt_file_error(path, f"{name} is a {type(manifest.get(name)).__name__}")
    if outside := [name for name in manifest["files"] if escapes_directory(name)]:
        raise corrupt_file_error(path, f"{outside[0]!r} leads out of its folder")
    return manifest


def find_fault(folder: Path, files: dict[str, Any]) -> str | None:
    """Describe the first file that is missing or differs from its manifest; None without any."""
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if _describe(path) != expected:
            return f"{path} is not the file that was written"
    return None


def _describe(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}


def is_intact(path: Path, required: str | None = None) -> bool:
    """Tell whether a manifest is valid, lists the file `required`, and matches its files."""
    try:
        files = read_manifest(path)["files"]
    except (FileNotFoundError, NotADirectoryError, ExamError):
        return False
    return (required is None or required in files) and find_fault(path.parent, files) is None


def _time_stamp(path: Path) -> list[int] | None:
    """Return values that change whenever a file is written, copied or replaced."""
    if not path.is_file():
        return None
    state = path.stat()
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]


def _record_verified(folder: Path, files: Iterable[str]) -> None:
    """Record the time stamps of large files that were hashed: hashing 10 GB takes 30 s.

    A copied folder is hashed again; a read-only one, at each use.
    """
    large = {n: _time_stamp(folder / n) for n in files if (folder / n).stat().st_size >= LARGE}
    if large != _read_verified(folder) and os.access(folder, os.W_OK):
        write_json(folder / VERIFIED, large)


def _read_verified(folder: Path) -> dict[str, list[int]]:
    """Return the time stamps of verified files; none if the record is damaged."""
    with suppress(ExamError, FileNotFoundError):
        return read_object(folder / VERIFIED)
    return {}


def _readable_manifests(paths: Iterable[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield folders with their manifests, the newest first; skip damaged ones with a warning."""
    for path in sorted(paths, key=lambda path: -path.stat().st_mtime):
        try:
            yield path.parent, read_manifest(path, STAGE_FIELDS)
        except ExamError as error:
            log.warning("not reused: %s", str(error).splitlines()[0])


def stages_differing_only_in(stage: Stage, entry: str) -> list[Path]:
    """Return finished folders whose keys differ only in one entry, the newest first."""
    masked_key = {**stage.key, entry: None}
    manifests = _readable_manifests(stage.folder.parent.glob(f"*/{MANIFEST}"))
    return [folder for folder, other in manifests if {**other["key"], entry: None} == masked_key]


def _cache_miss_reason(root: Path, name: str, key: dict[str, Any]) -> str:
    """Return why a stage is done: the entries that differ from the most similar finished key."""
    differing = []
    for folder, manifest in _readable_manifests(root.glob(f"{name}-*/{MANIFEST}")):
        keys = differences(manifest["key"], key)
        if keys:
            differing.append((len(keys), folder.name, keys, manifest["seconds"]))
    if not differing:
        return "new"
    *_, keys, seconds = min(differing)
    return f"changed: {', '.join(keys[:4])} · {seconds:.1f} s before"


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Return the dotted names at which two JSON values differ, with short values but no hashes."""
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
    return [f"{prefix[:-1]} ({_shorten(old)} → {_shorten(new)})"]


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:8]}…"


def log_reused(stages: list[Stage]) -> None:
    """Log the kinds of all reused stages in one line, without those that this process did."""
    done = {stage.folder for stage in stages if not stage.reused}
    kinds = {stage.folder: stage.kind for stage in stages if stage.folder not in done}
    if kinds:
        counts = Counter(kinds.values()).items()
        log.info("Reused: %s", ", ".join(kind if n == 1 else f"{n} {kind}" for kind, n in counts))
