"""The number format and the quantization in which a reader's weights load."""

from typing import Any

from exam.config import Model
from exam.core.errors import ExamError
from exam.core.precision import Dtype, default_half_dtype, resolve_dtype


def dtype_kwargs(config: Model, otherwise: Dtype) -> dict[str, Any]:
    """What `from_pretrained` takes for a model's number format; `otherwise` is what `auto` means.

    Raises:
        ExamError: this machine has no use for the format.
    """
    import torch

    dtype = otherwise if config.dtype is Dtype.auto else resolve_dtype(config.dtype, "model.dtype")
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
    half = default_half_dtype() if dtype is Dtype.float32 else dtype  # fp32 products would be slow
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
