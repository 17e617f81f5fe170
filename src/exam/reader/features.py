"""Token ids of a question: context first, then prompt and option; only the context is ever cut.

A question keeps its parts apart (context, prompt, options), so that a collator may lay them out
as one sequence per option or, for other readers, behind one shared context.
"""

import logging
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from exam.errors import ExamError
from exam.retrieval.evaluation import Contexts

log = logging.getLogger(__name__)

FEATURES = Features(
    {
        "context": List(Value("int32")),
        "prompt": List(Value("int32")),
        "options": List(List(Value("int32"))),
        "labels": Value("int64"),
    }
)


@dataclass
class Cut:
    """What did not fit, over a whole set of questions."""

    questions: int = 0
    passages: int = 0  # left out altogether
    tokens: int = 0


def build_features(
    questions: Dataset,
    contexts: Contexts,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    longest: int,
) -> tuple[Dataset, Cut]:
    """One row a question: `context`, `prompt` (token ids), `options` (lists of them), `labels`.

    The context takes what prompt and longest option leave of `max_length` tokens; the best
    passages come first and the least relevant is cut first. Every option of a question sees the
    same context. A question whose prompt and option alone pass `max_length` gets no context.

    Raises:
        ExamError: prompt and option need more than `longest`, the model's own limit.
    """
    cut = Cut()
    rows = [
        _features(q, contexts.get(q["id"], []), tokenizer, max_length, longest, cut)
        for q in questions
    ]
    log.info("features: %d questions · cut %s", len(rows), asdict(cut))
    return Dataset.from_list(rows, features=FEATURES), cut


def _features(
    question: dict[str, Any],
    passages: list[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    longest: int,
    cut: Cut,
) -> dict[str, Any]:
    texts = [question["prompt"], *question["options"], *(p["text"] for p in passages)]
    prompt, *rest = token_ids(tokenizer, texts)
    options, found = rest[: len(question["options"])], rest[len(question["options"]) :]
    special = tokenizer.num_special_tokens_to_add(pair=True)
    needed = len(prompt) + max(map(len, options)) + special
    if needed > longest:
        raise ExamError(
            f"question {question['id']!r}: prompt and longest option need {needed} tokens, the "
            f"model reads {longest}.\nOptions are never cut: shorten the question, or choose a "
            "model that reads more (model=deberta_base)."
        )
    return {
        "context": _fit(found, max(0, max_length - needed), cut),
        "prompt": prompt,
        "options": options,
        "labels": question["label"],
    }


def shuffle_options(questions: Dataset, seed: int) -> Dataset:
    """The questions with every one's options in an order of its own, drawn from seed and id.

    Public sets favour some letters; a reader must not learn that. The order is fixed for the
    whole training, so that an interrupted run continues with the same data.
    """

    def permuted(question: dict[str, Any]) -> dict[str, Any]:
        order = list(range(len(question["options"])))
        Random(f"{seed}:{question['id']}").shuffle(order)
        label = question["label"]
        return {
            "options": [question["options"][i] for i in order],
            "label": None if label is None else order.index(label),
        }

    return questions.map(permuted, load_from_cache_file=False)


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Ids of texts without special tokens, also where a text contains their names."""
    ids: list[list[int]] = tokenizer(
        texts, add_special_tokens=False, split_special_tokens=True, truncation=False, verbose=False
    )["input_ids"]
    return ids


def _fit(passages: list[list[int]], budget: int, cut: Cut) -> list[int]:
    """The best passages' ids within a budget, in their order; the last may be cut short."""
    ids: list[int] = []
    for passage in passages:
        cut.passages += len(ids) >= budget
        ids += passage[: budget - len(ids)]
    left_out = sum(map(len, passages)) - len(ids)
    cut.questions += left_out > 0
    cut.tokens += left_out
    return ids
