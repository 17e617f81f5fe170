"""Fine-tune a reader with `transformers.Trainer`, and predict with the same code."""

import logging
import shutil
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
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import get_last_checkpoint

from exam.artefacts import file_digest, read_json, write_json
from exam.errors import ExamError
from exam.metrics import Floats, count_ties, map_at_k
from exam.reader.collator import MultipleChoiceCollator
from exam.runtime import is_terminal

log = logging.getLogger(__name__)

WHOLE = "whole.json"  # written into a checkpoint after everything else


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

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)
        if self.args.should_save:
            folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
            files = [p for p in folder.rglob("*") if p.is_file() and p.name != WHOLE]
            write_json(folder / WHOLE, {str(p.relative_to(folder)): file_digest(p) for p in files})


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


class LogCallback(TrainerCallback):
    """One log line for every figure the Trainer reports."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Log step, total and figures."""
        if not state.is_world_process_zero or "train_runtime" in (logs or {}):
            return
        figures = " · ".join(
            f"{k} {v:.4g}" for k, v in (logs or {}).items() if isinstance(v, float) and k != "epoch"
        )
        log.info("train: step %d of %d · %s", state.global_step, state.max_steps, figures)


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
            callbacks=[LogCallback()],
        )
        trainer.remove_callback(PrinterCallback)
        if not is_terminal():
            trainer.remove_callback(ProgressCallback)
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


def training_arguments(values: dict[str, Any], folder: Path, seed: int) -> TrainingArguments:
    """The Trainer's arguments of a configuration, saving below `folder`."""
    best = values.get("load_best_model_at_end")
    defaults = {"metric_for_best_model": "map_at_3"} if best else {}
    try:
        return TrainingArguments(
            **{**defaults, **values},
            output_dir=str(folder),
            seed=seed,
            remove_unused_columns=False,
            label_names=["labels"],
        )
    except (ValueError, ImportError) as error:
        raise ExamError(f"trainer: {error}") from None


def train(reader: Reader, train: Dataset, dev: Dataset) -> dict[str, Any]:
    """Train, from the last whole checkpoint if there is one; the best checkpoint is left loaded.

    Returns the Trainer's final figures. The state file lies beside the checkpoints' folder.
    """
    options = max(len(o) for part in (train, dev) for o in part["options"])
    trainer = reader.trainer(train, dev if len(dev) else None, options)
    folder = Path(str(reader.arguments.output_dir))
    checkpoint = last_whole_checkpoint(folder)
    if checkpoint:
        state = read_json(checkpoint / "trainer_state.json")
        log.info("train: resuming at step %d of %d", state["global_step"], state["max_steps"])
    figures = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None).metrics
    trainer.state.save_to_json(str(folder.parent / "trainer_state.json"))
    return {**figures, "steps": trainer.state.global_step, "best": trainer.state.best_metric}


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose files are those that were written; broken ones are removed.

    A checkpoint that names a best one is whole only together with that one: the Trainer would
    otherwise finish with the last weights instead of the best.
    """
    while folder.is_dir() and (found := get_last_checkpoint(str(folder))):  # type: ignore[no-untyped-call]
        checkpoint = Path(found)
        if _is_whole(checkpoint):
            best = read_json(checkpoint / "trainer_state.json")["best_global_step"]
            if not best or _is_whole(folder / f"checkpoint-{best}"):
                return checkpoint
        log.warning("train: %s is not whole, or its best one is not; removed", checkpoint)
        shutil.rmtree(checkpoint)
    return None


def _is_whole(checkpoint: Path) -> bool:
    if not (checkpoint / WHOLE).is_file():
        return False
    files = read_json(checkpoint / WHOLE)
    return all(
        (checkpoint / name).is_file() and file_digest(checkpoint / name) == digest
        for name, digest in files.items()
    )


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
