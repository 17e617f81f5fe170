"""How an index stores its vectors: the recipe, its numbers, what it takes."""

import logging
import math
from dataclasses import dataclass
from typing import Any

from exam.config import Index, Recipe

log = logging.getLogger(__name__)

TRAINED_ON = 64  # vectors a list; faiss asks for 39 to 256
GIB = 1 << 30


@dataclass(frozen=True)
class Plan:
    """A recipe with its numbers. `lists`, `probe` and `refine` are those of `low_ram`."""

    recipe: str
    vectors: int
    dimension: int
    lists: int = 0
    probe: int = 0
    refine: int = 0

    @property
    def memory(self) -> int:
        """Bytes that a warm search keeps in memory, mapped pages counted."""
        exact = 4 * self.vectors * self.dimension
        return exact if self.recipe == "exact" else self._lists

    @property
    def disk(self) -> int:
        """Bytes on disk."""
        width = 4 if self.recipe == "exact" else 2
        return width * self.vectors * self.dimension + self._lists

    @property
    def _lists(self) -> int:
        """Lists (a bit a dimension, two factors and an id a vector), centroids, rotation."""
        d = self.dimension
        code = math.ceil(d / 8) + 8 + 8
        return (self.vectors * code + 4 * d * (self.lists + d)) if self.lists else 0


def faiss_module() -> Any:
    """The faiss module; importing it before torch can crash."""
    import torch  # noqa: F401, I001
    import faiss

    return faiss


def recipe_key(index: Index) -> dict[str, Any]:
    """What of the configuration, and for `auto` of the machine, determines the index."""
    key: dict[str, Any] = {"recipe": index.recipe.value}
    if index.recipe is not Recipe.exact:
        key |= {"probe": index.probe, "refine": index.refine}
    if index.recipe is Recipe.auto:
        key |= {"memory_gib": index.memory_gib, "gpu": faiss_module().get_num_gpus() > 0}
    return key


def plan_index(index: Index, vectors: int, dimension: int) -> Plan:
    """The recipe for so many vectors; `auto` takes the exact one where it is affordable.

    Affordable is what fits `index.memory_gib`, or a GPU, which searches block after block faster
    than a processor searches lists.
    """
    exact = Plan("exact", vectors, dimension)
    lists = 1 << int(math.log2(max(1, min(2 * math.sqrt(vectors), vectors / TRAINED_ON))))
    low_ram = Plan("low_ram", vectors, dimension, lists, min(index.probe, lists), index.refine)
    chosen = low_ram if index.recipe is Recipe.low_ram else exact
    if index.recipe is Recipe.auto:
        budget = index.memory_gib * GIB
        fits = exact.memory <= budget or faiss_module().get_num_gpus() > 0
        chosen = exact if fits else low_ram
        if not fits and low_ram.memory > budget:
            log.warning("index: even low_ram exceeds index.memory_gib=%g", index.memory_gib)
    log.debug("index: %s", describe(chosen))
    return chosen


def index_bytes(index: Index, vectors: int, dimension: int) -> int:
    """Return the fewest bytes that an index takes on disk."""
    width = 4 if index.recipe is Recipe.exact else 2
    return width * vectors * dimension


def describe(plan: Plan) -> str:
    """One line: the recipe, its numbers and the bytes it will take."""
    parts = [f"{plan.recipe}: {plan.vectors:,} × {plan.dimension}"]
    if plan.lists:
        parts.append(f"{plan.lists:,} lists, {plan.probe} read, {plan.refine} ranked again")
    parts.append(f"predicted {plan.memory:,} bytes in memory, {plan.disk:,} on disk")
    return " · ".join(parts)
