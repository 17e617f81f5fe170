"""The groups of the benchmark of a GPU: cases for a size, a device, and a folder to work in."""

from collections.abc import Callable
from pathlib import Path

from gpu_cases import Case
from gpu_models import decoders, encoding, search
from gpu_readers import attention, readers

GROUPS: dict[str, Callable[[str, str, Path], list[Case]]] = {
    "readers": readers,
    "attention": attention,
    "encoding": encoding,
    "decoders": decoders,
    "search": search,
}
