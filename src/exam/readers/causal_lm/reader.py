"""Causal language models that score options zero-shot, or learn to reply with a letter."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import MultipleChoiceModelOutput

from exam.config import Context, Dtype, Model, Train, trainer_values
from exam.core.artifacts import Stage
from exam.core.checkpoints import MODEL, resolve_checkpoint
from exam.core.trainer import CHECKPOINTS
from exam.data.schema import LETTERS
from exam.data.splits import Split
from exam.metrics import Floats
from exam.readers.causal_lm.load import (
    build_random_decoder,
    get_window,
    load_causal_lm,
    load_runner,
)
from exam.readers.causal_lm.prompts import Prompter
from exam.readers.causal_lm.scoring import Runner, compute_logits, pad, score_options
from exam.readers.multiple_choice.collator import Collator, Row
from exam.readers.multiple_choice.heads import make_subclass
from exam.readers.multiple_choice.model import iter_texts
from exam.readers.multiple_choice.reader import MultipleChoiceReader
from exam.readers.trainer import refuse_nan
from exam.readers.tuning import find_adapter_base, load_adapters
from exam.retrieval.contexts import read_contexts

FEATURES = Features(
    {
        "prefix": List(Value("int32")),
        "options": List(Value("int32")),  # their letters' tokens
        "labels": Value("int64"),
    }
)


@dataclass(frozen=True)
class ZeroShotReader:
    """A causal language model that scores options without training."""

    runner: Runner
    prompter: Prompter
    window: int  # tokens that it reads at most
    batch_size: int
    context: Context

    @classmethod
    def fit(cls, config: Train, folder: Path, split: Split, pool: Stage) -> Self:
        """Load the checkpoint; random weights are saved in `folder` first."""
        model = config.model
        if model.name_or_path is None:
            texts = iter_texts(split.train)
            for part in build_random_decoder(model, config.seed, texts):
                part.save_pretrained(folder / MODEL)
            model = model.at(folder / MODEL)
        return cls.load(replace(config, model=model), folder / MODEL, folder)

    @classmethod
    def load(cls, config: Train, saved: Path, work: Path) -> Self:
        """Load the configured checkpoint."""
        runner, prompter, window = load_runner(config.model, work / CHECKPOINTS)
        size = trainer_values(config.trainer).get("per_device_eval_batch_size", 8)
        return cls(runner, prompter, window, size, config.context)

    def predict(self, questions: Dataset, contexts: Stage) -> tuple[Floats, None]:
        """Return logits `(questions, options)`; token counts are logged only."""
        passages = read_contexts(contexts, self.context.passages(training=False))
        prompts = self.prompter.build_prompts(questions, passages, self.window, self.context.order)
        logits = score_options(self.runner, self.prompter, prompts, self.batch_size)
        refuse_nan(logits)
        return logits, None


@dataclass(frozen=True)
class LetterReader(MultipleChoiceReader):
    """A causal language model that learns to reply with the right option's letter."""

    @staticmethod
    def load_model(
        config: Model, seed: int, texts: Iterable[str] = ()
    ) -> tuple[Any, PreTrainedTokenizerBase]:
        """Load a causal language model that returns letters' logits, and its tokenizer."""
        checkpoint, base = config.checkpoint, None
        if checkpoint is None:
            model, tokenizer = build_random_decoder(config, seed, texts)
        else:
            folder = resolve_checkpoint(checkpoint)
            base = find_adapter_base(folder)
            whole = config if base is None else config.at(resolve_checkpoint(base))
            model, tokenizer = load_causal_lm(whole, Dtype.float32)
        kind: Any = type(model)
        model.__class__ = make_subclass(LetterHead, kind)
        model.accepts_loss_kwargs = False
        return (model if base is None else load_adapters(model, folder)), tokenizer

    @cached_property
    def prompter(self) -> Prompter:
        """Builds the prompts."""
        return Prompter.from_config(self.config, self.tokenizer)

    def build_collator(self, options: int) -> Collator:
        """Build the collator of questions with at most `options` options."""
        return LetterCollator(self.tokenizer, options)

    def encode(
        self, name: str, questions: Dataset, contexts: Stage, *, training: bool = False
    ) -> tuple[Dataset, None]:
        """Encode questions as prompts; that is fast, so nothing is cached."""
        passages = read_contexts(contexts, self.context.passages(training=training))
        longest = get_window(self.config, self.model.config, training=training)
        prompts = self.prompter.build_prompts(questions, passages, longest, self.context.order)
        letters = self.prompter.single_token_ids(LETTERS[: max(p.options for p in prompts)])
        columns = {
            "prefix": [prompt.prefix for prompt in prompts],
            "options": [letters[: prompt.options] for prompt in prompts],
            "labels": questions["label"][:],
        }
        return Dataset.from_dict(columns, features=FEATURES), None


class LetterHead(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Mixin of a causal language model: return the logits of the options' letters."""

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        option_letters: torch.Tensor,
    ) -> MultipleChoiceModelOutput:
        """Return logits `(questions, options)` of the token after `(questions, length)` ids.

        `option_letters` `(questions, options)` are the same tokens for every question.
        """
        hidden = self.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
        ).last_hidden_state[:, -1]
        with torch.autocast(hidden.device.type, enabled=False):
            logits = compute_logits(self, hidden, option_letters[0].tolist())
        return MultipleChoiceModelOutput(logits=logits)


@dataclass
class LetterCollator(Collator):
    """Pad prompts on the left, and add the tokens of the options' letters."""

    def _build_inputs(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        ids, mask = pad([row["prefix"] for row in rows], self.tokenizer.pad_token_id, left=True)
        longest = max((row["options"] for row in rows), key=len)
        letters = [*longest, *longest[:1] * (self.options - len(longest))]
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
            "option_letters": torch.tensor([letters] * len(rows)),
        }
