"""Track trainings with Weights & Biases: one run for each, which an interrupted one continues.

W&B's variables count where the command line says nothing: `WANDB_PROJECT`, `WANDB_ENTITY`,
`WANDB_NAME` and `WANDB_DIR`. `WANDB_MODE` and `WANDB_DISABLED` can send less than `tracker` says,
but never more.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from exam.config import Tracker, TrackerMode, Train, to_dict, trainer_values
from exam.core import distributed
from exam.core.artifacts import Stage
from exam.core.errors import ExamError
from exam.core.trainer import open_wandb_run

log = logging.getLogger(__name__)

MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline"}
OFF = "disabled"
TRUE = ("true", "1", "yes", "on")


def find_mode(tracker: Tracker) -> str | None:
    """Return `online` or `offline`, or None for no tracking.

    Raises:
        ExamError: `WANDB_MODE` is not a mode.
    """
    if tracker.mode is None:
        return None
    mode = os.environ.get("WANDB_MODE") or tracker.mode.value
    if mode not in (*MODES, OFF):
        raise ExamError(
            f"WANDB_MODE={mode} is not a mode of W&B.\n"
            "Set WANDB_MODE to online, offline or disabled, or leave it out."
        )
    if mode == OFF or os.environ.get("WANDB_DISABLED", "").lower() in TRUE:
        return None
    return "offline" if tracker.mode is TrackerMode.offline else MODES[mode]


@contextmanager
def track_sweep(config: Train) -> Iterator[None]:
    """Open the run of a sweep's agent, which waits for the figures of each command."""
    if find_mode(config.tracker) is not None and "WANDB_SWEEP_ID" in os.environ:
        with _open_run(config):  # the agent sets its id and project
            yield
    else:
        yield


@contextmanager
def track_training(config: Train, stage: Stage, group: str | None = None) -> Iterator[None]:
    """Open the run of a training, named by the stage's hash; `group` joins folds and seeds."""
    if find_mode(config.tracker) is None or open_wandb_run() is not None:
        yield
        return
    tracker = config.tracker
    copy = stage.folder.name.removeprefix(f"{config.name}-{stage.hash[:8]}")  # of resume=never
    with _open_run(
        config,
        id=f"{stage.hash[:16]}{copy}",
        resume="allow",
        group=os.environ.get("WANDB_RUN_GROUP") or group,
        project=tracker.project or os.environ.get("WANDB_PROJECT") or "exam",
        entity=tracker.entity or os.environ.get("WANDB_ENTITY") or None,
    ):
        yield


@contextmanager
def _open_run(config: Train, **identity: Any) -> Iterator[None]:
    """Open a run on rank 0, and close it also after a failure.

    Raises:
        ExamError: there is no account, the service cannot be reached, or a variable is wrong.
    """
    if distributed.rank() > 0:
        yield
        return
    import wandb

    name = None if _sets_name(config) else os.environ.get("WANDB_NAME")
    mode: Any = find_mode(config.tracker)
    try:
        wandb.init(
            **identity,
            name=name or config.name,
            mode=mode,
            dir=os.environ.get("WANDB_DIR") or config.outputs,
            config={**to_dict(config), "trainer": trainer_values(config.trainer)},
            settings=wandb.Settings(  # no code, no addresses of git remotes
                console="off", init_timeout=60, disable_git=True, disable_code=True
            ),
        )
    except wandb.Error as error:
        reason = str(error).splitlines()[0]
        raise ExamError(
            f"tracker={config.tracker.name}: {reason}\n"
            "Log in once with `wandb login`, or choose tracker=wandb_offline or tracker=none"
        ) from None
    except ValueError as error:  # pydantic's
        raise ExamError(
            f"tracker={config.tracker.name}: {' '.join(str(error).split())}\n"
            "Correct the variables WANDB_… of the environment, or choose tracker=none"
        ) from None
    failed = True
    try:
        yield
        failed = False
    finally:
        wandb.finish(exit_code=int(failed))


def _sets_name(config: Train) -> bool:
    """Tell whether the command line or, from Python, the configuration names the run."""
    from hydra.core.hydra_config import HydraConfig

    if HydraConfig.initialized():
        words = HydraConfig.get().overrides.task
        return any(word.lstrip("+").startswith("name=") for word in words)
    default = f"{config.data.name}-{config.model.name}-{config.retriever.name}"
    return not config.name.endswith(default)


def log_summary(figures: dict[str, Any]) -> None:
    """Add final figures to the open W&B run, if there is one."""
    if (run := open_wandb_run()) is not None:
        run.summary.update(figures)
