"""Run the jobs of a command that Hydra configures: one, or several with `-m`."""

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from typing import TYPE_CHECKING, Any

from exam.core import distributed
from exam.core.environment import setup_process
from exam.core.errors import ExamError
from exam.core.exit import translate_os_errors
from exam.core.logging import print_error, print_result

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from exam.config import Command
    from exam.pipelines.sweep import Job

MULTIRUN = ("-m", "--multirun")
Pipeline = Callable[[str, "Command"], Any]  # runs a command's body


@dataclass
class Jobs:
    """The jobs of one command line, and how they ended."""

    command: str
    arguments: list[str]
    pipeline: Pipeline
    has_failed: bool = False
    failure: Exception | None = None
    finished: list["Job"] = field(default_factory=list)

    def run(self, composed: "DictConfig") -> float | None:
        """Run a job; a mistake, or a failure of one job among several, stops no other job.

        Keep the failure of a single job: Hydra would log one that is raised here.

        Returns:
            The metric for a sweeper to maximise: of the fold that chooses the checkpoint, or of all
            folds.
        """
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode
        from omegaconf.errors import OmegaConfBaseException

        from exam.config.compose import explain

        job = HydraConfig.get()
        is_sweep = job.mode is RunMode.MULTIRUN
        name = f"Job {job.job.num} ({' '.join(job.overrides.task)}): " if is_sweep else ""
        try:
            run = self._run_pipeline(composed, is_sweep=is_sweep)
        except ExamError as error:
            self.fail(f"{name}{error}")
            return None
        except OmegaConfBaseException as error:
            self.fail(f"{name}{explain(error, self.command)}")
            return None
        except Exception as error:  # noqa: BLE001 - raised again outside of Hydra
            if is_sweep:
                self.fail(f"{name}{traceback.format_exc()}")
            else:
                self.failure = error
            return None
        if not getattr(run, "systems", ()):
            return None
        if is_sweep:
            from exam.core.trainer import RESULTS
            from exam.pipelines.sweep import Job

            values = dict(pair.split("=", 1) for pair in job.overrides.task if "=" in pair)
            self.finished.append(Job(values, run.folder / RESULTS))
        score: float | None = run.selection_score
        return score

    def _run_pipeline(self, composed: "DictConfig", *, is_sweep: bool) -> Any:
        """Run the command on its configuration, in this process or in several."""
        from exam.config.compose import to_dataclass
        from exam.core.security import enable_offline_mode
        from exam.data.files import check_paths
        from exam.pipelines.launch import start_processes

        config = to_dataclass(composed)
        if config.offline:
            enable_offline_mode()
        setup_process(config.log_level)
        with translate_os_errors():
            check_paths(config)
            if start_processes(config, self.command, self.arguments, multirun=is_sweep):
                return None
            return self.pipeline(self.command, config)

    def fail(self, message: str) -> None:
        """Print why a job failed."""
        self.has_failed = True
        print_error(message)


def run_jobs(command: str, arguments: list[str], pipeline: Pipeline) -> int:
    """Let Hydra compose the configuration of every job, and run the jobs.

    Returns:
        The exit code: 0, or 2 if a job failed.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from exam.config.compose import (
        add_hydra_prefix,
        check_flags,
        check_groups,
        explain,
        register,
    )
    from exam.config.values import conf_dir

    check_flags(command, arguments)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors, and exam prints them
    flags = [word for word in arguments if word in MULTIRUN]
    sys.argv[1:] = [*flags, *(add_hydra_prefix(word) for word in arguments if word not in MULTIRUN)]
    register()
    decorate = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=command)
    jobs = Jobs(command, arguments, pipeline)
    try:
        check_groups(command, sys.argv[1:])
        _run_application(decorate(jobs.run), command, arguments)
        if jobs.failure is not None:
            raise jobs.failure
        if len(jobs.finished) > 1 and distributed.rank() == 0:
            from exam.pipelines.sweep import compare_jobs

            print_result(compare_jobs(jobs.finished))
    except (HydraException, OmegaConfBaseException) as error:
        jobs.fail(explain(error, command))
    return 2 if jobs.has_failed else 0


def _run_application(application: Callable[[], Any], command: str, arguments: list[str]) -> None:
    """Run Hydra's application; mark mandatory settings in a printed configuration (`--cfg`).

    Raises:
        ExamError: Hydra's flags contradict each other.
    """
    from exam.config.compose import mark_required

    prints = {"--cfg", "-c"} & {word.partition("=")[0] for word in arguments}
    try:
        with redirect_stdout(StringIO()) if prints else nullcontext(StringIO()) as text:
            application()
    except ValueError as error:  # Hydra's; `Jobs` keeps those of jobs
        raise ExamError(str(error)) from None
    if prints:
        print_result(mark_required(text.getvalue(), command))
