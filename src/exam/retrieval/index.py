"""The article index: one vector for each article, in shards while it is built, then in faiss."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from exam.artefacts import Stage, atomic, open_stage
from exam.config import Corpus, Encoder, Index
from exam.corpus import Article, CorpusFile, corpus_files, corpus_key, iter_articles, lead
from exam.errors import ExamError
from exam.retrieval.encoder import Vectors, encoder_key

log = logging.getLogger(__name__)

VECTORS = "index.faiss"
ARTICLES = "articles.parquet"
Encode = Callable[[list[str]], Vectors]


@dataclass
class ArticleIndex:
    """Articles by their row: what is needed to search them and to fetch their texts."""

    stage: Stage
    files: list[CorpusFile]
    articles: pa.Table  # id, title, file (a row of `files`)

    def search(self, queries: Vectors, k: int) -> tuple[Vectors, NDArray[np.int64]]:
        """Scores and rows of the `k` best articles, shapes `(queries, k)`, best first."""
        import faiss
        import torch  # noqa: F401  (faiss imported before torch can crash)

        index = faiss.read_index(str(self.stage.folder / VECTORS))
        scores, rows = index.search(queries, min(k, index.ntotal))
        return scores, rows


def build_index(
    corpus: Corpus, encoder: Encoder, index: Index, outputs: Path, encode: Encode
) -> ArticleIndex:
    """Encode every article's title and first sentence; continue at the last whole shard.

    Raises:
        ExamError: the corpus holds no article.
    """
    files = corpus_files(corpus, outputs)
    key = {"corpus": corpus_key(files), "encoder": encoder_key(encoder), "recipe": "flat"}
    name = f"{corpus.name}-{encoder.name}"
    with open_stage(outputs, "index", name, key) as stage:
        if not stage.reused:
            _encode_shards(stage, files, index.shard_size, encode)
            vectors = _assemble(stage, index.shard_size)
            stage.finish([VECTORS, ARTICLES], articles=vectors)
    return ArticleIndex(stage, files, pq.read_table(stage.folder / ARTICLES, memory_map=True))


def _encode_shards(stage: Stage, files: list[CorpusFile], size: int, encode: Encode) -> None:
    stream = chain.from_iterable(_numbered(i, file) for i, file in enumerate(files))
    for number in count():
        shard = list(islice(stream, size))
        if not shard:
            return
        path = stage.folder / f"shard-{size}-{number:06d}.parquet"
        if path.is_file():
            continue
        vectors = encode([lead(article) for _, article in shard])
        table = pa.table(
            {
                "id": [article.id for _, article in shard],
                "title": [article.title for _, article in shard],
                "file": pa.array([i for i, _ in shard], pa.int32()),
                "vector": pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1]),
            }
        )
        with atomic(path) as temporary:
            pq.write_table(table, temporary)
        log.info("index: encoded %s articles", f"{number * size + len(shard):,}")


def _numbered(i: int, file: CorpusFile) -> Iterator[tuple[int, Article]]:
    return ((i, article) for article in iter_articles(file))


def _assemble(stage: Stage, size: int) -> int:
    """Add the shards to one flat index, one at a time; remove them when it is written."""
    import faiss
    import torch  # noqa: F401  (faiss imported before torch can crash)

    shards = sorted(stage.folder.glob(f"shard-{size}-*.parquet"))
    if not shards:
        raise ExamError("The corpus holds no article.\nGive one with corpus.dir= and corpus.files=")
    index: Any = None
    with atomic(stage.folder / ARTICLES) as temporary:
        writer = None
        for shard in shards:
            table = pq.read_table(shard)
            column = table["vector"].combine_chunks()
            vectors = column.values.to_numpy().reshape(len(table), -1)
            index = index or faiss.IndexFlatIP(vectors.shape[1])
            index.add(vectors)
            articles = table.drop_columns(["vector"])
            writer = writer or pq.ParquetWriter(temporary, articles.schema)
            writer.write_table(articles)
        if writer is not None:
            writer.close()
    with atomic(stage.folder / VECTORS) as temporary:
        faiss.write_index(index, str(temporary))
    for shard in stage.folder.glob("shard-*.parquet"):
        shard.unlink()
    return int(index.ntotal)
