"""Search passages by BM25 and TF-IDF.

Both yield the rows and scores of each query's best passages, without those that share no word with
the query. Only English has stop words: each method's customary list. Inverse document frequency
weakens those of other languages.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exam.config import Search
from exam.core.artifacts import Stage, open_stage
from exam.data.words import WORDS_VERSION, split_words
from exam.retrieval.chunking import PassageTable
from exam.retrieval.queries import Hits, Parts

NO_HITS: Hits = np.empty(0, np.int64), np.empty(0, np.float32)


def bm25_search(stage: Stage, queries: Sequence[str], k: int) -> Iterator[Hits]:
    """Rank all passages for each query by BM25 (Lucene's form; Robertson and Zaragoza, 2009)."""
    import bm25s

    index = bm25s.BM25.load(str(stage.folder), mmap=True)
    for tokens in _tokenize(queries):
        terms = [token for token in tokens if token in index.vocab_dict]
        yield _best(index.get_scores(terms), k) if terms else NO_HITS


def build_bm25(table: PassageTable, search: Search, outputs: Path) -> Stage:
    """Index the words of a table for `bm25_search`."""
    import bm25s

    key = {"passages": table.stage.hash, "k1": search.k1, "b": search.b, "words": WORDS_VERSION}
    with open_stage(outputs, "bm25", table.stage.folder.name, key) as stage:
        if not stage.reused:
            index = bm25s.BM25(k1=search.k1, b=search.b, method="lucene")
            tokens = chain.from_iterable(map(_tokenize, table.texts("BM25 index")))
            index.index(list(tokens), create_empty_token=False, show_progress=False)
            index.save(str(stage.folder), show_progress=False)
            names = [p.name for p in stage.folder.iterdir() if p.suffix in (".npy", ".json")]
            stage.finish([n for n in names if n != "key.json"], passages=len(table))
    return stage


def _tokenize(texts: Sequence[str]) -> list[list[str]]:
    """Split texts into words without English stop words."""
    from bm25s.stopwords import STOPWORDS_EN

    return [[w for w in split_words(text) if w not in STOPWORDS_EN] for text in texts]


def _best(scores: NDArray[np.float32], k: int) -> Hits:
    """Return the rows of the `k` largest positive scores, best first; ties keep their order."""
    k = min(k, len(scores))
    threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
    rows = np.flatnonzero((scores >= threshold) & (scores > 0))
    rows = rows[np.argsort(-scores[rows], kind="stable")][:k]
    return rows.astype(np.int64), scores[rows].astype(np.float32)


def tfidf_search(
    table: PassageTable, search: Search, queries: Sequence[Parts], k: int
) -> Iterator[Hits]:
    """Rank all passages by TF-IDF with the queries' vocabulary, prompts above options.

    After MB's "With only 270K articles" (2023): the terms are the queries' runs of 1 to
    `search.ngrams` words, so the vocabulary is small for every corpus. Term frequency is sublinear.
    """
    from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
    from sklearn.preprocessing import normalize

    counter = CountVectorizer(
        tokenizer=split_words,
        token_pattern=None,
        lowercase=False,
        ngram_range=(1, search.ngrams),
        stop_words="english",
    )
    terms = counter.build_analyzer()
    if not any(terms(text) for parts in queries for text in parts):
        yield from [NO_HITS] * len(queries)
        return
    counter.fit(text for parts in queries for text in parts)
    frequency = sum(counter.transform(block).getnnz(axis=0) for block in table.texts("terms"))
    idf = np.log((1 + len(table)) / (1 + frequency)) + 1  # scikit-learn's smoothed form
    prompts = search.prompt_weight * counter.transform([p for p, _ in queries])
    options = counter.transform([o for _, o in queries])
    vectors = normalize((prompts + options).multiply(idf).tocsr())
    weight = TfidfTransformer(sublinear_tf=True)
    weight.idf_ = idf
    best = [NO_HITS] * len(queries)
    start = 0
    for block in table.texts("TF-IDF"):  # memory holds the scores of one block
        scores = vectors @ weight.transform(counter.transform(block)).T
        for i, (best_rows, best_values) in enumerate(best):
            row = scores.getrow(i)
            rows = np.concatenate([best_rows, row.indices + start])
            values = np.concatenate([best_values, row.data.astype(np.float32)])
            order = np.lexsort((rows, -values))[:k]
            best[i] = rows[order], values[order]
        start += len(block)
    yield from best
