"""Every stage killed, at its write boundaries and at any moment, and given again.

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

from exam.bundle.contents import check
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
    given: list[str]
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
    "retrieve": RETRIEVE,
    "train": TRAIN,
    "infer": INFER,
    "ensemble": ENSEMBLE,
    "generate": GENERATE,
    "layerwise": LAYERWISE,
    "orders": ORDERS,
    "bundle": BUNDLE,
}


@pytest.fixture(scope="module")
def endpoint():
    return Endpoint(lambda title, time_: question_about(f"{title} {sum(map(ord, title))}"))


@pytest.fixture(scope="module")
def places(tmp_path_factory, encoder, endpoint):
    """A place for each command, with all that goes before it done; a place after it; both once."""
    made: dict[int, tuple[Path, Path, int]] = {}

    def before_and_after(case):
        if id(case) not in made:
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
                after, case.verb, *given(case, after), fault=partial(die_at, 0, str(events))
            )
            assert command.wait() == 0, command.log
            made[id(case)] = folder / "before", after, len(events.read_text().splitlines())
        return made[id(case)]

    def given(case, place):
        run_ = next(iter(sorted(place.glob("outputs/train/kaggle-*"))), "none")
        image = place.parent / "image.txt"
        if "{image}" in case.given and not image.exists():
            pins = [f"{name}=={version}" for name, version in installed()]
            image.write_text("\n".join([f"Python {platform.python_version()}", *pins]))
        known = {
            "run": os.path.relpath(run_, place),
            "url": endpoint.url,
            "image": f"constraints={image}",
        }
        named = [value.format(**known) for value in case.given]
        encodes = case.verb != "generate" and "retriever=none" not in named
        own = case.verb in ("retrieve", "train") and encodes
        return [*named, *([f"encoder.name_or_path={encoder}"] if own else [])]

    before_and_after.given = given
    return before_and_after


def installed():
    """Everything that is here but this project, so that a bundle carries no other wheel."""
    from importlib.metadata import distributions

    found = {d.metadata["Name"].lower(): d.version for d in distributions()}
    return [
        (name, version) for name, version in found.items() if name not in ("exam", "openbook-exam")
    ]


def content(path: Path):
    """What a file says, apart from when and where it was made."""
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


def contents(place: Path) -> dict[str, object]:
    """Every file that a place's commands left, hidden ones apart."""
    paths = [p for root in ("outputs", "bundle") for p in (place / root).rglob("*") if p.is_file()]
    names = {str(path.relative_to(place)): path for path in paths}
    return {n: content(p) for n, p in names.items() if "/." not in n and not n.endswith(".whl")}


def done(place: Path) -> dict[Path, bytes]:
    """The manifests there are, each of a stage that is whole."""
    found = {path: path.read_bytes() for path in place.glob(f"outputs/*/*/{MANIFEST}")}
    for path in found:
        load_stage(path.parent)
    if (place / "bundle").exists():
        check(place / "bundle")
    return found


def work(log: str) -> int:
    return sum(any(words in line for words in WORK) for line in log.splitlines())


def killed(place, case, given, draw, events, seconds):
    """Kill a command once: at a boundary that is drawn, or at a moment. Whether it was in time."""
    if draw.random() < 0.6:
        fault = partial(die_at, draw.randint(1, events))
        command = start(place, case.verb, *given, fault=fault)
    else:
        command = start(place, case.verb, *given)
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
    wanted = -(-KILLS // len(CASES)) if KILLS else 2
    draw, kills, number = Random(name), 0, 0
    seconds = 2.0
    while kills < wanted:
        number += 1
        place = copied(before, tmp_path / f"place-{number}")
        given = places.given(case, place)
        asked, units, logs = len(endpoint.asked), 0, 0
        while kills < wanted and not (place / "bundle").exists():
            whole, start_of_it = done(place), time.monotonic()
            command, in_time = killed(place, case, given, draw, events, seconds)
            units, logs = units + work(command.log), logs + 1
            now = done(place)
            assert {path: now[path] for path in whole} == whole  # what was whole was not done again
            if not in_time:
                seconds = time.monotonic() - start_of_it
                break
            kills += 1
        if not (place / "bundle").exists():
            units += work(run(place, case.verb, *given).log)
        found = contents(place)
        assert found.keys() == expected.keys()
        differing = [
            n for n in expected if found[n] != expected[n] and not n.endswith("contents.json")
        ]
        assert differing == []
        left = place.glob("outputs/*/*/**/*.part")  # two may write to the store of embeddings
        assert [path for path in left if "embeddings" not in path.parts] == []
        if name == "generate":  # a reply is paid for once, but the one that was on its way
            assert len(endpoint.asked) - asked <= 4 + logs
        if name == "retrieve":
            assert units <= work_of(after) + logs
        shutil.rmtree(place)
    with (tmp_path.parent / "kills").open("a") as file:
        file.write(f"{name}: {kills} kills, {events} boundaries\n")


@pytest.mark.slow
def test_orders_of_the_options_that_were_answered_are_kept(places, tmp_path):
    before, after, _ = places(ORDERS)
    passed = (after.parent / "events").read_text().splitlines()
    second = next(n for n, line in enumerate(passed, 1) if line.endswith("order-1.parquet"))
    place = copied(before, tmp_path / "place")
    given = places.given(ORDERS, place)
    kept = start(place, ORDERS.verb, *given, fault=partial(die_at, second + 1))
    assert kept.wait() == -signal.SIGKILL, kept.log
    log = run(place, ORDERS.verb, *given).log
    again = [line[9:] for line in log.splitlines() if "answered already" in line]
    assert again == [
        "infer: reusing predictions with options given",
        "infer: reusing predictions with options rotated by 1",
    ]
    assert contents(place) == contents(after)


def work_of(place: Path) -> int:
    return sum(work(path.read_text()) for path in place.glob("printed-*/stderr"))
