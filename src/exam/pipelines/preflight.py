"""Check, before any work, that everything a command loads exists and fits this machine."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from exam.config import (
    SHARDING,
    Dtype,
    Generate,
    Model,
    ReaderKind,
    Retrieving,
    Task,
    Train,
    WeightsLocation,
    is_trained,
    trainer_values,
)
from exam.core import distributed
from exam.core.artifacts import MANIFEST
from exam.core.checkpoints import max_input_tokens
from exam.core.errors import ExamError
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
from exam.generation.clients import check_llm
from exam.pipelines.revisions import uses_encoder, uses_writer
from exam.readers.base import inspect_checkpoint, resolve_model
from exam.readers.multiple_choice.features import check_lengths
from exam.readers.tuning import apply_tuning, count_parameters
from exam.retrieval.encoder import inspect_encoder
from exam.retrieval.reranker import inspect_reranker

FOUR_BITS = 0.5  # bytes of a weight, at least
TRAINING_REMEDY = "Choose trainer=low_memory, tuning=lora, or a smaller model."
DECODER_REMEDY = (
    "Set model.load_in_4bit=true or model.weights_location=layerwise, or choose a smaller model."
)
READER_REMEDY = "Choose a smaller model, or a device with more memory."


CheckQuestions = Callable[[Dataset], None]  # refuses a question that the reader cannot read whole


def check_models(config: Retrieving | Generate) -> None:
    """Check the encoder, the reranker and the language model that a command loads.

    Raises:
        ExamError: a checkpoint cannot be loaded as configured, or a tracker is not installed.
    """
    if isinstance(config, Train):
        _check_trackers(trainer_values(config.trainer).get("report_to"))
    if uses_encoder(config):
        inspect_encoder(config.encoder)
    if isinstance(config, Retrieving) and config.reranker.ckpt is not None:
        trains = isinstance(config, Train) and config.task is Task.reranker
        inspect_reranker(config.reranker, trained=not trains)
    if uses_writer(config):
        check_llm(config.generator.llm)


def _check_trackers(report_to: str | list[str] | None) -> None:
    """Refuse trackers of the Trainer that are unknown or not installed."""
    names = report_to[0] if isinstance(report_to, list) and len(report_to) == 1 else report_to
    try:
        for callback in get_reporting_integration_callbacks(names):  # type: ignore[no-untyped-call]
            callback()
    except (ValueError, RuntimeError, ImportError) as error:
        raise ExamError(
            f"trainer.report_to={report_to}: {str(error).splitlines()[0]}\n"
            "Install it, or leave trainer.report_to out."
        ) from None


def check_reader(model: Model) -> CheckQuestions | None:
    """Check that a reader loads as configured; return the check of its questions.

    It requires that a prompt and its longest option fit. Only multiple-choice checkpoints have it.

    Raises:
        ExamError: the checkpoint cannot be loaded, or its files do not agree.
    """
    if model.checkpoint is None:
        return None
    network, tokenizer = inspect_checkpoint(model)
    length = max(model.length(training=training) for training in (True, False))
    longest = max_input_tokens(network, length)
    if model.kind is not ReaderKind.transformer:
        return None
    return partial(check_lengths, tokenizer=tokenizer, longest=longest)


def check_saved_reader(config: Train, saved: Path) -> CheckQuestions | None:
    """Check that a run's reader loads and fits: the saved one, or else the configured one.

    Raises:
        ExamError: the reader cannot be loaded, or does not fit in memory.
    """
    if not config.model.kind.is_neural:
        return None
    model = resolve_model(config, saved)
    check_questions = check_reader(model)
    check_room(replace(config, model=model), answers=True)
    return check_questions


def check_room(config: Train, *, answers: bool = False) -> None:
    """Check that a reader and its training fit in memory and on disk, and log the estimates.

    With `answers`, the reader is loaded but not trained. Small random readers, checkpoints with
    custom code or in a GGUF file, and weights outside of memory have no estimate.

    Raises:
        ExamError: memory or disk is too small; the message has the needed and the free bytes.
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
    counts = count_parameters(network)
    parameters, trained = counts["all"], counts["trained"] if learns else 0
    values = trainer_values(config.trainer)
    if not learns or not any(values.get(name) for name in SHARDING):
        _check_memory(config, parameters, trained)
    if learns:
        saved = trained if config.tuning.lora_rank is not None else parameters
        check_disk("training", disk_parts(config, saved, trained), Path(config.outputs))


def _check_memory(config: Train, parameters: int, trained: int) -> None:
    values, model = trainer_values(config.trainer), config.model
    is_causal = model.kind is ReaderKind.causal_lm
    on_cpu = values.get("use_cpu") and (trained or not is_causal)
    if torch.cuda.is_available() and not on_cpu:
        device = distributed.local_rank()
        free = torch.cuda.get_device_properties(device).total_memory
        where = f"{torch.cuda.get_device_name(device)} (GPU {device})"
    else:
        free, where = free_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), "the memory"
    parts = training_bytes(
        parameters,
        trained,
        weight_bytes=weight_bytes(model, untrained=is_causal and not is_trained(config.trainer)),
        optimizer=values.get("optim", "adamw_torch"),
    )
    remedy = TRAINING_REMEDY if trained else DECODER_REMEDY if is_causal else READER_REMEDY
    check_fits("training" if trained else "the reader", parts, free, where, remedy)


def weight_bytes(model: Model, *, untrained: bool) -> float:
    """Return the bytes of each weight of a loaded reader.

    A language model that answers `untrained` is loaded in half precision by default.
    """
    if model.load_in_4bit:
        return FOUR_BITS
    dtype = model.dtype
    if dtype is Dtype.auto:
        dtype = default_half_dtype() if untrained else Dtype.float32
    return FP32 if dtype is Dtype.float32 else FP32 / 2


def disk_parts(config: Train, saved: int, trained: int) -> dict[str, int]:
    """Return the bytes of `checkpoints` and `models` that a command has yet to write.

    Each seed and each fold keeps a model; a finished run deletes its checkpoints. Finished runs
    with this name may belong to the command, and are subtracted.
    """
    values, cross_validates = trainer_values(config.trainer), config.data.cross_validate
    number = 0 if cross_validates else count_kept_checkpoints(values)
    optimizer = values.get("optim", "adamw_torch")
    learning = 0 if values.get("save_only_model") else trained
    runs = len(config.seed) if isinstance(config.seed, list) else 1
    runs *= config.data.folds if cross_validates else 1
    finished = len(list(Path(config.outputs).glob(f"train/{config.name}-*/{MANIFEST}")))
    remaining = max(1, runs - finished)
    files = Path(config.outputs).glob(f"train/{config.name}-*/{CHECKPOINTS}/**/*")
    written = sum(path.stat().st_size for path in files if path.is_file())
    total = checkpoint_bytes(saved, learning, number=number, optimizer=optimizer)
    return {"checkpoints": max(0, total - written), "models": FP32 * saved * remaining}


def count_kept_checkpoints(values: dict[str, Any]) -> int:
    """Return the largest number of checkpoints; a new one is saved before the oldest is deleted."""
    strategy, limit = values.get("save_strategy", "steps"), values.get("save_total_limit")
    if strategy == "no":
        return 0
    if strategy == "epoch" and not values.get("max_steps", -1) > 0:
        epochs = max(1, int(values.get("num_train_epochs", 3)))
        return epochs if limit is None else min(epochs, limit + 1)
    return 1 if limit is None else limit + 1
