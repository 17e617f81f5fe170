"""The Trainer of readers: its arguments, losses, batches by tokens and weight perturbation."""

import logging
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from torch.nn import functional
from transformers import EvalPrediction, Trainer, TrainerCallback
from transformers.trainer_pt_utils import BatchRebalanceSampler
from transformers.utils.import_utils import is_bitsandbytes_available

from exam.config import DEFAULT_K, BatchBy, ChunkPooling, Loss, Model, Tuning
from exam.core.errors import ExamError
from exam.core.files import read_object, write_json
from exam.core.trainer import SingleDeviceArguments, build_training_arguments
from exam.metrics import Floats, map_at_k, metric_name
from exam.readers.tuning import set_learning_rates

log = logging.getLogger(__name__)

EIGHT_BIT = "adamw_bnb_8bit"
EPSILON = 1e-6
FINAL_FROM = 0.75  # of the steps: the rest give the final loss
FINAL_SUMS = "final_loss.json"  # of a checkpoint: the final_sums
OF_TUNING = ("layer_decay", "head_learning_rate", "awp_lr", "awp_eps", "awp_start_epoch")


# Arguments.


@dataclass
class ReaderTrainingArguments(SingleDeviceArguments):
    """Training arguments with a reader's loss, batches, learning rates and perturbation."""

    loss: Loss = Loss.softmax
    batch_by: BatchBy = BatchBy.questions
    cross_option_bias: bool = False  # the model takes `option_mask`
    chunk_pooling: ChunkPooling = ChunkPooling.sum
    metric_k: int = DEFAULT_K  # of MAP@k, which chooses the checkpoint
    layer_decay: float = 1.0
    head_learning_rate: float | None = None
    awp_lr: float | None = None  # None: no adversarial weight perturbation
    awp_eps: float | None = None
    awp_start_epoch: float = 0.0

    def with_tuning(self, tuning: Tuning) -> "ReaderTrainingArguments":
        """Return a copy with the learning rates and the perturbation of `tuning`."""
        arguments = copy(self)
        for name in OF_TUNING:
            setattr(arguments, name, getattr(tuning, name))
        return arguments


def build_reader_arguments(
    values: dict[str, Any],
    folder: Path,
    seed: int,
    model: Model,
    k: int = DEFAULT_K,
    pooling: ChunkPooling = ChunkPooling.sum,
) -> ReaderTrainingArguments:
    """Build the Trainer's arguments of a configuration, saving below `folder`."""
    if values.get("optim") == EIGHT_BIT and not (
        is_bitsandbytes_available() and torch.cuda.is_available()
    ):
        log.warning("train: trainer.optim=%s needs bitsandbytes and a GPU: adamw_torch", EIGHT_BIT)
        values = {**values, "optim": "adamw_torch"}
    return build_training_arguments(
        ReaderTrainingArguments,
        values,
        folder,
        seed,
        metric_name(k),
        choose_format=True,
        remove_unused_columns=False,
        label_names=["labels"],
        use_cpu=values.get("use_cpu", not torch.accelerator.is_available()),
        loss=model.loss,
        batch_by=model.batch_by,
        cross_option_bias=model.cross_option_bias,
        chunk_pooling=pooling,
        metric_k=k,
    )


# Metric.


def compute_metric(prediction: EvalPrediction, k: int) -> dict[str, float]:
    """Compute the Trainer's metric, `eval_map_at_<k>`; for k = 1, `eval_accuracy`."""
    logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    refuse_nan(logits)
    return {metric_name(k): map_at_k(logits.astype(np.float64), labels, k)}


def refuse_nan(logits: Floats) -> None:
    """Refuse logits `(questions, options)` with NaN."""
    if number := int(np.isnan(logits).any(axis=1).sum()):
        raise ExamError(
            f"The reader returned NaN for {number} of {len(logits)} questions.\n"
            "Train again with a lower trainer.learning_rate, or without fp16."
        )


# Windows.


def pool_windows(
    scores: torch.Tensor, owner: torch.Tensor, questions: int, pooling: ChunkPooling
) -> torch.Tensor:
    """Return logits `(questions, options)` of scores `(windows, options)`.

    `owner` `(windows,)` holds the number of each window's question. `sum` is the logarithm of the
    summed exponentials: the softmax of the result is the sum over windows of a softmax over all
    windows and options.
    """
    rows = owner[:, None].expand_as(scores)
    empty = scores.new_zeros(questions, scores.shape[1])
    if pooling is ChunkPooling.mean:
        return empty.scatter_reduce(0, rows, scores, "mean", include_self=False)
    highest = empty.scatter_reduce(0, rows, scores, "amax", include_self=False)
    if pooling is ChunkPooling.max:
        return highest
    highest = highest.detach()
    return empty.scatter_add(0, rows, (scores - highest[owner]).exp()).log() + highest


# Losses.


def option_loss(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Return the mean cross-entropy of logits `(batch, options)`, `-inf` for missing options.

    `targets` `(batch, options)` are each option's probability of being right. Label smoothing
    spreads its share over the options that exist.
    """
    exists = torch.isfinite(logits)
    log_p = logits.log_softmax(-1).masked_fill(~exists, 0)
    right = -(targets * log_p).sum(-1)
    spread = -log_p.sum(-1) / exists.sum(-1)
    return ((1 - smoothing) * right + smoothing * spread).mean()


def binary_loss(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Return the mean binary cross-entropy over options; shapes are those of `option_loss`.

    Label smoothing draws both answers towards one half.
    """
    exists = torch.isfinite(logits)
    losses = functional.binary_cross_entropy_with_logits(
        logits.masked_fill(~exists, 0), targets * (1 - smoothing) + smoothing / 2, reduction="none"
    )
    return (losses.masked_fill(~exists, 0).sum(-1) / exists.sum(-1)).mean()


def equal_chances_loss(options: torch.Tensor, loss: Loss, smoothing: float) -> torch.Tensor:
    """Return the least loss of questions with that many options for a reader that reads nothing.

    It gives all options of a question the same chance. Smoothing moves the binary loss only.
    """
    if loss is Loss.softmax:
        return options.log()
    chance = (1 - smoothing) / options + smoothing / 2
    return -(chance * chance.log() + (1 - chance) * (1 - chance).log())


LOSSES = {Loss.softmax: option_loss, Loss.binary: binary_loss}


# Adversarial weight perturbation.


@contextmanager
def perturb_weights(model: nn.Module, awp_lr: float, awp_eps: float | None) -> Iterator[None]:
    """Shift every weight matrix along its gradient, and restore it afterwards.

    Wu, Xia and Wang, "Adversarial Weight Perturbation Helps Robust Generalization" (2020): the
    loss is lowered at the weights, and at a nearby point where it is higher. A matrix w with
    gradient g moves by `awp_lr · ‖w‖ · g / ‖g‖`, each value by at most `awp_eps` times itself.
    Only directions count, so neither accumulation nor a scaled loss changes the shift. Biases and
    normalisations do not move.
    """
    weights = [
        (weight, weight.grad, weight.detach().clone())
        for weight in model.parameters()
        if weight.grad is not None and weight.dim() > 1
    ]
    try:
        with torch.no_grad():
            for weight, gradient, original in weights:
                length = awp_lr * (weight.norm() + EPSILON) / (gradient.norm() + EPSILON)
                weight.add_(gradient.to(weight.dtype) * length)
                if awp_eps is not None:
                    limit = awp_eps * original.abs()
                    weight.clamp_(original - limit, original + limit)
        yield
    finally:
        with torch.no_grad():
            for weight, _, original in weights:
                weight.copy_(original)


# Batches.


class TokenBatches(BatchRebalanceSampler):
    """Batches with about the same number of tokens, as many as of `batch_size` questions each.

    Questions of similar length share a batch, to save padding; the seed orders equal lengths.
    Every epoch has the same batches; `shuffle` changes their order. Each of several processes takes
    every n-th batch; the first ones repeat until all have as many. The base class tells the Trainer
    that the batches are complete and divided among the processes.
    """

    def __init__(
        self,
        lengths: list[int],
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Divide the rows of `lengths` (tokens of each question) into batches."""
        number = math.ceil(len(lengths) / batch_size)
        budget = batch_size * sum(lengths) / max(1, len(lengths))
        while len(batches := _divide(lengths, budget, seed)) > number:
            budget *= 1.01
        self.batches = batches
        self.mean_size = len(lengths) / max(1, len(self.batches))
        self.seed, self.shuffle, self.epoch = seed, shuffle, 0
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return math.ceil(len(self.batches) / self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.batches)
        if self.shuffle:
            random.Random(f"{self.seed}:{self.epoch}").shuffle(order)
        shared = islice(cycle(order), len(self) * self.world_size)
        return islice(shared, self.rank, None, self.world_size)


def _divide(lengths: list[int], budget: float, seed: int) -> list[list[int]]:
    """Return rows of `lengths` in batches, longest first; a row above the budget is a batch."""
    order = list(range(len(lengths)))
    random.Random(seed).shuffle(order)
    order.sort(key=lambda row: -lengths[row])
    batches: list[list[int]] = []
    for row in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


class EpochCallback(TrainerCallback):
    """Set the epoch of a sampler and of a collator.

    The library does not, when several processes resume within an epoch.
    """

    def __init__(self, *counting: Any) -> None:
        """Take the objects whose `epoch` to set."""
        self.counting = counting

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the epoch, also after resuming within it."""
        for part in self.counting:
            part.epoch = int(state.epoch or 0)


# The Trainer.


class ReaderTrainer(Trainer):
    """The Trainer with one loss for all multiple-choice models, over the options that exist.

    Batches by tokens hold more short questions than long ones; every question weighs the same.
    """

    args: ReaderTrainingArguments
    loss_is_scaled_for_ga = False  # compute_loss returns a mean over the batch
    mean_size: float | None = None  # questions in a training batch, where batches differ
    mean_eval_size: float | None = None  # in an evaluation batch
    is_perturbed = False  # the weights are, for now
    final_sums: torch.Tensor | None = None  # of loss, loss of equal chances, and questions

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the loss over the options that exist; None without labels or targets."""
        inputs = dict(inputs)
        mask, labels = inputs["option_mask"], inputs.pop("labels", None)
        targets, owner = inputs.pop("targets", None), inputs.pop("owner", None)
        if not self.args.cross_option_bias:
            inputs.pop("option_mask")
        if owner is not None:  # a row for each window
            inputs |= {n: inputs[n][owner] for n in ("option_mask", "evidence") if n in inputs}
        scores = model(**inputs).logits.float()
        if owner is not None:
            scores = pool_windows(scores, owner, len(mask), self.args.chunk_pooling)
        logits = scores.masked_fill(~mask, -torch.inf)
        if targets is None and labels is not None:
            targets = functional.one_hot(labels, logits.shape[1]).float()
        smoothing = self.args.label_smoothing_factor
        loss = None if targets is None else LOSSES[self.args.loss](logits, targets, smoothing)
        if loss is not None and model.training:
            self._add_final_loss(loss.detach(), mask.sum(-1))
        mean_size = self.mean_size if model.training else self.mean_eval_size
        if loss is not None and mean_size:
            loss = loss * (len(logits) / mean_size)
        return (loss, logits) if return_outputs else loss

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Create the library's optimizer, with learning rates by layer and for the head."""
        optimizer = super().create_optimizer(model)
        args = self.args
        if args.layer_decay != 1 or args.head_learning_rate is not None:
            set_learning_rates(
                self.accelerator.unwrap_model(model or self.model),
                optimizer,
                args.learning_rate,
                args.layer_decay,
                args.head_learning_rate,
            )
        return optimizer

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Return the loss; a second pass with shifted weights adds to the gradient only."""
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        args = self.args
        if args.awp_lr is not None and (self.state.epoch or 0) >= args.awp_start_epoch:
            self.is_perturbed = True
            with perturb_weights(model, args.awp_lr, args.awp_eps):
                super().training_step(model, inputs, num_items_in_batch)
            self.is_perturbed = False
        return loss

    def _add_final_loss(self, loss: torch.Tensor, options: torch.Tensor) -> None:
        """Add a batch's mean loss if it is one of the last steps; `options` counts each question's.

        Logged losses do not serve: they are weighted by the size of the batch.
        """
        state, args = self.state, self.args
        if self.is_perturbed or state.global_step + 1 <= FINAL_FROM * state.max_steps:
            return
        chances = equal_chances_loss(options.float(), args.loss, args.label_smoothing_factor)
        count = torch.ones_like(chances).sum()
        sums = torch.stack([loss.float() * count, chances.sum(), count])
        self.final_sums = sums if self.final_sums is None else self.final_sums + sums

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save the sums of the last steps too, so that a resumed training reports the same loss."""
        super()._save_checkpoint(model, trial)
        sums = self.final_sums
        if self.args.should_save and sums is not None and sums.isfinite().all():
            folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
            write_json(folder / FINAL_SUMS, {"sums": sums.tolist()})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        path = Path(resume_from_checkpoint) / FINAL_SUMS
        if path.is_file():
            sums = read_object(path, "sums")["sums"]
            self.final_sums = torch.tensor(sums, device=self.args.device)

    def final_losses(self) -> dict[str, float]:
        """Return the mean loss of the last steps, and that of equal chances for all options."""
        if self.final_sums is None:  # trained for no epoch
            return {}
        loss, chances, count = self.final_sums.tolist()
        return {"final_loss": loss / count, "equal_chances_loss": chances / count}

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Any, Any, Any]:
        """Return loss, logits and labels; loss and labels are None for unlabelled questions."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, logits = self.compute_loss(model, inputs, return_outputs=True)
        return loss, logits, inputs.get("labels")

    def prediction_order(self, features: Dataset) -> list[int]:
        """Return the rows of `features` in the order that prediction takes them."""
        sampler = self._get_eval_sampler(features)
        return list(chain(*sampler) if isinstance(sampler, TokenBatches) else range(len(features)))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        args, features = self.args, self.train_dataset if train_dataset is None else train_dataset
        self.remove_callback(EpochCallback)
        self.add_callback(EpochCallback(self.data_collator))
        if args.batch_by is BatchBy.questions or features is None:
            return super()._get_train_sampler(train_dataset)
        sampler = TokenBatches(
            list(features["tokens"]),
            self._train_batch_size,
            args.seed if args.data_seed is None else args.data_seed,
            shuffle=True,
            rank=args.process_index,
            world_size=args.world_size,
        )
        self.mean_size = sampler.mean_size
        self.remove_callback(EpochCallback)
        self.add_callback(EpochCallback(self.data_collator, sampler))
        return sampler

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        if self.args.batch_by is BatchBy.questions or self.args.world_size > 1:
            return super()._get_eval_sampler(eval_dataset)
        sampler = TokenBatches(list(eval_dataset["tokens"]), self.args.eval_batch_size)
        self.mean_eval_size = sampler.mean_size
        return sampler
