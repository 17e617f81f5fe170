"""Choose the number format that this device computes in."""

import logging
from enum import Enum
from typing import Any

from exam.core.errors import ExamError

log = logging.getLogger(__name__)

FORMATS = {"bf16": "fp16", "bf16_full_eval": "fp16_full_eval"}  # the Trainer's names


class Dtype(Enum):
    """A number format; `auto` is bfloat16 where the device computes in it, else float32."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"  # on a GPU


def computes_in_bfloat16(*, on_cpu: bool = False) -> bool:
    """Tell whether the GPU, or else the processor, has bfloat16 instructions.

    `on_cpu` ignores a GPU.
    """
    import torch

    if torch.cuda.is_available() and not on_cpu:
        native: bool = torch.cuda.is_bf16_supported(including_emulation=False)
        return native
    return torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001 - processors with AMX have it too


def resolve_dtype(dtype: Dtype, key: str) -> Dtype:
    """Return the format to compute in; `auto` is bfloat16 with hardware support, else float32.

    `key` is the setting's name in messages. On a GPU without bfloat16, float16 replaces it. Other
    formats that the machine would emulate, a hundred times slower, are refused.
    """
    import torch

    native, has_gpu = computes_in_bfloat16(), torch.cuda.is_available()
    if dtype is Dtype.auto:
        return Dtype.bfloat16 if native else Dtype.float32
    if dtype is Dtype.bfloat16 and has_gpu and not native:
        log.info("%s=bfloat16 → float16: %s", key, _missing_bfloat16())
        return Dtype.float16
    is_bfloat16 = dtype is Dtype.bfloat16
    if (is_bfloat16 and not native) or (dtype is Dtype.float16 and not has_gpu):
        state = "neither a GPU nor a processor with bfloat16" if is_bfloat16 else "no GPU"
        raise ExamError(
            f"{key}={dtype.value}, but this machine has {state}.\nSet {key}=auto, or {key}=float32"
        )
    return dtype


def default_half_dtype() -> Dtype:
    """Return the 16-bit format for inference; float32 on a CPU without bfloat16."""
    import torch

    if computes_in_bfloat16():
        return Dtype.bfloat16
    return Dtype.float16 if torch.cuda.is_available() else Dtype.float32


def choose_formats(values: dict[str, Any], *, choose: bool) -> dict[str, Any]:
    """Return the Trainer's values with the bf16 and fp16 flags that its device supports.

    A GPU without bfloat16 would emulate it, a hundred times slower; it gets fp16 with a scaler.
    The Trainer has no fp16 on a processor. `choose` selects 16 bits, where the device computes in
    them, if neither flag is set.
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


def _missing_bfloat16() -> str:
    import torch

    return f"{torch.cuda.get_device_name()} does not compute in bfloat16"


def log_replaced_formats(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Log each configured format that was replaced, and the reason."""
    for name in ("bf16", "bf16_full_eval", "fp16"):
        if before.get(name) and not after.get(name):
            if name == "fp16":
                other, reason = "bf16" if after.get("bf16") else "fp32", "needs a GPU"
            else:
                other, reason = FORMATS[name], _missing_bfloat16()
            log.info("trainer.%s=true → %s: %s", name, other, reason)
