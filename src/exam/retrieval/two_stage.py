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

from exam.config import Query, Search
from exam.core.files import checksum_matches, digest, write_with_checksum
from exam.core.logging import log_progress
from exam.data.corpus import Article
from exam.data.sentences import sentence_offsets
from exam.retrieval.contexts import context_rows
from exam.retrieval.embeddings import (
    KEY_BYTES,
    TEXTS_PER_SHARD,
    Embeddings,
    Keys,
    fingerprints,
    key_column,
    keys_of,
)
from exam.retrieval.idf import split_words
from exam.retrieval.index import ArticleIndex
from exam.retrieval.queries import query_texts
from exam.retrieval.vectors import Rows, Vectors

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

    An interrupted search continues with the sentences in `work` and the vectors in `embeddings`.
    """
    nearest = _articles(questions, index, search, embeddings)
    sentences = _split(np.unique(np.concatenate(nearest)), index, search, embeddings, work)
    keys = np.concatenate([np.empty(0, f"S{KEY_BYTES}"), *map(keys_of, sentences["key"].chunks)])
    article_rows = sentences["article"].to_numpy()
    candidates = [
        prefilter(
            question,
            _sentences_of(article_rows, articles),
            keys,
            sentences,
            search.prefilter_k,
        )
        for question, articles in zip(questions.to_list(), nearest, strict=True)
    ]
    rows = np.unique(np.concatenate([rows for rows, _, _ in candidates]))
    _encode(rows, keys, sentences, embeddings)
    queries = _queries(questions, search.query, embeddings)
    for start in range(0, len(questions), QUESTIONS_AT_ONCE):
        block = range(start, min(start + QUESTIONS_AT_ONCE, len(questions)))
        ranked = [_rank(candidates[i], queries[i], keys, embeddings, search.top_k) for i in block]
        yield from _passages(questions["id"][block.start : block.stop], ranked, sentences, index)
    for path in work.glob(SENTENCES.format("*")):
        path.unlink()


def _queries(questions: Dataset, query: Query, embeddings: Embeddings) -> list[Vectors]:
    """Return the vectors of each question's queries, shape `(queries, dimension)`."""
    texts = [query_texts(question, query) for question in questions.to_list()]
    vectors = embeddings.queries(list(chain.from_iterable(texts)))
    return np.split(vectors, np.cumsum(list(map(len, texts)))[:-1])


def _articles(
    questions: Dataset, index: ArticleIndex, search: Search, embeddings: Embeddings
) -> list[Rows]:
    """Return the rows of each question's nearest articles, by the best rank of its queries."""
    queries = _queries(questions, search.article_query, embeddings)
    articles = index.search(np.concatenate(queries), search.articles)
    ends = np.cumsum(list(map(len, queries)))[:-1]
    ranked = [rows.T.ravel() for rows in np.split(articles, ends)]
    return [rows[_first_positions(rows)][: search.articles] for rows in ranked]


def _first_positions(values: NDArray[Any]) -> Rows:
    """Return the first position of each distinct value, ascending."""
    return np.sort(np.unique(values, return_index=True)[1])


def _split(
    articles: Rows, index: ArticleIndex, search: Search, embeddings: Embeddings, work: Path
) -> pa.Table:
    """Return the sentences of articles (ascending rows of the index), in order, memory-mapped.

    A file holds them, so that memory holds the texts of at most one corpus file.
    """
    path = work / SENTENCES.format(digest(articles.tolist())[:16])
    prefix = embeddings.encoder.config.passage_prefix
    if not checksum_matches(path):
        stream = index.get_articles(articles.tolist())
        with (
            write_with_checksum(path) as temporary,
            pa.ipc.new_file(str(temporary), SENTENCE) as writer,
        ):
            while block := list(islice(stream, ARTICLES_AT_ONCE)):
                writer.write(_sentences(block, search.min_sentence_chars, prefix))
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def _sentences(articles: list[tuple[int, Article]], min_chars: int, prefix: str) -> pa.RecordBatch:
    """Return the sentences of articles, with the keys of their vectors."""
    sentences = [
        (row, start, end, article.text[start:end])
        for row, article in articles
        for start, end in sentence_offsets(article.text, min_chars)
    ]
    rows, starts, ends, texts = zip(*sentences, strict=True) if sentences else ([], [], [], [])
    keys = key_column(fingerprints([prefix + text for text in texts]))
    return pa.record_batch([rows, starts, ends, texts, keys], schema=SENTENCE)


def _sentences_of(article_rows: Rows, articles: Rows) -> Rows:
    """Return the rows of the sentences of `articles`; `article_rows` ascend."""
    starts, ends = np.searchsorted(article_rows, [articles, articles + 1])
    return np.concatenate([np.arange(a, b) for a, b in zip(starts, ends, strict=True)])


Candidates = tuple[Rows, Rows, Vectors]  # rows to encode; the rest, best first, and its scores


def prefilter(
    question: dict[str, Any], rows: Rows, keys: Keys, sentences: pa.Table, k: int | None
) -> Candidates:
    """Split a question's sentences into the `k` that share most words with it, and the rest.

    The `k` are each article's best sentence, then the best of all. A word's weight is its inverse
    frequency in these sentences; a sentence's score is its shared weight over the root of its
    length. The rest is scored minus two, below any cosine.
    """
    rows = rows[_first_positions(keys[rows])]  # equal texts once
    if k is None or len(rows) <= k:
        return rows, np.empty(0, np.int64), np.empty(0, np.float32)
    terms = {
        word for text in (question["prompt"], *question["options"]) for word in split_words(text)
    }
    tokens = [split_words(text) for text in sentences["text"].take(rows).to_pylist()]
    shared = [terms.intersection(sentence) for sentence in tokens]
    frequency = Counter(chain.from_iterable(shared))
    weight = {word: float(np.log((1 + len(rows)) / n)) for word, n in frequency.items()}
    total = sum(weight.values()) or 1.0
    share = np.array([sum(weight[word] for word in both) / total for both in shared], np.float32)
    score = share / np.sqrt([max(1, len(sentence)) for sentence in tokens])
    order = np.argsort(-score, kind="stable")
    best = _first_positions(sentences["article"].take(rows[order]).to_numpy())
    chosen = np.zeros(len(rows), bool)
    chosen[order[np.concatenate([best, np.delete(np.arange(len(order)), best)])[:k]]] = True
    rest = order[~chosen[order]]
    return rows[chosen], rows[rest], (score[rest] - 2).astype(np.float32)


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
    candidates: Candidates, queries: Vectors, keys: Keys, embeddings: Embeddings, depth: int
) -> tuple[Rows, Vectors]:
    """Return the best `depth` rows and their scores, each the best of several queries."""
    rows, rest, rest_scores = candidates
    scores = (embeddings.vectors(keys[rows]) @ queries.T).max(axis=1)
    order = np.argsort(-scores, kind="stable")
    ranked = np.concatenate([rows[order], rest])[:depth]
    return ranked, np.concatenate([scores[order], rest_scores])[:depth]


def _passages(
    ids: list[str],
    ranked: list[tuple[Rows, Vectors]],
    sentences: pa.Table,
    index: ArticleIndex,
) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of the contexts file for some questions, looked up together."""
    columns = ["article", "start", "end", "text"]
    rows = np.concatenate([rows for rows, _ in ranked])
    stream = iter(sentences.select(columns).take(rows).to_pylist())
    numbers = np.unique(sentences["article"].take(rows).to_numpy())
    articles = dict(zip(numbers.tolist(), index.table.take(numbers).to_pylist(), strict=True))
    for question, (_, scores) in zip(ids, ranked, strict=True):
        passages = (_passage(sentence, articles[sentence["article"]], index) for sentence in stream)
        yield context_rows(question, zip(scores.tolist(), passages, strict=False))


def _passage(
    sentence: dict[str, Any], article: dict[str, Any], index: ArticleIndex
) -> dict[str, Any]:
    source = index.files[article["file"]].source
    return {**sentence, "article_id": article["id"], "title": article["title"], "source": source}
