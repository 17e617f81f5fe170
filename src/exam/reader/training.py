"""Fine-tune a reader with `transformers.Trainer`, and predict with the same code."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn import functional
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from exam.config import BatchBy, Model, Packing
from exam.errors import ExamError
from exam.metrics import Floats, count_ties, map_at_k
from exam.precision import computes_in_bfloat16
from exam.reader.batches import TokenBatches
from exam.reader.collator import Collator, MultipleChoiceCollator, PackedCollator
from exam.reader.model import load_reader
from exam.runs import fit, training_arguments, with_callbacks

log = logging.getLogger(__name__)


class ReaderTrainer(Trainer):
    """The Trainer with one loss for every multiple-choice model: softmax over real options.

    Batches by tokens hold more short questions than long ones; every question weighs the same.
    """

    loss_is_scaled_for_ga = False  # the loss below is a mean over the batch
    batch_by = BatchBy.questions
    mean_size: float | None = None  # questions in a batch of training, if they differ
    mean_eval_size: float | None = None  # in one of evaluation

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Cross-entropy over the options that exist; None where there are no labels."""
        inputs = dict(inputs)
        mask, labels = inputs.pop("option_mask"), inputs.pop("labels", None)
        outputs = model(**inputs)
        logits = outputs.logits.float().masked_fill(~mask, -torch.inf)
        loss = None if labels is None else option_loss(logits, labels, self.args)
        mean_size = self.mean_size if model.training else self.mean_eval_size
        if loss is not None and mean_size:
            loss = loss * (len(logits) / mean_size)
        return (loss, logits) if return_outputs else loss

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Any, Any, Any]:
        """Loss and logits, with or without labels."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, logits = self.compute_loss(model, inputs, return_outputs=True)
        return loss, logits, inputs.get("labels")

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows = self.train_dataset if train_dataset is None else train_dataset
        if self.batch_by is BatchBy.questions or rows is None:
            return super()._get_train_sampler(train_dataset)
        args = self.args
        sampler = TokenBatches(
            list(rows["tokens"]),
            self._train_batch_size,
            args.seed if args.data_seed is None else args.data_seed,
            shuffle=True,
            rank=args.process_index,
            world_size=args.world_size,
        )
        self.mean_size = sampler.mean_size
        return sampler

    def predicted_order(self, features: Dataset) -> list[int]:
        """The places of the questions as prediction takes them."""
        sampler = self._get_eval_sampler(features)
        if isinstance(sampler, TokenBatches):
            return [place for batch in sampler for place in batch]
        return list(range(len(features)))

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        if self.batch_by is BatchBy.questions or self.args.world_size > 1:
            return super()._get_eval_sampler(eval_dataset)
        sampler = TokenBatches(list(eval_dataset["tokens"]), self.args.eval_batch_size)
        self.mean_eval_size = sampler.mean_size
        return sampler


def option_loss(
    logits: torch.Tensor, labels: torch.Tensor, args: TrainingArguments
) -> torch.Tensor:
    """Mean cross-entropy of logits `(batch, options)`, `-inf` where there is no option.

    Label smoothing spreads its share over the options that exist.
    """
    if not args.label_smoothing_factor:
        return functional.cross_entropy(logits, labels)
    exists = torch.isfinite(logits)
    log_p = logits.log_softmax(-1)
    right = -log_p.gather(-1, labels[:, None])[:, 0]
    spread = -log_p.masked_fill(~exists, 0).sum(-1) / exists.sum(-1)
    share = args.label_smoothing_factor
    return ((1 - share) * right + share * spread).mean()


@dataclass(frozen=True)
class Reader:
    """What training and prediction share: a model, its tokenizer, and the Trainer's arguments."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    arguments: TrainingArguments
    config: Model

    @classmethod
    def load(
        cls,
        config: Model,
        trainer: dict[str, Any],
        folder: Path,
        seed: int,
        texts: Iterable[str] = (),
    ) -> "Reader":
        """The reader of a configuration; its Trainer saves below `folder`.

        `texts` train the tokenizer of a random model.
        """
        arguments = reader_arguments(trainer, folder, seed)
        return cls(*load_reader(config, seed, texts), arguments, config)

    def collator(self, options: int) -> Collator:
        """What lays questions of at most so many options out as a batch."""
        packed = self.config.packing is not Packing.none
        return (PackedCollator if packed else MultipleChoiceCollator)(self.tokenizer, options)

    def trainer(self, train: Dataset | None, dev: Dataset | None, options: int) -> ReaderTrainer:
        """The Trainer, with MAP@3 as its metric."""
        collator = self.collator(options)
        trainer = ReaderTrainer(
            model=self.model,
            args=self.arguments,
            train_dataset=_measured(train, collator),
            eval_dataset=_measured(dev, collator),
            data_collator=collator,
            compute_metrics=map_at_3,
            processing_class=self.tokenizer,
        )
        trainer.batch_by = self.config.batch_by
        with_callbacks(trainer)
        return trainer


def _measured(features: Dataset | None, collator: Collator) -> Dataset | None:
    """Features with the number of tokens each question takes of a batch."""
    if features is None:
        return None
    return features.add_column("tokens", [collator.tokens(row) for row in features.to_list()])


def map_at_3(prediction: EvalPrediction) -> dict[str, float]:
    """The Trainer's metric: `eval_map_at_3`."""
    logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    _refuse_nan(logits)
    return {"map_at_3": map_at_k(logits.astype(np.float64), labels, k=3)}


def _refuse_nan(logits: Floats) -> None:
    broken = int(np.isnan(logits).any(axis=1).sum())
    if broken:
        raise ExamError(
            f"The reader gave NaN for {broken} of {len(logits)} questions.\n"
            "Train again with a lower trainer.learning_rate, or without fp16."
        )


def reader_arguments(values: dict[str, Any], folder: Path, seed: int) -> TrainingArguments:
    """The Trainer's arguments of a configuration, saving below `folder`."""
    own = {"remove_unused_columns": False, "label_names": ["labels"]}
    if not values.keys() & {"bf16", "fp16"}:
        own["bf16"] = computes_in_bfloat16(on_cpu=bool(values.get("use_cpu")))
    return training_arguments(TrainingArguments, values, folder, seed, "map_at_3", **own)


def train(reader: Reader, train: Dataset, dev: Dataset) -> dict[str, Any]:
    """Train, from the last whole checkpoint if there is one; the best checkpoint is left loaded.

    Returns the Trainer's final figures. The state file lies beside the checkpoints' folder.
    """
    options = max(len(o) for part in (train, dev) for o in part["options"])
    trainer = reader.trainer(train, dev if len(dev) else None, options)
    return fit(trainer)


def predict(reader: Reader, features: Dataset) -> Floats:
    """Logits of shape `(questions, options)`; `-inf` where a question has no such option.

    Raises:
        ExamError: the model gave NaN.
    """
    options = max(len(o) for o in features["options"])
    unlabelled = features.remove_columns("labels")  # answers may be known for a part only
    trainer = reader.trainer(None, unlabelled, options)
    measured: Any = trainer.eval_dataset
    found = np.asarray(trainer.predict(measured).predictions, dtype=np.float64)
    logits = np.empty_like(found)
    logits[trainer.predicted_order(measured)] = found
    _refuse_nan(logits)
    ties = count_ties(logits)
    if ties:
        log.warning("predict: %d questions with equal logits, ranked in option order", ties)
    return logits
