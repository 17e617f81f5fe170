"""The library's Trainer, with a reader's losses, batches, learning rates and adversary."""

from typing import Any

import torch
from datasets import Dataset
from torch.nn import functional
from transformers import Trainer, TrainerCallback

from exam.config import Adversary, BatchBy, Loss, Tuning
from exam.reader.adversary import perturbed
from exam.reader.batches import TokenBatches
from exam.reader.tuning import set_learning_rates


class EpochCallback(TrainerCallback):
    """Tell batches by tokens which epoch begins.

    Where several processes resume within an epoch, the library's wrappers hide them from it.
    """

    def __init__(self, sampler: TokenBatches) -> None:
        """Take the sampler that is told."""
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the epoch, also one that is resumed part-way."""
        self.sampler.set_epoch(int(state.epoch or 0))


class ReaderTrainer(Trainer):
    """The Trainer with the same losses for every multiple-choice model, over real options.

    Batches by tokens hold more short questions than long ones; every question weighs the same.
    """

    loss_is_scaled_for_ga = False  # the loss below is a mean over the batch
    batch_by = BatchBy.questions
    loss = Loss.softmax
    others = False
    tuning = Tuning()
    adversary = Adversary()
    mean_size: float | None = None  # questions in a batch of training, if they differ
    mean_eval_size: float | None = None  # in one of evaluation

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss over the options that exist; None where nothing says which is right."""
        inputs = dict(inputs)
        mask, labels = inputs["option_mask"], inputs.pop("labels", None)
        targets = inputs.pop("targets", None)
        if not self.others:
            inputs.pop("option_mask")
        outputs = model(**inputs)
        logits = outputs.logits.float().masked_fill(~mask, -torch.inf)
        if targets is None and labels is not None:
            targets = functional.one_hot(labels, logits.shape[1]).float()
        smoothing = self.args.label_smoothing_factor
        loss = None if targets is None else LOSSES[self.loss](logits, targets, smoothing)
        mean_size = self.mean_size if model.training else self.mean_eval_size
        if loss is not None and mean_size:
            loss = loss * (len(logits) / mean_size)
        return (loss, logits) if return_outputs else loss

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The library's, with the rates of `tuning`."""
        optimizer = super().create_optimizer(model)
        if self.tuning.layer_decay != 1 or self.tuning.head_learning_rate is not None:
            unwrapped = self.accelerator.unwrap_model(model or self.model)
            set_learning_rates(unwrapped, optimizer, self.tuning, self.args.learning_rate)
        return optimizer

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The loss; the adversary's pass adds to its gradient, and is not reported."""
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        own = self.adversary
        if own.adv_lr is not None and (self.state.epoch or 0) >= own.start_epoch:
            with perturbed(model, own.adv_lr, own.adv_eps):
                super().training_step(model, inputs, num_items_in_batch)
        return loss

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
        self.remove_callback(EpochCallback)
        self.add_callback(EpochCallback(sampler))
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


def option_loss(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Mean cross-entropy of logits `(batch, options)`, `-inf` where there is no option.

    `targets` `(batch, options)`: each option's probability of being right. Label smoothing spreads
    its share over the options that exist.
    """
    exists = torch.isfinite(logits)
    log_p = logits.log_softmax(-1).masked_fill(~exists, 0)
    right = -(targets * log_p).sum(-1)
    spread = -log_p.sum(-1) / exists.sum(-1)
    return ((1 - smoothing) * right + smoothing * spread).mean()


def binary_loss(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Mean binary cross-entropy of every option that exists, in the form of `option_loss`.

    Label smoothing draws both answers towards one half.
    """
    exists = torch.isfinite(logits)
    each = functional.binary_cross_entropy_with_logits(
        logits.masked_fill(~exists, 0), targets * (1 - smoothing) + smoothing / 2, reduction="none"
    )
    return (each.masked_fill(~exists, 0).sum(-1) / exists.sum(-1)).mean()


LOSSES = {Loss.softmax: option_loss, Loss.binary: binary_loss}
