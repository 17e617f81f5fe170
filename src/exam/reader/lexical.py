"""The lexical reader: a conditional logit over what each option's words have in the passages.

It costs no encoding and trains in a second, so it tells retrievers apart without a neural reader
in the loop, and it is the baseline that a neural reader has to beat.
"""

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import pairwise
from math import fsum, isfinite, log1p, sqrt
from pathlib import Path

import numpy as np
from datasets import Dataset

from exam.errors import ExamError, spell_command
from exam.files import read_json, write_json
from exam.metrics import Floats, Ints
from exam.retrieval.contexts import read_contexts, read_rarity
from exam.retrieval.evaluation import Contexts, within_budget, words
from exam.runtime import watched
from exam.splits import fold_of, related
from exam.stage import Stage

WINDOW = 30  # words: about one long sentence
FOLDS = 5
PENALTY = 1.0
FEATURES = (
    "window",  # best share of its new words in a window, times that window's share of the prompt
    "coverage",  # best share of its new words in a window
    "bigrams",  # its word pairs that occur in the passages
    "missing",  # its new words that occur in none
    "missing_own",  # those of them that no other option has, weighted by rarity
    "words",  # its length
    "characters",  # the logarithm of its length
    "prompt",  # share of its words that occur in the prompt
    "centrality",  # mean Jaccard overlap with the other options' words
)


@dataclass(frozen=True)
class LexicalReader:
    """One weight for each of FEATURES; an option's logit is their weighted sum."""

    weights: Floats

    def logits(self, features: Floats) -> Floats:
        """Logits of shape `(questions, options)`, `-inf` where there is no such option."""
        missing = np.isnan(features).any(axis=2)
        found: Floats = np.where(missing, -np.inf, np.nan_to_num(features) @ self.weights)
        return found


def build_features(
    questions: Dataset, contexts: Contexts, idf: dict[str, float], budget: int | None = None
) -> Floats:
    """Features of shape `(questions, options, FEATURES)`, NaN where a question has fewer options.

    Passages are read up to `budget` words; all of them without one.
    """
    options = max(map(len, questions["options"]), default=0)
    found = np.full((len(questions), options, len(FEATURES)), np.nan)
    seen = watched(questions.to_list(), "word overlap", len(questions), "questions")
    for row, question in zip(found, seen, strict=True):
        ranked = contexts.get(question["id"], [])
        passages = (
            [words(p["text"]) for p in ranked] if budget is None else within_budget(ranked, budget)
        )
        row[: len(question["options"])] = option_features(
            words(question["prompt"]), [words(o) for o in question["options"]], passages, idf
        )
    return found


def lexical_features(questions: Dataset, stage: Stage, top_k: int, budget: int) -> Floats:
    """The same, with the `top_k` best passages of a contexts stage."""
    return build_features(questions, read_contexts(stage, top_k), read_rarity(stage), budget)


def option_features(
    prompt: list[str], options: list[list[str]], passages: list[list[str]], idf: dict[str, float]
) -> list[list[float]]:
    """FEATURES of every option of one question; every text is a list of words."""
    asked, sets = set(prompt), [set(option) for option in options]
    wanted = asked.union(*sets)
    present = {word for passage in passages for word in passage if word in wanted}
    pairs = {pair for passage in passages for pair in pairwise(passage)}
    total = rarity_of(asked, idf) or 1.0
    windows = [(w, rarity_of(asked & w, idf) / total) for w in windows_of(passages, wanted)]
    rows = []
    for place, (option, own) in enumerate(zip(options, sets, strict=True)):
        others = sets[:place] + sets[place + 1 :]
        new = own - asked
        total = rarity_of(new, idf) or 1.0
        shares = [(rarity_of(new & window, idf) / total, share) for window, share in windows]
        rows.append(
            [
                max((a * b for a, b in shares), default=0.0),
                max((a for a, _ in shares), default=0.0),
                fsum(rarity_of(pair, idf) for pair in pairs.intersection(pairwise(option))),
                float(len(new - present)),
                rarity_of(new.difference(present, *others), idf),
                float(len(option)),
                log1p(sum(map(len, option))),
                rarity_of(own & asked, idf) / (rarity_of(own, idf) or 1.0),
                fsum(len(own & other) / max(1, len(own | other)) for other in others) / len(others),
            ]
        )
    return rows


def rarity_of(wanted: Iterable[str], idf: dict[str, float]) -> float:
    """Sum of inverse document frequencies; exact, so that the order of a set does not matter."""
    return fsum(max(idf.get(word, 0.0), 0.0) for word in wanted)


def windows_of(passages: list[list[str]], wanted: set[str]) -> set[frozenset[str]]:
    """The wanted words of every window; windows overlap by half."""
    half = WINDOW // 2
    return {
        frozenset(wanted.intersection(passage[start : start + WINDOW]))
        for passage in passages
        for start in range(0, max(1, len(passage) - half), half)
    }


def fit(features: Floats, labels: Ints) -> LexicalReader:
    """Fit a conditional logit: softmax over each question's options, with an L2 penalty.

    The penalty is on features in units of their spread within questions; the loss is convex, so
    the weights depend on nothing but the data.
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax, softmax

    missing = np.isnan(features).any(axis=2)
    centred = features - np.nanmean(features, axis=1, keepdims=True)
    spread = np.nanstd(centred, axis=(0, 1))
    spread[spread == 0] = 1.0
    inputs = np.nan_to_num(centred / spread)
    right = np.arange(len(labels)), labels

    def loss(weights: Floats) -> tuple[float, Floats]:
        logits = np.where(missing, -np.inf, inputs @ weights)
        expected = np.einsum("qo,qof->f", softmax(logits, axis=1), inputs)
        value = PENALTY / 2 * weights @ weights - log_softmax(logits, axis=1)[right].sum()
        return float(value), PENALTY * weights + expected - inputs[right].sum(axis=0)

    found = minimize(loss, np.zeros(features.shape[2]), jac=True, method="L-BFGS-B", tol=1e-10)
    return LexicalReader(found.x / spread)


def cross_fitted(questions: Dataset, features: Floats) -> Floats | None:
    """Logits of every question by a reader fitted on the other folds; None for too few questions.

    Related questions stay in one fold.
    """
    folds = min(FOLDS, len(set(related(questions).tolist())) if len(questions) else 0)
    if folds < 2:
        return None
    fold, labels = fold_of(questions, folds, 0), np.array(questions["label"])
    logits = np.empty(features.shape[:2])
    for number in range(folds):
        inside = fold == number
        logits[inside] = fit(features[~inside], labels[~inside]).logits(features[inside])
    return logits


def save_lexical(reader: LexicalReader, path: Path) -> None:
    """Write the weights by their features' names."""
    write_json(path, dict(zip(FEATURES, reader.weights.tolist(), strict=True)))


def load_lexical(path: Path) -> LexicalReader:
    """Read what `save_lexical` wrote.

    Raises:
        ExamError: the file holds other features, or values that are no finite numbers.
    """
    found = read_json(path)
    if not isinstance(found, dict) or list(found) != list(FEATURES):
        raise ExamError(
            f"{path} does not weigh this version's features ({', '.join(FEATURES)}).\n"
            f"Train again: {spell_command('train')} model=lexical"
        )
    values = list(found.values())
    if not all(isinstance(v, (int, float)) and isfinite(v) for v in values):
        raise ExamError(f"{path} holds a weight that is no finite number.\nTrain again.")
    return LexicalReader(np.array(values, dtype=np.float64))


# Overlap features of a neural reader's score.

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
