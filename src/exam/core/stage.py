"""One stage: its folder, what determines it, what it costs and holds; the finished ones."""

import logging
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exam.core.errors import ExamError
from exam.core.files import SEAL, digest, write_signed
from exam.core.logging import peak_memory_mib
from exam.core.manifest import MANIFEST, fingerprint, note_verified, read_manifest, readable, verify
from exam.core.security import check_folder

log = logging.getLogger(__name__)


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

    def line(self, reason: str) -> str:
        """Return the log line of a finished stage: how much, how long, and why it was done."""
        counts = [
            f"{value:,} {name}"
            for name, value in self.facts.items()
            if isinstance(value, int) and "_" not in name
        ]
        return f"{self.kind} done: {' · '.join([*counts, f'{self.seconds:.1f} s', reason])}"


def check_finished(folder: Path) -> None:
    """Refuse a folder without a manifest, which is written last."""
    if not (folder / MANIFEST).is_file():
        state = "is unfinished" if folder.is_dir() else "does not exist"
        raise ExamError(
            f"{folder} {state}: it has no {MANIFEST}.\n"
            "Give a finished run folder, or run the command that makes it again."
        )


def finished(folder: Path, key: dict[str, Any] | None = None) -> Stage:
    """A finished stage's folder, its files verified; `key`, where given, must be its own.

    Raises:
        ExamError: the folder is not finished, or not what was written.
    """
    check_finished(folder)
    manifest = read_manifest(folder / MANIFEST)
    verify(folder, manifest, key or manifest["key"])
    check_folder(folder)
    log.debug("%s reused: %s", folder.parent.name, folder)
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


def siblings(stage: Stage, apart_from: str) -> list[Path]:
    """Finished folders of the same kind whose keys differ in one entry alone, newest first."""
    wanted = {**stage.key, apart_from: None}
    others = readable(stage.folder.parent.glob(f"*/{MANIFEST}"))
    return [folder for folder, found in others if {**found["key"], apart_from: None} == wanted]


def log_reused(stages: Iterable[Stage]) -> None:
    """Name the kinds of all reused stages in one line; those done by this process are left out."""
    by_folder: dict[Path, list[Stage]] = {}
    for stage in stages:
        by_folder.setdefault(stage.folder, []).append(stage)
    reused = [same[0].kind for same in by_folder.values() if all(stage.reused for stage in same)]
    if reused:
        kinds = [kind if n == 1 else f"{n} {kind}" for kind, n in Counter(reused).items()]
        log.info("Reused: %s", ", ".join(kinds))
