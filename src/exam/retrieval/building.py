"""Vectors written, trained and added as a stream, and the recall that results."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from exam.files import SEAL, atomic, is_sealed, sealed
from exam.metrics import figures
from exam.retrieval.recipes import TRAINED_ON, Plan, faiss_module
from exam.retrieval.vectors import LISTS, VECTORS, Rows, VectorIndex, Vectors, exact_search
from exam.runtime import log_progress, progress

log = logging.getLogger(__name__)

Blocks = Callable[[], Iterator[Vectors]]  # all vectors, streamed anew at every call
TRAINED = "trained.faiss"
PARTS = "part-{}.faiss"
PART_BYTES = 256 << 20  # of vectors added between two points to resume at
MEASURED_ON = 500  # queries
MEASURED_AT = (1, 3, 10)


def build_vectors(blocks: Blocks, folder: Path, plan: Plan) -> tuple[list[str], dict[str, Any]]:
    """Build an index of a stream in a folder; continue where an interrupted build stopped.

    Returns:
        The names of its files, and its facts: the plan, and the recall that was measured. What
        the build went on with stays there; see `forget_parts`.
    """
    if plan.recipe == "exact":
        with atomic(folder / VECTORS) as temporary, temporary.open("wb") as file:
            _write_header(file, plan, "<f4")
            for block in _progress(blocks(), plan, "stored"):
                file.write(np.ascontiguousarray(block).data)
        return [VECTORS], {"plan": asdict(plan)}
    if not is_sealed(folder / TRAINED):
        forget_parts(folder)  # they are of other lists
        _train(blocks, folder / TRAINED, plan)
    parts = _add(blocks, folder, plan)
    _merge(parts, folder)
    recall = _measure(blocks, VectorIndex(folder, plan))
    return [VECTORS, LISTS], {"plan": asdict(plan), "recall": recall}


def forget_parts(folder: Path) -> None:
    """Remove what an interrupted build goes on with; not before its end is noted."""
    for pattern in (PARTS.format("*"), TRAINED):
        for path in (*folder.glob(pattern), *folder.glob(SEAL.format(pattern))):
            path.unlink(missing_ok=True)


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
    with sealed(path) as temporary:
        faiss.write_index(index, str(temporary))
    log.debug("index: trained %s lists on %s vectors", f"{plan.lists:,}", f"{len(sample):,}")


def _add(blocks: Blocks, folder: Path, plan: Plan) -> list[Path]:
    """Store the vectors, and their codes in parts; whole parts are not done again.

    The vectors are: nothing tells whether those of an interrupted build are the ones written.
    """
    faiss = faiss_module()
    size = max(1, PART_BYTES // (4 * plan.dimension))
    path = folder / VECTORS
    parts = []
    with path.open("r+b" if path.exists() else "w+b") as file:
        _write_header(file, plan, "<f2")
        begin = file.tell()
        for number, block in enumerate(_progress(_regrouped(blocks(), size), plan, "added")):
            part = folder / PARTS.format(f"{number:05d}")
            parts.append(part)
            first = number * size
            file.seek(begin + 2 * first * plan.dimension)
            file.write(block.astype(np.float16).data)
            if is_sealed(part):
                continue
            index = faiss.read_index(str(folder / TRAINED))
            index.add_with_ids(block, np.arange(first, first + len(block)))
            with sealed(part) as temporary:
                faiss.write_index(index, str(temporary))
            done = first + len(block)
            log_progress(log, "index: added %d of %d vectors", done, plan.vectors)
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
        recall[f"recall_at_{k}"] = figure = figures(shares)
        log.info("index: recall@%d %.3f against exact search", k, figure["value"])
    return recall


def _others(rows: Rows, own: int) -> list[int]:
    return [int(row) for row in rows if row != own]
