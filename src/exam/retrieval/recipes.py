"""Choose how an index stores its vectors, and estimate the memory and disk that it needs."""

import logging
import math
from dataclasses import dataclass
from typing import Any

from exam.config import Index, IndexType

log = logging.getLogger(__name__)

TRAINED_ON = 64  # vectors a list; faiss asks for 39 to 256
GIB = 1 << 30


@dataclass(frozen=True)
class IndexSpec:
    """How an index stores its vectors; `lists`, `probe` and `refine` belong to `low_memory`."""

    recipe: str
    vectors: int
    dimension: int
    lists: int = 0
    probe: int = 0
    refine: int = 0

    @property
    def memory(self) -> int:
        """Bytes that a warm search keeps in memory, with mapped pages."""
        exact = 4 * self.vectors * self.dimension
        return exact if self.recipe == "exact" else self._lists

    @property
    def disk(self) -> int:
        """Bytes on disk."""
        width = 4 if self.recipe == "exact" else 2
        return width * self.vectors * self.dimension + self._lists

    @property
    def _lists(self) -> int:
        """Bytes of the lists (a bit a dimension, 16 a vector), centroids and rotation."""
        d = self.dimension
        code = math.ceil(d / 8) + 8 + 8  # with two factors and an id
        return (self.vectors * code + 4 * d * (self.lists + d)) if self.lists else 0


def import_faiss() -> Any:
    """Import faiss after torch: the other order can crash."""
    import torch  # noqa: F401, I001
    import faiss

    return faiss


def index_key(index: Index) -> dict[str, Any]:
    """Return the settings, and for `auto` the hardware, that determine the index."""
    key: dict[str, Any] = {"type": index.type.value}
    if index.type is not IndexType.exact:
        key |= {"nprobe": index.nprobe, "refine_k": index.refine_k}
    if index.type is IndexType.auto:
        key |= {"max_memory_gib": index.max_memory_gib, "gpu": import_faiss().get_num_gpus() > 0}
    return key


def choose_index_spec(index: Index, vectors: int, dimension: int) -> IndexSpec:
    """Choose how to store some number of vectors.

    `auto` is exact if the vectors fit `index.max_memory_gib`, or on a GPU, which searches blocks
    faster than a CPU searches lists.
    """
    exact = IndexSpec("exact", vectors, dimension)
    lists = 1 << int(math.log2(max(1, min(2 * math.sqrt(vectors), vectors / TRAINED_ON))))
    low_memory = IndexSpec(
        "low_memory", vectors, dimension, lists, min(index.nprobe, lists), index.refine_k
    )
    chosen = low_memory if index.type is IndexType.low_memory else exact
    if index.type is IndexType.auto:
        budget = index.max_memory_gib * GIB
        fits = exact.memory <= budget or import_faiss().get_num_gpus() > 0
        chosen = exact if fits else low_memory
        if not fits and low_memory.memory > budget:
            log.warning(
                "index: even low_memory exceeds index.max_memory_gib=%g", index.max_memory_gib
            )
    log.debug("index: %s", describe(chosen))
    return chosen


def index_bytes(index: Index, vectors: int, dimension: int) -> int:
    """Return the fewest bytes that an index takes on disk."""
    width = 4 if index.type is IndexType.exact else 2
    return width * vectors * dimension


def describe(spec: IndexSpec) -> str:
    """Describe an index and its predicted bytes in one line."""
    parts = [f"{spec.recipe}: {spec.vectors:,} × {spec.dimension}"]
    if spec.lists:
        parts.append(f"{spec.lists:,} lists, {spec.probe} read, {spec.refine} ranked again")
    parts.append(f"predicted {spec.memory:,} bytes in memory, {spec.disk:,} on disk")
    return " · ".join(parts)
