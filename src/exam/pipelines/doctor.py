"""`exam doctor`: check packages, memory and devices, and name what to install."""

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

TESTED = ((3, 11), (3, 13))  # the first and the last Python of the test workflow
BF16_FLAGS = ("avx512_bf16", "amx_bf16")
OPTIONAL = {  # by extra: its packages and its purpose
    "llm": (["gguf", "openai"], "model=smollm2, generator=llm"),
    "gpu": (["bitsandbytes", "faiss-gpu-cu12"], "8-bit Adam, 4-bit loading, faiss on a GPU"),
    "deepspeed": (["deepspeed"], "trainer=deepspeed_zero2 and deepspeed_zero3"),
    "optuna": (["hydra-optuna-sweeper"], "hydra/sweeper=optuna"),
    "kaggle": (["kagglehub"], "data=kaggle without the files"),
}
HUB = "HF_HUB_OFFLINE"
DRIVER = "/proc/driver/nvidia/version"


def run_doctor(*, deep: bool = False) -> bool:
    """Print a report; return whether every requirement is installed and every GPU usable."""
    missing, lines = check_packages()
    print_result("\n".join([*describe_machine(), "", *lines, "", *describe_extras()]))
    if missing or not (deep or _read(DRIVER)):
        return not missing
    lines, unusable = check_gpus()
    times = time_products(on_cpu=bool(unusable)) if deep else []
    print_result("\n".join(["", *lines, *times, *unusable]))
    return not unusable


def describe_machine() -> list[str]:
    """Return one line each for Python, processor, memory, disk, GPU, hub and sentence splitter."""
    words = _read("/proc/cpuinfo").split()
    bf16 = [flag for flag in BF16_FLAGS if flag in words]
    formats = f"bfloat16 ({', '.join(bf16)})" if bf16 else "float32 (no bfloat16)"
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    driver = _read(DRIVER).partition("\n")[0].partition(":")[2].strip()
    return [
        f"python      {platform.python_version()} on {platform.platform()}{_describe_support()}",
        f"processor   {os.cpu_count()} cores, {formats}",
        f"memory      {_read_memory()}",
        f"disk here   {free:.1f} GiB free",
        f"gpu         {driver or 'no NVIDIA driver'}",
        f"hub         {'off: ' + HUB if os.environ.get(HUB) else 'used if needed'}",
        f"sentences   {_describe_splitter()}",
    ]


def check_packages() -> tuple[list[str], list[str]]:
    """Return the missing requirements, and a line for each requirement."""
    from packaging.requirements import Requirement

    missing, lines = [], []
    for line in _read_requirements():
        package = Requirement(line)
        if package.marker is not None and not package.marker.evaluate({"extra": ""}):
            continue
        installed = _find_version(package.name)
        fits = installed is not None and package.specifier.contains(installed, prereleases=True)
        if not fits:
            missing.append(str(package))
        remedy = "" if fits else f"   → pip install '{package.name}{package.specifier}'"
        lines.append(f"{package.name:<22} {installed or 'missing'}{remedy}")
    return missing, lines


def describe_extras() -> list[str]:
    """Return a line for each extra: its purpose, and whether it is installed or how to do so."""
    lines = []
    for extra, (names, purpose) in OPTIONAL.items():
        is_installed = all(_find_version(name) for name in names)
        state = "installed" if is_installed else f"pip install 'openbook-exam[{extra}]'"
        lines.append(f"{extra:<10} {purpose:<50} {state}")
    return lines


def check_gpus() -> tuple[list[str], list[str]]:
    """Return a line for each GPU, and a message for each without kernels in this torch."""
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


def time_products(*, on_cpu: bool = False) -> list[str]:
    """Time matrix products on the device that computes, and verify a packaged checkpoint."""
    import torch
    from torch.utils.benchmark import Timer

    device = torch.device("cpu") if on_cpu else compute_device()
    lines = [f"torch       {torch.__version__}, computes on {device}"]
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(1024, 1024, dtype=dtype, device=device)
        timer = Timer("a @ a", globals={"a": a}, num_threads=torch.get_num_threads())
        rate = 2 * 1024**3 / timer.timeit(5).mean / 1e9
        lines.append(f"{str(dtype).removeprefix('torch.'):<11} {rate:,.0f} GFLOP/s")
    from exam.core.packages import find_packaged_folder

    folder = find_packaged_folder("sentence-transformers/all-MiniLM-L6-v2")
    lines.append(f"minilm      {'weights verified' if folder else 'not installed'}")
    return lines


def _read_requirements() -> list[str]:
    """Return the package's requirements, or those of pyproject.toml if it is not installed."""
    try:
        return requires("openbook-exam") or []
    except PackageNotFoundError:
        project = Path(__file__).parents[3] / "pyproject.toml"
        dependencies: list[str] = tomllib.loads(project.read_text())["project"]["dependencies"]
        return dependencies


def _find_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _read(path: str) -> str:
    """Return the text of one of Linux's files; empty where it does not exist."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def _describe_support() -> str:
    """Return a remark if the tests do not run on this Python."""
    if TESTED[0] <= sys.version_info[:2] <= TESTED[1]:
        return ""
    first, last = (".".join(map(str, version)) for version in TESTED)
    return f" · not tested; Python {first} to {last} are"


def _describe_splitter() -> str:
    """Name the sentence splitter, and why a preferred one does not load."""
    try:
        loaded = splitter()
    except ExamError as error:
        return str(error).replace("\n", "   → ")
    return " · ".join([loaded.name, *loaded.failures])


def _read_memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    except (ValueError, OSError):
        return "unknown"
