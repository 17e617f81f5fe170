"""Fuse rankings by reciprocal ranks or weighted scores, and merge near-duplicate passages."""

from collections.abc import Sequence
from dataclasses import dataclass

from exam.config import Fusion
from exam.data.words import split_words
from exam.retrieval.contexts import Row, rank_rows

DUPLICATE = 0.8  # Jaccard index of the words of near duplicates, at least


@dataclass
class Candidate:
    """A passage and its near duplicates, with the row of the best-ranked one."""

    row: Row
    words: set[str]
    shares: dict[int, float]  # by number of the ranking: the largest share of the duplicates

    def is_duplicate(self, text: str, words: set[str]) -> bool:
        """Tell whether a text equals or contains the other, or has nearly the same words."""
        shorter, longer = sorted((len(self.words), len(words)))
        if shorter >= DUPLICATE * longer:  # else the words cannot be nearly the same
            shared = len(self.words & words)
            if shared >= DUPLICATE * (shorter + longer - shared):
                return True
        return text in self.row["text"] or self.row["text"] in text


def fuse(
    rankings: Sequence[list[Row]], weights: Sequence[float], fusion: Fusion, rrf_k: int, depth: int
) -> list[Row]:
    """Fuse one question's rankings, each best first, into one of at most `depth` rows.

    `rrf`: the sum of weight / (rrf_k + rank) (Cormack, Clarke and Büttcher, 2009). `weighted`: the
    sum of weight × score, each ranking's scores scaled to 0 … 1 over its rows.
    """
    candidates: list[Candidate] = []
    entries = [
        (row["rank"], number, row, share)
        for number, ranking in enumerate(rankings)
        for row, share in zip(ranking, _shares(ranking, fusion, rrf_k), strict=True)
    ]
    for _, number, row, share in sorted(entries, key=lambda entry: entry[:2]):
        words = set(split_words(row["text"]))
        candidate = next((c for c in candidates if c.is_duplicate(row["text"], words)), None)
        if candidate is None:
            candidate = Candidate(row, words, {})
            candidates.append(candidate)
        candidate.shares.setdefault(number, weights[number] * share)
    scored = [(sum(c.shares.values()), c.row) for c in candidates]
    scored.sort(key=lambda pair: -pair[0])
    return rank_rows(scored[:depth])


def _shares(ranking: list[Row], fusion: Fusion, rrf_k: int) -> list[float]:
    """Return the score that each row of a ranking adds to its passage, before weighting."""
    if fusion is Fusion.rrf:
        return [1 / (rrf_k + row["rank"]) for row in ranking]
    scores = [row["score"] for row in ranking]
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    return [(score - low) / (high - low) if high > low else 1.0 for score in scores]
