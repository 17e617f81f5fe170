"""Several rankings as one: reciprocal ranks or weighted scores, near-duplicate passages merged."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from exam.config import Fusion, Retriever
from exam.retrieval.contexts import read_contexts
from exam.retrieval.evaluation import words
from exam.stage import Stage

SAME = 0.8  # Jaccard index of two passages' words from which they are near duplicates
Row = dict[str, Any]


@dataclass
class Candidate:
    """A passage and its near duplicates: the best-ranked one's row, and the sum of all rankings."""

    row: Row
    words: set[str]
    shares: dict[int, float]  # by ranking: the largest of its members

    def same(self, text: str, own: set[str]) -> bool:
        """Whether a text repeats this passage, lies in it, or has nearly the same words."""
        shorter, longer = sorted((len(self.words), len(own)))
        if shorter >= SAME * longer:  # else the words cannot be nearly the same
            shared = len(self.words & own)
            if shared >= SAME * (shorter + longer - shared):
                return True
        return text in self.row["text"] or self.row["text"] in text


def fused(
    questions: Dataset, search: Retriever, members: dict[str, Stage]
) -> Iterator[list[dict[str, Any]]]:
    """The members' rankings of each question as one."""
    found = [read_contexts(stage) for stage in members.values()]
    weights = [search.weights.get(member, 1.0) for member in members]
    for key in questions["id"]:
        rankings = [contexts.get(key, []) for contexts in found]
        yield fuse(rankings, weights, search.fusion, search.rrf_k, search.depth)


def fuse(
    rankings: Sequence[list[Row]], weights: Sequence[float], fusion: Fusion, rrf_k: int, depth: int
) -> list[Row]:
    """One question's rankings, each best first, as one of at most `depth` rows.

    `rrf`: the sum of weight / (rrf_k + rank) (Cormack, Clarke and Büttcher, 2009). `weighted`: the
    sum of weight × score, each ranking's scores scaled to 0 … 1 over its own rows.
    """
    candidates: list[Candidate] = []
    shares = [_shares(ranking, fusion, rrf_k) for ranking in rankings]
    everything = [
        (row["rank"], number, row, share)
        for number, ranking in enumerate(rankings)
        for row, share in zip(ranking, shares[number], strict=True)
    ]
    for _, number, row, share in sorted(everything, key=lambda entry: entry[:2]):
        own = set(words(row["text"]))
        candidate = next((c for c in candidates if c.same(row["text"], own)), None)
        if candidate is None:
            candidate = Candidate(row, own, {})
            candidates.append(candidate)
        candidate.shares.setdefault(number, weights[number] * share)
    scored = [(sum(c.shares.values()), c.row) for c in candidates]
    scored.sort(key=lambda pair: -pair[0])
    return [
        {**row, "rank": rank, "score": score} for rank, (score, row) in enumerate(scored[:depth], 1)
    ]


def _shares(ranking: list[Row], fusion: Fusion, rrf_k: int) -> list[float]:
    """What each row of a ranking adds to its passage's score, before weighting."""
    if fusion is Fusion.rrf:
        return [1 / (rrf_k + row["rank"]) for row in ranking]
    scores = [row["score"] for row in ranking]
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    return [(score - low) / (high - low) if high > low else 1.0 for score in scores]
