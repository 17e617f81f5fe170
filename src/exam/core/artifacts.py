"""Stages' folders, which later stages rely on: named by content, locked, finished, reused.

A stage's folder is named by a hash of everything that determines its content. Its manifest is
written last, so a folder without one is unfinished, and a folder whose files no longer match
their manifest is refused.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from exam.core import distributed
from exam.core.errors import ExamError
from exam.core.files import digest, lock, read_object, write_json
from exam.core.logging import peak_memory_mib, reset_peak_memory
from exam.core.manifest import MANIFEST, cache_miss_reason, differences
from exam.core.stage import Stage, finished

log = logging.getLogger(__name__)

FORMAT = 3  # raised when the meaning of any artefact changes
KEY = "key.json"
NAME = re.compile(r"[^/\\\0]{1,200}")  # of a folder
_OPEN: list["Stage"] = []  # those being worked on: a peak is one since a stage was opened


@contextmanager
def open_stage(
    outputs: Path,
    kind: str,
    name: str,
    key: dict[str, Any],
    resume: str = "auto",
    log_level: int = logging.INFO,
) -> Iterator[Stage]:
    """Open `outputs/<kind>/<name>-<hash8>`, reused when it is whole, else to be (re)done.

    With `resume="never"` a new numbered folder is made, whatever exists; with a folder's name that
    one is opened. A lock keeps two runs of one configuration apart; it ends with its process, and
    its file goes once the stage is whole. `log_level` is that of the line about a finished stage.

    Raises:
        ExamError: the named folder is no stage's, or one of another key.
    """
    if not NAME.fullmatch(name):
        raise ExamError(
            f"{name[:50]!r} is to name a folder of {outputs / kind}, and cannot.\n"
            "Name data, corpus, encoder and retriever without slashes, and shortly."
        )
    key = {"format": FORMAT, **key}
    folder = _folder(outputs / kind / f"{name}-{digest(key)[:8]}", key, resume)
    if (folder / MANIFEST).is_file():
        yield finished(folder, key)
        return
    with lock(folder) as lock_file:
        try:
            if (folder / MANIFEST).is_file():
                yield finished(folder, key)
            else:
                stage = Stage(kind, folder, key)
                with _working_on(stage, name, log_level):
                    yield stage
        finally:
            if (folder / MANIFEST).is_file():
                # A process that still waits for this file, or makes another, reuses the stage.
                lock_file.unlink(missing_ok=True)


@contextmanager
def _working_on(stage: Stage, name: str, log_level: int) -> Iterator[None]:
    """Measure a stage while it is worked on, and log why it is and what it comes to."""
    for outer in _OPEN:
        outer.peak_mib = max(outer.peak_mib, peak_memory_mib())
    reset_peak_memory()
    reason = _begin(stage, name)
    log.debug("%s: %s · %s", stage.kind, stage.folder, reason)
    _OPEN.append(stage)
    try:
        yield
    finally:
        _OPEN[:] = [other for other in _OPEN if other is not stage]
    if (stage.folder / MANIFEST).is_file():
        log.log(log_level, "%s", stage.line(reason))


def _begin(stage: Stage, name: str) -> str:
    """Write the stage's key, and clear away what no process will finish.

    Returns:
        Why the stage is (re)done.
    """
    folder, key = stage.folder, stage.key
    is_continued = (folder / KEY).is_file()
    for part in folder.rglob(".*.part"):  # of a process that was killed
        part.unlink()
    write_json(folder / KEY, key)
    return "continued" if is_continued else cache_miss_reason(folder.parent, name, key)


@contextmanager
def shared_stage(
    outputs: Path, kind: str, name: str, key: dict[str, Any], resume: str = "auto"
) -> Iterator[Stage]:
    """A stage that all processes work on together; rank 0 alone opens, writes and finishes it."""
    if distributed.rank() > 0:
        folder, reused = distributed.broadcast_from_rank0(None)
        yield finished(folder) if reused else Stage(kind, folder, key)
    else:
        with open_stage(outputs, kind, name, key, resume) as stage:
            distributed.broadcast_from_rank0((stage.folder, stage.reused))
            yield stage
    distributed.barrier()


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
