"""Turn a question into queries, and merge their results."""

from collections.abc import Iterable, Sequence, Sized
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exam.config import Query

Parts = tuple[str, str]  # prompt; options
Hits = tuple[NDArray[np.int64], NDArray[np.float32]]  # rows and scores, best first


def query_parts(question: dict[str, Any], query: Query) -> list[Parts]:
    """Return a question's queries, each as its prompt and its options."""
    if query is Query.prompt:
        return [(question["prompt"], "")]
    if query is Query.prompt_options:
        return [(question["prompt"], " ".join(question["options"]))]
    return [(question["prompt"], option) for option in question["options"]]


def query_texts(question: dict[str, Any], query: Query) -> list[str]:
    """Return a question's queries as texts."""
    return list(map(join_parts, query_parts(question, query)))


def join_parts(parts: Parts) -> str:
    """Return a query as one text."""
    return " ".join(filter(None, parts))


def first_positions(values: NDArray[Any]) -> NDArray[np.int64]:
    """Return the first position of each distinct value, ascending."""
    return np.sort(np.unique(values, return_index=True)[1])


def split_by_group(values: NDArray[Any], groups: Sequence[Sized]) -> list[NDArray[Any]]:
    """Split an array whose entries belong to groups, one group after another."""
    return np.split(values, np.cumsum(list(map(len, groups)))[:-1])


def merge_hits(hits: Iterable[Hits]) -> Hits:
    """Merge the hits of several queries: each row with its best score, best first."""
    rows, scores = map(np.concatenate, zip(*hits, strict=True))
    order = np.lexsort((rows, -scores))
    best = order[first_positions(rows[order])]
    return rows[best], scores[best]
