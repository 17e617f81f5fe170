"""What of a question is searched for, and how several searches for one question are merged."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exam.config import Query

Parts = tuple[str, str]  # prompt; options


def query_parts(question: dict[str, Any], query: Query) -> list[Parts]:
    """A question's queries, each as its prompt and its options."""
    if query is Query.prompt:
        return [(question["prompt"], "")]
    if query is Query.prompt_options:
        return [(question["prompt"], " ".join(question["options"]))]
    return [(question["prompt"], option) for option in question["options"]]


def query_texts(question: dict[str, Any], query: Query) -> list[str]:
    """A question's queries as texts."""
    return [" ".join(filter(None, parts)) for parts in query_parts(question, query)]


def merged(
    hits: Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]],
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Several queries' rows and scores as one ranking: each row by its best score."""
    rows, scores = map(np.concatenate, zip(*hits, strict=True))
    order = np.lexsort((rows, -scores))
    _, first = np.unique(rows[order], return_index=True)
    kept = order[np.sort(first)]
    return rows[kept], scores[kept]
