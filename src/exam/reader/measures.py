"""Measures of each option against its passages, for a neural reader's score."""

from collections.abc import Set as AbstractSet
from itertools import pairwise
from math import fsum, sqrt

import numpy as np
from datasets import Dataset

from exam.metrics import Floats
from exam.reader.lexical import FEATURES, build_features, rarity_of, windows_of
from exam.retrieval.contexts import read_contexts, read_rarity
from exam.retrieval.evaluation import within_budget, words
from exam.runtime import watched
from exam.stage import Stage

OWN = (
    "trigrams",  # its runs of three words that occur in the passages
    "similarity",  # best cosine of a window's asked words with prompt and option, by rarity
    "scored",  # share of its new words in a passage, averaged by the passages' retrieval scores
)
MEASURES = (*FEATURES, *OWN)
Words = list[str]


def measure_options(questions: Dataset, stage: Stage, top_k: int, budget: int) -> Floats:
    """MEASURES `(questions, options, measures)` with the `top_k` best passages of a stage.

    Each is standardised over its question's options, 0 where they do not differ, and NaN where a
    question has fewer options. Passages are read up to `budget` words.
    """
    contexts, idf = read_contexts(stage, top_k), read_rarity(stage)
    lexical = build_features(questions, contexts, idf, budget)
    own = np.full((*lexical.shape[:2], len(OWN)), np.nan)
    seen = watched(questions.to_list(), "evidence", len(questions), "questions")
    for row, question in zip(own, seen, strict=True):
        ranked = contexts.get(question["id"], [])
        passages = within_budget(ranked, budget)
        options = [words(option) for option in question["options"]]
        scores = [passage["score"] for passage in ranked[: len(passages)]]
        row[: len(options)] = _own(words(question["prompt"]), options, passages, scores, idf)
    return _standardised(np.concatenate([lexical, own], axis=2))


def _standardised(found: Floats) -> Floats:
    centred = found - np.nanmean(found, axis=1, keepdims=True)
    spread = np.nanstd(found, axis=1, keepdims=True)
    spread[spread < 1e-9] = np.inf  # no difference, or one of rounding
    standardised: Floats = centred / spread
    return standardised


def _own(
    prompt: Words,
    options: list[Words],
    passages: list[Words],
    scores: list[float],
    idf: dict[str, float],
) -> list[list[float]]:
    asked = set(prompt)
    runs = {run for passage in passages for run in _trigrams(passage)}
    windows = windows_of(passages, asked.union(*options))
    weights = _shares(scores)
    rows = []
    for option in options:
        whole, new = asked.union(option), set(option) - asked
        total = rarity_of(new, idf) or 1.0
        shares = [rarity_of(new.intersection(passage), idf) / total for passage in passages]
        rows.append(
            [
                fsum(rarity_of(run, idf) for run in runs.intersection(_trigrams(option))),
                max((_cosine(whole, window, idf) for window in windows), default=0.0),
                fsum(a * b for a, b in zip(weights, shares, strict=True)),
            ]
        )
    return rows


def _trigrams(text: Words) -> list[tuple[str, str, str]]:
    return [(a, b, c) for (a, b), (_, c) in pairwise(pairwise(text))]


def _cosine(one: AbstractSet[str], other: AbstractSet[str], idf: dict[str, float]) -> float:
    """Of two sets of words, each word as long as its rarity."""
    lengths = [fsum(idf.get(w, 0.0) ** 2 for w in part) for part in (one, other, one & other)]
    return lengths[2] / sqrt(lengths[0] * lengths[1]) if lengths[2] > 0 else 0.0


def _shares(scores: list[float]) -> list[float]:
    """Scores as weights that sum to one; equal where any is negative or all are nothing."""
    total = fsum(scores)
    if total <= 0 or min(scores, default=0.0) < 0:
        return [1 / len(scores) for _ in scores]
    return [score / total for score in scores]
