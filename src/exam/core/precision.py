"""The number format to compute in."""

import logging
from enum import Enum
from typing import Any

from exam.core.errors import ExamError

log = logging.getLogger(__name__)

FORMATS = {"bf16": "fp16", "bf16_full_eval": "fp16_full_eval"}  # the Trainer's names


class Dtype(Enum):
    """A number format. `auto`: bfloat16 where the device computes in it."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"  # on a GPU


def computes_in_bfloat16(*, on_cpu: bool = False) -> bool:
    """Whether the GPU, or without one the processor, computes in bfloat16 and does not emulate it.

    `on_cpu` ignores a GPU.
    """
    import torch

    if torch.cuda.is_available() and not on_cpu:
        native: bool = torch.cuda.is_bf16_supported(including_emulation=False)
        return native
    return torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001 - processors with AMX have it too


def resolve_dtype(wanted: Dtype, key: str) -> Dtype:
    """`wanted`, with `auto` as bfloat16 where the machine computes in it, else float32.

    `key` is the setting's name. A GPU without bfloat16 takes float16 in its place, and that is
    logged.

    Raises:
        ExamError: a format is asked of a machine that would emulate it, a hundred times slower.
    """
    import torch

    native = computes_in_bfloat16()
    if wanted is Dtype.auto:
        return Dtype.bfloat16 if native else Dtype.float32
    if wanted is Dtype.bfloat16 and not native and torch.cuda.is_available():
        log.info("%s=bfloat16 → float16: %s", key, _lacks_bfloat16())
        return Dtype.float16
    lacking = {
        Dtype.bfloat16: not native and "neither a GPU nor a processor that computes in it",
        Dtype.float16: not torch.cuda.is_available() and "no GPU",
    }.get(wanted)
    if lacking:
        raise ExamError(
            f"{key}={wanted.value}, but this machine has {lacking}.\n"
            f"Set {key}=auto, or {key}=float32."
        )
    return wanted


def default_half_dtype() -> Dtype:
    """Return the 16-bit format for a model that only answers; float32 on a CPU without bfloat16."""
    import torch

    if computes_in_bfloat16():
        return Dtype.bfloat16
    return Dtype.float16 if torch.cuda.is_available() else Dtype.float32


def choose_formats(values: dict[str, Any], *, choose: bool) -> dict[str, Any]:
    """Return the Trainer's values with bf16 and fp16 as its device can compute.

    A GPU without bfloat16 would emulate it, a hundred times slower, and takes fp16 with a scaler
    instead; the library has no fp16 on a processor. With `choose`, a format is chosen where none
    is set: 16 bits where the device computes in them.
    """
    import torch

    on_cpu = values.get("use_cpu", not torch.accelerator.is_available())
    on_gpu = torch.cuda.is_available() and not on_cpu
    native = computes_in_bfloat16(on_cpu=on_cpu)
    changes: dict[str, Any] = {}
    if choose and not values.keys() & {"bf16", "fp16"}:
        changes = {"bf16": native, "fp16": on_gpu and not native}
    elif on_gpu and not native:
        for half, other in FORMATS.items():
            if values.get(half):
                changes |= {half: False, other: True}
    elif on_cpu and values.get("fp16"):
        changes = {"fp16": False, "bf16": native}
    return {**values, **changes}


def _lacks_bfloat16() -> str:
    import torch

    return f"{torch.cuda.get_device_name()} does not compute in bfloat16"


def log_replaced_formats(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Log each configured format that is replaced, and why."""
    for name in ("bf16", "bf16_full_eval", "fp16"):
        if not before.get(name) or after.get(name):
            continue
        other = name.replace("bf16", "fp16")
        if name == "fp16":
            reason, other = "needs a GPU", "bf16" if after.get("bf16") else "fp32"
        else:
            reason = _lacks_bfloat16()
        log.info("trainer.%s=true → %s: %s", name, other, reason)
