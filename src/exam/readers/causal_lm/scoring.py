"""Score options with a causal language model, wherever its weights are.

The shared prefix of a question is computed once; its keys and values are reused for every option.
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
from exam.readers.causal_lm.prompts import Prompt, Prompter

Tensor = torch.Tensor


@dataclass(frozen=True)
class Batch:
    """Prompts of equally many options: prefixes padded on the left, suffixes on the right."""

    rows: list[int]  # of the questions
    prefix: Tensor  # (questions, tokens)
    prefix_mask: Tensor
    suffixes: Tensor  # (questions · options, tokens); empty with scoring=letters
    suffixes_mask: Tensor

    @property
    def ids(self) -> dict[str, Tensor]:
        """The prefixes and, if there are any, the suffixes."""
        suffixes = {"suffixes": self.suffixes} if len(self.suffixes) else {}
        return {"prefix": self.prefix, **suffixes}

    @property
    def suffixes_per_question(self) -> int:
        """The number of suffixes of each question."""
        return len(self.suffixes) // len(self.prefix)

    def repeat(self, prefixes: Tensor) -> Tensor:
        """Repeat a tensor of prefixes `(questions, …)` for every suffix."""
        return prefixes.repeat_interleave(self.suffixes_per_question, 0)


@dataclass(frozen=True)
class Hidden:
    """A batch's hidden states after the last layer and norm."""

    last: Tensor  # (questions, hidden), of the prefix's last token
    suffixes: Tensor  # (questions · options, tokens, hidden)


class Runner(Protocol):
    """One way to run a causal language model."""

    def run(self, batches: Sequence[Batch]) -> Iterator[Hidden]:
        """Yield each batch's hidden states, in order."""

    def head(self, hidden: Tensor, tokens: list[int] | None = None) -> Tensor:
        """Return fp32 logits `(…, tokens)`; None: of the whole vocabulary."""


def make_batches(prompts: Sequence[Prompt], size: int, padding: int) -> list[Batch]:
    """Batch up to `size` prompts with equally many options, the longest first."""
    order = sorted(range(len(prompts)), key=lambda i: (prompts[i].options, -prompts[i].longest))
    batches: list[Batch] = []
    start = 0
    while start < len(order):
        options = prompts[order[start]].options
        rows = [row for row in order[start : start + size] if prompts[row].options == options]
        start += len(rows)
        prefix, mask = pad([prompts[row].prefix for row in rows], padding, left=True)
        suffixes = [suffix for row in rows for suffix in prompts[row].suffixes]
        batches.append(Batch(rows, prefix, mask, *pad(suffixes, padding, left=False)))
    return batches


def pad(sequences: list[list[int]], padding: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """Return ids and their mask, `(sequences, longest)`."""
    longest = max(map(len, sequences), default=0)
    ids = torch.full((len(sequences), longest), padding, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        part = slice(longest - len(sequence), longest) if left else slice(0, len(sequence))
        ids[row, part], mask[row, part] = torch.tensor(sequence), 1
    return ids, mask


def compute_hidden_states(
    base: Any, batch: Batch, inputs: dict[str, Tensor], cache: Any, device: torch.device
) -> dict[str, Tensor]:
    """Compute the states of a batch's `prefix` and, with its keys and values, of its `suffixes`.

    `inputs` are ids or embeddings of both, or of the prefix only.
    """
    prefix_mask = batch.repeat(batch.prefix_mask)
    start = prefix_mask.sum(-1, keepdim=True)  # suffixes continue the positions of the prefix
    masks = {
        "prefix": (batch.prefix_mask, (batch.prefix_mask.cumsum(-1) - 1).clamp(min=0)),
        "suffixes": (
            torch.cat([prefix_mask, batch.suffixes_mask], 1),
            start + torch.arange(batch.suffixes.shape[1]),
        ),
    }
    states = {}
    for name, values in inputs.items():
        mask, positions = masks[name]
        argument = "inputs_embeds" if values.is_floating_point() else "input_ids"
        states[name] = base(
            **{argument: values.to(device)},
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        if name == "prefix" and "suffixes" in inputs:
            for layer in dict.fromkeys(cache.layers):
                layer.batch_repeat_interleave(batch.suffixes_per_question)
    return states


def score_options(
    runner: Runner, prompter: Prompter, prompts: Sequence[Prompt], size: int
) -> Floats:
    """Return each option's score `(questions, options)`, `-inf` for missing options.

    `scoring=letters`: the letter's logit. `yes_no`: the logit of yes minus that of no after the
    option. `likelihood`: the mean log-probability of the option's tokens.
    """
    batches = make_batches(prompts, size, int(prompter.tokenizer.pad_token_id))
    scores = np.full((len(prompts), max(prompt.options for prompt in prompts)), -np.inf)
    words = {Scoring.letters: LETTERS[: scores.shape[1]], Scoring.yes_no: ("yes", "no")}
    tokens = prompter.single_token_ids(words.get(prompter.scoring, ()))
    with progress_bar("scored", len(prompts), "questions") as bar:
        for batch, hidden in zip(batches, runner.run(batches), strict=True):
            bar.update(len(batch.rows))
            options = prompts[batch.rows[0]].options
            if prompter.scoring is Scoring.letters:
                values = runner.head(hidden.last, tokens[:options])
            elif prompter.scoring is Scoring.yes_no:
                values = _subtract_no_from_yes(runner, batch, hidden, tokens)
            else:
                values = _compute_likelihoods(runner, batch, hidden)
            scores[batch.rows, :options] = values.view(-1, options).double().cpu().numpy()
    return scores


def compute_logits(model: Any, hidden: Tensor, tokens: list[int] | None = None) -> Tensor:
    """Compute a model's logits of some tokens, or of all, in fp32: 16-bit logits tie often.

    If accelerate loads the weight only for a call, its own format is used. The logits are scaled
    and capped as in the forward passes of Cohere, Granite and Gemma.
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
    capped: Tensor = logits if cap is None else torch.tanh(logits / cap) * cap
    return capped


def _subtract_no_from_yes(
    runner: Runner, batch: Batch, hidden: Hidden, tokens: list[int]
) -> Tensor:
    """Return the difference of the logits of `tokens` after each suffix."""
    device = hidden.suffixes.device
    last = (batch.suffixes_mask.sum(-1) - 1).to(device)
    logits = runner.head(hidden.suffixes[torch.arange(len(last), device=device), last], tokens)
    return logits[:, 0] - logits[:, 1]


def _compute_likelihoods(runner: Runner, batch: Batch, hidden: Hidden) -> Tensor:
    """Return the mean log-probability of each suffix's tokens; each token predicts the next."""
    before = batch.repeat(hidden.last)[:, None]
    logits = runner.head(torch.cat([before, hidden.suffixes[:, :-1]], 1))
    ids, mask = batch.suffixes.to(logits.device), batch.suffixes_mask.to(logits.device)
    loss = cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view_as(ids)
    return -(loss * mask).sum(-1) / mask.sum(-1)


class InMemory:
    """A whole model on its device, or distributed over devices by accelerate."""

    def __init__(self, model: Any, device: torch.device) -> None:
        """Take a loaded model, and the device of its inputs."""
        self.model, self.device = model.eval(), device

    @torch.inference_mode()
    def run(self, batches: Iterable[Batch]) -> Iterator[Hidden]:
        """Yield each batch's hidden states."""
        from transformers import DynamicCache

        base = self.model.base_model
        for batch in batches:
            cache = DynamicCache(config=base.config)
            states = compute_hidden_states(base, batch, batch.ids, cache, self.device)
            last = states["prefix"][:, -1]
            yield Hidden(last, states.get("suffixes", last.new_empty(0)))

    @torch.inference_mode()
    def head(self, hidden: Tensor, tokens: list[int] | None = None) -> Tensor:
        """Return fp32 logits; see `Runner`."""
        return compute_logits(self.model, hidden, tokens)
