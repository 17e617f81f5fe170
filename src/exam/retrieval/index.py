"""Indexes of articles and of passages: encoded in shards, then handed to a faiss recipe.

Under `torchrun` the shards are split over the processes; rank 0 alone holds the stage, assembles
the shards and does all that follows.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from exam import ranks
from exam.artefacts import shared_stage
from exam.articles import (
    Article,
    CorpusFile,
    count_articles,
    fetch,
    iter_articles,
    lead,
    with_own_ids,
)
from exam.config import Corpus, Index
from exam.corpus import corpus_files, corpus_key
from exam.errors import ExamError
from exam.estimates import FP32, check_disk
from exam.files import atomic
from exam.retrieval.building import build_vectors, forget_parts
from exam.retrieval.encoder import SentenceEncoder
from exam.retrieval.passages import PassageTable
from exam.retrieval.recipes import Plan, index_bytes, plan_index, recipe_key
from exam.retrieval.shards import Shard, cut, encode_shards, shard_path, vector_blocks
from exam.retrieval.vectors import Rows, VectorIndex, Vectors
from exam.sentences import splitter
from exam.stage import Stage, finished

log = logging.getLogger(__name__)

ARTICLES = "articles.parquet"
ARTICLE = pa.schema({"id": pa.string(), "title": pa.string(), "file": pa.int32()})
PASSAGE = pa.schema({"passage": pa.int64()})


@dataclass(frozen=True)
class ArticleIndex:
    """The articles of a corpus, by their row: in the order of its files."""

    stage: Stage
    files: list[CorpusFile]
    table: pa.Table  # ARTICLE; `file` is a row of `files`

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def vectors(self) -> VectorIndex:
        """The vectors of the articles' titles and first sentences."""
        return open_vectors(self.stage)

    def search(self, queries: Vectors, k: int) -> Rows:
        """Rows of the `k` articles nearest to each query, shape `(queries, k)`, best first."""
        return self.vectors.search(queries, k)[1]

    def near(self, row: int, k: int) -> list[int]:
        """Rows of the `k` articles nearest in meaning to another, best first, without itself."""
        own = self.vectors.vectors_at(np.array([row]))
        return [int(r) for r in self.search(own, k + 1)[0] if r != row][:k]

    def fetch(self, rows: list[int]) -> Iterator[tuple[int, Article]]:
        """The articles at ascending rows, read one corpus file at a time."""
        chosen = self.table.take(pa.array(rows, pa.int64()))
        by_file: dict[int, dict[int, str]] = {}
        for row, article in zip(rows, chosen.to_pylist(), strict=True):
            by_file.setdefault(article["file"], {})[row] = article["id"]
        for file, wanted in by_file.items():
            found = fetch(self.files[file], wanted.values())
            yield from ((row, found[key]) for row, key in wanted.items())


@dataclass(frozen=True)
class PassageIndex:
    """The passages of a table, by their row."""

    stage: Stage

    @cached_property
    def vectors(self) -> VectorIndex:
        """The vectors of the passages with their titles."""
        return open_vectors(self.stage)

    def search(self, queries: Vectors, k: int) -> tuple[Vectors, Rows]:
        """Scores and rows of the `k` nearest passages, `(queries, k)` each, best first."""
        return self.vectors.search(queries, k)


def open_vectors(stage: Stage) -> VectorIndex:
    """The vectors of a finished index."""
    return VectorIndex(stage.folder, Plan(**stage.facts["plan"]))


def build_index(
    corpus: Corpus, encoder: SentenceEncoder, index: Index, outputs: Path
) -> ArticleIndex:
    """Encode every article's title and first sentence; continue at the last whole shard.

    Raises:
        ExamError: the corpus holds no article.
    """
    files = corpus_files(corpus, outputs)
    stream = chain.from_iterable(_numbered(i, file) for i, file in enumerate(files))
    shards = cut(stream, index.shard_size, _articles)
    key = {"corpus": corpus_key(files), **splitter().key}
    stage = _build(corpus.name, key, shards, count_articles(files), encoder, index, outputs)
    return ArticleIndex(stage, files, pq.read_table(stage.folder / ARTICLES, memory_map=True))


def build_passage_index(
    table: PassageTable, encoder: SentenceEncoder, index: Index, outputs: Path
) -> PassageIndex:
    """Encode every passage of a table; continue at the last whole shard."""
    name = table.stage.folder.name.rpartition("-")[0]
    stream = enumerate(chain.from_iterable(table.texts()))
    shards = cut(stream, index.shard_size, _passages)
    key = {"passages": table.stage.hash}
    return PassageIndex(
        _build(f"{name}-passages", key, shards, len(table), encoder, index, outputs)
    )


def _articles(rows: list[tuple[int, Article]]) -> Shard:
    table = [{"id": a.id, "title": a.title, "file": i} for i, a in rows]
    return pa.Table.from_pylist(table, ARTICLE), [lead(article) for _, article in rows]


def _passages(rows: list[tuple[int, str]]) -> Shard:
    numbers, texts = zip(*rows, strict=True)
    return pa.table({"passage": numbers}, PASSAGE), list(texts)


def _build(
    name: str,
    key: dict[str, Any],
    shards: Iterator[Callable[[], Shard]],
    rows: int | None,
    encoder: SentenceEncoder,
    index: Index,
    outputs: Path,
) -> Stage:
    """The stage of an index, by all processes: each encodes its shards, rank 0 assembles them."""
    key = {**key, "encoder": encoder.key, "index": recipe_key(index)}
    with shared_stage(outputs, "index", f"{name}-{encoder.config.name}", key) as stage:
        if not stage.reused:
            if rows is not None and ranks.rank() == 0:
                _check_room(stage.folder, rows, encoder, index)
            number = encode_shards(stage.folder, shards, rows, index.shard_size, encoder)
            ranks.wait()
        if ranks.rank() == 0:
            if not stage.reused:
                files, facts = _assemble(stage.folder, index, number)
                stage.finish(files, **facts)
            for shard in stage.folder.glob("shard-*.parquet"):
                shard.unlink(missing_ok=True)
            forget_parts(stage.folder)
    return stage if ranks.rank() == 0 else finished(stage.folder)


def _check_room(folder: Path, rows: int, encoder: SentenceEncoder, index: Index) -> None:
    """Refuse to encode where the disk cannot hold the missing shards and the index."""
    dimension = encoder.model.get_embedding_dimension() or 0
    written = sum(path.stat().st_size for path in folder.glob("shard-*.parquet"))
    shards = max(0, FP32 * rows * dimension - written)
    check_disk(
        f"an index of {rows:,} vectors",
        {"encoded": shards, "index": index_bytes(index, rows, dimension)},
        folder,
    )


def _numbered(i: int, file: CorpusFile) -> Iterator[tuple[int, Article]]:
    """A file's articles with its number."""
    return ((i, article) for article in with_own_ids(file, iter_articles(file)))


def _assemble(folder: Path, index: Index, number: int) -> tuple[list[str], dict[str, Any]]:
    """Build the vectors' index from the shards, and one table of the articles, shard by shard."""
    if not number:
        raise ExamError("The corpus holds no article.\nGive one with corpus.dir= and corpus.files=")
    shards = [shard_path(folder, index.shard_size, i) for i in range(number)]
    missing = [shard for shard in shards if not shard.is_file()]
    if missing:
        raise ExamError(
            f"{missing[0]} is missing: another process wrote it elsewhere, or not at all.\n"
            "Give every process the same outputs=<folder>, on a file system they share."
        )
    rows = sum(pq.read_metadata(shard).num_rows for shard in shards)
    schema = pq.read_schema(shards[0])
    plan = plan_index(index, rows, schema.field("vector").type.list_size)
    files, facts = build_vectors(lambda: vector_blocks(shards), folder, plan)
    if schema.names[:-1] == ARTICLE.names:
        _write_articles(shards, folder / ARTICLES)
        return [ARTICLES, *files], {"articles": rows, **facts}
    return files, {"passages": rows, **facts}


def _write_articles(shards: list[Path], path: Path) -> None:
    """The rows of the shards without their vectors."""
    with atomic(path) as temporary, pq.ParquetWriter(temporary, ARTICLE) as writer:
        for shard in shards:
            writer.write_table(pq.read_table(shard, columns=ARTICLE.names))
