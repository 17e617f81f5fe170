"""Start one process for each GPU without `torchrun`.

The processes run the same command under torch's launcher, as under `torchrun`. A process that fails
writes its message to a file, and this process prints one of them.
"""

import ctypes
import logging
import os
import signal
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from exam.config import (
    Bundle,
    Command,
    Generate,
    Infer,
    ReaderKind,
    Retrieving,
    Stress,
    Task,
    Train,
    WeightsLocation,
    as_list,
    is_trained,
    trainer_values,
)
from exam.config.saved import CONFIG, load_run
from exam.core import distributed
from exam.core.devices import check_devices, count_gpus
from exam.core.errors import PROGRAM, ExamError, ExitError
from exam.core.exit import CONTINUES, GRACE_SECONDS
from exam.core.logging import print_error
from exam.pipelines.revisions import uses_encoder, uses_writer

log = logging.getLogger(__name__)

SINGLE = "single"
RETRIEVE = "exam retrieve"
OTHER_GPU = "Put CUDA_VISIBLE_DEVICES=1 before another command to give it the second."
REMEDIES = {  # to use all GPUs, by the reason for using one
    "launch=single": "Leave launch out to use all.",
    "-m": "Leave -m out to use all.",
    "trainer.use_cpu=true": "Set trainer=gpu to use all.",
    RETRIEVE: "Run torchrun --nproc-per-node {gpus} -m exam retrieve … to use all.",
}
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP")
MISTAKE, TERMINATED = 2, 128 + signal.SIGTERM  # exit codes
CRASHES = (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS)
PR_SET_PDEATHSIG = 1  # of Linux's prctl


@dataclass(frozen=True)
class Workload:
    """The parts of a command that use a GPU if there is one.

    Attributes:
        reader: It runs a reader, or trains an encoder or a reranker.
        retrieval: It runs an encoder, a reranker, or a language model that writes questions.
        single: The reason to run in one process; None if several can share the work.
        spreads: One process uses every GPU.
    """

    reader: bool
    retrieval: bool
    single: str | None = None
    spreads: bool = False

    @property
    def uses_gpu(self) -> bool:
        """Tell whether any part of the command uses a GPU."""
        return self.reader or self.retrieval


def start_processes(
    config: Command, command: str, arguments: list[str], *, multirun: bool = False
) -> bool:
    """Run a command in several processes if it can use them.

    `arguments` are the command line's, without the command. Start nothing if a launcher started
    this process, or if one process is enough.

    Returns:
        Whether processes have run the command to its end.

    Raises:
        ExamError: `launch` does not fit the command or the machine, or torch has no kernels for a
            GPU.
        ExitError: a process failed; its message has been printed.
    """
    if distributed.reports_folder() is not None:
        if sys.platform == "linux":  # end with the parent process, even if it is killed
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        return False
    work = workload_of(config)
    gpus = count_gpus() if work.uses_gpu else 0
    number = 1
    if not distributed.is_launched():
        launch = getattr(config, "launch", SINGLE)
        number = count_processes(launch, work, gpus, multirun=multirun)
    if gpus:
        first = distributed.local_rank()
        check_devices(range(first, first + number))
    if number > 1:
        log.info("launch: %d processes, each on %s", number, "a GPU" if gpus else "the processor")
        _run(command, arguments, number)
    return number > 1


def check_gpu(config: Command) -> None:
    """Refuse the GPU that this process would use if torch has no kernels for it."""
    if workload_of(config).uses_gpu and count_gpus():
        check_devices([distributed.local_rank()])


def count_processes(launch: str | int, work: Workload, gpus: int, *, multirun: bool = False) -> int:
    """Return the number of processes for a command; log why GPUs stay idle.

    Raises:
        ExamError: `launch` is too large a number for the command or the machine.
    """
    reason = "-m" if multirun else work.single
    if isinstance(launch, int):
        _check_number(launch, reason, gpus)
        return launch
    if reason is None:
        if launch != SINGLE and work.reader:
            return max(gpus, 1)
        reason = "launch=single" if launch == SINGLE else "trainer.use_cpu=true"
    if gpus > 1 and not work.spreads:
        remedy = REMEDIES.get(reason, OTHER_GPU).format(gpus=gpus)
        log.info("launch: using one of %d GPUs (%s). %s", gpus, reason, remedy)
    return 1


def _check_number(number: int, reason: str | None, gpus: int) -> None:
    if number > 1 and reason is not None:
        raise ExamError(
            f"launch={number} starts several processes, but {reason} needs one.\nLeave launch out."
        )
    if number > gpus > 0:
        raise ExamError(
            f"launch={number} starts a process for each GPU, but {gpus} are visible.\n"
            f"Set launch={gpus}, or leave it out."
        )


def _run(command: str, arguments: list[str], number: int) -> None:
    """Run the command in `number` processes, and end as the first one that fails."""
    from accelerate.utils import patch_environment
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    handled = [name for name in SIGNALS if signal.getsignal(signal.Signals[name]) != signal.SIG_IGN]
    # The launcher replaces parts of its arguments by Template's rules, where $$ is a dollar.
    words = ["-P", "-m", "exam", command, *(text.replace("$", "$$") for text in arguments)]
    with (
        TemporaryDirectory(prefix="exam-launch-") as folder,
        patch_environment(**_environment(folder, number)),
    ):
        launcher = elastic_launch(
            LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=number,
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                local_addr="localhost",
                max_restarts=0,
                logs_specs=DefaultLogsSpecs(log_dir=folder),
                signals_to_handle=",".join(handled),
                shutdown_timeout=GRACE_SECONDS + 1,
            ),
            sys.executable,
        )
        received = None
        try:
            with _contain_launcher():
                launcher(*words)
        except SignalException as error:
            received = error.sigval
        except ChildFailedError as error:
            codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
            raise ExitError(_report(Path(folder), codes)) from None
    if received is not None:
        signal.raise_signal(received)


def _report(folder: Path, codes: dict[int, int]) -> int:
    """Print why the first process failed, and return its exit code.

    The others fail after it: they lose their connection, or the launcher ends them. A user's
    mistake is always the cause. So is a crash, unless the launcher killed a process after waiting
    for it.
    """
    reports = {rank: path for rank in codes if (path := folder / str(rank)).is_file()}
    times = {rank: path.stat().st_mtime for rank, path in reports.items()}
    has_waited = bool(times) and time.time() - min(times.values()) > GRACE_SECONDS
    crashes = [rank for rank, code in codes.items() if -code in CRASHES and not has_waited]
    mistakes = [rank for rank in times if codes[rank] == MISTAKE]
    if crashes and not mistakes:
        return _report_signal(crashes[0], -codes[crashes[0]])
    causes = mistakes or [rank for rank in times if codes[rank] != TERMINATED] or [*times]
    if causes:
        rank = min(causes, key=lambda rank: times[rank])
        print_error(reports[rank].read_text(encoding="utf-8").rstrip())
        return max(codes[rank], 1)
    rank, code = max(codes.items(), key=lambda item: item[1])
    return _report_signal(rank, -code) if code < 0 else code  # the interpreter printed why


def _report_signal(rank: int, number: int) -> int:
    cause = ", often for lack of memory" if number == signal.SIGKILL else ""
    print_error(f"{signal.Signals(number).name} ended process {rank}{cause}. {CONTINUES}")
    return 128 + number


def _environment(folder: str, number: int) -> dict[str, str]:
    """Return what tells new processes where to report and to find this package, and its cores."""
    source = str(Path(__file__).parents[2])
    variables = {distributed.REPORTS: folder, PROGRAM: sys.argv[0]}
    if source != sysconfig.get_path("purelib"):
        paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
        variables["PYTHONPATH"] = os.pathsep.join(paths)
    if "OMP_NUM_THREADS" not in os.environ:
        variables["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // number))
    return variables


@contextmanager
def _contain_launcher() -> Iterator[None]:
    """Silence torch's launcher, and restore the signal handlers that it replaces.

    The processes report why they end.
    """
    handlers = {name: signal.getsignal(signal.Signals[name]) for name in SIGNALS}
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        for name, handler in handlers.items():
            signal.signal(signal.Signals[name], handler)


def workload_of(config: Command) -> Workload:
    """Return a command's workload, after its configuration or those of its runs.

    Raises:
        ExamError: a run's configuration cannot be read, or an override is not one of its settings.
    """
    if isinstance(config, Train):
        return Workload(_reads_on_gpu(config), _retrieves_on_gpu(config), _single(config))
    if isinstance(config, Retrieving):
        return Workload(False, _retrieves_on_gpu(config), RETRIEVE)
    if isinstance(config, Generate):
        return Workload(False, _retrieves_on_gpu(config), "exam generate")
    if isinstance(config, Infer | Stress | Bundle):
        return _workload_of_runs(config)
    return Workload(False, False)


def _workload_of_runs(config: Infer | Stress | Bundle) -> Workload:
    """Return the workload of all runs that a command restores."""
    files = [Path(name) / CONFIG for name in as_list(config.ckpt)]
    runs = [load_run(file, config, log_changes=False) for file in files if file.is_file()]
    reasons = [reason for run in runs if (reason := _single(run))]
    if not isinstance(config, Infer):
        reasons = [f"exam {type(config).__name__.lower()}"]
    has_variants = isinstance(config, Infer) and bool(config.variants)
    return Workload(
        any(map(_reads_on_gpu, runs)),
        bool(runs) and (has_variants or any(map(_retrieves_on_gpu, runs))),
        reasons[0] if reasons else None if runs else "predictions=",
        any(run.model.weights_location is WeightsLocation.offload for run in runs),
    )


def _single(config: Train) -> str | None:
    """Return the reason to keep a run in one process; None if several can share it."""
    model = config.model
    if config.task is not Task.reader:
        return f"task={config.task.value}"
    if not model.kind.is_neural:
        return f"model={model.name}"
    if model.kind is ReaderKind.causal_lm and not is_trained(config.trainer):
        return f"model={model.name} without training"
    return None


def _reads_on_gpu(config: Train) -> bool:
    if config.task is not Task.reader:
        return True  # sentence-transformers scores on a GPU even if the Trainer uses the CPU
    if config.model.kind is ReaderKind.causal_lm and not is_trained(config.trainer):
        return True
    return config.model.kind.is_neural and not trainer_values(config.trainer).get("use_cpu")


def _retrieves_on_gpu(config: Retrieving | Generate) -> bool:
    reranks = isinstance(config, Retrieving) and config.reranker.ckpt is not None
    writes = uses_writer(config) and config.generator.llm.local
    return uses_encoder(config) or reranks or writes
