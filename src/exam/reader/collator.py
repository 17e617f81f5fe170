"""Batches: one padded sequence per option."""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]


@dataclass(frozen=True)
class Template:
    """The special tokens a tokenizer puts before, between and after one or two texts.

    Sequences are built from ids, so that a text containing "[SEP]" cannot forge one.
    """

    before: list[int]
    between: list[int]
    after: list[int]
    kinds: tuple[int, int]  # token types of the first and the second text

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, pair: bool) -> "Template":
        """Read the template off an example."""
        texts = ("a", "a") if pair else ("a",)
        row = tokenizer(*texts, return_special_tokens_mask=True, return_token_type_ids=True)
        ids, special, kinds = (
            row[k] for k in ("input_ids", "special_tokens_mask", "token_type_ids")
        )
        plain = [i for i, flag in enumerate(special) if not flag]
        first, last = plain[0], plain[-1]
        inside = [i for i in range(first, last) if special[i]]
        return cls(
            ids[:first], [ids[i] for i in inside], ids[last + 1 :], (kinds[first], kinds[last])
        )

    def build(self, first: list[int], second: list[int]) -> dict[str, list[int]]:
        """One sequence's `input_ids`, `token_type_ids` and `attention_mask`."""
        head = [*self.before, *first, *self.between]
        tail = [*second, *self.after]
        return {
            "input_ids": [*head, *tail],
            "token_type_ids": [self.kinds[0]] * len(head) + [self.kinds[1]] * len(tail),
            "attention_mask": [1] * (len(head) + len(tail)),
        }


@dataclass
class MultipleChoiceCollator:
    """Pad features to `(questions, options, length)`; labels are optional, input stays as it was.

    A question with fewer than `options` options repeats its first, and `option_mask` says so:
    the reader gives those places no probability.
    """

    tokenizer: PreTrainedTokenizerBase
    options: int
    single: Template = field(init=False)
    pair: Template = field(init=False)

    def __post_init__(self) -> None:
        self.single = Template.of(self.tokenizer, pair=False)
        self.pair = Template.of(self.tokenizer, pair=True)

    def __call__(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        """`input_ids` and the like, `option_mask`, and `labels` where every row has one."""
        sequences = [
            self._sequence(row, option)
            for row in rows
            for option in [*row["options"], *row["options"][:1] * self._missing(row)]
        ]
        padded = self.tokenizer.pad(sequences, padding=True, return_tensors="pt", verbose=False)
        batch = {name: value.view(len(rows), self.options, -1) for name, value in padded.items()}
        batch["option_mask"] = torch.tensor(
            [[i < len(row["options"]) for i in range(self.options)] for row in rows]
        )
        if all(row.get("labels") is not None for row in rows):
            batch["labels"] = torch.tensor([row["labels"] for row in rows])
        return batch

    def _missing(self, row: Row) -> int:
        return self.options - len(row["options"])

    def _sequence(self, row: Row, option: list[int]) -> dict[str, list[int]]:
        answer = [*row["prompt"], *option]
        if row["context"]:
            return self.pair.build(row["context"], answer)
        return self.single.build([], answer)
