"""Stages' folders, which later stages rely on: named by content, locked, finished, reused.

A stage's folder is named by a hash of everything that determines its content. Its manifest is
written last, so a folder without one is unfinished, and a folder whose files no longer match
their manifest is refused.
"""

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exam import ranks
from exam.errors import ExamError
from exam.files import SEAL, alone, digest, read_object, write_json, write_signed
from exam.manifest import (
    MANIFEST,
    differences,
    fingerprint,
    note_verified,
    read_manifest,
    readable,
    verify,
    why_new,
)
from exam.runtime import peak_memory_mib, reset_peak_memory
from exam.safety import check_folder

log = logging.getLogger(__name__)

FORMAT = 3  # raised when the meaning of any artefact changes
KEY = "key.json"
NAME = re.compile(r"[^/\\\0]{1,200}")  # of a folder
_RECORDS: list[list["Stage"]] = []
_LOOKING: list[bool] = []  # not empty while nothing is to be worked on
_OPEN: list["Stage"] = []  # those being worked on: a peak is one since a stage was opened


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
        content = {
            "key": self.key,
            "facts": facts,
            "files": {name: fingerprint(self.folder / name) for name in sorted(files)},
            "seconds": round(self.seconds, 2),
            "peak_mib": round(self.peak_mib, 1),
        }
        write_signed(self.folder / MANIFEST, content)
        note_verified(self.folder, files)
        for seal in self.folder.glob(SEAL.format("*")):
            seal.unlink()
        log.info("%s", self.line("done"))

    def line(self, verb: str) -> str:
        """One log line: what, where, how much, how long."""
        numbers = [f"{v:,} {k}" for k, v in self.facts.items() if isinstance(v, int)]
        cost = [f"{self.seconds:.1f} s", f"peak {self.peak_mib:,.0f} MiB"]
        return " · ".join([f"{self.kind} {verb}: {self.folder}", *numbers, *cost])


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
    verify(folder, manifest, key or manifest["key"])
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
    yield from (found for _, found in readable((outputs / kind).glob(f"*/{MANIFEST}")))


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
    folder = _folder(base, key, resume)
    whole = (folder / MANIFEST).is_file()  # such a one may lie where no lock can be
    with alone(folder, needed=not whole):
        for outer in _OPEN:
            outer.peak_mib = max(outer.peak_mib, peak_memory_mib())
        reset_peak_memory()
        stage = Stage(kind, folder, key)
        if (folder / MANIFEST).is_file():
            stage = finished(folder, key)
            log.info("%s", stage.line("reused"))
        else:
            why = "continues an unfinished one" if (folder / KEY).is_file() else None
            log.info("%s: %s · %s", kind, folder, why or why_new(root, name, key))
            for part in folder.rglob(".*.part"):  # of a process that was killed
                part.unlink()
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


def _folder(base: Path, key: dict[str, Any], resume: str) -> Path:
    """The folder to work in, made where it is not there."""
    base.parent.mkdir(parents=True, exist_ok=True)
    if resume not in ("auto", "never"):
        return _named(Path(resume), key)
    folder = _numbered(base) if resume == "never" else base
    folder.mkdir(exist_ok=True)
    return folder


def _named(folder: Path, key: dict[str, Any]) -> Path:
    """A folder that is to be gone on with, if it is one of this key."""
    if not (folder / KEY).is_file():
        state = f"has no {KEY}" if folder.is_dir() else "does not exist"
        raise ExamError(f"resume={folder} {state}.\nGive a run folder, or resume=auto.")
    differing = differences(read_object(folder / KEY), key)
    if differing:
        raise ExamError(
            f"resume={folder} is a run of another configuration: {', '.join(differing)}.\n"
            "Give that configuration, or resume=auto."
        )
    return folder


def siblings(stage: Stage, apart_from: str) -> list[Path]:
    """Finished folders of the same kind whose keys differ in one entry alone, newest first."""
    wanted = {**stage.key, apart_from: None}
    others = readable(stage.folder.parent.glob(f"*/{MANIFEST}"))
    return [folder for folder, found in others if {**found["key"], apart_from: None} == wanted]


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
