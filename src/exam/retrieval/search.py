"""Two-stage search: articles near the prompt, then, of their sentences, those near the options.

The method of the open-book notebooks (J. J. Inho and others, 2023): a first-sentence index finds
each question's articles; only their sentences are encoded and ranked, each question among its own.
"""

import logging
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from numpy.typing import NDArray

from exam.artefacts import atomic
from exam.config import Search
from exam.corpus import sentence_offsets
from exam.retrieval.encoder import SentenceEncoder, Vectors
from exam.retrieval.index import ArticleIndex, vectors_of, with_vectors

log = logging.getLogger(__name__)

ARTICLES_PER_SHARD = 1024
SENTENCE = pa.schema(
    {"article": pa.int64(), "start": pa.int64(), "end": pa.int64(), "text": pa.large_string()}
)


def two_stage(
    questions: Dataset,
    index: ArticleIndex,
    retriever: Search,
    encoder: SentenceEncoder,
    work: Path,
) -> Iterator[list[dict[str, Any]]]:
    """Yield each question's ranked passages, best first, as rows of the contexts file.

    `work` keeps encoded sentences in shards, so that an interrupted search continues.
    """
    found = index.search(encoder.queries(questions["prompt"]), retriever.articles)
    sentences = _encode_sentences(np.unique(found), index, retriever, encoder, work)
    queries = encoder.queries([full_query(q) for q in questions])
    vectors = vectors_of(sentences)
    owner = sentences["article"].to_numpy()
    for question, query, articles in zip(questions, queries, found, strict=True):
        own = np.concatenate([_rows_of(owner, a) for a in articles])
        ranked = _rank(own, vectors[own] @ query, sentences, retriever.depth)
        yield [
            _row(question["id"], rank, score, row, sentences, index)
            for rank, (row, score) in enumerate(ranked, 1)
        ]


def full_query(question: dict[str, Any]) -> str:
    """Prompt and all options as one query."""
    return " ".join([question["prompt"], *question["options"]])


def _rows_of(owner: NDArray[np.int64], article: int) -> NDArray[np.int64]:
    """Rows of one article's sentences; `owner` ascends."""
    start, end = np.searchsorted(owner, [article, article + 1])
    return np.arange(start, end)


def _rank(
    rows: NDArray[np.int64], scores: Vectors, sentences: pa.Table, depth: int
) -> list[tuple[int, float]]:
    """The best `depth` rows with distinct texts, and their scores."""
    ranked: dict[str, tuple[int, float]] = {}
    for i in np.argsort(-scores, kind="stable"):
        if len(ranked) == depth:
            break
        text = sentences["text"][int(rows[i])].as_py()
        ranked.setdefault(text, (int(rows[i]), float(scores[i])))
    return list(ranked.values())


def _row(
    question: str, rank: int, score: float, row: int, sentences: pa.Table, index: ArticleIndex
) -> dict[str, Any]:
    sentence = sentences.select(SENTENCE.names).slice(row, 1).to_pylist()[0]
    article = index.table.slice(sentence["article"], 1).to_pylist()[0]
    return {
        "question_id": question,
        "rank": rank,
        "score": score,
        "article_id": article["id"],
        "passage_id": f"{article['id']}:{sentence['start']}-{sentence['end']}",
        "title": article["title"],
        "text": sentence["text"],
        "source": index.files[article["file"]].source,
    }


def _encode_sentences(
    articles: NDArray[np.int64],
    index: ArticleIndex,
    retriever: Search,
    encoder: SentenceEncoder,
    work: Path,
) -> pa.Table:
    """Sentences of the articles (ascending rows of the index) with their vectors, memory-mapped.

    At most one shard's texts are in memory. A sentence that stood in an earlier shard is not
    encoded again.
    """
    shards: list[pa.Table] = []
    seen: dict[bytes, tuple[int, int]] = {}
    for number, start in enumerate(range(0, len(articles), ARTICLES_PER_SHARD)):
        path = work / f"sentences-{number:06d}.arrow"
        if not path.is_file():
            rows = _split(articles[start : start + ARTICLES_PER_SHARD], index, retriever)
            _write_shard(path, rows, shards, seen, encoder)
            done = min(start + ARTICLES_PER_SHARD, len(articles))
            log.info("contexts: encoded sentences of %s of %s articles", done, len(articles))
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        for row, text in enumerate(table["text"].to_pylist()):
            seen.setdefault(_fingerprint(text), (number, row))
        shards.append(table)
    return pa.concat_tables(shards)


def _fingerprint(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=16).digest()


def _split(
    articles: NDArray[np.int64], index: ArticleIndex, retriever: Search
) -> list[dict[str, Any]]:
    """The sentences of some articles, in the articles' order."""
    return [
        {"article": row, "start": start, "end": end, "text": article.text[start:end]}
        for row, article in index.fetch(articles.tolist())
        for start, end in sentence_offsets(article.text, retriever.min_sentence_chars)
    ]


def _write_shard(
    path: Path,
    rows: list[dict[str, Any]],
    shards: list[pa.Table],
    seen: dict[bytes, tuple[int, int]],
    encoder: SentenceEncoder,
) -> None:
    """Encode what no earlier shard holds, and write sentences and vectors together."""
    keys = [_fingerprint(row["text"]) for row in rows]
    new = [i for i, key in enumerate(keys) if key not in seen]
    fresh = encoder.passages([rows[i]["text"] for i in new] or [""])  # "" gives the dimension
    vectors = np.empty((len(rows), fresh.shape[1]), dtype=np.float32)
    vectors[new] = fresh[: len(new)]
    for i, key in enumerate(keys):
        if key in seen:
            shard, row = seen[key]
            vectors[i] = shards[shard]["vector"][row].as_py()
    table = with_vectors(pa.Table.from_pylist(rows, schema=SENTENCE), vectors)
    with atomic(path) as temporary, pa.ipc.new_file(str(temporary), table.schema) as writer:
        writer.write_table(table)
