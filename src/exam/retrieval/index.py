"""Encode the articles or passages of a corpus in shards, and index their vectors.

Under `torchrun` the processes share the shards; only rank 0 opens the stage and assembles them.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from exam.config import Index, IndexType
from exam.core import distributed
from exam.core.artifacts import Stage, load_stage, shared_stage
from exam.core.errors import ExamError
from exam.core.estimates import FP32, check_disk
from exam.core.files import checksum_matches, write_atomically, write_with_checksum
from exam.core.logging import progress_bar
from exam.data.articles import (
    Article,
    CorpusFile,
    get_articles,
    iter_articles,
    title_and_first_sentence,
)
from exam.data.corpus import Articles
from exam.data.sentences import splitter
from exam.retrieval.chunking import PassageTable
from exam.retrieval.encoder import SentenceEncoder
from exam.retrieval.vectors import (
    IndexSpec,
    Rows,
    VectorIndex,
    Vectors,
    build_vectors,
    choose_index_spec,
    cleanup_partial_build,
    index_key,
)

log = logging.getLogger(__name__)

ARTICLES = "articles.parquet"
ARTICLE = pa.schema({"id": pa.string(), "title": pa.string(), "file": pa.int32()})
PASSAGE = pa.schema({"passage": pa.int64()})


class Source(NamedTuple):
    """Rows to encode: their stream, the columns of a shard, the text of a row, and a count."""

    stream: Iterator[dict[str, Any]]
    schema: pa.Schema
    text: Callable[[dict[str, Any]], str]
    total: int


@dataclass(frozen=True)
class PassageIndex:
    """The vectors of the passages of a table, with their titles, by row."""

    stage: Stage

    @cached_property
    def vectors(self) -> VectorIndex:
        """The opened vectors."""
        return VectorIndex(self.stage.folder, IndexSpec(**self.stage.metadata["spec"]))

    def search(self, queries: Vectors, k: int) -> tuple[Vectors, Rows]:
        """Return scores and rows of the `k` nearest texts, `(queries, k)` each, best first."""
        return self.vectors.search(queries, k)


@dataclass(frozen=True)
class ArticleIndex(PassageIndex):
    """The vectors of the articles' titles and first sentences, by row in the order of the files."""

    files: list[CorpusFile]
    table: pa.Table  # ARTICLE; `file` is a row of `files`

    def __len__(self) -> int:
        return len(self.table)

    def find_neighbors(self, row: int, k: int) -> list[int]:
        """Return the rows of the `k` articles nearest to another, best first."""
        vector = self.vectors.vectors_at([row])
        _, rows = self.search(vector, k + 1)
        return [int(r) for r in rows[0] if r != row][:k]

    def get_articles(self, rows: list[int]) -> Iterator[tuple[int, Article]]:
        """Yield the articles at ascending rows, read one corpus file at a time."""
        articles = self.table.take(pa.array(rows, pa.int64())).to_pylist()
        numbered = zip(rows, articles, strict=True)
        for file, entries in groupby(numbered, key=lambda entry: entry[1]["file"]):
            ids = {row: article["id"] for row, article in entries}
            texts = get_articles(self.files[file], ids.values())
            yield from ((row, texts[key]) for row, key in ids.items())


def build_index(
    articles: Articles, encoder: SentenceEncoder, index: Index, outputs: Path
) -> ArticleIndex:
    """Encode every article's title and first sentence; continue at the first missing shard."""
    stream = (
        {"id": article.id, "title": article.title, "file": number, "article": article}
        for number, file in enumerate(articles.files)
        for article in iter_articles(file)
    )
    key = {"corpus": articles.key, **splitter().key}
    source = Source(
        stream, ARTICLE, lambda row: title_and_first_sentence(row["article"]), len(articles)
    )
    stage = _build(articles.name, key, source, encoder, index, outputs)
    return ArticleIndex(
        stage, articles.files, pq.read_table(stage.folder / ARTICLES, memory_map=True)
    )


def build_passage_index(
    table: PassageTable, encoder: SentenceEncoder, index: Index, outputs: Path
) -> PassageIndex:
    """Encode every passage of a table; continue at the first missing shard."""
    name = table.stage.folder.name.rpartition("-")[0]
    texts = chain.from_iterable(table.texts())
    stream = ({"passage": number, "text": text} for number, text in enumerate(texts))
    key = {"passages": table.stage.hash}
    source = Source(stream, PASSAGE, itemgetter("text"), len(table))
    return PassageIndex(_build(f"{name}-passages", key, source, encoder, index, outputs))


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
            if distributed.rank() == 0:
                _check_room(stage.folder, source.total, encoder, index)
            shards = _encode_shards(stage.folder, source, index.shard_size, encoder)
            distributed.barrier()
        if distributed.rank() == 0:
            if not stage.reused:
                files, facts = _assemble(stage.folder, index, shards)
                stage.finish(files, **facts)
            for shard in stage.folder.glob("shard-*.parquet"):
                shard.unlink(missing_ok=True)
            cleanup_partial_build(stage.folder)
    return stage if distributed.rank() == 0 else load_stage(stage.folder)


def _encode_shards(folder: Path, source: Source, size: int, encoder: SentenceEncoder) -> list[Path]:
    """Encode the missing shards of this process; return the files of all shards."""
    shards: list[Path] = []
    with progress_bar("index", source.total, "texts") as bar:
        while rows := list(islice(source.stream, size)):
            number = len(shards)
            path = folder / f"shard-{size}-{number:06d}.parquet"  # other sizes: other files
            is_mine = number % distributed.world_size() == distributed.rank()
            if is_mine and not checksum_matches(path):
                vectors = encoder.passages(list(map(source.text, rows)))
                column = pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])
                table = pa.Table.from_pylist(rows, source.schema).append_column("vector", column)
                with write_with_checksum(path) as temporary:
                    pq.write_table(table, temporary, compression="none", use_dictionary=False)
            shards.append(path)
            bar.update(len(rows))
            log.debug("index: encoded %d of %d texts", bar.n, source.total)
    encoder.log_counts("index")
    return shards


def _read_vectors(shards: list[Path]) -> Iterator[Vectors]:
    """Yield the vectors of each shard, shape `(rows, dimension)`."""
    for shard in shards:
        column = pq.read_table(shard, columns=["vector"])["vector"].combine_chunks()
        yield column.values.to_numpy().reshape(-1, column.type.list_size)


def _check_room(folder: Path, rows: int, encoder: SentenceEncoder, index: Index) -> None:
    """Refuse to encode if the disk cannot hold the missing shards and the index."""
    size = FP32 * rows * (encoder.model.get_embedding_dimension() or 0)
    written = sum(path.stat().st_size for path in folder.glob("shard-*.parquet"))
    least = size if index.type is IndexType.exact else size // 2
    parts = {"encoded": max(0, size - written), "index": least}
    check_disk(f"an index of {rows:,} vectors", parts, folder)


def _assemble(folder: Path, index: Index, shards: list[Path]) -> tuple[list[str], dict[str, Any]]:
    """Build the index of the vectors, and the table of the articles, one shard at a time."""
    missing = [shard for shard in shards if not shard.is_file()]
    if missing:
        raise ExamError(
            f"{missing[0]} is missing: another process wrote it to another folder, or failed.\n"
            "Set the same outputs=<folder> for every process, on a file system that they share."
        )
    rows = sum(pq.read_metadata(shard).num_rows for shard in shards)
    schema = pq.read_schema(shards[0])
    spec = choose_index_spec(index, rows, schema.field("vector").type.list_size)
    files, facts = build_vectors(lambda: _read_vectors(shards), folder, spec)
    if schema.names[:-1] == ARTICLE.names:
        tables = [pq.read_table(shard, columns=ARTICLE.names) for shard in shards]
        with write_atomically(folder / ARTICLES) as temporary:
            pq.write_table(pa.concat_tables(tables), temporary)
        return [ARTICLES, *files], {"articles": rows, **facts}
    return files, {"passages": rows, **facts}
