"""Fine-tune a reader with `transformers.Trainer`, and predict with the same code."""

import logging
from dataclasses import replace
from typing import Any

import numpy as np
from accelerate.utils import AutocastKwargs
from datasets import Dataset

from exam.config import Packing
from exam.metrics import Floats, count_ties
from exam.reader.arguments import refuse_nan
from exam.reader.memory import estimated_mib
from exam.reader.reader import Reader, measured_features
from exam.reader.tuning import counts
from exam.runs import fit

log = logging.getLogger(__name__)


def train(reader: Reader, train: Dataset, dev: Dataset) -> tuple[Reader, dict[str, Any]]:
    """Train, from the last whole checkpoint if there is one; the best checkpoint is left loaded.

    Returns the reader, and how it was trained: the Trainer's final figures, how many parameters
    learned, and what memory was expected. The state file lies beside the checkpoints' folder.
    """
    args = reader.arguments
    if args.num_train_epochs == 0:
        log.info("train: trainer.num_train_epochs=0: the checkpoint answers as it is")
        return reader, {"steps": 0}
    options = max(len(o) for part in (train, dev) for o in part["options"])
    trainer = reader.trainer(train, dev if len(dev) else None, options)
    estimate = _estimate(reader, train, options)
    figures = fit(trainer)
    log.debug("train: %s", " · ".join(f"{name} {value}" for name, value in figures.items()))
    figures |= {"parameters": counts(reader.model), "estimated_mib": estimate}
    sharded = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
    return replace(reader, sharded=trainer if sharded else None), figures


def _estimate(reader: Reader, features: Dataset, options: int) -> dict[str, int]:
    """Say what a step will take of the device's memory, in MiB of each kind."""
    args, packed = reader.arguments, reader.config.packing is not Packing.none
    tokens = measured_features(features, reader.collator(options))["tokens"][:]
    longest = max(tokens) // (1 if packed else options)
    size = args.per_device_train_batch_size
    found = estimated_mib(reader.model, args, round(np.mean(tokens) * size), longest)
    parts = " · ".join(f"{name} {mib:,}" for name, mib in found.items())
    log.debug("train: about %s MiB: %s (batches of %d)", f"{sum(found.values()):,}", parts, size)
    return found


def predict(reader: Reader, features: Dataset) -> Floats:
    """Logits of shape `(questions, options)`; `-inf` where a question has no such option.

    Raises:
        ExamError: the model gave NaN.
    """
    options = max(len(o) for o in features["options"])
    unlabelled = features.remove_columns("labels")  # answers may be known for a part only
    trainer = reader.sharded or reader.trainer(None, unlabelled, options)
    # Every weight is used once a batch: a copy in bfloat16 need not be kept until its end.
    trainer.accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)
    trainer.data_collator = collator = reader.collator(options)
    measured = measured_features(unlabelled, collator)
    found = np.asarray(trainer.predict(measured).predictions, dtype=np.float64)
    logits = np.empty_like(found)
    logits[trainer.predicted_order(measured)] = found
    refuse_nan(logits)
    ties = count_ties(logits)
    if ties:
        log.warning("predict: %d questions with equal logits, ranked in option order", ties)
    return logits
