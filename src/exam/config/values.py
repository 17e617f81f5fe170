"""What the values of every group share: number formats, and their forms as a list and as JSON."""

from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any


class Dtype(Enum):
    """A number format. `auto`: bfloat16 where the device computes in it."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"  # on a GPU


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint to load, and the setting that names it in messages."""

    role: str  # reader, encoder, reranker, writer
    key: str  # model.name_or_path
    name: str  # hub id, folder, or the name of a checkpoint in a package
    revision: str | None = None  # of a hub id: branch, tag or commit; null: main
    trust_remote_code: bool = False
    gguf_file: str | None = None

    @property
    def group(self) -> str:
        """The configuration group, such as model, encoder or reranker."""
        return self.key.rpartition(".")[0]


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
