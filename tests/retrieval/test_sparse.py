"""BM25 and TF-IDF against their definitions; queries merged; rankings fused."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from helpers import jsonl_corpus

from exam.config import Chunking, Fusion, Query, RetrieverKind, Search
from exam.data.corpus import list_articles
from exam.retrieval.chunking import build_passages
from exam.retrieval.hybrid import fuse
from exam.retrieval.queries import merge_hits, query_parts, query_texts
from exam.retrieval.sparse import bm25_search, build_bm25, tfidf_search

TEXTS = [
    "otters swim in rivers",
    "badgers dig setts in woods",
    "otters eat fish and otters play",
    "herons eat fish in rivers and marshes",
]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"id": str(i), "title": "", "text": text} for i, text in enumerate(TEXTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = list_articles(jsonl_corpus(path), tmp_path / "outputs")
    return build_passages(corpus, Chunking(), tmp_path / "outputs")


def bm25(query, k1, b):
    """Lucene's form over the words that are no stop words."""
    documents = [[w for w in text.split() if w not in ("in", "and")] for text in TEXTS]
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        count, total = Counter(document), 0.0
        for word in query:
            n = sum(word in d for d in documents)
            idf = math.log(1 + (len(documents) - n + 0.5) / (n + 0.5))
            length = 1 - b + b * len(document) / mean
            total += idf * count[word] / (count[word] + k1 * length)
        scores.append(total)
    return scores


def test_bm25_equals_its_formula(table, tmp_path):
    search = Search(name="bm25", kind=RetrieverKind.bm25, k1=1.2, b=0.75)
    queries = ["Do otters eat fish?", "zebra", ""]
    stage = build_bm25(table, search, tmp_path / "outputs")
    hits = list(bm25_search(stage, queries, 10))
    expected = np.array(bm25(["otters", "eat", "fish"], 1.2, 0.75))
    order = [i for i in np.argsort(-expected, kind="stable") if expected[i] > 0]
    assert hits[0][0].tolist() == order == [2, 3, 0]
    np.testing.assert_allclose(hits[0][1], expected[order], rtol=1e-5)
    assert [len(rows) for rows, _ in hits[1:]] == [0, 0]  # no word in common: no passage
    again = list(bm25_search(stage, queries, 2))
    assert again[0][0].tolist() == [2, 3]


def test_tfidf_equals_its_definition_in_blocks(table, monkeypatch):
    search = Search(name="tfidf", kind=RetrieverKind.tfidf, ngrams=1, prompt_weight=3.0)
    queries = [("otters fish", "rivers"), ("zebra", "")]
    whole = list(tfidf_search(table, search, queries, 4))
    terms = ["otters", "fish", "rivers", "zebra"]
    counts = np.array([[text.split().count(t) for t in terms] for text in TEXTS], float)
    idf = np.log((1 + 4) / (1 + (counts > 0).sum(0))) + 1
    rows = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0) * idf
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    query = np.array([3, 3, 1, 0]) * idf
    scores = rows @ (query / np.linalg.norm(query))
    order = [i for i in np.argsort(-scores, kind="stable") if scores[i] > 0]
    assert whole[0][0].tolist() == order
    np.testing.assert_allclose(whole[0][1], scores[order], rtol=1e-5)
    assert whole[1][0].tolist() == []
    blocks = [[text] for block in table.texts() for text in block]
    monkeypatch.setattr(type(table), "texts", lambda self, what: iter(blocks))
    split = list(tfidf_search(table, search, queries, 4))
    assert split[0][0].tolist() == order


def test_tfidf_of_only_stop_words_finds_nothing(table):
    search = Search(name="tfidf", kind=RetrieverKind.tfidf)
    assert [r.tolist() for r, _ in tfidf_search(table, search, [("the of", "")], 3)] == [[]]


QUESTION = {"prompt": "Who swims?", "options": ["otters", "herons"]}


def test_query_forms():
    assert query_texts(QUESTION, Query.prompt) == ["Who swims?"]
    assert query_texts(QUESTION, Query.prompt_options) == ["Who swims? otters herons"]
    assert query_texts(QUESTION, Query.per_option) == ["Who swims? otters", "Who swims? herons"]
    assert query_parts(QUESTION, Query.prompt) == [("Who swims?", "")]


def test_merged_queries_keep_each_rows_best_score():
    first = np.array([4, 2, 7]), np.array([0.9, 0.5, 0.1], np.float32)
    second = np.array([7, 4]), np.array([0.8, 0.3], np.float32)
    rows, scores = merge_hits([first, second])
    assert rows.tolist() == [4, 7, 2]
    np.testing.assert_allclose(scores, [0.9, 0.8, 0.5])


def ranking(*texts, scores=None):
    values = scores or [1.0 / i for i in range(1, len(texts) + 1)]
    return [
        {"rank": i, "score": s, "text": t, "passage_id": t}
        for i, (t, s) in enumerate(zip(texts, values, strict=True), 1)
    ]


def test_reciprocal_rank_fusion_by_hand():
    a = ranking("red fox runs", "blue whale dives", "green newt hides")
    b = ranking("blue whale dives", "grey seal barks")
    fused = fuse([a, b], [1.0, 1.0], Fusion.rrf, 60, 3)
    assert [row["text"] for row in fused] == ["blue whale dives", "red fox runs", "grey seal barks"]
    assert [row["rank"] for row in fused] == [1, 2, 3]
    assert fused[0]["score"] == pytest.approx(1 / 62 + 1 / 61)
    assert fused[1]["score"] == pytest.approx(1 / 61)
    weighted = fuse([a, b], [3.0, 1.0], Fusion.rrf, 60, 1)
    assert weighted[0]["score"] == pytest.approx(3 / 62 + 1 / 61)


def test_weighted_fusion_scales_each_ranking():
    a = ranking("red fox runs", "blue whale dives", scores=[10.0, 5.0])
    b = ranking("blue whale dives", "red fox runs", scores=[0.9, 0.1])
    fused = fuse([a, b], [1.0, 2.0], Fusion.weighted, 60, 2)
    assert [(row["text"], row["score"]) for row in fused] == [
        ("blue whale dives", 2.0),
        ("red fox runs", 1.0),
    ]
    assert fuse([[], []], [1.0, 1.0], Fusion.weighted, 60, 2) == []


def test_near_duplicates_are_one_passage():
    a = ranking("Title one. The otter swims in rivers and eats fish.", "A heron stands.")
    b = ranking("The otter swims in rivers and eats fish.", "a heron stands")
    fused = fuse([a, b], [1.0, 1.0], Fusion.rrf, 60, 9)
    assert [row["text"] for row in fused] == [a[0]["text"], a[1]["text"]]
    assert fused[0]["score"] == pytest.approx(2 / 61)
