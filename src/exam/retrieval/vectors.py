"""Nearest vectors with faiss: exactly, in blocks, or by quantised inverted lists on disk.

`exact` keeps the float32 vectors in one memory-mapped file. `low_ram` keeps one bit a dimension
(RaBitQ, Gao and Long 2024, on residuals of k-means cells, after a random rotation) in lists that
are mapped from disk, and half-precision vectors beside them, of which a search reads only the
candidates it ranks again. Both are built as a stream.
"""

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exam.config import Index, Recipe
from exam.errors import ExamError
from exam.files import atomic
from exam.metrics import estimate
from exam.runtime import progress

log = logging.getLogger(__name__)

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]
Blocks = Callable[[], Iterator[Vectors]]  # all vectors, streamed anew at every call

VECTORS = "vectors.npy"
LISTS = "index.faiss"
TRAINED = "trained.faiss"
BLOCK_BYTES = 64 << 20  # of vectors searched at once
PART_BYTES = 256 << 20  # of vectors added between two points to resume at
TRAINED_ON = 64  # vectors a list; faiss asks for 39 to 256
QUERY_BITS = 8  # of a query against one-bit codes: the query is not what takes memory
MEASURED_ON = 500  # queries
MEASURED_AT = (1, 3, 10)
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
    log.info("index: %s", describe(chosen))
    return chosen


def describe(plan: Plan) -> str:
    """One line: the recipe, its numbers and the bytes it will take."""
    parts = [f"{plan.recipe}: {plan.vectors:,} × {plan.dimension}"]
    if plan.lists:
        parts.append(f"{plan.lists:,} lists, {plan.probe} read, {plan.refine} ranked again")
    parts.append(f"predicted {plan.memory:,} bytes in memory, {plan.disk:,} on disk")
    return " · ".join(parts)


@dataclass(frozen=True)
class VectorIndex:
    """Vectors in a folder, searched by inner product. A row is a vector's place in the stream."""

    folder: Path
    plan: Plan

    def search(self, queries: Vectors, k: int) -> tuple[Vectors, Rows]:
        """Scores and rows of the `k` nearest vectors, shape `(queries, k)` each, best first.

        Raises:
            ExamError: the queries have another dimension.
        """
        k = min(k, self.plan.vectors)
        if queries.shape[1] != self.plan.dimension:
            raise ExamError(
                f"{self.folder} holds {self.plan.dimension}-d vectors, but the encoder gives "
                f"{queries.shape[1]}-d queries.\nChoose the encoder it was built with, or build "
                "another index with retrieve.py."
            )
        if not len(queries):
            return np.empty((0, k), np.float32), np.empty((0, k), np.int64)
        if self.plan.recipe == "exact":
            return exact_search(queries, self.blocks(), k)
        return self._refined(queries, self._candidates(queries, k), k)

    def blocks(self) -> Iterator[Vectors]:
        """The stored vectors in order; each block's mapping ends before the next begins."""
        size = max(1, BLOCK_BYTES // (4 * self.plan.dimension))
        for start in range(0, self.plan.vectors, size):
            yield np.asarray(self._stored[start : start + size], dtype=np.float32)

    @property
    def _stored(self) -> Any:
        """All vectors, freshly mapped: pages that were read go when the mapping does."""
        return np.load(self.folder / VECTORS, mmap_mode="r", allow_pickle=False)

    def vectors_at(self, rows: Sequence[int] | Rows) -> Vectors:
        """The vectors of some rows, shape `(rows, dimension)`.

        Read, not mapped: touching single rows of a mapping brings 64 KiB around each into memory.
        """
        stored = self._stored
        found = np.empty((len(rows), self.plan.dimension), stored.dtype)
        with (self.folder / VECTORS).open("rb", buffering=0) as file:
            for place, row in zip(found, rows, strict=True):
                file.seek(stored.offset + int(row) * place.nbytes)
                file.readinto(place.data)
        return found.astype(np.float32)

    @cached_property
    def _lists(self) -> Any:
        """The faiss index, its lists mapped."""
        faiss = faiss_module()
        return faiss.read_index(str(self.folder / LISTS), faiss.IO_FLAG_MMAP)

    def _candidates(self, queries: Vectors, k: int) -> Rows:
        """Rows of the vectors whose codes are nearest, at least `k` a query."""
        faiss = faiss_module()
        wanted = min(max(self.plan.refine, k), self.plan.vectors)
        for probe in (self.plan.probe, self.plan.lists):  # all, where some lists hold too few
            inner = faiss.IVFRaBitQSearchParameters(nprobe=probe)
            inner.qb = QUERY_BITS
            params = faiss.SearchParametersPreTransform(index_params=inner)
            _, rows = self._lists.search(queries, wanted, params=params)
            if (rows[:, k - 1] >= 0).all():
                break
        found: Rows = rows
        return found

    def _refined(self, queries: Vectors, candidates: Rows, k: int) -> tuple[Vectors, Rows]:
        """The best `k` candidates by their stored vectors."""
        scores = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int64)
        for i, (query, own) in enumerate(zip(queries, candidates, strict=True)):
            own = np.sort(own[own >= 0])  # noqa: PLW2901 (read in the order of the file)
            similar = self.vectors_at(own) @ query
            best = np.argsort(-similar, kind="stable")[:k]
            scores[i], rows[i] = similar[best], own[best]
        return scores, rows


def exact_search(queries: Vectors, blocks: Iterable[Vectors], k: int) -> tuple[Vectors, Rows]:
    """Scores and rows of the `k` nearest of a stream, a block at a time, on the GPUs there are."""
    inner_product = faiss_module().METRIC_INNER_PRODUCT
    from faiss.contrib.exhaustive_search import knn_ground_truth

    scores, rows = knn_ground_truth(queries, blocks, k, inner_product, shard=True)
    return scores, rows


def build_vectors(blocks: Blocks, folder: Path, plan: Plan) -> tuple[list[str], dict[str, Any]]:
    """Build an index of a stream in a folder; continue where an interrupted build stopped.

    Returns:
        The names of its files, and its facts: the plan, and the recall that was measured.
    """
    if plan.recipe == "exact":
        with atomic(folder / VECTORS) as temporary, temporary.open("wb") as file:
            _write_header(file, plan, "<f4")
            for block in _progress(blocks(), plan, "stored"):
                block.tofile(file)
        return [VECTORS], {"plan": asdict(plan)}
    if not (folder / TRAINED).is_file():
        _train(blocks, folder / TRAINED, plan)
    parts = _add(blocks, folder, plan)
    _merge(parts, folder)
    recall = _measure(blocks, VectorIndex(folder, plan))
    for path in (folder / TRAINED, *parts):
        path.unlink()
    return [VECTORS, LISTS], {"plan": asdict(plan), "recall": recall}


def _progress(blocks: Iterator[Vectors], plan: Plan, what: str) -> Iterator[Vectors]:
    """The blocks, with a bar where a person watches."""
    with progress(what, plan.vectors, "vectors") as bar:
        for block in blocks:
            yield block
            bar.update(len(block))


def _write_header(file: Any, plan: Plan, kind: str) -> None:
    """Begin a `.npy` file, whose rows follow as a stream."""
    shape = (plan.vectors, plan.dimension)
    header = {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _sample(blocks: Blocks, plan: Plan, wanted: int, seed: int) -> tuple[Vectors, Rows]:
    """Vectors of rows drawn at random, in ascending order, and the rows."""
    chosen = np.random.default_rng(seed).choice(
        plan.vectors, min(wanted, plan.vectors), replace=False, shuffle=False
    )
    chosen.sort()
    found = np.empty((len(chosen), plan.dimension), np.float32)
    start = 0
    for block in blocks():
        a, b = np.searchsorted(chosen, [start, start + len(block)])
        found[a:b] = block[chosen[a:b] - start]
        start += len(block)
    return found, chosen


def _train(blocks: Blocks, path: Path, plan: Plan) -> None:
    """Learn rotation and cells on a sample; k-means runs on the GPUs there are."""
    faiss = faiss_module()
    d = plan.dimension
    index = faiss.index_factory(d, f"RR{d},IVF{plan.lists},RaBitQ", faiss.METRIC_INNER_PRODUCT)
    cells = faiss.extract_index_ivf(index)
    cells.cp.max_points_per_centroid = TRAINED_ON
    cells.cp.min_points_per_centroid = 1  # small indexes are searched whole anyway
    flat = faiss.IndexFlatIP(d)
    if faiss.get_num_gpus():
        flat = faiss.index_cpu_to_all_gpus(flat)
    cells.clustering_index = flat
    sample, _ = _sample(blocks, plan, TRAINED_ON * plan.lists, seed=0)
    index.train(sample)
    cells.clustering_index = None
    with atomic(path) as temporary:
        faiss.write_index(index, str(temporary))
    log.info("index: trained %s lists on %s vectors", f"{plan.lists:,}", f"{len(sample):,}")


def _add(blocks: Blocks, folder: Path, plan: Plan) -> list[Path]:
    """Store the vectors, and their codes in parts; whole parts are not done again."""
    faiss = faiss_module()
    size = max(1, PART_BYTES // (4 * plan.dimension))
    path = folder / VECTORS
    parts = []
    with path.open("r+b" if path.exists() else "w+b") as file:
        _write_header(file, plan, "<f2")
        begin = file.tell()
        for number, block in enumerate(_progress(_regrouped(blocks(), size), plan, "added")):
            part = folder / f"part-{number:05d}.faiss"
            parts.append(part)
            if part.is_file():
                continue
            first = number * size
            file.seek(begin + 2 * first * plan.dimension)
            block.astype(np.float16).tofile(file)
            file.flush()
            os.fsync(file.fileno())
            index = faiss.read_index(str(folder / TRAINED))
            index.add_with_ids(block, np.arange(first, first + len(block)))
            with atomic(part) as temporary:
                faiss.write_index(index, str(temporary))
            log.info("index: added %s of %s vectors", f"{first + len(block):,}", plan.vectors)
    return parts


def _regrouped(blocks: Iterator[Vectors], size: int) -> Iterator[Vectors]:
    """The same vectors in blocks of `size`, the last one shorter."""
    held: list[Vectors] = []
    count = 0
    for block in blocks:
        rest = block
        while count + len(rest) >= size:
            yield np.concatenate([*held, rest[: size - count]])
            rest = rest[size - count :]
            held, count = [], 0
        if len(rest):
            held.append(rest)
            count += len(rest)
    if held:
        yield np.concatenate(held)


def _merge(parts: list[Path], folder: Path) -> None:
    """Join the parts' lists into one file. Their codes, not the vectors, are held meanwhile."""
    faiss = faiss_module()
    index = faiss.read_index(str(folder / TRAINED))
    cells = faiss.extract_index_ivf(index)
    for path in parts:
        part = faiss.read_index(str(path))
        cells.merge_from(faiss.extract_index_ivf(part), 0)
    index.ntotal = cells.ntotal
    with atomic(folder / LISTS) as temporary:
        faiss.write_index(index, str(temporary))


def _measure(blocks: Blocks, index: VectorIndex) -> dict[str, Any]:
    """Recall against exact search; the queries are sampled vectors, without themselves."""
    queries, own = _sample(blocks, index.plan, MEASURED_ON, seed=1)
    deepest = min(max(MEASURED_AT) + 1, index.plan.vectors)
    exact = exact_search(queries, blocks(), deepest)[1]
    found = index.search(queries, deepest)[1]
    recall: dict[str, Any] = {"queries": len(queries)}
    for k in (k for k in MEASURED_AT if k < deepest):
        shares = np.array(
            [
                len(set(_others(a, row)[:k]) & set(_others(b, row)[:k])) / k
                for a, b, row in zip(exact, found, own, strict=True)
            ]
        )
        figure = estimate(shares)
        recall[f"recall_at_{k}"] = {"value": figure.value, "ci": [figure.low, figure.high]}
        log.info("index: recall@%d %.3f against exact search (n = %d)", k, figure.value, figure.n)
    return recall


def _others(rows: Rows, own: int) -> list[int]:
    return [int(row) for row in rows if row != own]
