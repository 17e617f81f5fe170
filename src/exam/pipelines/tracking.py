"""Track runs with Weights & Biases."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from exam.config import Train, to_dict, trainer_values
from exam.core import distributed
from exam.core.errors import ExamError
from exam.core.trainer import open_wandb_run


@contextmanager
def track_run(config: Train) -> Iterator[None]:
    """Open a W&B run for the block, if `tracker` names a mode; close it also after a failure.

    Raises:
        ExamError: there is no account, or the service cannot be reached.
    """
    tracker = config.tracker
    if tracker.mode is None or distributed.rank() > 0:
        yield
        return
    import wandb

    mode: Any = os.environ.get("WANDB_MODE", tracker.mode.value)  # W&B's variable comes first
    try:
        wandb.init(
            project=tracker.project,
            entity=tracker.entity,
            name=config.name,
            mode=mode,
            dir=config.outputs,
            config={**to_dict(config), "trainer": trainer_values(config.trainer)},
            settings=wandb.Settings(  # no code, no addresses of git remotes
                console="off", init_timeout=60, disable_git=True, disable_code=True
            ),
        )
    except wandb.Error as error:
        reason = str(error).splitlines()[0]
        raise ExamError(
            f"tracker={tracker.name}: {reason}\n"
            "Log in once with `wandb login`, or choose tracker=wandb_offline or tracker=none."
        ) from None
    failed = True
    try:
        yield
        failed = False
    finally:
        wandb.finish(exit_code=int(failed))


def log_summary(figures: dict[str, Any]) -> None:
    """Add final figures to the open W&B run, if there is one."""
    if (run := open_wandb_run()) is not None:
        run.summary.update(figures)
