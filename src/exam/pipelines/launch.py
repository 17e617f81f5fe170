"""Start one process for each GPU without `torchrun`.

The processes run the same command under torch's launcher, as under `torchrun`. One that fails
reports its message in a file, and this process prints it once.
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
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from exam.config import Command
from exam.core import distributed
from exam.core.devices import check_devices, count_gpus
from exam.core.errors import PROGRAM, ExamError, ExitError
from exam.core.exit import CONTINUES, GRACE_SECONDS
from exam.core.logging import print_error
from exam.pipelines.workload import RETRIEVE, Workload, workload_of

log = logging.getLogger(__name__)

SINGLE = "single"
OTHER = "CUDA_VISIBLE_DEVICES=1 in front of another command gives that one the second."
WAYS = {  # to use all GPUs, by the reason for using one
    "launch=single": "Leave launch out to use all.",
    "-m": "Without -m a run uses all.",
    "trainer.use_cpu=true": "trainer=gpu uses all.",
    RETRIEVE: "torchrun --nproc-per-node {gpus} -m exam retrieve … uses all.",
}
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP")
MISTAKE, TERMINATED = 2, 128 + signal.SIGTERM  # exit codes
CRASHES = (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS)
PR_SET_PDEATHSIG = 1  # of Linux's prctl


def start_processes(
    config: Command, verb: str, arguments: list[str], *, multirun: bool = False
) -> bool:
    """Run a command in several processes, where it takes several.

    `arguments` are the command line's, without the verb. In a process that a launcher started, or
    where one is enough, run nothing.

    Returns:
        Whether the command was run, to its end.

    Raises:
        ExamError: `launch` cannot be obeyed, or torch has no kernels for a GPU.
        ExitError: a process failed, and its message has been printed.
    """
    if distributed.reports_folder() is not None:
        _end_with_parent()
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
        _run(verb, arguments, number)
    return number > 1


def count_processes(launch: str | int, work: Workload, gpus: int, *, multirun: bool = False) -> int:
    """Return how many processes a command takes, and log that GPUs stay idle.

    Raises:
        ExamError: `launch` is a number that the command or the machine cannot run.
    """
    reason = "-m" if multirun else work.single
    if isinstance(launch, int):
        _check_number(launch, reason, gpus)
        return launch
    if reason is None and launch == SINGLE:
        reason = "launch=single"
    elif reason is None and not work.reader:
        reason = "trainer.use_cpu=true"
    if reason is None:
        return max(gpus, 1)
    if gpus > 1 and not work.spreads:
        way = WAYS.get(reason, OTHER).format(gpus=gpus)
        log.info("launch: one of %d GPUs is used (%s). %s", gpus, reason, way)
    return 1


def _check_number(number: int, reason: str | None, gpus: int) -> None:
    if number > 1 and reason is not None:
        raise ExamError(
            f"launch={number} starts several processes, and {reason} runs in one.\n"
            "Leave launch out."
        )
    if number > gpus > 0:
        raise ExamError(
            f"launch={number} starts a process for each GPU, and {gpus} are visible.\n"
            f"Set launch={gpus}, or leave it out."
        )


def _run(verb: str, arguments: list[str], number: int) -> None:
    """Run the command in `number` processes, and end as the first of them that fails."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    heard = [name for name in SIGNALS if signal.getsignal(signal.Signals[name]) != signal.SIG_IGN]
    # The launcher replaces parts of its arguments by Template's rules, where $$ is a dollar.
    command = ["-P", "-m", "exam", verb, *(text.replace("$", "$$") for text in arguments)]
    with TemporaryDirectory(prefix="exam-launch-") as folder, _environment(folder, number):
        launcher = elastic_launch(
            LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=number,
                run_id=str(uuid4()),
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                local_addr="localhost",
                max_restarts=0,
                logs_specs=DefaultLogsSpecs(log_dir=folder),
                signals_to_handle=",".join(heard),
                shutdown_timeout=GRACE_SECONDS + 1,
            ),
            sys.executable,
        )
        received = None
        try:
            with _signals_restored(), _launcher_silenced():
                launcher(*command)
        except SignalException as error:
            received = error.sigval
        except ChildFailedError as error:
            codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
            raise ExitError(_report(Path(folder), codes)) from None
    if received is not None:
        signal.raise_signal(received)


def _report(folder: Path, codes: dict[int, int]) -> int:
    """Print why the first process failed, and return its exit code.

    The others fail with it: they lose their connection, or the launcher ends them. A user's
    mistake is the cause wherever it is reported, a crash unless the launcher waited for its process
    to end and killed it.
    """
    reports = {rank: path for rank in codes if (path := folder / str(rank)).is_file()}
    times = {rank: path.stat().st_mtime for rank, path in reports.items()}
    waited = bool(times) and time.time() - min(times.values()) > GRACE_SECONDS
    crashes = [rank for rank, code in codes.items() if -code in CRASHES and not waited]
    mistakes = [rank for rank in times if codes[rank] == MISTAKE]
    if crashes and not mistakes:
        return _report_signal(crashes[0], -codes[crashes[0]])
    causes = mistakes or [rank for rank in times if codes[rank] != TERMINATED] or [*times]
    if causes:
        rank = min(causes, key=lambda rank: times[rank])
        print_error(reports[rank].read_text(encoding="utf-8").rstrip())
        return max(codes[rank], 1)
    rank, code = max(codes.items(), key=lambda item: item[1])
    return _report_signal(rank, -code) if code < 0 else code  # the interpreter has said why


def _report_signal(rank: int, number: int) -> int:
    often = ": often no memory is left" if number == signal.SIGKILL else ""
    name = signal.Signals(number).name
    print_error(f"Process {rank} was ended by {name}{often}. {CONTINUES}")
    return 128 + number


@contextmanager
def _environment(folder: str, number: int) -> Iterator[None]:
    """Let new processes report to `folder`, find this package and share the cores."""
    source = str(Path(__file__).parents[2])
    changes = {distributed.REPORTS: folder, PROGRAM: sys.argv[0]}
    if source != sysconfig.get_path("purelib"):
        paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
        changes["PYTHONPATH"] = os.pathsep.join(paths)
    if "OMP_NUM_THREADS" not in os.environ:
        changes["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // number))
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _signals_restored() -> Iterator[None]:
    """Restore the signal handlers that torch's launcher replaces."""
    handlers = {name: signal.getsignal(signal.Signals[name]) for name in SIGNALS}
    try:
        yield
    finally:
        for name, handler in handlers.items():
            signal.signal(signal.Signals[name], handler)


@contextmanager
def _launcher_silenced() -> Iterator[None]:
    """Silence the launcher's log: its processes report why they end."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _end_with_parent() -> None:
    """Ask Linux for SIGTERM when the process that started this one is gone, even if killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
