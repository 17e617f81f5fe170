"""Fine-tune a reader with `transformers.Trainer`, and predict with the same code."""

import logging
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

from exam.errors import ExamError
from exam.metrics import Floats, count_ties, map_at_k
from exam.reader.collator import MultipleChoiceCollator
from exam.runs import fit, training_arguments, with_callbacks

log = logging.getLogger(__name__)


class ReaderTrainer(Trainer):
    """The Trainer with one loss for every multiple-choice model: softmax over real options."""

    loss_is_scaled_for_ga = False  # the loss below is a mean over the batch

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

    def trainer(self, train: Dataset | None, dev: Dataset | None, options: int) -> ReaderTrainer:
        """The Trainer, with MAP@3 as its metric."""
        trainer = ReaderTrainer(
            model=self.model,
            args=self.arguments,
            train_dataset=train,
            eval_dataset=dev,
            data_collator=MultipleChoiceCollator(self.tokenizer, options),
            compute_metrics=map_at_3,
            processing_class=self.tokenizer,
        )
        with_callbacks(trainer)
        return trainer


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
    output = reader.trainer(None, unlabelled, options).predict(unlabelled)
    logits = np.asarray(output.predictions, dtype=np.float64)
    _refuse_nan(logits)
    ties = count_ties(logits)
    if ties:
        log.warning("predict: %d questions with equal logits, ranked in option order", ties)
    return logits
