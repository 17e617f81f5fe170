"""The article index: one vector for each article, in shards while it is built, then in faiss."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from exam.artefacts import Stage, atomic, open_stage
from exam.config import Corpus, Index
from exam.corpus import (
    Article,
    CorpusFile,
    corpus_files,
    corpus_key,
    fetch,
    iter_articles,
    lead,
)
from exam.errors import ExamError
from exam.retrieval.encoder import SentenceEncoder, Vectors

log = logging.getLogger(__name__)

VECTORS = "index.faiss"
ARTICLES = "articles.parquet"
ARTICLE = pa.schema({"id": pa.string(), "title": pa.string(), "file": pa.int32()})


@dataclass(frozen=True)
class ArticleIndex:
    """The articles of a corpus, by their row: in the order of its files."""

    stage: Stage
    files: list[CorpusFile]
    table: pa.Table  # ARTICLE; `file` is a row of `files`

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def vectors(self) -> Any:
        """The faiss index."""
        return _faiss().read_index(str(self.stage.folder / VECTORS))

    def search(self, queries: Vectors, k: int) -> NDArray[np.int64]:
        """Rows of the `k` articles nearest to each query, shape `(queries, k)`, best first."""
        _, rows = self.vectors.search(queries, min(k, len(self)))
        found: NDArray[np.int64] = rows
        return found

    def near(self, row: int, k: int) -> list[int]:
        """Rows of the `k` articles nearest in meaning to another, best first, without itself."""
        own = self.vectors.reconstruct(row)
        return [int(r) for r in self.search(own[None], k + 1)[0] if r != row][:k]

    def fetch(self, rows: list[int]) -> Iterator[tuple[int, Article]]:
        """The articles at ascending rows, read one corpus file at a time."""
        chosen = self.table.take(rows)
        by_file: dict[int, dict[int, str]] = {}
        for row, article in zip(rows, chosen.to_pylist(), strict=True):
            by_file.setdefault(article["file"], {})[row] = article["id"]
        for file, wanted in by_file.items():
            found = fetch(self.files[file], wanted.values())
            yield from ((row, found[key]) for row, key in wanted.items())


def _faiss() -> Any:
    """The faiss module; importing it before torch can crash."""
    import torch  # noqa: F401, I001
    import faiss

    return faiss


def build_index(
    corpus: Corpus, encoder: SentenceEncoder, index: Index, outputs: Path
) -> ArticleIndex:
    """Encode every article's title and first sentence; continue at the last whole shard.

    Raises:
        ExamError: the corpus holds no article.
    """
    files = corpus_files(corpus, outputs)
    key = {"corpus": corpus_key(files), "encoder": encoder.key, "recipe": "flat"}
    with open_stage(outputs, "index", f"{corpus.name}-{encoder.config.name}", key) as stage:
        if not stage.reused:
            _encode_shards(stage, files, index.shard_size, encoder)
            articles = _assemble(stage, index.shard_size)
            stage.finish([VECTORS, ARTICLES], articles=articles)
        for shard in stage.folder.glob("shard-*.parquet"):
            shard.unlink()
    return ArticleIndex(stage, files, pq.read_table(stage.folder / ARTICLES, memory_map=True))


def _encode_shards(
    stage: Stage, files: list[CorpusFile], size: int, encoder: SentenceEncoder
) -> None:
    stream = chain.from_iterable(_numbered(i, file) for i, file in enumerate(files))
    for number in count():
        shard = list(islice(stream, size))
        if not shard:
            return
        path = stage.folder / f"shard-{size}-{number:06d}.parquet"
        if path.is_file():
            continue
        rows = [{"id": a.id, "title": a.title, "file": i} for i, a in shard]
        vectors = encoder.passages([lead(article) for _, article in shard])
        with atomic(path) as temporary:
            pq.write_table(with_vectors(pa.Table.from_pylist(rows, ARTICLE), vectors), temporary)
        log.info("index: encoded %s articles", f"{number * size + len(shard):,}")


def _numbered(i: int, file: CorpusFile) -> Iterator[tuple[int, Article]]:
    """A file's articles with its number; texts are fetched by id, so ids must be unique."""
    seen: set[str] = set()
    for row, article in enumerate(iter_articles(file), 1):
        if not article.id or article.id in seen:
            state = f"the id {article.id!r} of an earlier one" if article.id else "no id"
            raise ExamError(
                f"{file.path}: article {row} has {state}.\n"
                "Give every article an id of its own; map the column with corpus.columns.id=<name>."
            )
        seen.add(article.id)
        yield i, article


def with_vectors(table: pa.Table, vectors: Vectors) -> pa.Table:
    """The table with a column of vectors, shape `(rows, dimension)`."""
    column = pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])
    return table.append_column("vector", column)


def vectors_of(table: pa.Table) -> Vectors:
    """The vectors that `with_vectors` added."""
    vectors: Vectors = table["vector"].combine_chunks().values.to_numpy().reshape(len(table), -1)
    return vectors


def _assemble(stage: Stage, size: int) -> int:
    """Add the shards to one flat index, one at a time."""
    shards = sorted(stage.folder.glob(f"shard-{size}-*.parquet"))
    if not shards:
        raise ExamError("The corpus holds no article.\nGive one with corpus.dir= and corpus.files=")
    index: Any = None
    with (
        atomic(stage.folder / ARTICLES) as temporary,
        pq.ParquetWriter(temporary, ARTICLE) as writer,
    ):
        for shard in shards:
            table = pq.read_table(shard)
            vectors = vectors_of(table)
            index = index or _faiss().IndexFlatIP(vectors.shape[1])
            index.add(vectors)
            writer.write_table(table.drop_columns(["vector"]))
    with atomic(stage.folder / VECTORS) as temporary:
        _faiss().write_index(index, str(temporary))
    return int(index.ntotal)
