"""Options scored by a causal language model, whatever way it is executed.

A question's shared part runs once; its keys and values serve the endings of all options.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn.functional import cross_entropy, linear

from exam.config import Scoring
from exam.core.logging import progress_bar
from exam.data.schema import LETTERS
from exam.metrics import Floats
from exam.readers.causal_lm.prompts import Asked, Prompter

Tensor = torch.Tensor


@dataclass(frozen=True)
class Batch:
    """Questions of equally many options: prefixes padded on the left, endings on the right."""

    rows: list[int]  # which questions
    prefix: Tensor  # (questions, tokens)
    prefix_mask: Tensor
    endings: Tensor  # (all options, tokens), question by question; none where letters score
    endings_mask: Tensor

    @property
    def repeats(self) -> int:
        """How many endings a question has."""
        return len(self.endings) // len(self.prefix)

    @property
    def positions(self) -> Tensor:
        """Positions of the prefixes' tokens, from 0 behind the padding."""
        return (self.prefix_mask.cumsum(-1) - 1).clamp(min=0)

    @property
    def ending_positions(self) -> Tensor:
        """Positions of the endings' tokens, going on behind the prefix."""
        behind = self.prefix_mask.sum(-1).repeat_interleave(self.repeats)
        return behind[:, None] + torch.arange(self.endings.shape[1])

    @property
    def whole_mask(self) -> Tensor:
        """What an ending's tokens may see: the prefix and the ending, without padding."""
        return torch.cat(
            [self.prefix_mask.repeat_interleave(self.repeats, 0), self.endings_mask], 1
        )


@dataclass(frozen=True)
class Hidden:
    """A batch's states behind the last layer and norm."""

    last: Tensor  # (questions, hidden), at the end of the prefix
    endings: Tensor  # (all options, tokens, hidden)


class Runner(Protocol):
    """One way to run a causal language model."""

    def run(self, batches: Sequence[Batch]) -> Iterator[Hidden]:
        """Each batch's states, in their order."""

    def head(self, hidden: Tensor, tokens: list[int] | None = None) -> Tensor:
        """Logits in fp32, shape `(…, tokens)`; of the whole vocabulary where none are named."""


def batched(asked: Sequence[Asked], size: int, padding: int) -> list[Batch]:
    """Batches of up to `size` questions with equally many options, the longest first."""
    order = sorted(range(len(asked)), key=lambda row: (asked[row].options, -asked[row].longest))
    batches: list[Batch] = []
    start = 0
    while start < len(order):
        rows = [
            row
            for row in order[start : start + size]
            if asked[row].options == asked[order[start]].options
        ]
        start += len(rows)
        prefix, mask = padded([asked[row].prefix for row in rows], padding, left=True)
        endings = [ending for row in rows for ending in asked[row].endings]
        batches.append(Batch(rows, prefix, mask, *padded(endings, padding, left=False)))
    return batches


def padded(sequences: list[list[int]], padding: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """Ids and their mask, shape `(sequences, longest)`."""
    longest = max(map(len, sequences), default=0)
    ids = torch.full((len(sequences), longest), padding, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, own in enumerate(sequences):
        part = slice(longest - len(own), longest) if left else slice(0, len(own))
        ids[row, part], mask[row, part] = torch.tensor(own), 1
    return ids, mask


def hidden_states(
    base: Any,
    batch: Batch,
    inputs: dict[str, dict[str, Tensor]],
    cache: Any,
    device: torch.device,
) -> dict[str, Tensor]:
    """What a model makes of a batch's `prefix` and, with its keys and values, of its `endings`.

    `inputs` are ids or embeddings of both, or of the prefix alone.
    """
    seen = {
        "prefix": (batch.prefix_mask, batch.positions),
        "endings": (batch.whole_mask, batch.ending_positions),
    }
    found = {}
    for name, given in inputs.items():
        mask, positions = seen[name]
        found[name] = base(
            **{key: value.to(device) for key, value in given.items()},
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        if name == "prefix" and "endings" in inputs:
            for layer in dict.fromkeys(cache.layers):
                layer.batch_repeat_interleave(batch.repeats)
    return found


def option_scores(
    runner: Runner,
    prompter: Prompter,
    asked: Sequence[Asked],
    size: int,
) -> Floats:
    """Each option's score, shape `(questions, options)`; `-inf` where there is no such option.

    Letters: the letter's logit. Yes and no: the difference of their logits behind the option.
    Likelihood: the mean log-probability of the option's tokens.
    """
    batches = batched(asked, size, prompter.padding)
    found = np.full((len(asked), max(one.options for one in asked)), -np.inf)
    words = {Scoring.letters: LETTERS[: found.shape[1]], Scoring.yes_no: ("yes", "no")}
    tokens = prompter.single(words.get(prompter.scoring, ()))
    with progress_bar("scored", len(asked), "questions") as bar:
        for batch, hidden in zip(batches, runner.run(batches), strict=True):
            bar.update(len(batch.rows))
            options = asked[batch.rows[0]].options
            if prompter.scoring is Scoring.letters:
                values = runner.head(hidden.last, tokens[:options])
            elif prompter.scoring is Scoring.yes_no:
                values = _yes_less_no(runner, batch, hidden, tokens)
            else:
                values = _likelihood(runner, batch, hidden)
            found[batch.rows, :options] = values.view(-1, options).double().cpu().numpy()
    return found


def logits_of(model: Any, hidden: Tensor, tokens: list[int] | None = None) -> Tensor:
    """A model's logits of some tokens or all, computed in fp32: in 16 bits they tie often.

    Where accelerate brings the weight only for a call, in the weight's own format. Scaled and
    capped as Cohere's, Granite's and Gemma's own forward passes do it.
    """
    head, config = model.get_output_embeddings(), model.config
    rows: Any = slice(None) if tokens is None else tokens
    if head.weight.is_meta:
        logits = head(hidden).float()[..., rows]
    else:
        bias = None if head.bias is None else head.bias[rows].float()
        logits = linear(hidden.float(), head.weight[rows].float(), bias)
    logits = logits * getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    found: Tensor = logits if cap is None else torch.tanh(logits / cap) * cap
    return found


def _yes_less_no(runner: Runner, batch: Batch, hidden: Hidden, tokens: list[int]) -> Tensor:
    """The difference of two logits behind each ending."""
    device = hidden.endings.device
    last = (batch.endings_mask.sum(-1) - 1).to(device)
    logits = runner.head(hidden.endings[torch.arange(len(last), device=device), last], tokens)
    return logits[:, 0] - logits[:, 1]


def _likelihood(runner: Runner, batch: Batch, hidden: Hidden) -> Tensor:
    """The mean log-probability of each ending's tokens; a token is foretold by the one before."""
    before = hidden.last.repeat_interleave(batch.repeats, 0)[:, None]
    logits = runner.head(torch.cat([before, hidden.endings[:, :-1]], 1))
    ids, mask = batch.endings.to(logits.device), batch.endings_mask.to(logits.device)
    loss = cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view_as(ids)
    return -(loss * mask).sum(-1) / mask.sum(-1)


class InMemory:
    """The whole model on its device, or wherever accelerate has put its parts."""

    def __init__(self, model: Any, device: torch.device) -> None:
        """Take a loaded model, and where its inputs belong."""
        self.model, self.device = model.eval(), device

    @torch.inference_mode()
    def run(self, batches: Iterable[Batch]) -> Iterator[Hidden]:
        """Each batch's states, one batch after the other."""
        from transformers import DynamicCache

        base = self.model.base_model
        for batch in batches:
            inputs = {"prefix": {"input_ids": batch.prefix}}
            if batch.repeats:
                inputs["endings"] = {"input_ids": batch.endings}
            cache = DynamicCache(config=base.config)
            found = hidden_states(base, batch, inputs, cache, self.device)
            last = found["prefix"][:, -1]
            yield Hidden(last, found.get("endings", last.new_empty(0)))

    @torch.inference_mode()
    def head(self, hidden: Tensor, tokens: list[int] | None = None) -> Tensor:
        """See `Runner`."""
        return logits_of(self.model, hidden, tokens)
