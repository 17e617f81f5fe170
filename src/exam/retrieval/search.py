"""Two-stage search: articles near the prompt, then, of their sentences, those near the options.

The method of the open-book notebooks (J. J. Inho and others, 2023): a first-sentence index finds
each question's articles; only their sentences are encoded and ranked, each question among its own.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from numpy.typing import NDArray

from exam.articles import Article
from exam.config import Query, Search
from exam.files import digest, is_sealed, sealed
from exam.retrieval.embeddings import (
    KEY_BYTES,
    TEXTS_PER_SHARD,
    Embeddings,
    Keys,
    fingerprints,
    key_column,
    keys_of,
)
from exam.retrieval.evaluation import words
from exam.retrieval.index import ArticleIndex
from exam.retrieval.queries import query_texts
from exam.retrieval.vectors import Rows, Vectors
from exam.runtime import log_progress
from exam.sentences import sentence_offsets

log = logging.getLogger(__name__)

ARTICLES_AT_ONCE = 1024
QUESTIONS_AT_ONCE = 64
SENTENCES = "sentences-{}.arrow"
SENTENCE = pa.schema(
    {
        "article": pa.int64(),
        "start": pa.int64(),
        "end": pa.int64(),
        "text": pa.large_string(),
        "key": pa.binary(KEY_BYTES),
    }
)


def two_stage(
    questions: Dataset,
    index: ArticleIndex,
    search: Search,
    embeddings: Embeddings,
    work: Path,
) -> Iterator[list[dict[str, Any]]]:
    """Yield each question's ranked passages, best first, as rows of the contexts file.

    What an interrupted search had split and encoded is found again in `work` and `embeddings`.
    """
    nearest = _articles(questions, index, search, embeddings)
    sentences = _split(np.unique(np.concatenate(nearest)), index, search, embeddings, work)
    keys = np.concatenate([np.empty(0, f"S{KEY_BYTES}"), *map(keys_of, sentences["key"].chunks)])
    owner = sentences["article"].to_numpy()
    near = [
        lexical(question, _rows_of(owner, articles), keys, sentences, search.encode_at_most)
        for question, articles in zip(questions.to_list(), nearest, strict=True)
    ]
    _encode(np.unique(np.concatenate([rows for rows, _, _ in near])), keys, sentences, embeddings)
    queries = _queries(questions, search.query, embeddings)
    for start in range(0, len(questions), QUESTIONS_AT_ONCE):
        block = range(start, min(start + QUESTIONS_AT_ONCE, len(questions)))
        ranked = [_rank(near[i], queries[i], keys, embeddings, search.depth) for i in block]
        yield from _passages(questions["id"][block.start : block.stop], ranked, sentences, index)
    for path in work.glob(SENTENCES.format("*")):
        path.unlink()


def _queries(questions: Dataset, query: Query, embeddings: Embeddings) -> list[Vectors]:
    """Vectors of each question's queries, shape `(queries, dimension)`."""
    texts = [query_texts(question, query) for question in questions.to_list()]
    vectors = embeddings.queries(list(chain.from_iterable(texts)))
    return np.split(vectors, np.cumsum([len(own) for own in texts])[:-1])


def _articles(
    questions: Dataset, index: ArticleIndex, search: Search, embeddings: Embeddings
) -> list[Rows]:
    """Rows of each question's nearest articles; of several queries the best ranks."""
    queries = _queries(questions, search.article_query, embeddings)
    found = index.search(np.concatenate(queries), search.articles)
    ends = np.cumsum([len(own) for own in queries])[:-1]
    ranked = [rows.T.ravel() for rows in np.split(found, ends)]
    return [rows[_places(rows)][: search.articles] for rows in ranked]


def _places(values: NDArray[Any]) -> Rows:
    """Where each distinct value stands first."""
    return np.sort(np.unique(values, return_index=True)[1])


def _split(
    articles: Rows, index: ArticleIndex, search: Search, embeddings: Embeddings, work: Path
) -> pa.Table:
    """The sentences of articles (ascending rows of the index), in their order, memory-mapped.

    They pass through a file, so that the texts of one corpus file at most are in memory.
    """
    path = work / SENTENCES.format(digest(articles.tolist())[:16])
    prefix = embeddings.encoder.config.passage_prefix
    if not is_sealed(path):
        stream = index.fetch(articles.tolist())
        with sealed(path) as temporary, pa.ipc.new_file(str(temporary), SENTENCE) as writer:
            while some := list(islice(stream, ARTICLES_AT_ONCE)):
                writer.write(_sentences(some, search.min_sentence_chars, prefix))
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def _sentences(articles: list[tuple[int, Article]], min_chars: int, prefix: str) -> pa.RecordBatch:
    """Each sentence with its place and with the key of its vector."""
    found = [
        (row, start, end, article.text[start:end])
        for row, article in articles
        for start, end in sentence_offsets(article.text, min_chars)
    ]
    rows, starts, ends, texts = zip(*found, strict=True) if found else ([], [], [], [])
    keys = key_column(fingerprints([prefix + text for text in texts]))
    return pa.record_batch([rows, starts, ends, texts, keys], schema=SENTENCE)


def _rows_of(owner: Rows, articles: Rows) -> Rows:
    """Rows of some articles' sentences; `owner` ascends."""
    starts, ends = np.searchsorted(owner, [articles, articles + 1])
    return np.concatenate([np.arange(a, b) for a, b in zip(starts, ends, strict=True)])


Near = tuple[Rows, Rows, Vectors]  # rows to encode; the others, best first, and their scores


def lexical(
    question: dict[str, Any], rows: Rows, keys: Keys, sentences: pa.Table, most: int | None
) -> Near:
    """Part a question's sentences into the `most` that share most words with it, and the others.

    Those are each article's best, then the best of all. A word weighs by its rarity among these
    sentences, so other questions do not matter; a sentence's shared weight is divided by the root
    of its length. The others' scores are below any cosine: minus two.
    """
    rows = rows[_places(keys[rows])]  # equal texts once
    if most is None or len(rows) <= most:
        return rows, np.empty(0, np.int64), np.empty(0, np.float32)
    asked = {word for text in (question["prompt"], *question["options"]) for word in words(text)}
    found = [words(text) for text in sentences["text"].take(rows).to_pylist()]
    shared = [asked.intersection(own) for own in found]
    frequency = Counter(word for own in shared for word in own)
    weight = {word: float(np.log((1 + len(rows)) / n)) for word, n in frequency.items()}
    total = sum(weight.values()) or 1.0
    share = np.array([sum(weight[word] for word in own) / total for own in shared], np.float32)
    score = share / np.sqrt([max(1, len(own)) for own in found])
    order = np.argsort(-score, kind="stable")
    best = _places(sentences["article"].take(rows[order]).to_numpy())
    chosen = np.zeros(len(rows), bool)
    chosen[order[np.concatenate([best, np.delete(np.arange(len(order)), best)])[:most]]] = True
    others = order[~chosen[order]]
    return rows[chosen], rows[others], (score[others] - 2).astype(np.float32)


def _encode(rows: Rows, keys: Keys, sentences: pa.Table, embeddings: Embeddings) -> None:
    """Encode the sentences that have no vector yet, a shard at a time."""
    new = rows[embeddings.missing(keys[rows])]
    prefix = embeddings.encoder.config.passage_prefix
    for start in range(0, len(new), TEXTS_PER_SHARD):
        block = new[start : start + TEXTS_PER_SHARD]
        embeddings.add([prefix + text for text in sentences["text"].take(block).to_pylist()])
        done = start + len(block)
        log_progress(log, "contexts: encoded %d of %d new sentences", done, len(new))


def _rank(
    near: Near, queries: Vectors, keys: Keys, embeddings: Embeddings, depth: int
) -> tuple[Rows, Vectors]:
    """The best `depth` rows and their scores: of several queries the best."""
    rows, others, below = near
    scores = (embeddings.vectors(keys[rows]) @ queries.T).max(axis=1)
    order = np.argsort(-scores, kind="stable")
    ranked = np.concatenate([rows[order], others])[:depth]
    return ranked, np.concatenate([scores[order], below])[:depth]


def _passages(
    ids: list[str],
    ranked: list[tuple[Rows, Vectors]],
    sentences: pa.Table,
    index: ArticleIndex,
) -> Iterator[list[dict[str, Any]]]:
    """The contexts file's rows of some questions, fetched together."""
    columns = ["article", "start", "end", "text"]
    rows = np.concatenate([rows for rows, _ in ranked])
    found = iter(sentences.select(columns).take(rows).to_pylist())
    articles = np.unique(sentences["article"].take(rows).to_numpy())
    of = dict(zip(articles.tolist(), index.table.take(articles).to_pylist(), strict=True))
    for question, (own, scores) in zip(ids, ranked, strict=True):
        yield [
            _passage(question, rank, score, sentence, of[sentence["article"]], index)
            for rank, (score, sentence) in enumerate(
                zip(scores.tolist(), (next(found) for _ in own), strict=True), 1
            )
        ]


def _passage(
    question: str,
    rank: int,
    score: float,
    sentence: dict[str, Any],
    article: dict[str, Any],
    index: ArticleIndex,
) -> dict[str, Any]:
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
