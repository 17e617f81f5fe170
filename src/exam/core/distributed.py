"""Several processes of one command (`torchrun`): rank, barrier and broadcast.

`torch.distributed` initializes the default group; Accelerate's `PartialState` skips that without a
GPU. Barriers and broadcasts use a separate gloo group with a long timeout: rank 0 may build an
index for hours, and NCCL gives up after minutes.
"""

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from exam.core.errors import ExamError, ExitError

TIMEOUT = timedelta(days=7)
LAUNCHER_VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK")  # every launcher sets them
REPORTS = "EXAM_REPORTS"  # the folder where `launch` reads the errors of its processes
FAILED = "rank 0 has failed"  # in the place of a value


def world_size() -> int:
    """Return the number of processes that the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return the rank of this process; rank 0 is the main process."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def local_rank() -> int:
    """Return the rank of this process on its machine, which is also the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_launched() -> bool:
    """Tell whether a launcher started this process."""
    return any(name in os.environ for name in LAUNCHER_VARIABLES)


def reports_folder() -> Path | None:
    """Return the folder where a process reports its error; None outside of `launch`."""
    folder = os.environ.get(REPORTS)
    return Path(folder) if folder and is_launched() else None


def require_single_process(task: str) -> None:
    """Refuse to run `task` in several processes."""
    if world_size() > 1:
        raise ExamError(
            f"{task} runs in one process, and the launcher started {world_size()}.\n"
            "Run it without torchrun."
        )


@cache
def _group() -> Any:
    """Return the gloo group of all processes; create it once."""
    from torch import distributed

    if not distributed.is_initialized():
        distributed.init_process_group()  # with the backend of each available device
    if distributed.get_world_size() != world_size():
        raise ExamError(
            f"The launcher announced {world_size()} processes, but "
            f"{distributed.get_world_size()} joined.\n"
            "Start them with torchrun --nproc-per-node <processes> -m exam train …"
        )
    atexit.register(_leave_group)
    return distributed.new_group(backend="gloo", timeout=TIMEOUT)


def _leave_group() -> None:
    """Close the connections before the interpreter exits; their threads may abort it."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def barrier() -> None:
    """Wait until all processes reach this call."""
    if world_size() > 1:
        from torch import distributed

        distributed.barrier(group=_group())


def broadcast_from_rank0(value: Any) -> Any:
    """Return rank 0's `value` in every process.

    Raises:
        ExitError: rank 0 fails in a block of `release_on_failure`, and prints why.
    """
    if world_size() == 1:
        return value
    status, value = _broadcast(("", value))
    if status == FAILED:
        raise ExitError(1)
    return value


def _broadcast(value: Any) -> Any:
    from torch import distributed

    values = [value]
    distributed.broadcast_object_list(values, src=0, group=_group())
    return values[0]


@contextmanager
def release_on_failure() -> Iterator[None]:
    """End the processes that wait for rank 0's next broadcast if its block fails."""
    try:
        yield
    except Exception:
        if world_size() > 1 and rank() == 0:
            with suppress(RuntimeError):  # another process has ended
                _broadcast((FAILED, None))
        raise


@contextmanager
def main_process_first() -> Iterator[None]:
    """Run the block on rank 0 first; the other ranks then run it and hit the cache."""
    if rank() > 0:
        broadcast_from_rank0(None)
        yield
    else:
        with release_on_failure():
            yield
        broadcast_from_rank0(None)
