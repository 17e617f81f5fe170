"""Run the jobs of a command that Hydra configures: one, or several with `-m`."""

import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from exam.core import distributed
from exam.core.environment import setup_process
from exam.core.errors import ExamError
from exam.core.exit import translate_os_errors
from exam.core.files import read_json, write_json
from exam.core.logging import print_error, print_result

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from exam.config import Command

MULTIRUN = ("-m", "--multirun")
OPTUNA_LOG = "hydra_plugins.hydra_optuna_sweeper._impl"
MULTIRUN_FOLDER = Path("outputs", "multirun")  # of Hydra's sweepers
Pipeline = Callable[[str, "Command"], Any]  # runs a command's body


@dataclass
class Jobs:
    """The jobs of one command line.

    A launcher may run each job of a sweep in another process, with a copy of this object. So each
    of them writes how it ended to a file in `records`.
    """

    command: str
    arguments: list[str]
    pipeline: Pipeline
    records: Path | None = None
    failure: Exception | None = None

    def run(self, composed: "DictConfig") -> float | None:
        """Run a job, and return the metric for a sweeper to maximise.

        The metric is that of the fold that chooses the checkpoint, or of all folds. Keep the
        failure of a single job: Hydra would log one that is raised here.
        """
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        job = HydraConfig.get()
        if job.mode is RunMode.MULTIRUN:
            return self._run_one_of_several(composed, job.job.num, list(job.overrides.task))
        try:
            self._run_pipeline(composed, is_sweep=False)
        except Exception as error:  # noqa: BLE001 - raised again outside of Hydra
            self.failure = error
        return None

    def _run_one_of_several(
        self, composed: "DictConfig", number: int, overrides: list[str]
    ) -> float | None:
        """Run a job of a sweep; a mistake or a failure stops no other job."""
        from omegaconf.errors import OmegaConfBaseException

        from exam.config.compose import explain

        values = dict(pair.split("=", 1) for pair in overrides if "=" in pair)
        record = {"values": values, "folder": None, "has_failed": True}
        self._record(number, record)  # until the job ends
        try:
            run = self._run_pipeline(composed, is_sweep=True)
        except Exception as error:  # noqa: BLE001 - one job among several
            message = traceback.format_exc()
            if isinstance(error, ExamError):
                message = str(error)
            elif isinstance(error, OmegaConfBaseException):
                message = explain(error, self.command)
            print_error(f"Job {number} ({' '.join(overrides)}): {message}")
            return None
        folder = str(run.folder) if getattr(run, "systems", ()) else None
        self._record(number, {**record, "folder": folder, "has_failed": False})
        return None if folder is None else run.selection_score

    def _record(self, number: int, record: dict[str, Any]) -> None:
        if self.records is not None:
            write_json(self.records / f"{number}.json", record)

    def read_records(self) -> list[dict[str, Any]]:
        """Return the settings, the results' folder and the failure of each job, in their order."""
        paths = [] if self.records is None else self.records.glob("[0-9]*.json")
        return [read_json(path) for path in sorted(paths, key=lambda path: int(path.stem))]

    @contextmanager
    def hush_sweeper(self) -> Iterator[None]:
        """Drop the Optuna sweeper's lines on jobs that failed; `run` has printed why."""
        logger = logging.getLogger(OPTUNA_LOG)

        def is_new(line: logging.LogRecord) -> bool:
            has_failed = any(record["has_failed"] for record in self.read_records())
            return not has_failed or "float-castable" not in line.getMessage()

        logger.addFilter(is_new)
        try:
            yield
        finally:
            logger.removeFilter(is_new)

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


def run_jobs(command: str, arguments: list[str], pipeline: Pipeline) -> int:
    """Let Hydra compose the configuration of every job, and run the jobs.

    Returns:
        The exit code: 0, or 2 if a job failed.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from exam.config.compose import (
        check_flags,
        check_groups,
        explain,
        register,
    )
    from exam.config.overrides import complete_smoke, prepare_override
    from exam.config.values import conf_dir

    check_flags(command, arguments)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors, and exam prints them
    flags = [word for word in arguments if word in MULTIRUN]
    words = [prepare_override(word) for word in arguments if word not in MULTIRUN]
    # Hydra's parser refuses settings on both sides of an option.
    words.sort(key=lambda word: not word.startswith("-") and ("=" in word or word[:1] == "~"))
    sys.argv[1:] = [*flags, *complete_smoke(words)]
    register()
    decorate = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=command)
    with _open_records() if flags else nullcontext() as records:
        jobs = Jobs(command, arguments, pipeline, records)
        try:
            check_groups(command, sys.argv[1:])
            with jobs.hush_sweeper():
                _run_application(decorate(jobs.run), command, arguments)
            if jobs.failure is not None:
                raise jobs.failure
        except (HydraException, OmegaConfBaseException) as error:
            print_error(explain(error, command))
            return 2
        ended = jobs.read_records()
    finished = [record for record in ended if record["folder"] is not None]
    if len(finished) > 1 and distributed.rank() == 0:
        from exam.pipelines.sweep import compare_jobs

        print_result(compare_jobs(finished))
    return 2 if any(record["has_failed"] for record in ended) else 0


@contextmanager
def _open_records() -> Iterator[Path]:
    """Yield a folder for the records of jobs, which every process of a sweep reaches."""
    MULTIRUN_FOLDER.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="jobs-", dir=MULTIRUN_FOLDER) as folder:
        yield Path(folder).resolve()


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
