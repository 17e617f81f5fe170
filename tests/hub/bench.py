"""A machine for tests of published repositories: a hub, two starters of commands, questions."""

import shutil
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from helpers import make_place, setting

from exam.core.security import LIBRARIES_OFFLINE, OFFLINE
from hub.commands import Commands
from hub.layouts import publish_models
from hub.question_sets import publish_data_sets
from hub.server import Hub, Request, downloads


@dataclass
class Bench:
    """A hub with everything published, and commands that use it, or stay offline."""

    hub: Hub
    home: Path
    online: Commands
    offline: Commands
    questions: Path
    numbers: Counter[str] = field(default_factory=Counter)

    def outputs(self, name: str) -> Path:
        """A new folder for a command's outputs."""
        self.numbers[name] += 1
        return self.home / "outputs" / f"{name}-{self.numbers[name]}"

    def setting(self, outputs: Path, *overrides: str) -> list[str]:
        """Overrides that name the questions, the articles and a folder of outputs."""
        return [*setting(self.questions), f"outputs={outputs}", *overrides]

    def run(self, verb: str, *overrides: str, offline: bool = False, **environment: str) -> "Done":
        """Run a command, and collect what it asks the hub."""
        commands = self.offline if offline else self.online
        switch = ["offline=true"] if offline else []
        with self.hub.recording() as requests:
            process = commands.run(verb, *overrides, *switch, cwd=self.home, **environment)
        return Done(process.returncode, process.stdout, process.stderr, requests)

    def infer(self, outputs: Path, *, offline: bool = False) -> "Done":
        """Answer the test questions with the run in a folder of outputs."""
        data = ["data=kaggle", f"data.dir={self.questions / 'questions'}"]
        run = f"ckpt={stage(outputs, 'train')}"
        return self.run("infer", run, *data, f"outputs={outputs}", offline=offline).check()

    def fetched(self, name: str) -> dict[str | None, int]:
        """How often each file of a repository was sent, by all commands together."""
        counts = downloads(self.hub.requests).items()
        return {file: count for (repository, file), count in counts if repository == name}

    def copy(self, name: str, revision: str, target: Path) -> Path:
        """Copy a repository's snapshot out of the cache, as a person does."""
        folder = self.home / "hf" / "hub" / f"models--{name.replace('/', '--')}" / "snapshots"
        return Path(shutil.copytree(folder / revision, target))


@dataclass
class Done:
    """A command that has ended."""

    code: int
    stdout: str
    stderr: str
    requests: list[Request]

    @property
    def fetched(self) -> dict[str | None, int]:
        """How often each file was sent."""
        return {file: count for (_, file), count in downloads(self.requests).items()}

    def check(self) -> "Done":
        assert self.code == 0, self.stdout + self.stderr
        return self


@contextmanager
def bench_in(home: Path) -> Any:
    """A bench whose home, caches and outputs lie in a folder."""
    questions = make_place(home / "place")
    with Hub() as hub:
        publish_models(hub)
        publish_data_sets(hub)
        environment = hub.environment(home)
        switched_off = environment | LIBRARIES_OFFLINE | {OFFLINE: "1"}
        with Commands(environment) as online, Commands(switched_off) as offline:
            yield Bench(hub, home, online, offline, questions)


def stage(outputs: Path, kind: str, start: str = "") -> Path:
    """The only finished folder of a stage whose name starts so."""
    folders = [path.parent for path in (outputs / kind).glob(f"{start}*/manifest.json")]
    assert len(folders) == 1, folders
    return folders[0]


def stages(outputs: Path) -> set[str]:
    """Every folder that a command has begun."""
    return {path.parent.name for path in outputs.glob("*/*/key.json")}


def logits(folder: Path) -> list[dict[str, Any]]:
    """The answers of a run or of an inference."""
    return pq.read_table(folder / "predictions.parquet").to_pylist()


def contexts(outputs: Path, start: str) -> list[dict[str, Any]]:
    """The passages of a set of questions."""
    return pq.read_table(stage(outputs, "contexts", start) / "contexts.parquet").to_pylist()
