"""A causal language model that learns to reply with the right option's letter."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import MultipleChoiceModelOutput

from exam.config import Context, Dtype, Model
from exam.core.artifacts import Stage
from exam.core.checkpoints import resolve_checkpoint
from exam.data.schema import LETTERS
from exam.readers.causal_lm.load import load_whole, random_decoder, window
from exam.readers.causal_lm.prompts import Prompter
from exam.readers.causal_lm.scoring import logits_of, padded
from exam.readers.multiple_choice.collator import Collator, Row
from exam.readers.multiple_choice.heads import make_subclass
from exam.readers.multiple_choice.reader import Reader
from exam.readers.tuning import adapters_base, with_adapters
from exam.retrieval.contexts import read_contexts

FEATURES = Features(
    {
        "prefix": List(Value("int32")),
        "options": List(Value("int32")),  # their letters' tokens
        "labels": Value("int64"),
    }
)


@dataclass(frozen=True)
class LetterReader(Reader):
    """The reader's training and prediction, over the letters that follow a prompt."""

    @staticmethod
    def load_model(
        config: Model, seed: int, texts: Iterable[str] = ()
    ) -> tuple[Any, PreTrainedTokenizerBase]:
        """A causal language model that gives letters' logits, and its tokenizer."""
        checkpoint, base = config.checkpoint, None
        if checkpoint is None:
            model, tokenizer = random_decoder(config, seed, texts)
        else:
            folder = resolve_checkpoint(checkpoint)
            base = adapters_base(folder)
            whole = config if base is None else config.at(resolve_checkpoint(base))
            model, tokenizer = load_whole(whole, Dtype.float32)
        kind: Any = type(model)
        model.__class__ = make_subclass(Lettered, kind)
        model.accepts_loss_kwargs = False
        return (model if base is None else with_adapters(model, folder)), tokenizer

    @cached_property
    def prompter(self) -> Prompter:
        """What frames a question."""
        return Prompter.of(self.config, self.tokenizer)

    def collator(self, options: int) -> Collator:
        """What pads prompts on the left."""
        return LetterCollator(self.tokenizer, options)

    def features(
        self,
        name: str,
        questions: Dataset,
        contexts: Stage,
        context: Context,
        *,
        training: bool = False,
    ) -> tuple[Dataset, None]:
        """Return questions as prompts in token ids; cheap enough not to be kept."""
        passages = read_contexts(contexts, context.passages(training=training))
        longest = window(self.config, self.model.config, training=training)
        asked = self.prompter.asked(questions, passages, longest, context.order)
        letters = self.prompter.single(LETTERS[: max(one.options for one in asked)])
        columns = {
            "prefix": [one.prefix for one in asked],
            "options": [letters[: one.options] for one in asked],
            "labels": questions["label"][:],
        }
        return Dataset.from_dict(columns, features=FEATURES), None


class Lettered(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Mixed into a causal language model."""

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        letters: torch.Tensor,
    ) -> MultipleChoiceModelOutput:
        """Logits `(questions, options)` of what follows `input_ids` `(questions, length)`.

        `letters` `(questions, options)` are the same tokens for every question.
        """
        hidden = self.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
        ).last_hidden_state[:, -1]
        with torch.autocast(hidden.device.type, enabled=False):
            logits = logits_of(self, hidden, letters[0].tolist())
        return MultipleChoiceModelOutput(logits=logits)


@dataclass
class LetterCollator(Collator):
    """Prompts padded on the left, and the options' letters."""

    def tokens(self, row: Row) -> int:
        """The prompt's length."""
        return len(row["prefix"])

    def _inputs(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        ids, mask = padded([row["prefix"] for row in rows], self.tokenizer.pad_token_id, left=True)
        longest = max((row["options"] for row in rows), key=len)
        letters = [*longest, *longest[:1] * (self.options - len(longest))]
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
            "letters": torch.tensor([letters] * len(rows)),
        }
