"""Several processes on one folder: one works, the others wait and reuse; starts do not collide."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from processes import GIVEN, start

from exam.core.artifacts import open_stage
from exam.core.errors import ExamError

LEXICAL = [*GIVEN, "retriever=bm25", "evaluate=false"]


def works_on(outputs, name, seconds):
    """Open a stage, work for a while where it is not whole, finish it."""

    def work():
        with open_stage(outputs, "k", name, {"a": 1}) as stage:
            if not stage.reused:
                time.sleep(seconds)
                (stage.folder / "f").write_text("x")
                stage.finish(["f"])

    return work


def test_a_waiting_process_says_so_and_reuses(tmp_path, caplog):
    caplog.set_level("DEBUG", logger="exam")
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(works_on(tmp_path, "n", 0.2)) for _ in range(2)]:
            done.result()
    assert caplog.text.count("Waiting for another process") == 1
    assert caplog.text.count("k done: ") == caplog.text.count("k reused: ") == 1
    assert [path.suffix for path in (tmp_path / "k").iterdir()] == [""]  # the lock's file is gone


def test_a_refused_stage_leaves_no_lock_and_keeps_others_out(tmp_path):
    inside = []

    def work():
        with suppress(ExamError), open_stage(tmp_path, "k", "n", {}):
            inside.append(1)
            time.sleep(0.05)
            inside.append(-1)
            raise ExamError("refused")

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work) for _ in range(8)]:
            done.result()
    assert inside == [1, -1] * 8
    assert not list(tmp_path.glob("k/.*.lock"))


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    with open_stage(tmp_path, "k", "n", {}) as stage:
        pass
    (stage.folder / "deeper").mkdir()
    for name in (".f.12.part", "deeper/.g.12.part"):
        (stage.folder / name).write_text("half")
    with open_stage(tmp_path, "k", "n", {}) as again:
        assert [path.name for path in again.folder.rglob("*") if path.is_file()] == ["key.json"]


@pytest.mark.slow
def test_two_commands_do_the_work_once(workdir):
    both = [start(workdir, "retrieve", *LEXICAL) for _ in range(2)]
    assert [command.wait() for command in both] == [0, 0]
    manifests = list(workdir.glob("outputs/*/*/manifest.json"))
    logs = "".join(command.log for command in both)
    assert logs.count(" done: ") == len(manifests)
    assert len(manifests) >= 4


WORKER = """
import sys, time
from pathlib import Path
from exam.core.artifacts import open_stage
from exam.core.errors import ExamError
from exam.core.logging import setup_logging
setup_logging("debug")
_, value, resume, seconds = sys.argv
with open_stage(Path("outputs"), "k", "n", {"a": value}, resume) as stage:
    if not stage.reused:
        time.sleep(float(seconds))
        (stage.folder / "f").write_text(value)
        stage.finish(["f"])
"""


@pytest.fixture
def worker(tmp_path):
    """Start a process that holds a stage for a while."""
    (tmp_path / "worker.py").write_text(WORKER)
    return lambda *arguments: start(tmp_path, str(tmp_path / "worker.py"), *map(str, arguments))


def test_the_lock_of_a_dead_process_keeps_none_out(worker, tmp_path):
    first = worker("x", "auto", 60)
    first.wait_for("k: outputs")
    second = worker("x", "auto", 0)
    second.wait_for("Waiting for another process")
    first.send(signal.SIGKILL)
    assert (first.wait(), second.wait(60)) == (-signal.SIGKILL, 0)
    assert " · continued" in second.log
    assert len(list(tmp_path.glob("outputs/k/*/f"))) == 1


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_ten_starts_in_one_second_have_ten_folders(worker, tmp_path, resume):
    values = range(10) if resume == "auto" else [0] * 10
    commands = [worker(value, resume, 0.2) for value in values]
    assert [command.wait() for command in commands] == [0] * 10
    written = [path.read_text() for path in tmp_path.glob("outputs/k/*/f")]
    assert sorted(written) == sorted(map(str, values))
    assert len(list(tmp_path.glob("outputs/k/*/manifest.json"))) == 10
    assert not list(tmp_path.glob("outputs/k/.*.lock"))
