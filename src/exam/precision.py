"""The number format to compute in."""

import logging
from typing import Any

from exam.config import Dtype, Model, Train, trainer_values
from exam.errors import ExamError

log = logging.getLogger(__name__)

FORMATS = {"bf16": "fp16", "bf16_full_eval": "fp16_full_eval"}  # the Trainer's names


def computes_in_bfloat16(*, on_cpu: bool = False) -> bool:
    """Whether the GPU, or without one the processor, computes in bfloat16 and does not emulate it.

    `on_cpu` ignores a GPU.
    """
    import torch

    if torch.cuda.is_available() and not on_cpu:
        native: bool = torch.cuda.is_bf16_supported(including_emulation=False)
        return native
    return torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001 - processors with AMX have it too


def dtype_here(wanted: Dtype, key: str) -> Dtype:
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


def half_here() -> Dtype:
    """Return the 16-bit format for a model that only answers; float32 on a CPU without bfloat16."""
    import torch

    if computes_in_bfloat16():
        return Dtype.bfloat16
    return Dtype.float16 if torch.cuda.is_available() else Dtype.float32


def reader_values(config: Train) -> dict[str, Any]:
    """Return the Trainer's values of a configuration, in the formats this machine computes in.

    They are part of the key of a run and of its answers. A lexical reader keeps its values.
    """
    values = trainer_values(config.trainer)
    return with_formats(values, choose=True) if config.model.kind.is_neural else values


def with_formats(values: dict[str, Any], *, choose: bool) -> dict[str, Any]:
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


def log_replaced(before: dict[str, Any], after: dict[str, Any]) -> None:
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


def weights_in(config: Model, otherwise: Dtype) -> dict[str, Any]:
    """What `from_pretrained` takes for a model's number format; `otherwise` is what `auto` means.

    Raises:
        ExamError: this machine has no use for the format.
    """
    import torch

    dtype = otherwise if config.dtype is Dtype.auto else dtype_here(config.dtype, "model.dtype")
    found = {"dtype": getattr(torch, dtype.value)}
    if not config.load_in_4bit:
        return found
    from accelerate import PartialState
    from transformers import BitsAndBytesConfig
    from transformers.utils.import_utils import is_bitsandbytes_available

    if not torch.cuda.is_available() or not is_bitsandbytes_available():
        raise ExamError(
            "model.load_in_4bit=true needs a GPU and bitsandbytes.\n"
            "Install it (pip install 'openbook-exam[gpu]'), set model.load_in_4bit=false, or "
            "choose a smaller model."
        )
    four_bit: Any = BitsAndBytesConfig
    half = half_here() if dtype is Dtype.float32 else dtype  # fp32 products would be slow
    return {
        **found,
        "device_map": {"": PartialState().device},
        "quantization_config": four_bit(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=getattr(torch, half.value),
            llm_int8_skip_modules=["score", "lm_head"],
        ),
    }
