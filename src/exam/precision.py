"""The number format to compute in."""

from typing import Any

from exam.config import Dtype, Model
from exam.errors import ExamError


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

    `key` is the setting's name.

    Raises:
        ExamError: a format is asked of a machine that would emulate it, a hundred times slower.
    """
    import torch

    native = computes_in_bfloat16()
    if wanted is Dtype.auto:
        return Dtype.bfloat16 if native else Dtype.float32
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
    """The 16-bit format this machine computes in: what a model that only answers is loaded in.

    float32 on a processor without bfloat16.
    """
    import torch

    native = computes_in_bfloat16()
    if torch.cuda.is_available():
        return Dtype.bfloat16 if native else Dtype.float16
    return Dtype.bfloat16 if native else Dtype.float32


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
            "model.load_in_4bit=true needs a GPU and bitsandbytes (pip install exam[gpu]).\n"
            "Set model.load_in_4bit=false, or choose a smaller model."
        )
    four_bit: Any = BitsAndBytesConfig
    return {
        **found,
        "device_map": {"": PartialState().device},
        "quantization_config": four_bit(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=found["dtype"],
            llm_int8_skip_modules=["score", "lm_head"],
        ),
    }
