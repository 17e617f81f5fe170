"""Word-overlap features of options, and the lexical reader: a conditional logit over them.

It trains in a second without encoding, so it compares retrievers without a neural reader. It is
also the baseline that a neural reader has to beat.
"""

import logging
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import pairwise
from math import fsum, isfinite, log1p, sqrt
from pathlib import Path
from typing import Self

import numpy as np
from datasets import Dataset, concatenate_datasets

from exam.config import Train
from exam.core.artifacts import Stage
from exam.core.checkpoints import MODEL
from exam.core.errors import ExamError, spell_command
from exam.core.files import read_json, write_json
from exam.core.logging import track
from exam.data.option_order import classify_reference
from exam.data.splits import Split, assign_folds, group_near_duplicates
from exam.data.words import split_words
from exam.metrics import (
    Floats,
    Ints,
    average_precision,
    metric_name,
    metric_title,
    rank_options,
    summarize,
)
from exam.retrieval.contexts import Contexts, read_contexts, read_idf
from exam.retrieval.idf import take_words

log = logging.getLogger(__name__)

FILE = "lexical.json"
WINDOW = 30  # words: about one long sentence
FOLDS = 5
PENALTY = 1.0
MAX_NAMED = 3  # questions that a warning names
WORD_FEATURES = (
    "window",  # best coverage in a window, times the window's share of the prompt's words
    "coverage",  # best share of the option's new words in a window
    "bigrams",  # word pairs that occur in the passages
    "missing",  # new words that occur in no passage
    "missing_own",  # those that no other option has, weighted by inverse document frequency
    "words",  # number of words
    "characters",  # logarithm of the number of characters
    "prompt",  # share of words that occur in the prompt
    "centrality",  # mean Jaccard overlap with the other options' words
)
REFERENCES = (  # 1 or 0
    "affirms",  # says that other options are right, as "All of the above"
    "denies",  # says that they are wrong, as "None of the above"
)
FEATURES = (*REFERENCES, *WORD_FEATURES)
PASSAGE_FEATURES = (
    "trigrams",  # runs of three words that occur in the passages, by inverse document frequency
    "similarity",  # best cosine of prompt and option with the question's words in a window
    "scored",  # share of the option's new words in a passage, averaged by retrieval scores
)
OVERLAP_FEATURES = (*FEATURES, *PASSAGE_FEATURES)  # of a neural reader's score
# Typical standard deviations within a question, so that one learning rate suits all features.
SPREADS = {
    "affirms": 0.1, "denies": 0.1, "window": 0.16, "coverage": 0.26, "bigrams": 14.5,
    "missing": 1.2, "missing_own": 6.4, "words": 1.9, "characters": 0.25, "prompt": 0.1,
    "centrality": 0.05, "trigrams": 19.4, "similarity": 0.09, "scored": 0.17,
}  # fmt: skip
Words = list[str]


def compute_features(
    questions: Dataset,
    contexts: Contexts,
    idf: dict[str, float],
    budget: int | None = None,
    names: tuple[str, ...] = FEATURES,
) -> Floats:
    """Compute the features `names`, `(questions, options, features)`; NaN for missing options.

    `names` is FEATURES or OVERLAP_FEATURES. Passages are read up to `budget` words (None: all).
    """
    shape = len(questions), max(map(len, questions["options"]), default=0), len(names)
    features = np.full(shape, np.nan)
    rows = track(questions.to_list(), "word overlap", len(questions), "questions")
    for row, question in zip(features, rows, strict=True):
        ranked = contexts.get(question["id"], [])
        if budget is None:
            passages = [split_words(passage["text"]) for passage in ranked]
        else:
            passages = take_words(ranked, budget)
        prompt, *options = map(split_words, [question["prompt"], *question["options"]])
        scores = None
        if names == OVERLAP_FEATURES:
            scores = [passage["score"] for passage in ranked[: len(passages)]]
        row[: len(options)] = [
            [*map(float, classify_reference(text)), *values]
            for text, values in zip(
                question["options"],
                compute_option_features(prompt, options, passages, idf, scores),
                strict=True,
            )
        ]
    return features


def compute_overlap_features(questions: Dataset, stage: Stage, top_k: int, budget: int) -> Floats:
    """Compute OVERLAP_FEATURES `(questions, options, features)` with the best passages of a stage.

    Each is centred over its question's options, in units of SPREADS; NaN for missing options. The
    `top_k` best passages are read up to `budget` words.
    """
    contexts, idf = read_contexts(stage, top_k), read_idf(stage)
    features = compute_features(questions, contexts, idf, budget, OVERLAP_FEATURES)
    spreads = [SPREADS[name] for name in OVERLAP_FEATURES]
    centred: Floats = (features - np.nanmean(features, axis=1, keepdims=True)) / spreads
    return centred


def compute_option_features(
    prompt: Words,
    options: list[Words],
    passages: list[Words],
    idf: dict[str, float],
    scores: list[float] | None = None,
) -> list[list[float]]:
    """Compute WORD_FEATURES of every option of one question; every text is a list of words.

    With the retrieval scores of the passages, PASSAGE_FEATURES follow.
    """
    prompt_words, sets = set(prompt), [set(option) for option in options]
    vocabulary = prompt_words.union(*sets)
    present = {word for passage in passages for word in passage if word in vocabulary}
    pairs = {pair for passage in passages for pair in pairwise(passage)}
    total = sum_idf(prompt_words, idf) or 1.0
    windows = [
        (window, sum_idf(prompt_words & window, idf) / total)
        for window in split_windows(passages, vocabulary)
    ]
    trigrams = set[tuple[str, str, str]]()
    if scores is not None:
        trigrams.update(*map(_trigrams, passages))
    rows = []
    for number, (option, unique) in enumerate(zip(options, sets, strict=True)):
        rest = sets[:number] + sets[number + 1 :]
        new = unique - prompt_words
        total = sum_idf(new, idf) or 1.0
        shares = [(sum_idf(new & window, idf) / total, share) for window, share in windows]
        rows.append(
            [
                max((a * b for a, b in shares), default=0.0),
                max((a for a, _ in shares), default=0.0),
                fsum(sum_idf(pair, idf) for pair in pairs.intersection(pairwise(option))),
                float(len(new - present)),
                sum_idf(new.difference(present, *rest), idf),
                float(len(option)),
                log1p(sum(map(len, option))),
                sum_idf(unique & prompt_words, idf) / (sum_idf(unique, idf) or 1.0),
                fsum(len(unique & one) / max(1, len(unique | one)) for one in rest) / len(rest),
            ]
        )
        if scores is not None:
            union = prompt_words | unique
            covered = [sum_idf(new.intersection(passage), idf) / total for passage in passages]
            rows[-1] += [
                fsum(sum_idf(run, idf) for run in trigrams.intersection(_trigrams(option))),
                max((_cosine(union, window, idf) for window, _ in windows), default=0.0),
                fsum(a * b for a, b in zip(_normalise(scores), covered, strict=True)),
            ]
    return rows


def _trigrams(text: Words) -> list[tuple[str, str, str]]:
    return [(a, b, c) for (a, b), (_, c) in pairwise(pairwise(text))]


def _cosine(one: AbstractSet[str], other: AbstractSet[str], idf: dict[str, float]) -> float:
    """Return the cosine of two sets of words, weighted by inverse document frequency."""
    lengths = [fsum(idf.get(w, 0.0) ** 2 for w in part) for part in (one, other, one & other)]
    return lengths[2] / sqrt(lengths[0] * lengths[1]) if lengths[2] > 0 else 0.0


def _normalise(scores: list[float]) -> list[float]:
    """Scale scores to a sum of one; equal weights where one is negative or all are zero."""
    total = fsum(scores)
    if total <= 0 or min(scores, default=0.0) < 0:
        return [1 / len(scores) for _ in scores]
    return [score / total for score in scores]


def sum_idf(terms: Iterable[str], idf: dict[str, float]) -> float:
    """Sum inverse document frequencies exactly, so that the order of a set does not matter."""
    return fsum(max(idf.get(term, 0.0), 0.0) for term in terms)


def split_windows(passages: list[Words], vocabulary: set[str]) -> set[frozenset[str]]:
    """Return the words of a vocabulary in every window; windows overlap by half."""
    half = WINDOW // 2
    return {
        frozenset(vocabulary.intersection(passage[start : start + WINDOW]))
        for passage in passages
        for start in range(0, max(1, len(passage) - half), half)
    }


def fit_weights(features: Floats, labels: Ints) -> Floats:
    """Fit a conditional logit: softmax over each question's options, with an L2 penalty.

    Returns one weight for each feature. The penalty is on features in units of their spread within
    questions. The loss is convex, so the weights depend on the data only.
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

    optimum = minimize(loss, np.zeros(features.shape[2]), jac=True, method="L-BFGS-B", tol=1e-10)
    weights: Floats = optimum.x / spread
    return weights


def compute_logits(features: Floats, weights: Floats) -> Floats:
    """Return the weighted sums of features, `(questions, options)`; `-inf` for missing options."""
    missing = np.isnan(features).any(axis=2)
    logits: Floats = np.where(missing, -np.inf, np.nan_to_num(features) @ weights)
    return logits


def cross_fit(questions: Dataset, features: Floats) -> Floats | None:
    """Return each question's logits by a reader fitted on the other folds.

    Near-duplicates stay in one fold. Returns None for too few questions.
    """
    folds = min(FOLDS, len(set(group_near_duplicates(questions).tolist())) if len(questions) else 0)
    if folds < 2:
        return None
    fold, labels = assign_folds(questions, folds, 0), np.array(questions["label"])
    logits = np.empty(features.shape[:2])
    for number in range(folds):
        inside = fold == number
        weights = fit_weights(features[~inside], labels[~inside])
        logits[inside] = compute_logits(features[inside], weights)
    return logits


@dataclass(frozen=True)
class LexicalReader:
    """A weight for each of FEATURES, and the passages and words to read."""

    weights: Floats
    config: Train

    @classmethod
    def fit(cls, config: Train, folder: Path, split: Split, pool: Stage) -> Self:
        """Fit on all training questions, and log the cross-fitted MAP@k."""
        questions = concatenate_datasets([split.train, split.dev])
        features = _read_features(config, questions, pool, training=True)
        labels = np.array(questions["label"])
        logits = cross_fit(questions, features)
        if logits is not None:
            k = config.metric.k
            estimate = summarize(average_precision(rank_options(logits), labels, k))
            log.info(
                "train: cross-fitted %s %.3f [%.3f, %.3f] (n = %d)",
                metric_title(metric_name(k)),
                estimate["value"],
                *estimate["ci"],
                estimate["n"],
            )
        weights = fit_weights(features, labels)
        save_weights(weights, folder / MODEL / FILE)
        return cls(weights, config)

    @classmethod
    def load(cls, config: Train, saved: Path, work: Path) -> Self:
        """Load the weights of a run."""
        return cls(load_weights(saved / FILE), config)

    def predict(self, questions: Dataset, contexts: Stage) -> tuple[Floats, None]:
        """Return logits `(questions, options)`; no tokens are counted."""
        features = _read_features(self.config, questions, contexts, training=False)
        return compute_logits(features, self.weights), None


def _read_features(config: Train, questions: Dataset, stage: Stage, *, training: bool) -> Floats:
    """Compute features with the best passages of a contexts stage."""
    _warn_of_equal_options(questions)
    passages = read_contexts(stage, config.context.passages(training=training))
    budget = config.model.length(training=training)
    return compute_features(questions, passages, read_idf(stage), budget)


def _warn_of_equal_options(questions: Dataset) -> None:
    """Warn of questions with two options of the same words, or without any."""
    equal = [
        key
        for key, options in zip(questions["id"], questions["options"], strict=True)
        if len({tuple(split_words(option)) for option in options}) < len(options)
    ]
    if equal:
        log.warning(
            "features: %d of %d questions have options of equal words, which this reader cannot "
            "tell apart (first: %s)",
            len(equal), len(questions), ", ".join(equal[:MAX_NAMED]),
        )  # fmt: skip


def save_weights(weights: Floats, path: Path) -> None:
    """Write the weights by their features' names."""
    write_json(path, dict(zip(FEATURES, weights.tolist(), strict=True)))


def load_weights(path: Path) -> Floats:
    """Read the weights that `save_weights` wrote.

    Raises:
        ExamError: the file holds other features, or values that are not finite.
    """
    weights = read_json(path)
    if not isinstance(weights, dict) or list(weights) != list(FEATURES):
        raise ExamError(
            f"{path} does not have the features of this version ({', '.join(FEATURES)}).\n"
            f"Train again: {spell_command('train')} model=lexical"
        )
    values = list(weights.values())
    if not all(isinstance(v, (int, float)) and isfinite(v) for v in values):
        raise ExamError(f"{path} holds a weight that is not finite.\nTrain again.")
    return np.array(values, dtype=np.float64)
