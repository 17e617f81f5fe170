"""Several processes of one command (`torchrun`): which one this is, and waiting for the others.

Torch joins the processes on its own terms (Accelerate's `PartialState` joins none where there is no
GPU, unless told so). Only words pass between them, through a gloo group of our own: rank 0 may take
hours over an index, and a wait on a device would end after minutes.
"""

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from exam.core.errors import ExamError

TIMEOUT = timedelta(days=7)
LAUNCHER_VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK")  # variables that every launcher sets
REPORTS = "EXAM_REPORTS"  # the folder where `launch` reads why a process ended


def world_size() -> int:
    """How many processes the launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process among them; 0 leads."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def local_rank() -> int:
    """Return the number of this process on its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_launched() -> bool:
    """Tell whether a launcher started this process."""
    return any(name in os.environ for name in LAUNCHER_VARIABLES)


def reports_folder() -> Path | None:
    """Return the folder where a process reports why it ends; None outside of `launch`."""
    folder = os.environ.get(REPORTS)
    return Path(folder) if folder and is_launched() else None


def require_single_process(what: str) -> None:
    """Refuse several processes.

    Raises:
        ExamError: the launcher started more than one.
    """
    if world_size() > 1:
        raise ExamError(
            f"{what} runs in one process, and the launcher started {world_size()}.\n"
            "Run it without torchrun."
        )


@cache
def _group() -> Any:
    """The group that all processes joined."""
    from torch import distributed

    if not distributed.is_initialized():
        distributed.init_process_group()  # the backend of each device that there is
    if distributed.get_world_size() != world_size():
        raise ExamError(
            f"The launcher announced {world_size()} processes, but "
            f"{distributed.get_world_size()} joined.\n"
            "Start them with torchrun --nproc-per-node <processes> -m exam train …"
        )
    atexit.register(_leave_group)
    return distributed.new_group(backend="gloo", timeout=TIMEOUT)


def _leave_group() -> None:
    """Close the connections before the interpreter ends: their threads may abort it otherwise."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def barrier() -> None:
    """Return when every process has come here."""
    if world_size() > 1:
        from torch import distributed

        distributed.barrier(group=_group())


def broadcast_from_rank0(value: Any) -> Any:
    """Rank 0's `value`, in every process."""
    if world_size() == 1:
        return value
    from torch import distributed

    values = [value]
    distributed.broadcast_object_list(values, src=0, group=_group())
    return values[0]


@contextmanager
def main_process_first() -> Iterator[None]:
    """What is inside is done by rank 0 alone, and then by the others, who find it done."""
    if rank() > 0:
        barrier()
    yield
    if rank() == 0:
        barrier()
