"""What the values of every group share: number formats, and their forms as a list and as JSON."""

from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any


class Dtype(Enum):
    """A number format. `auto`: bfloat16 where the device computes in it."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"  # on a GPU


def names(value: Any) -> list[str]:
    """One name, a list of names or nothing, as a list."""
    if value is None:
        return []
    return [str(v) for v in value] if isinstance(value, list) else [str(value)]


def plain(settings: Any) -> Any:
    """A dataclass's values as JSON can hold them, for keys."""
    if isinstance(settings, Enum):
        return settings.value
    if is_dataclass(settings):
        return {f.name: plain(getattr(settings, f.name)) for f in fields(settings)}
    if isinstance(settings, dict):
        return {name: plain(value) for name, value in settings.items()}
    if isinstance(settings, list):
        return [plain(value) for value in settings]
    return settings
