"""Batches: one padded sequence per option, or one per question."""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from exam.config import Layout
from exam.reader.attention import round_up
from exam.reader.features import TARGETS, SpecialTokens
from exam.reader.lexical import OVERLAP_FEATURES

Row = dict[str, Any]


@dataclass
class Collator:
    """Features of questions as one batch; labels are optional, input stays as it was.

    The batch has `option_mask`: a question may have fewer than `options` options, and the reader
    gives the other places no probability. It has `evidence` where the features have.
    """

    tokenizer: PreTrainedTokenizerBase
    options: int
    layout: Layout = Layout.context_first
    single: SpecialTokens = field(init=False)
    pair: SpecialTokens = field(init=False)

    def __post_init__(self) -> None:
        self.single = SpecialTokens.of(self.tokenizer, pair=False)
        self.pair = SpecialTokens.of(self.tokenizer, pair=True)

    def __call__(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        """`input_ids` and the like, `option_mask`, and `labels` where every row has one."""
        batch = self._inputs(rows)
        batch["option_mask"] = torch.tensor(
            [[i < len(row["options"]) for i in range(self.options)] for row in rows]
        )
        if all(row.get("labels") is not None for row in rows):
            batch["labels"] = torch.tensor([row["labels"] for row in rows])
        if TARGETS in rows[0]:
            batch["targets"] = torch.zeros(batch["option_mask"].shape)
            for chances, row in zip(batch["targets"], rows, strict=True):
                chances[: len(row["options"])] = torch.tensor(row[TARGETS])
        if "evidence" in rows[0]:
            batch["evidence"] = torch.zeros(*batch["option_mask"].shape, len(OVERLAP_FEATURES))
            for own, row in zip(batch["evidence"], rows, strict=True):
                own[: len(row["options"])] = torch.tensor(row["evidence"])
        return batch

    def tokens(self, row: Row) -> int:
        """How many tokens of a batch a question takes, padding counted, if no other is longer."""
        raise NotImplementedError

    def _inputs(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def _build(self, row: Row, question: list[int]) -> dict[str, list[int]]:
        """A sequence of context and question, in the order of the layout."""
        texts = (row["context"], question)
        ordered = texts if self.layout is Layout.context_first else texts[::-1]
        return (self.pair if row["context"] else self.single).build(*ordered)

    def _padded(
        self, sequences: list[dict[str, list[int]]], length: int
    ) -> dict[str, torch.Tensor]:
        """Sequences as tensors of a length; what is not a token id is padded with 0."""
        padding = {"input_ids": self.tokenizer.pad_token_id}
        return {
            name: torch.tensor(
                [s[name] + [padding.get(name, 0)] * (length - len(s[name])) for s in sequences]
            )
            for name in sequences[0]
        }


@dataclass
class MultipleChoiceCollator(Collator):
    """One padded sequence per option: `(questions, options, length)`.

    Where an option is missing the first is repeated. With `global_attention`, the tokens of
    prompt and option are marked as those that see all others and are seen by them (Longformer).
    """

    global_attention: bool = False

    def tokens(self, row: Row) -> int:
        """The longest option's sequence, once for every option."""
        return self.options * max(len(self._sequence(row, o)["input_ids"]) for o in row["options"])

    def _inputs(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        sequences = [
            self._sequence(row, option)
            for row in rows
            for option in [*row["options"], *row["options"][:1] * self._missing(row)]
        ]
        padded = self._padded(sequences, max(len(s["input_ids"]) for s in sequences))
        return {name: value.view(len(rows), self.options, -1) for name, value in padded.items()}

    def _missing(self, row: Row) -> int:
        return self.options - len(row["options"])

    def _sequence(self, row: Row, option: list[int]) -> dict[str, list[int]]:
        question = [*row["prompt"], *option]
        sequence = self._build(row, question)
        if self.global_attention:
            length = len(sequence["input_ids"])
            if self.layout is Layout.context_first or not row["context"]:
                last = length - len(self.pair.suffix)
                first = last - len(question)
            else:
                first = len(self.pair.prefix)
                last = first + len(question)
            sequence["global_attention_mask"] = [int(first <= i < last) for i in range(length)]
        return sequence


class PackedCollator(Collator):
    """One sequence per question, `(questions, length)`: context, prompt, and all its options.

    Each option ends as a sequence of its own would, and its `position_ids` go on from the shared
    part's. `option_tokens` `(questions, options, length)` says which tokens are whose. The length
    is a multiple of STEP.
    """

    def tokens(self, row: Row) -> int:
        """The length of the question's sequence."""
        return round_up(len(self._sequence(row)["input_ids"]))

    def _inputs(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        sequences = [self._sequence(row) for row in rows]
        batch = self._padded(sequences, round_up(max(len(s["input_ids"]) for s in sequences)))
        places = torch.arange(1, self.options + 1)[None, :, None]
        batch["option_tokens"] = batch.pop("owner")[:, None] == places
        return batch

    def _sequence(self, row: Row) -> dict[str, list[int]]:
        """The question's tokens; `owner` is 0 for the shared part, else the option's place."""
        sequence = self._build(row, row["prompt"])
        after = self.pair.suffix
        kind = sequence["token_type_ids"][-1]
        if self.layout is Layout.context_first or not row["context"]:
            end = len(sequence["input_ids"]) - len(after)
            sequence = {name: values[:end] for name, values in sequence.items()}
        start = len(sequence["input_ids"])
        sequence |= {"position_ids": list(range(start)), "owner": [0] * start}
        for place, option in enumerate(row["options"], start=1):
            ids = [*option, *after]
            sequence["input_ids"] += ids
            sequence["token_type_ids"] += [kind] * len(ids)
            sequence["attention_mask"] += [1] * len(ids)
            sequence["position_ids"] += range(start, start + len(ids))
            sequence["owner"] += [place] * len(ids)
        return sequence
