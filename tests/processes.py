"""Commands as real processes to which something happens: killed, out of room, told to end.

What happens is installed in the child by its launcher; the project's code knows nothing of it.
"""

import ctypes
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers import FORKS, become, setting

from exam.core.logging import quiet_libraries

TINY = [
    "model=tiny",
    "trainer.num_train_epochs=2",
    "trainer.logging_steps=1",
    "context.num_passages=2",
]
GIVEN = setting(Path(), "index.shard_size=4", "log_level=debug")
DECODER = [
    *[
        "model=smollm2",
        "model.gguf_file=null",
        "model.use_chat_template=false",
        "model.architecture=llama",
    ],
    *["model.name_or_path=null", "trainer=zero_shot", "trainer.use_cpu=true"],
    *["model.weights_location=layerwise", "model.scoring=yes_no", "model.max_memory_gib=1e-9"],
    *["trainer.num_train_epochs=0", "retriever=none"],
]


@dataclass
class Command:
    """A started command; its working folder is that of its questions and outputs."""

    process: Any
    folder: Path  # of what it prints
    started: float = field(default_factory=time.monotonic)

    @property
    def log(self) -> str:
        path = self.folder / "stderr"
        return path.read_text() if path.is_file() else ""

    def wait(self, limit: float = 300) -> int:
        self.process.join(limit)
        assert self.process.exitcode is not None, f"still at work after {limit} s:\n{self.log}"
        return self.process.exitcode

    def wait_for(self, text: str, limit: float = 300) -> None:
        end = time.monotonic() + limit
        while text not in self.log:
            assert self.process.exitcode is None, self.log
            assert time.monotonic() < end, self.log
            time.sleep(0.01)

    def send(self, number: int) -> None:
        os.kill(self.process.pid, number)


def start(
    place: Path, verb: str, *overrides: str, fault: Callable[[], None] | None = None
) -> Command:
    """Start a command, or a script, as a person would in `place`."""
    quiet_libraries()
    number = len(list(place.glob("printed-*")))
    folder = place / f"printed-{number}"
    folder.mkdir()
    command = [*(() if verb.endswith(".py") else ("exam",)), verb, *overrides]
    process = FORKS.Process(target=afflicted, args=(fault, command, str(place), str(folder)))
    process.start()
    return Command(process, folder)


def run(place: Path, verb: str, *overrides: str) -> Command:
    """A command that must end well."""
    done = start(place, verb, *overrides)
    assert done.wait() == 0, done.log
    return done


def refused(place: Path, verb: str, *overrides: str, fault: Any = None) -> list[str]:
    """The message of a command that must end with 2, in two lines or more and no traceback."""
    done = start(place, verb, *overrides, fault=fault)
    assert done.wait() == 2, done.log
    assert "Traceback" not in done.log
    return [line for line in done.log.splitlines() if line[2:3] != ":"]  # without the log's own


def afflicted(fault, command, cwd, folder):
    if fault is not None:
        fault()
    become(command, cwd, folder)


def copied(place: Path, target: Path) -> Path:
    return shutil.copytree(place, target, symlinks=True)


def die_at(boundary: int, events: str | None = None) -> None:
    """Kill this process at its n-th write boundary: a file written, not renamed; renamed.

    With `events` each of them is noted in that file.
    """
    count = 0

    def boundary_passed(what, path):
        nonlocal count
        count += 1
        if events is not None:
            with Path(events).open("a") as file:
                file.write(f"{what} {path}\n")
        if count == boundary:
            os.kill(os.getpid(), signal.SIGKILL)

    def hooked(real, *, before):
        def call(*args, **kwargs):
            if before:
                boundary_passed("written", args[0])
            done = real(*args, **kwargs)
            if not before:
                boundary_passed("renamed", args[1])
            return done

        return call

    os.fsync = hooked(os.fsync, before=True)
    for name in ("replace", "rename"):
        setattr(os, name, hooked(getattr(os, name), before=False))


def limit_files(size: int) -> None:
    """No file may grow beyond so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def bound_by_permissions() -> None:
    """Give up what lets root write and read everything (capset(2), of all capabilities)."""
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, none) == 0


class Mounted:
    """A small file system in memory, where this process may mount one."""

    def __init__(self, folder: Path, size: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.possible = self._mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs")

    def _mount(self, *given: str) -> bool:
        command = ["mount", *given, str(self.folder)]
        return (
            shutil.which("mount") is not None
            and not subprocess.run(command, check=False, capture_output=True).returncode
        )

    def change(self, options: str) -> None:
        assert self._mount("-o", f"remount,{options}")

    def end(self) -> None:
        if self.possible:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)
