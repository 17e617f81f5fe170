"""The number format to compute in."""

from exam.config import Dtype
from exam.errors import ExamError


def computes_in_bfloat16(*, on_cpu: bool = False) -> bool:
    """Whether the GPU, or without one the processor, computes in bfloat16 and does not emulate it.

    `on_cpu` leaves a GPU out of account.
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
        ExamError: bfloat16 is asked of a processor that would emulate it, a hundred times slower.
    """
    native = computes_in_bfloat16()
    if wanted is Dtype.auto:
        return Dtype.bfloat16 if native else Dtype.float32
    if wanted is Dtype.bfloat16 and not native:
        raise ExamError(
            f"{key}=bfloat16, but this machine has no GPU and no processor that computes in it.\n"
            f"Set {key}=auto, or {key}=float32."
        )
    return wanted
