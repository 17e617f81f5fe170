"""What training and prediction share: a model, its tokenizer, the Trainer's arguments."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from exam import ranks
from exam.checkpoints import resolve_checkpoint
from exam.config import Adversary, Context, Layout, Model, Packing, Tuning
from exam.errors import ExamError
from exam.loading import longest_input
from exam.reader.arguments import map_at_3, reader_arguments
from exam.reader.collator import Collator, MultipleChoiceCollator, PackedCollator
from exam.reader.features import Reading, saved_features
from exam.reader.lexical import fit as fit_logit
from exam.reader.measures import MEASURES
from exam.reader.model import load_reader
from exam.reader.token_counts import TokenCounts
from exam.reader.trainer import ReaderTrainer
from exam.reader.tuning import adapters_base, is_adapted, merged, save_adapters, tuned
from exam.runs import with_callbacks
from exam.stage import Stage


@dataclass(frozen=True)
class Reader:
    """What training and prediction share: a model, its tokenizer, and the Trainer's arguments."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    arguments: TrainingArguments
    config: Model
    layout: Layout = Layout.context_first
    tuning: Tuning = field(default_factory=Tuning)
    adversary: Adversary = field(default_factory=Adversary)
    sharded: ReaderTrainer | None = None  # that trained it, where no process has it whole

    @classmethod
    def load(
        cls,
        config: Model,
        trainer: dict[str, Any],
        folder: Path,
        seed: int,
        texts: Iterable[str] = (),
        layout: Layout = Layout.context_first,
    ) -> "Reader":
        """The reader of a configuration; its Trainer saves below `folder`.

        `texts` train the tokenizer of a random model.
        """
        arguments = reader_arguments(trainer, folder, seed)
        return cls(*cls.load_model(config, seed, texts), arguments, config, layout)

    load_model = staticmethod(load_reader)

    def to_train(self, features: Dataset, tuning: Tuning, adversary: Adversary) -> "Reader":
        """The reader with what is to be trained of it on `features`, and how."""
        _check_sharding(self, tuning, adversary)
        if self.config.evidence:
            _start_evidence(self.model, features)
        model = tuned(self.model, tuning, self.config.name_or_path)
        if self.arguments.bf16 or self.arguments.fp16:
            _learn_in_fp32(model)
        return replace(self, model=model, tuning=tuning, adversary=adversary)

    def save(self, folder: Path) -> None:
        """Write model and tokenizer; all processes come here together, and rank 0 writes.

        Of adapters they alone, unless what they change has no place of its own: a random model, or
        one with adapters itself.
        """
        trainer, model, base = self.sharded, self.model, self.config.checkpoint
        state = trainer and trainer.accelerator.get_state_dict(trainer.model_wrapped)
        if ranks.rank() > 0:
            return
        if is_adapted(model) and base is not None and _has_own_base(self):
            save_adapters(model, base, folder, state)
        else:
            whole: Any = merged(model) if is_adapted(model) else model
            whole.save_pretrained(folder, state_dict=state)
        self.tokenizer.save_pretrained(folder)

    def collator(self, options: int) -> Collator:
        """What lays questions of at most so many options out as a batch."""
        if self.config.packing is not Packing.none:
            return PackedCollator(self.tokenizer, options, self.layout)
        marked = self.model.config.model_type == "longformer"
        return MultipleChoiceCollator(self.tokenizer, options, self.layout, global_attention=marked)

    def length(self, *, training: bool) -> int:
        """How many tokens context, prompt and an option may take."""
        length = self.config.length(training=training)
        if self.config.packing is not Packing.none and self.layout is Layout.question_first:
            return length - 1  # a token of its own ends the context
        return length

    def features(
        self,
        name: str,
        questions: Dataset,
        contexts: Stage,
        context: Context,
        *,
        training: bool = False,
    ) -> tuple[Dataset, TokenCounts | None]:
        """Return questions with a stage's passages in token ids, and counts of their tokens.

        They are kept beside the stage as `name`.
        """
        longer = self.length(training=training)
        reading = Reading(
            top_k=context.passages(training=training),
            max_length=longer,
            longest=longest_input(self.model, longer),
            order=context.order,
            evidence=self.config.evidence,
        )
        with ranks.leader_first():
            return saved_features(name, questions, contexts, self.tokenizer, reading)

    def trainer(self, train: Dataset | None, dev: Dataset | None, options: int) -> ReaderTrainer:
        """The Trainer, with MAP@3 as its metric."""
        collator = self.collator(options)
        trainer = ReaderTrainer(
            model=self.model,
            args=self.arguments,
            train_dataset=None if train is None else measured_features(train, collator),
            eval_dataset=None if dev is None else measured_features(dev, collator),
            data_collator=collator,
            compute_metrics=map_at_3,
            processing_class=self.tokenizer,
        )
        trainer.batch_by = self.config.batch_by
        trainer.loss, trainer.others = self.config.loss, self.config.others
        trainer.tuning, trainer.adversary = self.tuning, self.adversary
        with_callbacks(trainer)
        return trainer


def measured_features(features: Dataset, collator: Collator) -> Dataset:
    """Features with the number of tokens each question takes of a batch."""
    return features.add_column("tokens", [collator.tokens(row) for row in features.to_list()])


def _start_evidence(model: Any, features: Dataset) -> None:
    """Weigh the measures as a conditional logit fitted on them alone does, unless they are trained.

    From nothing, the rates that suit the other weights would hardly move these.
    """
    answered = features.filter(lambda row: row["labels"] is not None, load_from_cache_file=False)
    evidence, labels = answered["evidence"], answered["labels"]
    if model.evidence.weight.any():
        return
    found = np.full((len(labels), max(map(len, evidence)), len(MEASURES)), np.nan)
    for row, own in zip(found, evidence, strict=True):
        row[: len(own)] = own
    with torch.no_grad():
        model.evidence.weight[0] = torch.from_numpy(fit_logit(found, np.array(labels)).weights)


def _learn_in_fp32(model: nn.Module) -> None:
    """Widen the fp16 weights that learn: a step is below their precision, a scaler refuses them.

    Autocast narrows them again in every product.
    """
    for weight in model.parameters():
        if weight.requires_grad and weight.dtype is torch.float16:
            weight.data = weight.data.float()


def _check_sharding(reader: Reader, tuning: Tuning, adversary: Adversary) -> None:
    """Refuse what needs every weight whole where no process has it."""
    named = {"DeepSpeed": reader.arguments.deepspeed, "FSDP": reader.arguments.fsdp}
    for name, given in named.items():
        launched = os.environ.get(f"ACCELERATE_USE_{name.upper()}", "false")  # accelerate launch
        if not given and launched.lower() != "true":
            continue
        if adversary.adv_lr is not None:
            raise ExamError(
                f"adversary=awp shifts each weight by its own gradient, which {name} cuts up.\n"
                "Choose adversary=none, or run without it (torchrun alone trains a copy on every "
                "GPU)."
            )
        if tuning.lora_rank is not None and not _has_own_base(reader):
            raise ExamError(
                f"The adapters are saved merged, as what they change is random or adapted itself, "
                f"and {name} cuts the weights up.\n"
                "Give a whole checkpoint, model.name_or_path=<hub id or folder>, or choose "
                "tuning=full."
            )


def _has_own_base(reader: Reader) -> bool:
    """Whether adapters of this reader change a whole checkpoint that lies somewhere."""
    base = reader.config.checkpoint
    return base is not None and adapters_base(resolve_checkpoint(base)) is None
