"""The number format and the quantization of a reader's weights."""

from typing import Any

from exam.config import Model
from exam.core.errors import ExamError
from exam.core.precision import Dtype, default_half_dtype, resolve_dtype


def dtype_kwargs(config: Model, default: Dtype) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` for a model's number format.

    `default` is the format of `model.dtype=auto`.

    Raises:
        ExamError: this machine cannot compute in the format.
    """
    import torch

    dtype = default if config.dtype is Dtype.auto else resolve_dtype(config.dtype, "model.dtype")
    arguments = {"dtype": getattr(torch, dtype.value)}
    if not config.load_in_4bit:
        return arguments
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
    half = default_half_dtype() if dtype is Dtype.float32 else dtype  # fp32 products would be slow
    return {
        **arguments,
        "device_map": {"": PartialState().device},
        "quantization_config": four_bit(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=getattr(torch, half.value),
            llm_int8_skip_modules=["score", "lm_head"],
        ),
    }
