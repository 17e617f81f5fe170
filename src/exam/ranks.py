"""Several processes of one command (`torchrun`): which one this is, and waiting for the others.

Accelerate's `PartialState` joins the processes on the library's own terms. Only words pass between
them, through a gloo group of our own: rank 0 may take hours over an index, and a wait on a device
would end after minutes.
"""

import os
from datetime import timedelta
from functools import cache
from typing import Any

from exam.errors import ExamError

PATIENCE = timedelta(days=7)


def world_size() -> int:
    """How many processes the launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process among them; 0 leads."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


@cache
def _group() -> Any:
    """The group that all processes joined."""
    from accelerate import PartialState
    from torch import distributed

    state = PartialState()
    if (state.num_processes, state.process_index) != (world_size(), rank()):
        raise ExamError(
            f"The launcher announced {world_size()} processes, but {state.num_processes} joined.\n"
            "Start them with torchrun --nproc-per-node <processes> retrieve.py …"
        )
    return distributed.new_group(backend="gloo", timeout=PATIENCE)


def wait() -> None:
    """Return when every process has come here."""
    if world_size() > 1:
        from torch import distributed

        distributed.barrier(group=_group())


def told(value: Any) -> Any:
    """What rank 0 gives here, in every process."""
    if world_size() == 1:
        return value
    from torch import distributed

    values = [value]
    distributed.broadcast_object_list(values, src=0, group=_group())
    return values[0]
