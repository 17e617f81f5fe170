"""What the Trainer is given of a configuration, and its metric."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction
from transformers.utils.import_utils import is_bitsandbytes_available

from exam.errors import ExamError
from exam.metrics import Floats, map_at_k
from exam.runs import OneDevice, training_arguments

log = logging.getLogger(__name__)

EIGHT_BIT = "adamw_bnb_8bit"


def map_at_3(prediction: EvalPrediction) -> dict[str, float]:
    """The Trainer's metric: `eval_map_at_3`."""
    logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    refuse_nan(logits)
    return {"map_at_3": map_at_k(logits.astype(np.float64), labels, k=3)}


def refuse_nan(logits: Floats) -> None:
    """Refuse logits that are no numbers."""
    broken = int(np.isnan(logits).any(axis=1).sum())
    if broken:
        raise ExamError(
            f"The reader gave NaN for {broken} of {len(logits)} questions.\n"
            "Train again with a lower trainer.learning_rate, or without fp16."
        )


def reader_arguments(values: dict[str, Any], folder: Path, seed: int) -> OneDevice:
    """The Trainer's arguments of a configuration, saving below `folder`."""
    own: dict[str, Any] = {"remove_unused_columns": False, "label_names": ["labels"]}
    if values.get("optim") == EIGHT_BIT and not (
        is_bitsandbytes_available() and torch.cuda.is_available()
    ):
        log.warning("train: trainer.optim=%s needs bitsandbytes and a GPU: adamw_torch", EIGHT_BIT)
        values = {**values, "optim": "adamw_torch"}
    own["use_cpu"] = values.get("use_cpu", not torch.accelerator.is_available())
    return training_arguments(
        OneDevice, values, folder, seed, "map_at_3", choose_format=True, **own
    )
