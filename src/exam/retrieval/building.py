"""Build a vector index from a stream of vectors, and measure its recall."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from exam.core.files import checksum_matches, write_atomically, write_with_checksum
from exam.core.logging import log_progress, progress_bar
from exam.metrics import summarize
from exam.retrieval.recipes import TRAINED_ON, IndexSpec, import_faiss
from exam.retrieval.vectors import LISTS, VECTORS, Rows, VectorIndex, Vectors, exact_search

log = logging.getLogger(__name__)

Blocks = Callable[[], Iterator[Vectors]]  # all vectors, streamed anew at every call
TRAINED = "trained.faiss"
PARTS = "part-{}.faiss"
PART_BYTES = 256 << 20  # of vectors added between two points to resume at
MEASURED_ON = 500  # queries
MEASURED_AT = (1, 3, 10)


def build_vectors(
    blocks: Blocks, folder: Path, spec: IndexSpec
) -> tuple[list[str], dict[str, Any]]:
    """Build an index of a stream in a folder; continue where an interrupted build stopped.

    Returns:
        The names of its files, and its facts: the spec and the measured recall. The files of an
        interrupted build stay until `cleanup_partial_build`.
    """
    if spec.recipe == "exact":
        with write_atomically(folder / VECTORS) as temporary, temporary.open("wb") as file:
            _write_header(file, spec, "<f4")
            for block in _track(blocks(), spec, "stored"):
                file.write(np.ascontiguousarray(block).data)
        return [VECTORS], {"plan": asdict(spec)}
    if not checksum_matches(folder / TRAINED):
        cleanup_partial_build(folder)  # they are of other lists
        _train(blocks, folder / TRAINED, spec)
    parts = _add(blocks, folder, spec)
    _merge(parts, folder)
    recall = _measure(blocks, VectorIndex(folder, spec))
    return [VECTORS, LISTS], {"plan": asdict(spec), "recall": recall}


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


def _write_header(file: Any, spec: IndexSpec, kind: str) -> None:
    """Write the header of a `.npy` file, whose rows follow as a stream."""
    shape = (spec.vectors, spec.dimension)
    header = {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _sample(blocks: Blocks, spec: IndexSpec, count: int, seed: int) -> tuple[Vectors, Rows]:
    """Draw vectors at random; return them and their rows, in ascending order."""
    chosen = np.random.default_rng(seed).choice(
        spec.vectors, min(count, spec.vectors), replace=False, shuffle=False
    )
    chosen.sort()
    sample = np.empty((len(chosen), spec.dimension), np.float32)
    start = 0
    for block in blocks():
        a, b = np.searchsorted(chosen, [start, start + len(block)])
        sample[a:b] = block[chosen[a:b] - start]
        start += len(block)
    return sample, chosen


def _train(blocks: Blocks, path: Path, spec: IndexSpec) -> None:
    """Learn rotation and cells on a sample; k-means runs on all GPUs."""
    faiss = import_faiss()
    d = spec.dimension
    index = faiss.index_factory(d, f"RR{d},IVF{spec.lists},RaBitQ", faiss.METRIC_INNER_PRODUCT)
    cells = faiss.extract_index_ivf(index)
    cells.cp.max_points_per_centroid = TRAINED_ON
    cells.cp.min_points_per_centroid = 1  # small indexes are searched whole anyway
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
    """Store the vectors, and their codes in parts; finished parts are kept.

    The vectors are written again: they have no checksum before the build is complete.
    """
    faiss = import_faiss()
    size = max(1, PART_BYTES // (4 * spec.dimension))
    path = folder / VECTORS
    parts = []
    with path.open("r+b" if path.exists() else "w+b") as file:
        _write_header(file, spec, "<f2")
        begin = file.tell()
        for number, block in enumerate(_track(_regroup(blocks(), size), spec, "added")):
            part = folder / PARTS.format(f"{number:05d}")
            parts.append(part)
            first = number * size
            file.seek(begin + 2 * first * spec.dimension)
            file.write(block.astype(np.float16).data)
            if checksum_matches(part):
                continue
            index = faiss.read_index(str(folder / TRAINED))
            index.add_with_ids(block, np.arange(first, first + len(block)))
            with write_with_checksum(part) as temporary:
                faiss.write_index(index, str(temporary))
            done = first + len(block)
            log_progress(log, "index: added %d of %d vectors", done, spec.vectors)
    return parts


def _regroup(blocks: Iterator[Vectors], size: int) -> Iterator[Vectors]:
    """Yield the vectors in blocks of `size`; the last one may be shorter."""
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


def _measure(blocks: Blocks, index: VectorIndex) -> dict[str, Any]:
    """Measure recall against exact search, with sampled vectors as queries."""
    queries, numbers = _sample(blocks, index.spec, MEASURED_ON, seed=1)
    deepest = min(max(MEASURED_AT) + 1, index.spec.vectors)
    exact = exact_search(queries, blocks(), deepest)[1]
    approximate = index.search(queries, deepest)[1]
    recall: dict[str, Any] = {"queries": len(queries)}
    for k in (k for k in MEASURED_AT if k < deepest):
        shares = np.array(
            [
                len(set(_without(a, row)[:k]) & set(_without(b, row)[:k])) / k
                for a, b, row in zip(exact, approximate, numbers, strict=True)
            ]
        )
        recall[f"recall_at_{k}"] = figure = summarize(shares)
        log.info("index: recall@%d %.3f against exact search", k, figure["value"])
    return recall


def _without(rows: Rows, query: int) -> list[int]:
    return [int(row) for row in rows if row != query]
