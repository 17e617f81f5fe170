"""Check that a reader fits this machine's memory and disk, before loading it."""

import os
from pathlib import Path
from typing import Any

import torch

from exam.config import (
    SHARDING,
    Dtype,
    Model,
    ReaderKind,
    Train,
    WeightsLocation,
    is_trained,
    trainer_values,
)
from exam.core import distributed
from exam.core.artifacts import MANIFEST
from exam.core.estimates import (
    FP32,
    check_disk,
    check_fits,
    checkpoint_bytes,
    free_memory,
    training_bytes,
)
from exam.core.precision import default_half_dtype
from exam.core.trainer import CHECKPOINTS
from exam.readers.base import inspect_checkpoint
from exam.readers.tuning import apply_tuning, count_parameters

FOUR_BITS = 0.5  # bytes of a weight, at least
TRAINING_REMEDY = "Choose trainer=low_memory, tuning=lora, or a smaller model."
DECODER_REMEDY = (
    "Set model.load_in_4bit=true or model.weights_location=layerwise, or choose a smaller model."
)
READER_REMEDY = "Choose a smaller model, or a device with more memory."


def check_room(config: Train, *, answers: bool = False) -> None:
    """Refuse a reader whose weights, or whose training, cannot fit, and log the estimates.

    With `answers` the reader is only loaded, and its training writes nothing. There is no estimate
    for small random readers, for those with their own code or in a GGUF file, and for weights
    that are not kept in memory.

    Raises:
        ExamError: memory or disk is too small; it states the need and the free bytes.
    """
    model = config.model
    learns = is_trained(config.trainer) and not answers
    if not model.kind.is_neural or model.weights_location is not WeightsLocation.memory:
        return
    if model.name_or_path is None or model.gguf_file or model.trust_remote_code:
        return
    network, _ = inspect_checkpoint(model)
    if learns:
        network = apply_tuning(network, config.tuning, None)
    number = count_parameters(network)
    parameters, trained = number["all"], number["trained"] if learns else 0
    values = trainer_values(config.trainer)
    if not learns or not any(values.get(name) for name in SHARDING):
        _check_memory(config, parameters, trained)
    if learns:
        saved = trained if config.tuning.lora_rank is not None else parameters
        check_disk("training", disk_parts(config, saved, trained), Path(config.outputs))


def _check_memory(config: Train, parameters: int, trained: int) -> None:
    values, model = trainer_values(config.trainer), config.model
    causal = model.kind is ReaderKind.causal_lm
    on_cpu = values.get("use_cpu", not torch.cuda.is_available()) and not (causal and not trained)
    if torch.cuda.is_available() and not on_cpu:
        device = distributed.local_rank()
        free = torch.cuda.get_device_properties(device).total_memory
        where = f"{torch.cuda.get_device_name(device)} (GPU {device})"
    else:
        free, where = free_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), "the memory"
    parts = training_bytes(
        parameters,
        trained,
        weight_bytes=weight_bytes(model, untrained=causal and not is_trained(config.trainer)),
        optimizer=values.get("optim", "adamw_torch"),
    )
    remedy = TRAINING_REMEDY if trained else DECODER_REMEDY if causal else READER_REMEDY
    check_fits("training" if trained else "the reader", parts, free, where, remedy)


def weight_bytes(model: Model, *, untrained: bool) -> float:
    """Return the bytes of each weight as a reader is loaded.

    `untrained` is a language model that answers without training: in half precision by default.
    """
    if model.load_in_4bit:
        return FOUR_BITS
    dtype = model.dtype
    if dtype is Dtype.auto:
        dtype = default_half_dtype() if untrained else Dtype.float32
    return FP32 if dtype is Dtype.float32 else FP32 / 2


def disk_parts(config: Train, saved: int, trained: int) -> dict[str, int]:
    """Return the bytes of `checkpoints` and `models` that are still to be written.

    Runs of several seeds or folds keep a model each; a finished run deletes its checkpoints. Runs
    of the same name that are finished may be some of them, and are taken off.
    """
    values, cross_fitted = trainer_values(config.trainer), config.data.cross_validate
    number = 0 if cross_fitted else checkpoints_at_once(values)
    optimizer = values.get("optim", "adamw_torch")
    learning = 0 if values.get("save_only_model") else trained
    runs = len(config.seed) if isinstance(config.seed, list) else 1
    runs *= config.data.folds if cross_fitted else 1
    finished = len(list(Path(config.outputs).glob(f"train/{config.name}-*/{MANIFEST}")))
    left = max(1, runs - finished)
    before = Path(config.outputs).glob(f"train/{config.name}-*/{CHECKPOINTS}/**/*")
    written = sum(path.stat().st_size for path in before if path.is_file())
    whole = checkpoint_bytes(saved, learning, number=number, optimizer=optimizer)
    return {"checkpoints": max(0, whole - written), "models": FP32 * saved * left}


def checkpoints_at_once(values: dict[str, Any]) -> int:
    """Return how many checkpoints lie side by side; a new one is saved before the oldest goes."""
    strategy, limit = values.get("save_strategy", "steps"), values.get("save_total_limit")
    if strategy == "no":
        return 0
    if strategy == "epoch" and not values.get("max_steps", -1) > 0:
        epochs = max(1, int(values.get("num_train_epochs", 3)))
        return epochs if limit is None else min(epochs, limit + 1)
    return 1 if limit is None else limit + 1
