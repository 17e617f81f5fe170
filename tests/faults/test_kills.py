"""Kill every stage at its write boundaries and at random moments, and run its command again.

`EXAM_KILLS=200` kills so many processes in all; by default a few.
"""

import json
import os
import platform
import shutil
import signal
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import Endpoint, question_about
from helpers import make_place
from processes import DECODER, GIVEN, TINY, copied, die_at, run, start

from exam.bundle.contents import check_bundle
from exam.core.artifacts import MANIFEST, load_stage

KILLS = int(os.environ.get("EXAM_KILLS", "0"))
OF_RUNS = {  # what differs between two runs of the same
    *("seconds", "peak_mib", "reused", "sha256", "bytes", "files"),
    *("train_runtime", "train_samples_per_second", "train_steps_per_second"),
    *("eval_runtime", "eval_samples_per_second", "eval_steps_per_second"),
}
TIMED = {"report.html", "README.md"}  # they show seconds
WORK = ("index: encoded", "index: added", "train: step")  # log lines of what is kept


@dataclass(frozen=True)
class Case:
    """A command, and those that must have ended before."""

    verb: str
    overrides: list[str]
    before: list["Case"] = field(default_factory=list)


RETRIEVE = Case("retrieve", [*GIVEN, "index=low_memory", "evaluate=false"])
TRAIN = Case("train", [*GIVEN, *TINY, "index=low_memory"], [RETRIEVE])
INFER = Case("infer", ["ckpt={run}", "data=kaggle_test", *GIVEN[1:2], "outputs=outputs"], [TRAIN])
SAVED = "{run}/predictions.parquet"
ENSEMBLE = Case(
    "infer", [f"predictions=[{SAVED},{SAVED}]", "ensemble=mean", "outputs=outputs"], [TRAIN]
)
LAYERWISE = Case("train", [*GIVEN, *DECODER])
ORDERS = Case(
    "infer",
    ["ckpt={run}", "data=kaggle_test", *GIVEN[1:2], "outputs=outputs", "option_rotations=3"],
    [LAYERWISE],
)
GENERATE = Case(
    "generate",
    [
        *["corpus=jsonl", "corpus.dir=.", "corpus.files=articles.jsonl", "outputs=outputs"],
        *["generator=llm", "num_questions=4", "generator.llm.model=small"],
        *["generator.llm.base_url={url}", "generator.llm.concurrency=1"],
        "generator.llm.min_sentences=1",
    ],
)
BUNDLE = Case(
    "bundle",
    ["ckpt={run}", "data=kaggle_test", *GIVEN[1:2], "outputs=outputs", "out=bundle", "{image}"],
    [TRAIN],
)
CASES = {
    "retrieve": RETRIEVE, "train": TRAIN, "infer": INFER, "ensemble": ENSEMBLE,
    "generate": GENERATE, "layerwise": LAYERWISE, "orders": ORDERS, "bundle": BUNDLE,
}  # fmt: skip


@pytest.fixture(scope="module")
def endpoint():
    return Endpoint(lambda title, time_: question_about(f"{title} {sum(map(ord, title))}"))


@pytest.fixture(scope="module")
def places(tmp_path_factory, encoder, endpoint):
    """Return a function that gives the folders before and after a command, which runs once."""
    prepared: dict[int, tuple[Path, Path, int]] = {}

    def before_and_after(case):
        if id(case) not in prepared:
            folder = tmp_path_factory.mktemp("case")
            if case.before:
                copied(before_and_after(case.before[0])[1], folder / "before")
            else:
                make_place(folder / "before")
            for printed in (folder / "before").glob("printed-*"):
                shutil.rmtree(printed)
            after = copied(folder / "before", folder / "after")
            events = folder / "events"
            events.touch()
            command = start(
                after, case.verb, *arguments(case, after), fault=partial(die_at, 0, str(events))
            )
            assert command.wait() == 0, command.log
            prepared[id(case)] = folder / "before", after, len(events.read_text().splitlines())
        return prepared[id(case)]

    def arguments(case, workdir):
        run_ = next(iter(sorted(workdir.glob("outputs/train/kaggle-*"))), "none")
        image = workdir.parent / "image.txt"
        if "{image}" in case.overrides and not image.exists():
            pins = [f"{name}=={version}" for name, version in installed()]
            image.write_text("\n".join([f"Python {platform.python_version()}", *pins]))
        known = {
            "run": os.path.relpath(run_, workdir),
            "url": endpoint.url,
            "image": f"constraints={image}",
        }
        named = [value.format(**known) for value in case.overrides]
        encodes = case.verb != "generate" and "retriever=none" not in named
        needs_encoder = case.verb in ("retrieve", "train") and encodes
        return [*named, *([f"encoder.name_or_path={encoder}"] if needs_encoder else [])]

    before_and_after.arguments = arguments
    return before_and_after


def installed():
    """Everything that is here but this project, so that a bundle carries no other wheel."""
    from importlib.metadata import distributions

    versions = {d.metadata["Name"].lower(): d.version for d in distributions()}
    return [
        (name, version)
        for name, version in versions.items()
        if name not in ("exam", "openbook-exam")
    ]


def content(path: Path):
    """Return a file's content without times and paths."""
    if path.name in TIMED:
        return None
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".arrow":
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_file(source).read_all().to_pylist()
    if path.suffix == ".json":
        return without(json.loads(path.read_text()))
    return path.read_bytes()


def without(value):
    if isinstance(value, dict):
        return {k: without(v) for k, v in value.items() if k not in OF_RUNS}
    return [without(v) for v in value] if isinstance(value, list) else value


def contents(workdir: Path) -> dict[str, object]:
    """Return the content of every file that the commands left, without hidden ones."""
    paths = [
        p for root in ("outputs", "bundle") for p in (workdir / root).rglob("*") if p.is_file()
    ]
    names = {str(path.relative_to(workdir)): path for path in paths}
    return {n: content(p) for n, p in names.items() if "/." not in n and not n.endswith(".whl")}


def done(workdir: Path) -> dict[Path, bytes]:
    """The manifests there are, each of a stage that is whole."""
    manifests = {path: path.read_bytes() for path in workdir.glob(f"outputs/*/*/{MANIFEST}")}
    for path in manifests:
        load_stage(path.parent)
    if (workdir / "bundle").exists():
        check_bundle(workdir / "bundle")
    return manifests


def work(log: str) -> int:
    return sum(any(words in line for words in WORK) for line in log.splitlines())


def killed(workdir, case, overrides, draw, events, seconds):
    """Kill a command once: at a boundary that is drawn, or at a moment. Whether it was in time."""
    if draw.random() < 0.6:
        fault = partial(die_at, draw.randint(1, events))
        command = start(workdir, case.verb, *overrides, fault=fault)
    else:
        command = start(workdir, case.verb, *overrides)
        command.process.join(draw.uniform(0.1, 1) * seconds)
        if command.process.exitcode is None:
            command.send(signal.SIGKILL)
    code = command.wait()
    assert code in (0, -signal.SIGKILL), command.log
    return command, code != 0


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES if KILLS else ["train", "layerwise", "generate"])
def test_a_killed_command_goes_on_to_the_same_end(places, tmp_path, name, endpoint):
    case = CASES[name]
    before, after, events = places(case)
    expected = contents(after)
    target = -(-KILLS // len(CASES)) if KILLS else 2
    draw, kills, number = Random(name), 0, 0
    seconds = 2.0
    while kills < target:
        number += 1
        workdir = copied(before, tmp_path / f"place-{number}")
        overrides = places.arguments(case, workdir)
        requests, units, logs = len(endpoint.asked), 0, 0
        while kills < target and not (workdir / "bundle").exists():
            whole, start_of_it = done(workdir), time.monotonic()
            command, in_time = killed(workdir, case, overrides, draw, events, seconds)
            units, logs = units + work(command.log), logs + 1
            now = done(workdir)
            assert {path: now[path] for path in whole} == whole  # what was whole was not done again
            if not in_time:
                seconds = time.monotonic() - start_of_it
                break
            kills += 1
        if not (workdir / "bundle").exists():
            units += work(run(workdir, case.verb, *overrides).log)
        actual = contents(workdir)
        assert actual.keys() == expected.keys()
        differing = [
            n for n in expected if actual[n] != expected[n] and not n.endswith("contents.json")
        ]
        assert differing == []
        left = workdir.glob("outputs/*/*/**/*.part")  # two may write to the store of embeddings
        assert [path for path in left if "embeddings" not in path.parts] == []
        if name == "generate":  # a reply is paid for once, but the one that was on its way
            assert len(endpoint.asked) - requests <= 4 + logs
        if name == "retrieve":
            assert units <= work_of(after) + logs
        shutil.rmtree(workdir)
    with (tmp_path.parent / "kills").open("a") as file:
        file.write(f"{name}: {kills} kills, {events} boundaries\n")


@pytest.mark.slow
def test_orders_of_the_options_that_were_answered_are_kept(places, tmp_path):
    before, after, _ = places(ORDERS)
    passed = (after.parent / "events").read_text().splitlines()
    second = next(n for n, line in enumerate(passed, 1) if line.endswith("order-1.parquet"))
    workdir = copied(before, tmp_path / "place")
    overrides = places.arguments(ORDERS, workdir)
    kept = start(workdir, ORDERS.verb, *overrides, fault=partial(die_at, second + 1))
    assert kept.wait() == -signal.SIGKILL, kept.log
    log = run(workdir, ORDERS.verb, *overrides).log
    again = [line[9:] for line in log.splitlines() if "reusing predictions" in line]
    assert again == [
        "infer: reusing predictions with options given",
        "infer: reusing predictions with options rotated by 1",
    ]
    assert contents(workdir) == contents(after)


def work_of(workdir: Path) -> int:
    return sum(work(path.read_text()) for path in workdir.glob("printed-*/stderr"))
