"""Count the GPUs of this machine, and check that this torch has kernels for them."""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from exam.core.errors import ExamError

if TYPE_CHECKING:
    import torch

# sm_75: machine code, for later minors of its major version too; compute_75: PTX, compiled for any
# later card. A letter after the number limits it to that card (a) or its family (f).
ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")


def count_gpus() -> int:
    """Return how many CUDA devices this process sees, without starting work on any."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def compute_device() -> "torch.device":
    """Return the accelerator of this machine, or the CPU where there is none."""
    import torch

    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def has_kernels(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Tell whether code built for `architectures` runs on a card of a compute capability.

    `capability` is (major, minor), such as (7, 5) of a T4; `architectures` are the names that
    `torch.cuda.get_arch_list()` gives, such as sm_70 or compute_90.
    """
    return any(_runs_on(capability, name) for name in architectures)


def _runs_on(capability: tuple[int, int], name: str) -> bool:
    match = ARCHITECTURE.fullmatch(name)
    if match is None:
        return False
    kind, built, binding = match[1], (int(match[2]), int(match[3])), match[4]
    if binding == "a":
        return capability == built
    is_forward = kind == "compute" and not binding
    return capability >= built and (is_forward or capability[0] == built[0])


def check_devices(devices: Iterable[int]) -> None:
    """Refuse a GPU that this torch has no kernels for, by its index among the visible ones."""
    import torch

    architectures = torch.cuda.get_arch_list()
    if torch.version.hip is not None or not architectures:
        return  # AMD's names differ; a build for the CPU has none
    for device in devices:
        capability = torch.cuda.get_device_capability(device)
        if not has_kernels(capability, architectures):
            major, minor = capability
            raise ExamError(
                f"GPU {device} is a {torch.cuda.get_device_name(device)} (compute capability "
                f"{major}.{minor}); torch {torch.__version__} has kernels for "
                f"{', '.join(architectures)}.\nChoose another accelerator (on Kaggle: GPU T4 x2), "
                f"install a torch built for sm_{major}{minor}, or put CUDA_VISIBLE_DEVICES= in "
                "front of the command to compute on the processor."
            )
