"""Passages ranked for each question, from what its queries found."""

from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any

from datasets import Dataset

from exam.config import Search
from exam.retrieval.lexical import Hits
from exam.retrieval.passages import PassageTable
from exam.retrieval.queries import Parts, merged, query_parts

SPARE = 2  # passages looked up for each one kept: some have equal texts
Find = Callable[[Search, list[Parts], int], Iterator[Hits]]  # each query's best rows of the table


def ranked_passages(
    questions: Dataset, search: Search, table: PassageTable, find: Find
) -> Iterator[list[dict[str, Any]]]:
    """Rank all passages for each question's queries, merged; equal texts once."""
    asked = questions.to_list()
    queries = [query_parts(q, search.query) for q in asked]
    hits = find(search, list(chain.from_iterable(queries)), SPARE * search.depth)
    for question, parts in zip(asked, queries, strict=True):
        rows, scores = merged(islice(hits, len(parts)))
        yield _distinct(question["id"], table.rows(rows.tolist()), scores, search.depth)


def _distinct(
    question: str, passages: list[dict[str, Any]], scores: Any, depth: int
) -> list[dict[str, Any]]:
    """Rows of the contexts file for the best `depth` passages with distinct texts."""
    best: dict[str, tuple[dict[str, Any], float]] = {}
    for passage, score in zip(passages, scores.tolist(), strict=True):
        best.setdefault(passage["text"], (passage, score))
    return [
        {
            "question_id": question,
            "rank": rank,
            "score": score,
            "article_id": passage["article_id"],
            "passage_id": f"{passage['article_id']}:{passage['start']}-{passage['end']}",
            "title": passage["title"],
            "text": passage["text"],
            "source": passage["source"],
        }
        for rank, (passage, score) in enumerate(islice(best.values(), depth), 1)
    ]
