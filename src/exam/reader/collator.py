"""Batches: one padded sequence per option, or one per question."""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from exam.reader.attention import stepped

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
class Collator:
    """Features of questions as one batch; labels are optional, input stays as it was.

    The batch has `option_mask`: a question may have fewer than `options` options, and the reader
    gives the other places no probability.
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
        batch = self._inputs(rows)
        batch["option_mask"] = torch.tensor(
            [[i < len(row["options"]) for i in range(self.options)] for row in rows]
        )
        if all(row.get("labels") is not None for row in rows):
            batch["labels"] = torch.tensor([row["labels"] for row in rows])
        return batch

    def tokens(self, row: Row) -> int:
        """How many tokens of a batch a question takes, padding counted, if no other is longer."""
        raise NotImplementedError

    def _inputs(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def _template(self, row: Row) -> Template:
        return self.pair if row["context"] else self.single


class MultipleChoiceCollator(Collator):
    """One padded sequence per option: `(questions, options, length)`.

    Where an option is missing the first is repeated.
    """

    def tokens(self, row: Row) -> int:
        """The longest option's sequence, once for every option."""
        shared = self._template(row).build(row["context"], row["prompt"])["input_ids"]
        return self.options * (len(shared) + max(map(len, row["options"])))

    def _inputs(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        sequences = [
            self._sequence(row, option)
            for row in rows
            for option in [*row["options"], *row["options"][:1] * self._missing(row)]
        ]
        padded = self.tokenizer.pad(
            sequences, padding=True, padding_side="right", return_tensors="pt", verbose=False
        )
        return {name: value.view(len(rows), self.options, -1) for name, value in padded.items()}

    def _missing(self, row: Row) -> int:
        return self.options - len(row["options"])

    def _sequence(self, row: Row, option: list[int]) -> dict[str, list[int]]:
        return self._template(row).build(row["context"], [*row["prompt"], *option])


class PackedCollator(Collator):
    """One sequence per question, `(questions, length)`: context, prompt, and all its options.

    Each option ends as a sequence of its own would, and its `position_ids` go on from the
    prompt's. `option_tokens` `(questions, options, length)` says which tokens are whose. The length
    is a multiple of STEP.
    """

    def tokens(self, row: Row) -> int:
        """The length of the question's sequence."""
        return stepped(len(self._sequence(row)["input_ids"]))

    def _inputs(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        sequences = [self._sequence(row) for row in rows]
        length = stepped(max(len(sequence["input_ids"]) for sequence in sequences))
        batch = {
            name: torch.tensor([s[name] + [padding] * (length - len(s[name])) for s in sequences])
            for name, padding in {
                "input_ids": self.tokenizer.pad_token_id,
                "token_type_ids": 0,
                "attention_mask": 0,
                "position_ids": 0,
                "owner": 0,
            }.items()
        }
        places = torch.arange(1, self.options + 1)[None, :, None]
        batch["option_tokens"] = batch.pop("owner")[:, None] == places
        return batch

    def _sequence(self, row: Row) -> dict[str, list[int]]:
        """The question's tokens; `owner` is 0 for the shared part, else the option's place."""
        template = self._template(row)
        whole = template.build(row["context"], row["prompt"])
        ending = len(template.after)
        shared = {name: values[: len(values) - ending] for name, values in whole.items()}
        start = len(shared["input_ids"])
        sequence = {**shared, "position_ids": list(range(start)), "owner": [0] * start}
        for place, option in enumerate(row["options"], start=1):
            ids = [*option, *template.after]
            sequence["input_ids"] += ids
            sequence["token_type_ids"] += [template.kinds[1]] * len(ids)
            sequence["attention_mask"] += [1] * len(ids)
            sequence["position_ids"] += range(start, start + len(ids))
            sequence["owner"] += [place] * len(ids)
        return sequence
