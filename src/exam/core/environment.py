"""The process and its machine: package versions, memory, and the set-up of both."""

import ctypes
import platform
import resource
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from exam.core.logging import quiet_libraries, setup_logging

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
PACKAGES = (
    "torch",
    "transformers",
    "datasets",
    "sentencepiece",
    "tokenizers",
    "peft",
    "accelerate",
    "sentence-transformers",
    "faiss-cpu",
    "blingfire",
    "livekit-blingfire",
    "pyarrow",
    "numpy",
)


def setup_process(level: str) -> None:
    """Set up a process that runs a command: its log, quiet libraries and malloc."""
    setup_logging(level)
    quiet_libraries()
    tune_malloc()


def tune_malloc() -> None:
    """Let glibc keep freed blocks in the process instead of returning them to the system.

    On a CPU, every step otherwise maps and clears its large activations anew. That took two fifths
    of a MiniLM training step. Other C libraries ignore this.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
    libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def reset_peak_memory() -> None:
    """Start a new measurement of peak memory, where the system supports it (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib() -> float:
    """Return the peak resident memory in MiB since the last reset, or since the process began."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    line = next(row for row in status.splitlines() if row.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def describe_environment() -> dict[str, str]:
    """Return the machine and the versions of Python and packages, as saved with a run."""
    versions = {"python": platform.python_version(), "machine": platform.platform()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions
