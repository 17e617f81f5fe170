"""Batches: one padded sequence per option, or one per question."""

from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from exam.config import Layout
from exam.readers.lexical import OVERLAP_FEATURES
from exam.readers.multiple_choice.attention import round_up
from exam.readers.multiple_choice.features import DRAWN, TARGETS, SpecialTokens

Row = dict[str, Any]


@dataclass
class Collator:
    """Batch the features of questions; labels are optional, and the input is unchanged.

    `option_mask` `(questions, options)` marks the options that exist, for questions with fewer
    than `options`. The batch has `evidence` if the features have. The model's inputs have a row for
    each window; where questions may have several, `owner` `(windows,)` holds the number of each
    window's question. Each epoch draws `row["drawn"]` windows of a question, if it has that value.
    """

    tokenizer: PreTrainedTokenizerBase
    options: int
    layout: Layout = Layout.context_first
    seed: int = 0
    epoch: int = 0
    single: SpecialTokens = field(init=False)
    pair: SpecialTokens = field(init=False)

    def __post_init__(self) -> None:
        self.single = SpecialTokens.from_tokenizer(self.tokenizer, pair=False)
        self.pair = SpecialTokens.from_tokenizer(self.tokenizer, pair=True)

    def __call__(self, rows: list[Row]) -> dict[str, Tensor]:
        """Return the model's inputs, `option_mask`, and `labels` if every row has one."""
        batch = {  # the mask comes first: the Trainer takes its length as the number of questions
            "option_mask": torch.tensor(
                [[i < len(row["options"]) for i in range(self.options)] for row in rows]
            )
        }
        windows = list(map(self._draw_windows, rows))
        batch |= self._build_inputs(
            [
                {**row, "context": window}
                for row, drawn in zip(rows, windows, strict=True)
                for window in drawn
            ]
        )
        if any(len(drawn) > 1 for drawn in windows):
            counts = torch.tensor(list(map(len, windows)))
            batch["owner"] = torch.arange(len(rows)).repeat_interleave(counts)
        if all(row.get("labels") is not None for row in rows):
            batch["labels"] = torch.tensor([row["labels"] for row in rows])
        for name, shape in {TARGETS: (), "evidence": (len(OVERLAP_FEATURES),)}.items():
            if name in rows[0]:
                batch[name] = torch.zeros(*batch["option_mask"].shape, *shape)
                for values, row in zip(batch[name], rows, strict=True):
                    values[: len(row["options"])] = torch.tensor(row[name])
        return batch

    def count_tokens(self, row: Row) -> int:
        """Count the tokens of a question in a batch of questions as long, with padding."""
        windows = [{**row, "context": window} for window in self._draw_windows(row)]
        return self._build_inputs(windows)["input_ids"].numel()

    def _draw_windows(self, row: Row) -> list[list[int]]:
        """Return the windows to read in this epoch, in their order."""
        windows: list[list[int]] = row.get("windows", [[]])  # a language model's prompt has none
        drawn = row.get(DRAWN, len(windows))
        if drawn >= len(windows):
            return windows
        random = Random(f"{self.seed}:{self.epoch}:{row['prompt']}")
        return [windows[i] for i in sorted(random.sample(range(len(windows)), drawn))]

    def _build_inputs(self, rows: list[Row]) -> dict[str, Tensor]:
        raise NotImplementedError

    def _build(self, row: Row, question: list[int]) -> dict[str, list[int]]:
        """Build a sequence of context and question, in the order of the layout."""
        texts = (row["context"], question)
        ordered = texts if self.layout is Layout.context_first else texts[::-1]
        return (self.pair if row["context"] else self.single).build(*ordered)

    def _pad(self, sequences: list[dict[str, list[int]]], length: int) -> dict[str, Tensor]:
        """Pad sequences to tensors of a length; all but token ids with 0."""
        padding = {"input_ids": self.tokenizer.pad_token_id}
        return {
            name: torch.tensor(
                [s[name] + [padding.get(name, 0)] * (length - len(s[name])) for s in sequences]
            )
            for name in sequences[0]
        }


@dataclass
class MultipleChoiceCollator(Collator):
    """Build one padded sequence per option: `(questions, options, length)`.

    The first option replaces missing ones. `global_attention` marks the tokens of prompt and
    option, which attend to all tokens and all tokens attend to (Longformer).
    """

    global_attention: bool = False

    def _build_inputs(self, rows: list[Row]) -> dict[str, Tensor]:
        sequences = [
            self._build_sequence(row, option)
            for row in rows
            for option in row["options"] + row["options"][:1] * (self.options - len(row["options"]))
        ]
        padded = self._pad(sequences, max(len(s["input_ids"]) for s in sequences))
        return {name: value.view(len(rows), self.options, -1) for name, value in padded.items()}

    def _build_sequence(self, row: Row, option: list[int]) -> dict[str, list[int]]:
        question = [*row["prompt"], *option]
        sequence = self._build(row, question)
        if self.global_attention:
            length = len(sequence["input_ids"])
            first = len(self.pair.prefix)
            if self.layout is Layout.context_first or not row["context"]:
                first = length - len(self.pair.suffix) - len(question)
            marks = [int(first <= i < first + len(question)) for i in range(length)]
            sequence["global_attention_mask"] = marks
        return sequence


class PackedCollator(Collator):
    """Build one sequence per question, `(questions, length)`: context, prompt, and all options.

    Each option ends with a sequence's suffix, and its `position_ids` continue from the shared part.
    `option_tokens` `(questions, options, length)` marks each option's tokens. The length is a
    multiple of STEP.
    """

    def _build_inputs(self, rows: list[Row]) -> dict[str, Tensor]:
        sequences = [self._build_sequence(row) for row in rows]
        batch = self._pad(sequences, round_up(max(len(s["input_ids"]) for s in sequences)))
        numbers = torch.arange(1, self.options + 1)[None, :, None]
        batch["option_tokens"] = batch.pop("option")[:, None] == numbers
        return batch

    def _build_sequence(self, row: Row) -> dict[str, list[int]]:
        """Build the question's tokens; `option` is 0 in the shared part, 1 in the first option."""
        sequence = self._build(row, row["prompt"])
        suffix = self.pair.suffix
        token_type = sequence["token_type_ids"][-1]
        if self.layout is Layout.context_first or not row["context"]:
            end = len(sequence["input_ids"]) - len(suffix)
            sequence = {name: values[:end] for name, values in sequence.items()}
        start = len(sequence["input_ids"])
        sequence |= {"position_ids": list(range(start)), "option": [0] * start}
        for number, option in enumerate(row["options"], start=1):
            ids = [*option, *suffix]
            sequence["input_ids"] += ids
            sequence["token_type_ids"] += [token_type] * len(ids)
            sequence["attention_mask"] += [1] * len(ids)
            sequence["position_ids"] += range(start, start + len(ids))
            sequence["option"] += [number] * len(ids)
        return sequence
