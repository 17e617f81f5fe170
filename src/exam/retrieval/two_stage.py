"""Two-stage search: find the articles nearest to a question, then rank their sentences.

The method of the open-book notebooks (J. J. Inho and others, 2023): an index of first sentences
finds each question's articles. Only their sentences are encoded; a question ranks those of its
articles.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset

from exam.config import Query, Search
from exam.core.files import checksum_matches, digest, write_with_checksum
from exam.data.articles import Article
from exam.data.sentences import sentence_offsets
from exam.data.words import split_words, word_spans
from exam.retrieval.contexts import Row, context_rows
from exam.retrieval.encoder import Embeddings, Keys, SentenceEncoder, fingerprint_texts
from exam.retrieval.index import ArticleIndex
from exam.retrieval.queries import first_positions, query_texts, split_by_group
from exam.retrieval.vectors import Rows, Vectors

log = logging.getLogger(__name__)

ARTICLES_PER_BLOCK = 1024
QUESTIONS_PER_BLOCK = 64
SENTENCES = "sentences-{}.arrow"
MARGIN = 8  # tokens
Span = tuple[int, int]  # first character and the one after the last
SENTENCE = pa.schema(
    {
        "article": pa.int64(),
        "start": pa.int64(),
        "end": pa.int64(),
        "text": pa.large_string(),
        "key": pa.int64(),
    }
)


def rank_sentences(
    questions: Dataset,
    index: ArticleIndex,
    search: Search,
    embeddings: Embeddings,
    work: Path,
) -> Iterator[list[Row]]:
    """Yield each question's ranked passages, best first, as rows of the contexts file.

    An interrupted search continues with the sentences in `work` and the vectors in `embeddings`.
    """
    nearest = _find_articles(questions, index, search, embeddings)
    sentences = _split(np.unique(np.concatenate(nearest)), index, search, embeddings, work)
    keys, article_rows = sentences["key"].to_numpy(), sentences["article"].to_numpy()
    rows_of = [_sentences_of(article_rows, articles) for articles in nearest]
    candidates = [
        prefilter(question, rows, keys, sentences, search.prefilter_k)
        for question, rows in zip(questions.to_list(), rows_of, strict=True)
    ]
    rows = np.unique(np.concatenate([rows for rows, _, _ in candidates]))
    prefix = embeddings.encoder.passage_prefix
    embeddings.encode_missing(
        keys[rows],
        lambda block: [prefix + text for text in sentences["text"].take(rows[block]).to_pylist()],
    )
    queries = _embed_queries(questions, search.query, embeddings)
    for start in range(0, len(questions), QUESTIONS_PER_BLOCK):
        block = slice(start, start + QUESTIONS_PER_BLOCK)
        ranked = [
            _rank(*pair, keys, embeddings, search.top_k)
            for pair in zip(candidates[block], queries[block], strict=True)
        ]
        yield from _passages(questions["id"][block], ranked, sentences, index)


def _embed_queries(questions: Dataset, query: Query, embeddings: Embeddings) -> list[Vectors]:
    """Return the vectors of each question's queries, shape `(queries, dimension)`."""
    texts = [query_texts(question, query) for question in questions.to_list()]
    vectors = embeddings.queries(list(chain.from_iterable(texts)))
    return split_by_group(vectors, texts)


def _find_articles(
    questions: Dataset, index: ArticleIndex, search: Search, embeddings: Embeddings
) -> list[Rows]:
    """Return the rows of each question's nearest articles, by the best rank of its queries."""
    queries = _embed_queries(questions, search.article_query, embeddings)
    _, articles = index.search(np.concatenate(queries), search.articles)
    ranked = [rows.T.ravel() for rows in split_by_group(articles, queries)]
    return [rows[first_positions(rows)][: search.articles] for rows in ranked]


def _split(
    articles: Rows, index: ArticleIndex, search: Search, embeddings: Embeddings, work: Path
) -> pa.Table:
    """Return the sentences of articles (ascending rows of the index), in order, memory-mapped.

    A file holds them, so that memory holds the texts of at most one corpus file.
    """
    path = work / SENTENCES.format(digest(articles.tolist())[:16])
    if not checksum_matches(path):
        stream = index.get_articles(articles.tolist())
        cutter = Cutter(embeddings.encoder)
        with (
            write_with_checksum(path) as temporary,
            pa.ipc.new_file(str(temporary), SENTENCE) as writer,
        ):
            while block := list(islice(stream, ARTICLES_PER_BLOCK)):
                writer.write(_sentences(block, search.min_sentence_chars, cutter))
        if cutter.cut:
            log.info(
                "contexts: cut %d sentences longer than encoder.max_length=%d tokens into %d",
                cutter.cut, embeddings.encoder.config.max_length, cutter.pieces,
            )  # fmt: skip
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


@dataclass
class Cutter:
    """Cuts sentences that an encoder cannot read whole, and counts them."""

    encoder: SentenceEncoder
    cut: int = 0  # sentences
    pieces: int = 0

    def split(self, texts: list[str]) -> list[list[Span]]:
        """Return the start and end of each text's pieces; a short text is one piece."""
        limit, prefix = self.encoder.config.max_length, self.encoder.passage_prefix
        spans: list[list[Span]] = [[(0, len(text))] for text in texts]
        # A token is a byte at least; the margin is for special tokens.
        long = [i for i, t in enumerate(texts) if len((prefix + t).encode()) > limit - MARGIN]
        pending = [(i, 0, len(texts[i])) for i in long]
        for i in long:
            spans[i] = []
        while pending:
            lengths = self.encoder.count_tokens([prefix + texts[i][a:b] for i, a, b in pending])
            following = []
            for (i, start, end), length in zip(pending, lengths.tolist(), strict=True):
                if length <= limit or end - start < 2:
                    spans[i].append((start, end))
                else:
                    parts = _split_evenly(texts[i][start:end], -(-length // limit))
                    following += [(i, start + a, start + b) for a, b in parts]
            pending = following
        numbers = [len(spans[i]) for i in long if len(spans[i]) > 1]
        self.cut += len(numbers)
        self.pieces += sum(numbers)
        return [sorted(pieces) for pieces in spans]


def _split_evenly(text: str, parts: int) -> list[Span]:
    """Split a text into about `parts` pieces between words, or in the middle of a single word."""
    words = word_spans(text)
    if len(words) < 2:
        middle = len(text) // 2
        return [(0, middle), (middle, len(text))]
    size = -(-len(words) // parts)
    groups = [words[i : i + size] for i in range(0, len(words), size)]
    return [(group[0][0], group[-1][1]) for group in groups]


def _sentences(
    articles: list[tuple[int, Article]], min_chars: int, cutter: Cutter
) -> pa.RecordBatch:
    """Return the sentences of articles, with the keys of their vectors."""
    whole = [
        (row, start, article.text[start:end])
        for row, article in articles
        for start, end in sentence_offsets(article.text, min_chars)
    ]
    pieces = cutter.split([text for _, _, text in whole])
    sentences = [
        (row, start + a, start + b, text[a:b])
        for (row, start, text), spans in zip(whole, pieces, strict=True)
        for a, b in spans
    ]
    rows, starts, ends, texts = zip(*sentences, strict=True) if sentences else ([], [], [], [])
    keys = fingerprint_texts([cutter.encoder.passage_prefix + text for text in texts])
    return pa.record_batch([rows, starts, ends, texts, keys], schema=SENTENCE)


def _sentences_of(article_rows: Rows, articles: Rows) -> Rows:
    """Return the rows of the sentences of `articles`; `article_rows` ascend."""
    starts, ends = np.searchsorted(article_rows, [articles, articles + 1])
    return np.concatenate([np.arange(a, b) for a, b in zip(starts, ends, strict=True)])


Candidates = tuple[Rows, Rows, Vectors]  # rows to encode; the rest, best first, and its scores


def prefilter(
    question: Row, rows: Rows, keys: Keys, sentences: pa.Table, k: int | None
) -> Candidates:
    """Split a question's sentences into the `k` that share most words with it, and the rest.

    The `k` are each article's best sentence, then the best of all. A word's weight is its inverse
    frequency in these sentences; a sentence's score is its shared weight over the root of its
    length. The rest is scored minus two, below any cosine.
    """
    rows = rows[first_positions(keys[rows])]  # equal texts once
    if k is None or len(rows) <= k:
        return rows, np.empty(0, np.int64), np.empty(0, np.float32)
    terms = set(split_words(" ".join([question["prompt"], *question["options"]])))
    tokens = [split_words(text) for text in sentences["text"].take(rows).to_pylist()]
    shared = [terms.intersection(sentence) for sentence in tokens]
    frequency = Counter(chain.from_iterable(shared))
    weight = {word: float(np.log((1 + len(rows)) / n)) for word, n in frequency.items()}
    total = sum(weight.values()) or 1.0
    share = np.array([sum(weight[word] for word in both) / total for both in shared], np.float32)
    score = share / np.sqrt([max(1, len(sentence)) for sentence in tokens])
    order = np.argsort(-score, kind="stable")
    best = first_positions(sentences["article"].take(rows[order]).to_numpy())
    chosen = np.zeros(len(rows), bool)
    chosen[order[np.concatenate([best, np.delete(np.arange(len(order)), best)])[:k]]] = True
    rest = order[~chosen[order]]
    return rows[chosen], rows[rest], (score[rest] - 2).astype(np.float32)


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
) -> Iterator[list[Row]]:
    """Yield the rows of the contexts file for some questions, looked up together."""
    columns = ["article", "start", "end", "text"]
    rows = np.concatenate([rows for rows, _ in ranked])
    stream = iter(sentences.select(columns).take(rows).to_pylist())
    numbers = np.unique(sentences["article"].take(rows).to_numpy())
    articles = dict(zip(numbers.tolist(), index.table.take(numbers).to_pylist(), strict=True))
    for question, (_, scores) in zip(ids, ranked, strict=True):
        passages = (_passage(sentence, articles[sentence["article"]], index) for sentence in stream)
        yield context_rows(question, zip(scores.tolist(), passages, strict=False))


def _passage(sentence: Row, article: Row, index: ArticleIndex) -> Row:
    source = index.files[article["file"]].source
    return {**sentence, "article_id": article["id"], "title": article["title"], "source": source}
