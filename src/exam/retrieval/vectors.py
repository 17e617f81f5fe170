"""Build and search vector indexes with faiss: exact, or quantized inverted lists on disk.

An exact index is one memory-mapped file of float32 vectors. A `low_memory` index stores one bit a
dimension (RaBitQ, Gao and Long 2024, on residuals of k-means cells, after a random rotation) in
lists that are mapped from disk, and half-precision vectors. A search reads only the vectors of the
candidates that it ranks again.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exam.config import Index, IndexType
from exam.core.errors import ExamError, spell_command
from exam.core.estimates import FP32, GIB
from exam.core.files import checksum_matches, write_atomically, write_with_checksum
from exam.core.logging import log_progress, progress_bar
from exam.metrics import summarize

log = logging.getLogger(__name__)

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]
Blocks = Callable[[], Iterator[Vectors]]  # streams all vectors anew at every call

VECTORS = "vectors.npy"
LISTS = "index.faiss"
TRAINED = "trained.faiss"
PARTS = "part-{}.faiss"
PART_BYTES = 256 << 20  # of vectors that an interrupted build adds again, at most
BLOCK_BYTES = 64 << 20  # of vectors to search at once
TRAINED_ON = 64  # vectors a list; faiss asks for 39 to 256
QUERY_BITS = 8  # of a query against one-bit codes: queries take little memory
RECALL_QUERIES = 500
RECALL_DEPTHS = (1, 3, 10)


def import_faiss() -> Any:
    """Import faiss after torch: the other order can crash."""
    import torch  # noqa: F401, I001
    import faiss

    return faiss


@dataclass(frozen=True)
class IndexSpec:
    """The size of an index and, if it is not exact, the parameters of its lists."""

    vectors: int
    dimension: int
    lists: int = 0  # 0: exact
    nprobe: int = 0  # lists to read for each query
    refine_k: int = 0  # candidates to rank again for each query

    @property
    def value_bytes(self) -> int:
        """Bytes of a stored value: float16 beside lists, else float32."""
        return FP32 // 2 if self.lists else FP32

    @property
    def list_bytes(self) -> int:
        """Bytes of the lists, their centroids and the rotation."""
        d = self.dimension
        code = math.ceil(d / 8) + 8 + 8  # a bit a dimension, two factors and an id
        return self.vectors * code + FP32 * d * (self.lists + d) if self.lists else 0

    @property
    def memory(self) -> int:
        """Bytes that a warm search keeps in memory, with mapped pages."""
        return self.list_bytes or FP32 * self.vectors * self.dimension

    @property
    def disk(self) -> int:
        """Bytes on disk."""
        return self.value_bytes * self.vectors * self.dimension + self.list_bytes


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
    exact = IndexSpec(vectors, dimension)
    lists = 1 << int(math.log2(max(1, min(2 * math.sqrt(vectors), vectors / TRAINED_ON))))
    low_memory = IndexSpec(vectors, dimension, lists, min(index.nprobe, lists), index.refine_k)
    spec = low_memory if index.type is IndexType.low_memory else exact
    if index.type is IndexType.auto:
        budget = index.max_memory_gib * GIB
        if exact.memory > budget and not import_faiss().get_num_gpus():
            spec = low_memory
            if spec.memory > budget:
                log.warning(
                    "index: even low_memory exceeds index.max_memory_gib=%g", index.max_memory_gib
                )
    log.debug("index: %s · %d bytes in memory, %d on disk", spec, spec.memory, spec.disk)
    return spec


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
        if not self.spec.lists:
            return exact_search(queries, self.blocks(), k)
        return self._refine(queries, self._candidates(queries, k), k)

    def blocks(self) -> Iterator[Vectors]:
        """Yield the stored vectors in blocks; each mapping ends before the next begins."""
        size = max(1, BLOCK_BYTES // (FP32 * self.spec.dimension))
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
        """Return the rows of the nearest codes, at least `k` for each query."""
        faiss = import_faiss()
        count = min(max(self.spec.refine_k, k), self.spec.vectors)
        for nprobe in (self.spec.nprobe, self.spec.lists):  # all, if some lists hold too few
            inner = faiss.IVFRaBitQSearchParameters(nprobe=nprobe)
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


def build_vectors(
    blocks: Blocks, folder: Path, spec: IndexSpec
) -> tuple[list[str], dict[str, Any]]:
    """Build an index of a stream in a folder; continue where an interrupted build stopped.

    Return the names of its files, and its facts: the spec and the measured recall. The files of
    an interrupted build stay until `cleanup_partial_build`.
    """
    if not spec.lists:
        for _ in _store(_track(blocks(), spec, "stored"), folder, spec):
            pass
        return [VECTORS], {"spec": asdict(spec)}
    if not checksum_matches(folder / TRAINED):
        cleanup_partial_build(folder)  # parts of other lists
        _train(blocks, folder / TRAINED, spec)
    _merge(_add(blocks, folder, spec), folder)
    recall = _measure_recall(blocks, VectorIndex(folder, spec))
    return [VECTORS, LISTS], {"spec": asdict(spec), "recall": recall}


def cleanup_partial_build(folder: Path) -> None:
    """Remove the files that an interrupted build continues with, once the build is recorded."""
    for pattern in (PARTS.format("*"), TRAINED):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def _track(blocks: Iterator[Vectors], spec: IndexSpec, what: str) -> Iterator[Vectors]:
    """Yield the blocks, with a progress bar."""
    with progress_bar(what, spec.vectors, "vectors") as bar:
        for block in blocks:
            yield block
            bar.update(len(block))


def _store(blocks: Iterator[Vectors], folder: Path, spec: IndexSpec) -> Iterator[Vectors]:
    """Write the vectors to a `.npy` file, and yield each block once it is written."""
    shape, dtype = (spec.vectors, spec.dimension), f"<f{spec.value_bytes}"
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    with write_atomically(folder / VECTORS) as temporary, temporary.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype).data)
            yield block


def _sample(blocks: Blocks, spec: IndexSpec, count: int, seed: int) -> tuple[Vectors, Rows]:
    """Draw vectors at random; return them and their rows, in ascending order."""
    rows = np.random.default_rng(seed).choice(
        spec.vectors, min(count, spec.vectors), replace=False, shuffle=False
    )
    rows.sort()
    sample = np.empty((len(rows), spec.dimension), np.float32)
    start = 0
    for block in blocks():
        a, b = np.searchsorted(rows, [start, start + len(block)])
        sample[a:b] = block[rows[a:b] - start]
        start += len(block)
    return sample, rows


def _train(blocks: Blocks, path: Path, spec: IndexSpec) -> None:
    """Learn rotation and cells on a sample; k-means runs on all GPUs."""
    faiss = import_faiss()
    d = spec.dimension
    index = faiss.index_factory(d, f"RR{d},IVF{spec.lists},RaBitQ", faiss.METRIC_INNER_PRODUCT)
    cells = faiss.extract_index_ivf(index)
    cells.cp.max_points_per_centroid = TRAINED_ON
    cells.cp.min_points_per_centroid = 1  # a search of a small index reads all lists anyway
    flat = faiss.IndexFlatIP(d)
    if faiss.get_num_gpus():
        flat = faiss.index_cpu_to_all_gpus(flat)
    cells.clustering_index = flat
    sample, _ = _sample(blocks, spec, TRAINED_ON * spec.lists, seed=0)
    index.train(sample)
    cells.clustering_index = None
    with write_with_checksum(path) as temporary:
        faiss.write_index(index, str(temporary))
    log.debug("index: trained %s lists on %s vectors", f"{spec.lists:,}", f"{len(sample):,}")


def _add(blocks: Blocks, folder: Path, spec: IndexSpec) -> list[Path]:
    """Store all vectors again, and their codes in parts; keep finished parts."""
    faiss = import_faiss()
    parts: list[Path] = []
    first = 0
    for block in _store(_track(_regroup(blocks(), spec), spec, "added"), folder, spec):
        part = folder / PARTS.format(f"{len(parts):05d}")
        end = first + len(block)
        if not checksum_matches(part):
            index = faiss.read_index(str(folder / TRAINED))
            index.add_with_ids(block, np.arange(first, end))
            with write_with_checksum(part) as temporary:
                faiss.write_index(index, str(temporary))
            log_progress(log, "index: added %d of %d vectors", end, spec.vectors)
        parts.append(part)
        first = end
    return parts


def _regroup(blocks: Iterator[Vectors], spec: IndexSpec) -> Iterator[Vectors]:
    """Yield the vectors in blocks of PART_BYTES, in one buffer; the last block may be shorter."""
    size = min(max(1, PART_BYTES // (FP32 * spec.dimension)), spec.vectors)
    buffer = np.empty((size, spec.dimension), np.float32)
    filled = 0
    for block in blocks:
        start = 0
        while start < len(block):
            piece = block[start : start + size - filled]
            buffer[filled : filled + len(piece)] = piece
            start, filled = start + len(piece), filled + len(piece)
            if filled == size:
                yield buffer
                filled = 0
    if filled:
        yield buffer[:filled]


def _merge(parts: list[Path], folder: Path) -> None:
    """Join the lists of the parts into one file; memory holds their codes, not the vectors."""
    faiss = import_faiss()
    index = faiss.read_index(str(folder / TRAINED))
    cells = faiss.extract_index_ivf(index)
    for path in parts:
        part = faiss.read_index(str(path))
        cells.merge_from(faiss.extract_index_ivf(part), 0)
    index.ntotal = cells.ntotal
    with write_atomically(folder / LISTS) as temporary:
        faiss.write_index(index, str(temporary))


def _measure_recall(blocks: Blocks, index: VectorIndex) -> dict[str, Any]:
    """Measure recall against exact search, with sampled vectors as queries."""
    queries, numbers = _sample(blocks, index.spec, RECALL_QUERIES, seed=1)
    deepest = min(max(RECALL_DEPTHS) + 1, index.spec.vectors)
    rankings = zip(
        exact_search(queries, blocks(), deepest)[1], index.search(queries, deepest)[1], strict=True
    )
    # Every query is itself a stored vector, its own nearest one.
    pairs = [(a[a != n], b[b != n]) for (a, b), n in zip(rankings, numbers, strict=True)]
    recall: dict[str, Any] = {"queries": len(queries)}
    for k in (k for k in RECALL_DEPTHS if k < deepest):
        shares = [len(np.intersect1d(a[:k], b[:k])) / k for a, b in pairs]
        recall[f"recall_at_{k}"] = figure = summarize(np.array(shares))
        log.info("index: recall@%d %.3f against exact search", k, figure["value"])
    return recall
