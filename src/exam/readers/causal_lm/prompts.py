"""Prompts for a causal language model: a prefix that the options share, and a suffix for each.

The template is trusted; questions and passages are not. They are tokenised separately, so that
none of their text becomes a special token.
"""

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
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
    fill_windows,
)
from exam.retrieval.contexts import Contexts

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
PLAIN_END = "\nAnswer:"  # of a template without a chat template
PLACEHOLDERS = re.compile(r"(\{(?:context|prompt|options|option)\})")


def apply_chat_template(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    """Format messages with a model's chat template, up to its reply.

    Raises:
        ExamError: the model has no chat template.
    """
    if not tokenizer.chat_template:
        raise ExamError(
            f"{tokenizer.name_or_path} has no chat template.\n"
            "Set model.use_chat_template=false, or choose an instruction-tuned model."
        )
    text: Any = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return str(text)


@dataclass(frozen=True)
class Prompt:
    """A question in token ids."""

    prefix: list[int]
    suffixes: list[list[int]]  # one for each option; empty with scoring=letters
    options: int

    @property
    def longest(self) -> int:
        """The number of tokens of the prefix with its longest suffix."""
        return len(self.prefix) + max(map(len, self.suffixes), default=0)


@dataclass(frozen=True)
class Prompter:
    """Builds prompts from a template, inside the model's chat template or as plain text."""

    tokenizer: PreTrainedTokenizerBase
    scoring: Scoring
    pieces: list[str]  # of the template: text, and placeholders in braces
    start: list[int]  # the tokens that begin every sequence of this tokenizer
    space: str  # a space before a placeholder belongs to the inserted text

    @classmethod
    def from_config(cls, config: Model, tokenizer: PreTrainedTokenizerBase) -> "Prompter":
        """Build the configured prompter.

        Raises:
            ExamError: the configuration requires a chat template that the model lacks.
        """
        template = config.template or TEMPLATES[config.scoring]
        is_chat = config.use_chat_template
        if is_chat is None:
            is_chat = bool(tokenizer.chat_template)
        start: list[int] = []
        if is_chat:
            text = apply_chat_template(tokenizer, [{"role": "user", "content": template}])
        else:
            text = template if config.template else f"{template}{PLAIN_END}"
            start = SpecialTokens.from_tokenizer(tokenizer, pair=False).prefix
        if config.scoring is Scoring.likelihood:
            text += "{option}" if is_chat else " {option}"
        pieces = PLACEHOLDERS.split(text)
        return cls(tokenizer, config.scoring, pieces, start, prefix_space(tokenizer))

    def build_prompts(
        self, questions: Dataset, contexts: Contexts, window: int, order: Order = Order.best_first
    ) -> list[Prompt]:
        """Build the prompt of every question; truncate only passages, the least relevant first.

        Raises:
            ExamError: a question without passages needs more tokens than the model's window.
        """
        cut, counts, prompts = TruncationStats(), TokenCounts(), []
        unknown = unknown_id(self.tokenizer)
        for question in questions.to_list():
            before, suffixes = self._encode_question(question)
            fixed = len(self.start) + sum(map(len, before)) + max(map(len, suffixes), default=0)
            if fixed > window:
                raise ExamError(
                    f"question {question['id']!r} needs {fixed} tokens without passages, but the "
                    f"model reads {window}.\nOptions are never truncated: raise model.max_length "
                    "up to the model's limit, or shorten the question."
                )
            passages = contexts.get(question["id"], [])
            lines = token_ids(self.tokenizer, [f"- {passage['text']}\n" for passage in passages])
            options = token_ids(self.tokenizer, question["options"])
            counts.add(question["id"], [*before, *suffixes], options, lines, unknown)
            (context,) = fill_windows(lines, window - fixed, 1, order, cut)
            prefix = list(self.start)
            for piece, ids in zip(self.pieces, before, strict=False):
                prefix += context if piece == "{context}" else ids
            prompts.append(Prompt(prefix, suffixes, len(options)))
        log.debug("prompts: %d questions · cut %s · %s", len(prompts), vars(cut), counts)
        counts.warn("prompts")
        return prompts

    def _encode_question(self, question: dict[str, Any]) -> tuple[list[list[int]], list[list[int]]]:
        """Return the ids of each piece before the option, and the suffix of each option."""
        lines = zip(LETTERS, question["options"], strict=False)
        listed = "".join(f"{letter}. {option}\n" for letter, option in lines)
        values = {"{prompt}": question["prompt"], "{options}": listed}
        pieces = [self._encode_piece(number, values) for number in range(len(self.pieces))]
        if "{option}" not in self.pieces:
            return pieces, []
        end = self.pieces.index("{option}")
        tail = list(chain.from_iterable(pieces[end + 1 :]))
        options = [self._encode_piece(end, {"{option}": o}) for o in question["options"]]
        return pieces[:end], [option + tail for option in options]

    def _encode_piece(self, number: int, values: dict[str, str]) -> list[int]:
        """Return the token ids of a piece; only the template's text may hold special tokens."""
        piece = self.pieces[number]
        if piece == "{context}":
            return []
        if piece in values:
            is_spaced = number > 0 and self.pieces[number - 1].endswith(" ")
            text = f"{self.space if is_spaced else ''}{values[piece]}"
            return token_ids(self.tokenizer, [text])[0]
        precedes_placeholder = number + 1 < len(self.pieces)
        return self._encode_template(piece.removesuffix(" ") if precedes_placeholder else piece)

    def _encode_template(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def single_token_ids(self, words: Iterable[str]) -> list[int]:
        """Return the token that each word is at the beginning of a reply.

        Raises:
            ExamError: a word takes several tokens of this model, or is unknown to it.
        """
        tail = self.pieces[-1]
        before = self._encode_template(tail)
        space = "" if not tail or tail[-1].isspace() else " "
        tokens = []
        for word in words:
            *start, token = self._encode_template(f"{tail}{space}{word}")
            if start != before or token == self.tokenizer.unk_token_id:
                raise ExamError(
                    f"The model has no single token for {word!r}.\n"
                    "Set model.scoring=likelihood, which needs none."
                )
            tokens.append(token)
        return tokens
