"""Nearest vectors with faiss: exactly, in blocks, or by quantised inverted lists on disk.

`exact` keeps the float32 vectors in one memory-mapped file. `low_ram` keeps one bit a dimension
(RaBitQ, Gao and Long 2024, on residuals of k-means cells, after a random rotation) in lists that
are mapped from disk, and half-precision vectors beside them, of which a search reads only the
candidates it ranks again. Both are built as a stream.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exam.errors import ExamError, spell_command
from exam.retrieval.recipes import Plan, faiss_module

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]

VECTORS = "vectors.npy"
LISTS = "index.faiss"
BLOCK_BYTES = 64 << 20  # of vectors searched at once
QUERY_BITS = 8  # of a query against one-bit codes: the query is not what takes memory


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
                f"another index with {spell_command('retrieve')}."
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
