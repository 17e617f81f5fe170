"""Prompts for a causal language model: what all options of a question share, and what ends each.

The template is trusted, questions and passages are not: they are tokenised by themselves, so that
no text of theirs becomes a special token.
"""

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from exam.config import Model, Order, Scoring
from exam.core.errors import ExamError
from exam.core.tokenization import prefix_space, token_ids, unknown_id
from exam.data.schema import LETTERS
from exam.readers.multiple_choice.features import (
    SpecialTokens,
    TokenCounts,
    TruncationStats,
    fit_passages,
)
from exam.retrieval.evaluation import Contexts

log = logging.getLogger(__name__)

TEMPLATES = {
    Scoring.letters: (
        "Passages from an encyclopaedia:\n{context}\n"
        "Question: {prompt}\n{options}"
        "Which option is right? Reply with its letter alone."
    ),
    Scoring.yes_no: (
        "Passages from an encyclopaedia:\n{context}\n"
        "Question: {prompt}\nProposed answer: {option}\n"
        "Is the proposed answer right? Reply with yes or no."
    ),
    Scoring.likelihood: "Passages from an encyclopaedia:\n{context}\nQuestion: {prompt}",
}
PLAIN_END = "\nAnswer:"  # of a template without a chat's frame
MARKS = re.compile(r"(\{(?:context|prompt|options|option)\})")


def has_chat(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a model is asked in messages."""
    return bool(getattr(tokenizer, "chat_template", None))


def chat(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    """Messages as a model's chat template frames them, up to its reply.

    Raises:
        ExamError: the model has no chat template.
    """
    if not has_chat(tokenizer):
        raise ExamError(
            f"{tokenizer.name_or_path} has no chat template.\n"
            "Ask it as plain text, model.use_chat_template=false, or choose an instruction-tuned "
            "model."
        )
    framed: Any = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    return str(framed)


@dataclass(frozen=True)
class Asked:
    """A question in token ids."""

    prefix: list[int]
    endings: list[list[int]]  # one for each option; empty where letters are scored
    options: int

    @property
    def longest(self) -> int:
        """Tokens of the longest way through it."""
        return len(self.prefix) + max(map(len, self.endings), default=0)


@dataclass(frozen=True)
class Prompter:
    """Lays questions out for a model, as its chat template or a plain text frames them."""

    tokenizer: PreTrainedTokenizerBase
    scoring: Scoring
    pieces: list[str]  # of the framed template: text, and marks in braces
    start: list[int]  # what every sequence of this tokenizer begins with
    space: str  # a space before a mark: with the text in its place, not with the piece before

    @classmethod
    def of(cls, config: Model, tokenizer: PreTrainedTokenizerBase) -> "Prompter":
        """The configured one.

        Raises:
            ExamError: a chat template is asked for that the model does not have.
        """
        template = config.template or TEMPLATES[config.scoring]
        chats = (
            has_chat(tokenizer) if config.use_chat_template is None else config.use_chat_template
        )
        if chats:
            framed = chat(tokenizer, [{"role": "user", "content": template}])
            start: list[int] = []
        else:
            framed = template if config.template else f"{template}{PLAIN_END}"
            start = SpecialTokens.of(tokenizer, pair=False).prefix
        if config.scoring is Scoring.likelihood:
            framed += "{option}" if chats else " {option}"
        return cls(tokenizer, config.scoring, MARKS.split(framed), start, prefix_space(tokenizer))

    @property
    def padding(self) -> int:
        """A token to pad with."""
        return int(self.tokenizer.pad_token_id)

    def asked(
        self,
        questions: Dataset,
        contexts: Contexts,
        window: int,
        order: Order = Order.best_first,
    ) -> list[Asked]:
        """Every question; only its passages are cut, the least relevant first.

        Raises:
            ExamError: a question without passages needs more tokens than the model's window.
        """
        cut, counts = TruncationStats(), TokenCounts()
        found = [
            self._asked(q, contexts.get(q["id"], []), window, order, cut, counts)
            for q in questions.to_list()
        ]
        log.debug("prompts: %d questions · cut %s · %s", len(found), vars(cut), counts)
        counts.warn("prompts")
        return found

    def _asked(
        self,
        question: dict[str, Any],
        passages: list[dict[str, Any]],
        window: int,
        order: Order,
        cut: TruncationStats,
        counts: TokenCounts,
    ) -> Asked:
        options = question["options"]
        listed = "".join(
            f"{letter}. {option}\n" for letter, option in zip(LETTERS, options, strict=False)
        )
        own = {"{prompt}": question["prompt"], "{options}": listed}
        place = self.pieces.index("{option}") if "{option}" in self.pieces else len(self.pieces)
        before = [self._ids(i, own) for i in range(place)]
        tail = [token for i in range(place + 1, len(self.pieces)) for token in self._ids(i, own)]
        endings = []
        if place < len(self.pieces):
            endings = [self._ids(place, {"{option}": option}) + tail for option in options]
        fixed = len(self.start) + sum(map(len, before)) + max(map(len, endings), default=0)
        if fixed > window:
            raise ExamError(
                f"question {question['id']!r} needs {fixed} tokens without passages, the model "
                f"reads {window}.\nOptions are never cut: raise model.max_length as far as the "
                "model allows, or shorten the question."
            )
        lines = token_ids(self.tokenizer, [f"- {passage['text']}\n" for passage in passages])
        parts, apart = [*before, *endings], token_ids(self.tokenizer, options)
        counts.add(question["id"], parts, apart, lines, unknown_id(self.tokenizer))
        kept = fit_passages(lines, window - fixed, cut)
        if order is Order.best_last:
            kept.reverse()
        context = [token for line in kept for token in line]
        prefix = list(self.start)
        for piece, ids in zip(self.pieces, before, strict=False):
            prefix += context if piece == "{context}" else ids
        return Asked(prefix, endings, len(options))

    def _ids(self, place: int, own: dict[str, str]) -> list[int]:
        """A piece of the template: its own words may be special tokens, a question's never."""
        piece = self.pieces[place]
        if piece == "{context}":
            return []
        if piece in own:
            spaced = place > 0 and self.pieces[place - 1].endswith(" ")
            return self._text(f"{self.space if spaced else ''}{own[piece]}")
        leads = place + 1 < len(self.pieces)  # to a mark
        text = piece.removesuffix(" ") if leads else piece
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _text(self, text: str) -> list[int]:
        return token_ids(self.tokenizer, [text])[0]

    def single(self, words: Iterable[str]) -> list[int]:
        """The token that each word is at the beginning of a reply.

        Raises:
            ExamError: a word is no single token of this model's.
        """
        tail = self.pieces[-1]
        before = self.tokenizer(tail, add_special_tokens=False)["input_ids"]
        space = "" if not tail or tail[-1].isspace() else " "
        found = []
        for word in words:
            whole = self.tokenizer(f"{tail}{space}{word}", add_special_tokens=False)["input_ids"]
            ids = whole[len(before) :]
            if (
                whole[: len(before)] != before
                or len(ids) != 1
                or ids[0] == self.tokenizer.unk_token_id
            ):
                raise ExamError(
                    f"The model has no token of its own for {word!r}.\n"
                    "Set model.scoring=likelihood, which needs none."
                )
            found.append(ids[0])
        return found
