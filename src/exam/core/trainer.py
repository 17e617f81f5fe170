"""Shared by every Trainer: arguments, callbacks, complete checkpoints, safe resumption."""

import logging
import shutil
import sys
from copy import copy, deepcopy
from dataclasses import fields
from pathlib import Path
from pickle import UnpicklingError  # what torch raises; nothing is unpickled here
from typing import Any, Literal, TypeVar

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback, WandbCallback
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK  # differs in notebooks
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint

from exam.core import distributed
from exam.core.artifacts import KEY, MANIFEST, is_intact, write_manifest
from exam.core.errors import ExamError
from exam.core.exit import translate_os_errors
from exam.core.files import read_object
from exam.core.logging import log_progress, show_progress
from exam.core.precision import choose_formats, log_replaced_formats

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
STATE = "trainer_state.json"
ENVIRONMENT = "environment.json"
RESULTS = "results.json"
TRAINING = "training.json"  # how a run was trained: figures, trained parameters, memory
REPORT = "report.html"
PICKLED = ("pytorch_model.bin*", "pytorch_model-*.bin", "adapter_model.bin")  # weights
ARGUMENTS = "training_args.bin"  # a pickle that nothing here reads
TIMES = ("_runtime", "_per_second")
EARLIER_NAMES = {  # fields of the Trainer's arguments before transformers 5.23
    "activation_checkpointing": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
}
Arguments = TypeVar("Arguments", bound="SingleDeviceArguments")


class SingleDeviceArguments(TrainingArguments):
    """Training arguments for one device per process, never `DataParallel`.

    `DataParallel` computes without autocast, and its steps take more questions than configured.
    """

    @property
    def n_gpu(self) -> int:
        """Return the number of GPUs that this process trains on: one or none."""
        visible: int = super().n_gpu
        return min(1, visible)


class LogCallback(TrainerCallback):
    """Log the Trainer's figures, and the size of a step."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log the size of a step, again when the library tries a smaller batch."""
        size, rounds = state.train_batch_size, args.gradient_accumulation_steps
        if state.is_world_process_zero:
            log.info(
                "train: %d examples a step: %d at a time%s%s · %s on %s",
                size * rounds * args.world_size,
                size,
                f" × {rounds} accumulated" if rounds > 1 else "",
                f" × {args.world_size} processes" if args.world_size > 1 else "",
                number_format(args),
                args.device.type,
            )

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Log step, total and figures; those of the dev questions without their time."""
        if not state.is_world_process_zero or "train_runtime" in (logs or {}):
            return
        figures = " · ".join(
            f"{name} {value:.4g}"
            for name, value in (logs or {}).items()
            if isinstance(value, float) and name != "epoch" and not name.endswith(TIMES)
        )
        line = "train: step %d of %d · %s", state.global_step, state.max_steps, figures
        if "eval_" in figures:
            log.info(*line)
        else:
            log_progress(log, *line)


class CheckpointCallback(TrainerCallback):
    """Write the manifest of each complete checkpoint; find the best one after the run moved."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look for the best checkpoint in the run's present folder.

        The library looks where it was written, and forgets it if that folder is gone.
        """
        folder = Path(str(args.output_dir))
        path = folder / f"checkpoint-{state.global_step}" / STATE  # of the resumed training
        if path.is_file() and (best := read_object(path)["best_model_checkpoint"]):
            state.best_model_checkpoint = str(folder / Path(best).name)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the manifest, which includes other processes' files."""
        distributed.barrier()
        if args.should_save:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            (folder / ARGUMENTS).unlink(missing_ok=True)
            files = [p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST]
            write_manifest(folder / MANIFEST, [str(p.relative_to(folder)) for p in files])


def open_wandb_run() -> Any:
    """Return the open W&B run, or None; do not import wandb."""
    return getattr(sys.modules.get("wandb"), "run", None)


def add_callbacks(trainer: Trainer) -> None:
    """Log figures, write manifests and track the run; draw a bar only in a terminal."""
    trainer.add_callback(LogCallback())
    trainer.add_callback(CheckpointCallback())
    if open_wandb_run() is not None:
        trainer.remove_callback(WandbCallback)  # of trainer.report_to
        trainer.add_callback(WandbCallback())  # type: ignore[no-untyped-call]
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            # The library's default lies among the checkpoints, which a finished run deletes.
            folder = Path(str(trainer.args.output_dir)).with_name("tensorboard")
            callback.logging_dir = str(folder)
    trainer.remove_callback(PrinterCallback)
    if not show_progress():
        trainer.remove_callback(DEFAULT_PROGRESS_CALLBACK)


def build_training_arguments(
    kind: type[Arguments],
    values: dict[str, Any],
    folder: Path,
    seed: int,
    metric: str,
    *,
    choose_format: bool = False,
    **fixed: Any,
) -> Arguments:
    """Build the Trainer's arguments of a configuration, saving below `folder`.

    `metric` selects the best checkpoint if the configuration loads it. Number formats are those
    that the device computes in; `choose_format` sets one if the configuration has none. `fixed`
    arguments override the configuration.
    """
    supported = choose_formats(values, choose=choose_format)
    log_replaced_formats(values, supported)
    arguments = deepcopy(supported)  # the library changes dictionaries in place
    if arguments.get("load_best_model_at_end"):
        arguments.setdefault("metric_for_best_model", metric)
    if arguments.get("auto_find_batch_size") and distributed.world_size() > 1:
        log.info("train: trainer.auto_find_batch_size needs one process, and is off")
        arguments["auto_find_batch_size"] = False  # the others would wait for one that retries
    known = {field.name for field in fields(kind)}
    renamed = {
        name if name in known else EARLIER_NAMES.get(name, name): value
        for name, value in {**arguments, **fixed}.items()
    }
    try:
        return kind(**renamed, output_dir=str(folder), seed=seed)
    except (ValueError, ImportError) as error:
        raise ExamError(f"trainer: {error}") from None


def number_format(args: TrainingArguments) -> Literal["bf16", "fp16", "fp32"]:
    """Return the number format that a Trainer's matrix products are computed in."""
    return "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"


def fit(trainer: Trainer) -> dict[str, Any]:
    """Train from the last complete checkpoint, if any, and load the best checkpoint.

    Returns the Trainer's final figures. The state file lies beside the checkpoints' folder.
    """
    folder = Path(str(trainer.args.output_dir))
    checkpoint = distributed.broadcast_from_rank0(
        _find_checkpoint(trainer.args, folder) if distributed.rank() == 0 else None
    )
    if checkpoint:
        _check_safe(checkpoint)
        state = read_object(checkpoint / STATE, "global_step", "max_steps")
        _check_step(checkpoint, state.get("train_batch_size"), trainer.args)
        log.info("train: resuming at step %d of %d", state["global_step"], state["max_steps"])
    try:
        with translate_os_errors(folder):
            output = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except UnpicklingError as error:
        raise ExamError(
            f"A checkpoint in {folder} holds pickled objects: {str(error).splitlines()[0]}\n"
            "exam writes tensors only. Delete the folder, and run the same command again."
        ) from None
    figures: dict[str, Any] = output.metrics
    for record in (figures, *trainer.state.log_history):
        record.pop("train_loss", None)  # a mean over the steps since the last resumption
    if distributed.rank() == 0:
        final = copy(trainer.state)
        if final.best_model_checkpoint is not None:
            best = Path(final.best_model_checkpoint)
            final.best_model_checkpoint = str(best.relative_to(folder.parent))
        final.save_to_json(str(folder.parent / STATE))
    if torch.cuda.is_available():
        figures["peak_gpu_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
    figures |= {"steps": trainer.state.global_step, "best": trainer.state.best_metric}
    return {
        **figures,
        "format": number_format(trainer.args),
        "batch_size": trainer.state.train_batch_size,
    }


def _find_checkpoint(args: TrainingArguments, folder: Path) -> Path | None:
    """Return the checkpoint to resume from; a checkpoint of weights only has no optimizer."""
    if not args.save_only_model:
        return last_complete_checkpoint(folder)
    if folder.is_dir() and any(folder.iterdir()):
        log.warning(
            "train: starting over: with trainer.save_only_model=true, checkpoints lack the "
            "optimizer, which resuming needs"
        )
        shutil.rmtree(folder)
    return None


def last_complete_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint, and delete newer incomplete ones.

    The best checkpoint that it names must be complete too: without it, the Trainer would finish
    with the last weights instead of the best.
    """
    while folder.is_dir() and (newest := get_last_checkpoint(str(folder))):  # type: ignore[no-untyped-call]
        checkpoint = Path(newest)
        if is_intact(checkpoint / MANIFEST, required=STATE):
            best = read_object(checkpoint / STATE, "best_model_checkpoint")["best_model_checkpoint"]
            if not best or is_intact(folder / Path(best).name / MANIFEST, required=STATE):
                return checkpoint
        log.warning("train: discarding incomplete checkpoint %s", checkpoint)
        shutil.rmtree(checkpoint)
    return None


def _check_safe(checkpoint: Path) -> None:
    """Refuse pickled weights, which the library would read if there are no safetensors.

    It reads optimizer, scheduler and random states (*.pt, *.pth) with weights_only=True.
    """
    weights = [path for pattern in PICKLED for path in sorted(checkpoint.rglob(pattern))]
    if weights:
        raise ExamError(
            f"{weights[0]} holds pickled weights; exam writes safetensors.\n"
            f"Delete {checkpoint}, and run the same command again."
        )


def _check_step(checkpoint: Path, size: int | None, args: TrainingArguments) -> None:
    """Refuse to resume with another batch `size` of each process, or number of processes."""
    before = len(list(checkpoint.glob("rng_state*.pth"))), size
    now = distributed.world_size(), size if args.auto_find_batch_size else args.train_batch_size
    if before[0] and size is not None and before != now:
        earlier, current = (
            f"{processes} process{'es' if processes > 1 else ''} with batches of {batch}"
            for processes, batch in (before, now)
        )
        raise ExamError(
            f"{checkpoint} was written by {earlier}, and this command trains in "
            f"{current}: its steps would have another size.\n"
            "Start the same number of processes, or start again: resume=never"
        )


def list_run_files(folder: Path) -> list[str]:
    """List the files of a run folder, without its key and checkpoints."""
    paths = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file() and p.name != KEY)
    return [str(path) for path in paths if path.parts[0] != CHECKPOINTS]
