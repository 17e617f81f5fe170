"""Indexes of articles and of passages: encoded in shards, then handed to a faiss recipe.

Under `torchrun` the shards are split over the processes; rank 0 alone holds the stage, assembles
the shards and does all that follows.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from exam.config import Corpus, Index
from exam.core import distributed
from exam.core.artifacts import Stage, load_stage, shared_stage
from exam.core.errors import ExamError
from exam.core.estimates import FP32, check_disk
from exam.core.files import checksum_matches, write_atomically, write_with_checksum
from exam.core.logging import log_progress, progress_bar
from exam.data.corpus import (
    Article,
    CorpusFile,
    check_unique_ids,
    corpus_files,
    corpus_key,
    count_articles,
    get_articles,
    iter_articles,
    title_and_first_sentence,
)
from exam.data.sentences import splitter
from exam.retrieval.building import build_vectors, cleanup_partial_build
from exam.retrieval.chunking import PassageTable
from exam.retrieval.encoder import SentenceEncoder
from exam.retrieval.recipes import IndexSpec, choose_index_spec, index_bytes, index_key
from exam.retrieval.vectors import Rows, VectorIndex, Vectors

log = logging.getLogger(__name__)

ARTICLES = "articles.parquet"
ARTICLE = pa.schema({"id": pa.string(), "title": pa.string(), "file": pa.int32()})
PASSAGE = pa.schema({"passage": pa.int64()})
Shard = tuple[pa.Table, list[str]]  # rows, and the text to encode for each


class Source(NamedTuple):
    """A stream of rows to encode, how a list of them becomes a shard, and their number."""

    stream: Iterator[Any]
    to_shard: Callable[[list[Any]], Shard]
    total: int | None  # None: unknown before the end


@dataclass(frozen=True)
class ArticleIndex:
    """The articles of a corpus by row, in the order of its files."""

    stage: Stage
    files: list[CorpusFile]
    table: pa.Table  # ARTICLE; `file` is a row of `files`

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def vectors(self) -> VectorIndex:
        """The index of the articles' titles and first sentences."""
        return open_vectors(self.stage)

    def search(self, queries: Vectors, k: int) -> Rows:
        """Return the rows of the `k` nearest articles, shape `(queries, k)`, best first."""
        return self.vectors.search(queries, k)[1]

    def find_neighbors(self, row: int, k: int) -> list[int]:
        """Return the rows of the `k` articles nearest to another, best first."""
        vector = self.vectors.vectors_at(np.array([row]))
        return [int(r) for r in self.search(vector, k + 1)[0] if r != row][:k]

    def get_articles(self, rows: list[int]) -> Iterator[tuple[int, Article]]:
        """Yield the articles at ascending rows, read one corpus file at a time."""
        chosen = self.table.take(pa.array(rows, pa.int64()))
        by_file: dict[int, dict[int, str]] = {}
        for row, article in zip(rows, chosen.to_pylist(), strict=True):
            by_file.setdefault(article["file"], {})[row] = article["id"]
        for file, ids in by_file.items():
            articles = get_articles(self.files[file], ids.values())
            yield from ((row, articles[key]) for row, key in ids.items())


@dataclass(frozen=True)
class PassageIndex:
    """The passages of a table by row."""

    stage: Stage

    @cached_property
    def vectors(self) -> VectorIndex:
        """The index of the passages with their titles."""
        return open_vectors(self.stage)

    def search(self, queries: Vectors, k: int) -> tuple[Vectors, Rows]:
        """Return scores and rows of the `k` nearest passages, `(queries, k)` each, best first."""
        return self.vectors.search(queries, k)


def open_vectors(stage: Stage) -> VectorIndex:
    """Open the vectors of a finished index."""
    return VectorIndex(stage.folder, IndexSpec(**stage.metadata["plan"]))


def build_index(
    corpus: Corpus, encoder: SentenceEncoder, index: Index, outputs: Path
) -> ArticleIndex:
    """Encode every article's title and first sentence; continue at the first missing shard.

    Raises:
        ExamError: the corpus holds no article.
    """
    files = corpus_files(corpus, outputs)
    stream = (
        (number, article)
        for number, file in enumerate(files)
        for article in check_unique_ids(file, iter_articles(file))
    )
    key = {"corpus": corpus_key(files), **splitter().key}
    source = Source(stream, _articles, count_articles(files))
    stage = _build(corpus.name, key, source, encoder, index, outputs)
    return ArticleIndex(stage, files, pq.read_table(stage.folder / ARTICLES, memory_map=True))


def build_passage_index(
    table: PassageTable, encoder: SentenceEncoder, index: Index, outputs: Path
) -> PassageIndex:
    """Encode every passage of a table; continue at the first missing shard."""
    name = table.stage.folder.name.rpartition("-")[0]
    stream = enumerate(chain.from_iterable(table.texts()))
    key = {"passages": table.stage.hash}
    source = Source(stream, _passages, len(table))
    return PassageIndex(_build(f"{name}-passages", key, source, encoder, index, outputs))


def _articles(rows: list[tuple[int, Article]]) -> Shard:
    table = [{"id": a.id, "title": a.title, "file": i} for i, a in rows]
    texts = [title_and_first_sentence(article) for _, article in rows]
    return pa.Table.from_pylist(table, ARTICLE), texts


def _passages(rows: list[tuple[int, str]]) -> Shard:
    numbers, texts = zip(*rows, strict=True)
    return pa.table({"passage": numbers}, PASSAGE), list(texts)


def _build(
    name: str,
    key: dict[str, Any],
    source: Source,
    encoder: SentenceEncoder,
    index: Index,
    outputs: Path,
) -> Stage:
    """Build an index by all processes: each encodes its shards, and rank 0 assembles them."""
    key = {**key, "encoder": encoder.key, "index": index_key(index)}
    with shared_stage(outputs, "index", f"{name}-{encoder.config.name}", key) as stage:
        if not stage.reused:
            if source.total is not None and distributed.rank() == 0:
                _check_room(stage.folder, source.total, encoder, index)
            number = _encode_shards(stage.folder, source, index.shard_size, encoder)
            distributed.barrier()
        if distributed.rank() == 0:
            if not stage.reused:
                files, facts = _assemble(stage.folder, index, number)
                stage.finish(files, **facts)
            for shard in stage.folder.glob("shard-*.parquet"):
                shard.unlink(missing_ok=True)
            cleanup_partial_build(stage.folder)
    return stage if distributed.rank() == 0 else load_stage(stage.folder)


def _shard_path(folder: Path, size: int, number: int) -> Path:
    """Return the file of a shard of `size` texts; another size has other files."""
    return folder / f"shard-{size}-{number:06d}.parquet"


def _encode_shards(folder: Path, source: Source, size: int, encoder: SentenceEncoder) -> int:
    """Encode the missing shards of this process; return the number of all shards."""
    number = 0
    with progress_bar("index", source.total, "texts") as bar:
        while rows := list(islice(source.stream, size)):
            path = _shard_path(folder, size, number)
            number += 1
            if number % distributed.world_size() == distributed.rank() and not checksum_matches(
                path
            ):
                table, texts = source.to_shard(rows)
                vectors = encoder.passages(texts)
                column = pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])
                table = table.append_column("vector", column)
                with write_with_checksum(path) as temporary:
                    pq.write_table(table, temporary, compression="none", use_dictionary=False)
                done = (number - 1) * size + len(texts)
                log_progress(log, "index: encoded %d texts", done)
            bar.update(size)
    return number


def _read_vectors(shards: list[Path]) -> Iterator[Vectors]:
    """Yield the vectors of each shard, shape `(rows, dimension)`."""
    for shard in shards:
        column = pq.read_table(shard, columns=["vector"])["vector"].combine_chunks()
        yield column.values.to_numpy().reshape(-1, column.type.list_size)


def _check_room(folder: Path, rows: int, encoder: SentenceEncoder, index: Index) -> None:
    """Refuse to encode if the disk cannot hold the missing shards and the index."""
    dimension = encoder.model.get_embedding_dimension() or 0
    written = sum(path.stat().st_size for path in folder.glob("shard-*.parquet"))
    shards = max(0, FP32 * rows * dimension - written)
    check_disk(
        f"an index of {rows:,} vectors",
        {"encoded": shards, "index": index_bytes(index, rows, dimension)},
        folder,
    )


def _assemble(folder: Path, index: Index, number: int) -> tuple[list[str], dict[str, Any]]:
    """Build the index of the vectors, and the table of the articles, one shard at a time."""
    if not number:
        raise ExamError("The corpus holds no article.\nGive one with corpus.dir= and corpus.files=")
    shards = [_shard_path(folder, index.shard_size, i) for i in range(number)]
    missing = [shard for shard in shards if not shard.is_file()]
    if missing:
        raise ExamError(
            f"{missing[0]} is missing: another process wrote it elsewhere, or not at all.\n"
            "Give every process the same outputs=<folder>, on a file system they share."
        )
    rows = sum(pq.read_metadata(shard).num_rows for shard in shards)
    schema = pq.read_schema(shards[0])
    spec = choose_index_spec(index, rows, schema.field("vector").type.list_size)
    files, facts = build_vectors(lambda: _read_vectors(shards), folder, spec)
    if schema.names[:-1] == ARTICLE.names:
        _write_articles(shards, folder / ARTICLES)
        return [ARTICLES, *files], {"articles": rows, **facts}
    return files, {"passages": rows, **facts}


def _write_articles(shards: list[Path], path: Path) -> None:
    """Write the rows of the shards without their vectors."""
    with write_atomically(path) as temporary, pq.ParquetWriter(temporary, ARTICLE) as writer:
        for shard in shards:
            writer.write_table(pq.read_table(shard, columns=ARTICLE.names))
