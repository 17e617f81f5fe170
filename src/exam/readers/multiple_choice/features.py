"""Encode questions as token ids of context, prompt and options; truncate only the context.

The parts stay separate, so that a collator can build one sequence for each option, or one sequence
with a shared context.
"""

import logging
from dataclasses import asdict, dataclass, field
from itertools import chain
from random import Random
from typing import Any

from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from exam.config import Order
from exam.core.errors import ExamError
from exam.core.tokenization import prefix_space, token_ids, unknown_id
from exam.data.option_order import choose_order
from exam.data.schema import permute_options
from exam.retrieval.contexts import Contexts

log = logging.getLogger(__name__)

MAX_TOKENS_PER_CHARACTER = 4  # its bytes in UTF-8
TARGETS = "targets"  # each option's probability of being right, in questions with soft labels
DRAWN = "drawn"  # windows of a question that each epoch reads, in features of training
FEATURES = Features(
    {
        "windows": List(List(Value("int32"))),  # of the context
        "prompt": List(Value("int32")),
        "options": List(List(Value("int32"))),
        "labels": Value("int64"),
    }
)
EVIDENCE = Features({"evidence": List(List(Value("float32")))})  # (options, OVERLAP_FEATURES)
UNKNOWN_SHARE = 0.01  # of a set's tokens: a larger share is a warning
MAX_NAMED = 3  # questions with equal options that a warning names


@dataclass(frozen=True)
class SpecialTokens:
    """The special tokens that a tokenizer adds to one or two texts.

    Sequences are built from ids, so that a text with "[SEP]" cannot forge one. A new line separates
    two texts for tokenizers without a separator, such as those of decoders.
    """

    prefix: list[int]
    separator: list[int]
    suffix: list[int]
    types: tuple[int, int]  # token types of the first and the second text

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase, pair: bool) -> "SpecialTokens":
        """Find the special tokens in an encoded example."""
        texts = ("a", "a") if pair else ("a",)
        row = tokenizer(*texts, return_special_tokens_mask=True, return_token_type_ids=True)
        ids, special, types = (
            row[k] for k in ("input_ids", "special_tokens_mask", "token_type_ids")
        )
        text = [i for i, flag in enumerate(special) if not flag]
        first, last = text[0], text[-1]
        separator = [ids[i] for i in range(first, last) if special[i]]
        if pair and not separator:
            separator = tokenizer("\n", add_special_tokens=False)["input_ids"]
        return cls(ids[:first], separator, ids[last + 1 :], (types[first], types[last]))

    def __len__(self) -> int:
        """Return the number of added tokens."""
        return len(self.prefix) + len(self.separator) + len(self.suffix)

    def build(self, first: list[int], second: list[int]) -> dict[str, list[int]]:
        """Build a sequence's `input_ids`, `token_type_ids` and `attention_mask`."""
        head = [*self.prefix, *first, *self.separator]
        tail = [*second, *self.suffix]
        return {
            "input_ids": [*head, *tail],
            "token_type_ids": [self.types[0]] * len(head) + [self.types[1]] * len(tail),
            "attention_mask": [1] * (len(head) + len(tail)),
        }


@dataclass
class TokenCounts:
    """Tokens of a set of questions and of their passages, before truncation."""

    in_questions: int = 0
    unknown_in_questions: int = 0
    in_passages: int = 0
    unknown_in_passages: int = 0
    equal_options: int = 0  # questions with two options of the same tokens
    equal_ids: list[str] = field(default_factory=list)  # of the first such questions
    questions: int = 0

    def add(
        self,
        key: str,
        parts: list[list[int]],
        options: list[list[int]],
        passages: list[list[int]],
        unknown: int | None,
    ) -> None:
        """Count a question's parts (all but its passages) and its passages, in token ids."""
        self.questions += 1
        self.in_questions += sum(map(len, parts))
        self.in_passages += sum(map(len, passages))
        if unknown is not None:
            self.unknown_in_questions += sum(part.count(unknown) for part in parts)
            self.unknown_in_passages += sum(passage.count(unknown) for passage in passages)
        if len({tuple(option) for option in options}) < len(options):
            self.equal_options += 1
            if len(self.equal_ids) < MAX_NAMED:
                self.equal_ids.append(str(key))

    def __str__(self) -> str:
        return " · ".join(map(" ".join, self.facts()))

    def warn(self, stage: str) -> None:
        """Warn of a share of unknown tokens above UNKNOWN_SHARE, and of any equal options."""
        for name, share in self._unknown_shares().items():
            if share > UNKNOWN_SHARE:
                log.warning(
                    "%s: %.1f %% of the tokens in %s are unknown to the model's tokenizer; a "
                    "checkpoint trained on such texts may read them better",
                    stage, 100 * share, name,
                )  # fmt: skip
        if self.equal_options:
            log.warning(
                "%s: %d of %d questions have options of equal tokens, which the model cannot tell "
                "apart (first: %s); %d tokens of the questions are unknown. Another checkpoint's "
                "tokenizer may tell them apart, such as a cased one: model=deberta_base",
                stage, self.equal_options, self.questions, ", ".join(self.equal_ids),
                self.unknown_in_questions,
            )  # fmt: skip

    def facts(self) -> list[tuple[str, str]]:
        """Return the name and value of each figure, for the report."""
        shares = [f"{name} {share:.2%}" for name, share in self._unknown_shares().items()]
        return [
            ("unknown tokens", ", ".join(shares)),
            ("questions with options of equal tokens", f"{self.equal_options:,}"),
        ]

    def _unknown_shares(self) -> dict[str, float]:
        return {
            "questions": self.unknown_in_questions / max(1, self.in_questions),
            "passages": self.unknown_in_passages / max(1, self.in_passages),
        }


@dataclass
class TruncationStats:
    """Truncated questions of a set, and the passages and tokens that are left out."""

    questions: int = 0
    passages: int = 0  # left out completely
    tokens: int = 0


@dataclass
class FeatureStats:
    """Counts of truncated and of all tokens."""

    cut: TruncationStats
    tokens: TokenCounts


def build_features(
    questions: Dataset,
    contexts: Contexts,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    longest: int,
    order: Order = Order.best_first,
    chunks: int = 1,
) -> tuple[Dataset, FeatureStats]:
    """Encode each question as `windows`, `prompt` (token ids), `options` (lists) and `labels`.

    A window takes the tokens that prompt and longest option leave of `max_length`. The best
    passages fill up to `chunks` windows, and the least relevant passage is truncated first. Every
    option of a question sees the same windows. If prompt and option exceed `max_length`, the
    question gets one empty window.

    Raises:
        ExamError: prompt and option need more than `longest` tokens, the model's limit.
    """
    space, unknown = prefix_space(tokenizer), unknown_id(tokenizer)
    rows = [
        {**q, "options": [space + option for option in q["options"]]} for q in questions.to_list()
    ]
    passages = [[space + p["text"] for p in contexts.get(row["id"], [])] for row in rows]
    texts = dict.fromkeys(
        text
        for row, context in zip(rows, passages, strict=True)
        for text in (row["prompt"], *row["options"], *context)
    )
    ids = dict(zip(texts, token_ids(tokenizer, list(texts)), strict=True))
    special = len(SpecialTokens.from_tokenizer(tokenizer, pair=True))
    cut, counts = TruncationStats(), TokenCounts()
    features: dict[str, list[Any]] = {name: [] for name in FEATURES}
    for row, context in zip(rows, passages, strict=True):
        prompt, *options = [ids[text] for text in (row["prompt"], *row["options"])]
        context_ids = [ids[text] for text in context]
        counts.add(row["id"], [prompt, *options], options, context_ids, unknown)
        needed = len(prompt) + max(map(len, options)) + special
        _check_length(row["id"], needed, longest)
        room = max(0, max_length - needed)
        features["windows"].append(fill_windows(context_ids, room, chunks, order, cut))
        features["prompt"].append(prompt)
        features["options"].append(options)
        features["labels"].append(row["label"])
    log.debug("features: %d questions · cut %s · %s", len(rows), asdict(cut), counts)
    return Dataset.from_dict(features, features=FEATURES), FeatureStats(cut, counts)


def check_lengths(questions: Dataset, tokenizer: PreTrainedTokenizerBase, longest: int) -> None:
    """Refuse a question whose prompt and longest option need more than `longest` tokens.

    Raises:
        ExamError: the first such question.
    """
    space = prefix_space(tokenizer)
    special = len(SpecialTokens.from_tokenizer(tokenizer, pair=True))
    for question in questions.to_list():
        options = [space + option for option in question["options"]]
        characters = len(question["prompt"]) + max(map(len, options))
        if characters < longest // MAX_TOKENS_PER_CHARACTER:
            continue
        prompt, *ids = token_ids(tokenizer, [question["prompt"], *options])
        _check_length(question["id"], len(prompt) + max(map(len, ids)) + special, longest)


def _check_length(question_id: str, needed: int, longest: int) -> None:
    if needed > longest:
        raise ExamError(
            f"question {question_id!r}: prompt and longest option need {needed} tokens, but the "
            f"model reads {longest}.\nOptions are never truncated: shorten the question, or choose "
            "a model with more positions (model=deberta_base)."
        )


def shuffle_options(questions: Dataset, seed: int) -> Dataset:
    """Shuffle the options of each question, by seed and id.

    Public sets favour some letters; a reader must not learn that. The order is fixed for the
    whole training, so that an interrupted run resumes with the same data. Options whose order has
    a meaning keep it.
    """

    def shuffle(question: dict[str, Any]) -> dict[str, Any]:
        order = list(range(len(question["options"])))
        Random(f"{seed}:{question['id']}").shuffle(order)
        order = choose_order(question["options"], order)
        shuffled = permute_options(question, order)
        if TARGETS in question:
            shuffled[TARGETS] = [question[TARGETS][i] for i in order]
        return shuffled

    return questions.map(shuffle, load_from_cache_file=False)


def fill_windows(
    passages: list[list[int]], room: int, number: int, order: Order, cut: TruncationStats
) -> list[list[int]]:
    """Join the ids of the best passages to at most `number` windows of `room` tokens.

    `passages` are best first. A passage that does not fit opens the next window. If there is none,
    it is truncated, and `cut` counts what is left out.
    """
    windows: list[list[list[int]]] = [[]]
    free = room
    for passage in passages:
        if len(passage) > free and windows[-1] and len(windows) < number:
            windows.append([])
            free = room
        cut.passages += free == 0
        windows[-1].append(passage[:free])
        free -= len(windows[-1][-1])
    kept = sum(len(passage) for window in windows for passage in window)
    left_out = sum(map(len, passages)) - kept
    cut.questions += left_out > 0
    cut.tokens += left_out
    best_first = order is Order.best_first
    return [
        list(chain.from_iterable(window if best_first else reversed(window))) for window in windows
    ]
