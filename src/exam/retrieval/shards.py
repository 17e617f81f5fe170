"""Shards of a stream of texts: encoded once, by whichever process, and read again in order."""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from exam import ranks
from exam.files import is_sealed, sealed
from exam.retrieval.encoder import SentenceEncoder
from exam.retrieval.vectors import Vectors
from exam.runtime import log_progress, progress

log = logging.getLogger(__name__)

Shard = tuple[pa.Table, list[str]]  # rows, and the text that stands for each


def cut(
    stream: Iterator[Any], size: int, shard: Callable[[list[Any]], Shard]
) -> Iterator[Callable[[], Shard]]:
    """Shards of `size` rows, worked out only where they are encoded."""
    while rows := list(islice(stream, size)):
        yield partial(shard, rows)


def shard_path(folder: Path, size: int, number: int) -> Path:
    """Where a shard of so many texts lies; other sizes have other files."""
    return folder / f"shard-{size}-{number:06d}.parquet"


def encode_shards(
    folder: Path,
    shards: Iterator[Callable[[], Shard]],
    rows: int | None,
    size: int,
    encoder: SentenceEncoder,
) -> int:
    """Encode every shard that is this process's and not yet there; how many shards there are."""
    number = 0
    with progress("index", rows, "texts") as bar:
        for number, shard in enumerate(shards, 1):
            path = shard_path(folder, size, number - 1)
            if number % ranks.world_size() == ranks.rank() and not is_sealed(path):
                table, texts = shard()
                with sealed(path) as temporary:
                    pq.write_table(
                        with_vectors(table, encoder.passages(texts)),
                        temporary,
                        compression="none",
                        use_dictionary=False,
                    )
                done = (number - 1) * size + len(texts)
                log_progress(log, "index: encoded %d texts", done)
            bar.update(size)
    return number


def with_vectors(table: pa.Table, vectors: Vectors) -> pa.Table:
    """The table with a column of vectors, shape `(rows, dimension)`."""
    column = pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])
    return table.append_column("vector", column)


def vectors_of(table: pa.Table) -> Vectors:
    """The vectors that `with_vectors` added."""
    column = table["vector"].combine_chunks()
    vectors: Vectors = column.values.to_numpy().reshape(-1, column.type.list_size)
    return vectors


def vector_blocks(shards: list[Path]) -> Iterator[Vectors]:
    """The shards' vectors, a shard at a time."""
    for shard in shards:
        yield vectors_of(pq.read_table(shard, columns=["vector"]))
