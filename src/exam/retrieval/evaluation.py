"""Score retrieval without a reader: recall, MRR and answer support.

The *support* of an option is the share of its words, weighted by inverse document frequency, that
occur in the question's best passages (up to 450 words). Words of the prompt do not count. A
question is *supported* if its right option has a support above 0.6.
"""

from typing import Any

import numpy as np
from datasets import Dataset

from exam.core.logging import track
from exam.metrics import Floats, recall_at_k
from exam.retrieval.idf import split_words, take_words

SUPPORT_THRESHOLD = 0.6
DEPTHS = (1, 3, 5, 10, 20, 50)
Row = dict[str, Any]
Contexts = dict[str, list[Row]]  # each question's passages, best first


def option_support(
    questions: Dataset, contexts: Contexts, idf: dict[str, float]
) -> list[list[float]]:
    """Return the support of every option; 1 for an option whose words all occur in the prompt."""
    support = []
    for question in track(questions.to_list(), "support", len(questions), "questions"):
        passages = set().union(*take_words(contexts.get(question["id"], [])))
        prompt = set(split_words(question["prompt"]))
        support.append([_support(option, prompt, passages, idf) for option in question["options"]])
    return support


def _support(option: str, prompt: set[str], passages: set[str], idf: dict[str, float]) -> float:
    new = [w for w in dict.fromkeys(split_words(option)) if w not in prompt]
    total = sum(idf[w] for w in new)
    return sum(idf[w] for w in new if w in passages) / total if total > 0 else 1.0


def passage_support(question: Row, passage: Row, idf: dict[str, float]) -> float:
    """Return the support of the right option by one passage."""
    right = question["options"][question["label"]]
    return _support(
        right, set(split_words(question["prompt"])), set(split_words(passage["text"])), idf
    )


def question_scores(
    questions: Dataset, contexts: Contexts, support: list[list[float]]
) -> dict[str, Floats]:
    """Score the questions: recall and 1 / rank of known articles, *supported* of known answers.

    Recall is scored up to the depth of the deepest ranking.
    """
    scores: dict[str, Floats] = {}
    ranks = article_ranks(questions, contexts)
    if len(ranks):
        deepest = max(map(len, contexts.values()), default=0)
        scores.update({f"recall_at_{k}": recall_at_k(ranks, k) for k in DEPTHS if k <= deepest})
        scores["mrr"] = 1.0 / ranks
    labels = questions["label"][:]
    right = [s[label] for label, s in zip(labels, support, strict=True) if label is not None]
    if right:
        scores["supported"] = (np.array(right) > SUPPORT_THRESHOLD).astype(np.float64)
    return scores


def article_ranks(questions: Dataset, contexts: Contexts) -> Floats:
    """Return the rank of the first passage of each known article; inf if none is ranked."""
    return np.array(
        [
            next((p["rank"] for p in contexts.get(key, []) if p["article_id"] == article), np.inf)
            for key, article in zip(questions["id"], questions["article"], strict=True)
            if article is not None
        ],
        dtype=np.float64,
    )
