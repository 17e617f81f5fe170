"""Two real processes that wait for each other."""

import os
import socket
import time

import pytest
from helpers import FORKS

from exam.core import distributed
from exam.core.artifacts import shared_stage
from exam.core.errors import ExamError, ExitError

SECONDS = 60


def first(folder):
    with distributed.main_process_first():
        fail_on_rank0()


def stage(folder):
    with shared_stage(folder / "no\0name", "train", "name", {}):
        pass


def block(folder):
    if distributed.rank() == 0:
        with distributed.release_on_failure():
            fail_on_rank0()
    distributed.broadcast_from_rank0(None)


def fail_on_rank0():
    if distributed.rank() == 0:
        raise ExamError("refused")


def wait(body, rank, port, folder):
    """Run `body`, and note how it ended; rank 0 keeps its connections until both have."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), CUDA_VISIBLE_DEVICES="",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    try:
        body(folder)
    except Exception as error:  # noqa: BLE001 - reported to the test
        (folder / str(rank)).write_text(type(error).__name__)
    end = time.monotonic() + SECONDS
    while not (folder / "1").is_file() and time.monotonic() < end:
        time.sleep(0.02)
    os._exit(0)


@pytest.mark.parametrize(
    ("body", "error"), [(first, ExamError), (stage, ValueError), (block, ExamError)]
)
def test_a_failure_on_rank_0_ends_the_processes_that_wait_for_it(body, error, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    processes = [FORKS.Process(target=wait, args=(body, rank, port, tmp_path)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(SECONDS / 3)
    is_stuck = any(process.is_alive() for process in processes)
    for process in processes:
        process.kill()
    assert not is_stuck
    ends = [(tmp_path / str(rank)).read_text() for rank in (0, 1)]
    assert ends == [error.__name__, ExitError.__name__]
