"""Runs followed by Weights & Biases."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from exam.config import Train, plain, trainer_values
from exam.core import distributed
from exam.core.errors import ExamError
from exam.core.trainer import open_wandb_run


@contextmanager
def tracked(config: Train) -> Iterator[None]:
    """A W&B run around what is inside, where one is wanted; it ends however that ends.

    Raises:
        ExamError: there is no account, or the service is out of reach.
    """
    own = config.tracker
    if own.mode is None or distributed.rank() > 0:
        yield
        return
    import wandb

    mode: Any = os.environ.get("WANDB_MODE", own.mode.value)  # as everywhere with W&B
    try:
        wandb.init(
            project=own.project,
            entity=own.entity,
            name=config.name,
            mode=mode,
            dir=config.outputs,
            config={**plain(config), "trainer": trainer_values(config.trainer)},
            settings=wandb.Settings(  # neither addresses of remotes nor code leave this machine
                console="off", init_timeout=60, disable_git=True, disable_code=True
            ),
        )
    except wandb.Error as error:
        reason = str(error).splitlines()[0]
        raise ExamError(
            f"tracker={own.name}: {reason}\n"
            "Log in once with `wandb login`, or choose tracker=wandb_offline or tracker=none."
        ) from None
    failed = True
    try:
        yield
        failed = False
    finally:
        wandb.finish(exit_code=int(failed))


def conclude(figures: dict[str, Any]) -> None:
    """Give the W&B run that is open, if one is, its final figures."""
    if (run := open_wandb_run()) is not None:
        run.summary.update(figures)
