"""Search vectors with faiss: exactly, in blocks, or by quantized inverted lists on disk.

`exact` stores float32 vectors in one memory-mapped file. `low_memory` stores one bit a dimension
(RaBitQ, Gao and Long 2024, on residuals of k-means cells, after a random rotation) in lists that
are mapped from disk, and half-precision vectors, of which a search reads only the candidates
that it ranks again.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exam.core.errors import ExamError, spell_command
from exam.retrieval.recipes import IndexSpec, import_faiss

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]

VECTORS = "vectors.npy"
LISTS = "index.faiss"
BLOCK_BYTES = 64 << 20  # of vectors searched at once
QUERY_BITS = 8  # of a query against one-bit codes: the query is not what takes memory


@dataclass(frozen=True)
class VectorIndex:
    """Vectors in a folder, searched by inner product. A row is a position in the stream."""

    folder: Path
    spec: IndexSpec

    def search(self, queries: Vectors, k: int) -> tuple[Vectors, Rows]:
        """Return scores and rows of the `k` nearest vectors, shape `(queries, k)`, best first.

        Raises:
            ExamError: the queries have another dimension.
        """
        k = min(k, self.spec.vectors)
        if queries.shape[1] != self.spec.dimension:
            raise ExamError(
                f"{self.folder} holds {self.spec.dimension}-d vectors, but the encoder gives "
                f"{queries.shape[1]}-d queries.\nChoose the encoder it was built with, or build "
                f"another index with {spell_command('retrieve')}."
            )
        if not len(queries):
            return np.empty((0, k), np.float32), np.empty((0, k), np.int64)
        if self.spec.recipe == "exact":
            return exact_search(queries, self.blocks(), k)
        return self._refine(queries, self._candidates(queries, k), k)

    def blocks(self) -> Iterator[Vectors]:
        """Yield the stored vectors in blocks; each mapping ends before the next begins."""
        size = max(1, BLOCK_BYTES // (4 * self.spec.dimension))
        for start in range(0, self.spec.vectors, size):
            yield np.asarray(self._stored[start : start + size], dtype=np.float32)

    @property
    def _stored(self) -> Any:
        """All vectors in a new mapping, whose pages are freed with it."""
        return np.load(self.folder / VECTORS, mmap_mode="r", allow_pickle=False)

    def vectors_at(self, rows: Sequence[int] | Rows) -> Vectors:
        """Return the vectors of some rows, shape `(rows, dimension)`.

        They are read, not mapped: a mapping would load 64 KiB around each row.
        """
        stored = self._stored
        vectors = np.empty((len(rows), self.spec.dimension), stored.dtype)
        with (self.folder / VECTORS).open("rb", buffering=0) as file:
            for vector, row in zip(vectors, rows, strict=True):
                file.seek(stored.offset + int(row) * vector.nbytes)
                file.readinto(vector.data)
        return vectors.astype(np.float32)

    @cached_property
    def _lists(self) -> Any:
        """The faiss index, its lists mapped."""
        faiss = import_faiss()
        return faiss.read_index(str(self.folder / LISTS), faiss.IO_FLAG_MMAP)

    def _candidates(self, queries: Vectors, k: int) -> Rows:
        """Return the rows of the nearest codes, at least `k` a query."""
        faiss = import_faiss()
        count = min(max(self.spec.refine, k), self.spec.vectors)
        for probe in (self.spec.probe, self.spec.lists):  # all, where some lists hold too few
            inner = faiss.IVFRaBitQSearchParameters(nprobe=probe)
            inner.qb = QUERY_BITS
            params = faiss.SearchParametersPreTransform(index_params=inner)
            _, rows = self._lists.search(queries, count, params=params)
            if (rows[:, k - 1] >= 0).all():
                break
        candidates: Rows = rows
        return candidates

    def _refine(self, queries: Vectors, candidates: Rows, k: int) -> tuple[Vectors, Rows]:
        """Rank the candidates by their stored vectors; return scores and rows of the best `k`."""
        scores = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int64)
        for i, (query, numbers) in enumerate(zip(queries, candidates, strict=True)):
            ordered = np.sort(numbers[numbers >= 0])  # as in the file
            similarity = self.vectors_at(ordered) @ query
            best = np.argsort(-similarity, kind="stable")[:k]
            scores[i], rows[i] = similarity[best], ordered[best]
        return scores, rows


def exact_search(queries: Vectors, blocks: Iterable[Vectors], k: int) -> tuple[Vectors, Rows]:
    """Return scores and rows of the `k` nearest vectors of a stream, searched on all GPUs."""
    inner_product = import_faiss().METRIC_INNER_PRODUCT
    from faiss.contrib.exhaustive_search import knn_ground_truth

    scores, rows = knn_ground_truth(queries, blocks, k, inner_product, shard=True)
    return scores, rows
