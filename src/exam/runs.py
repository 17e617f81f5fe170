"""A training run's folder, whatever it trains: its files, its whole checkpoints, its log lines."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from pickle import UnpicklingError  # what torch raises; nothing is unpickled here
from typing import Any, Literal, TypeVar

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import get_last_checkpoint

from exam import ranks, tracker
from exam.artefacts import KEY
from exam.endings import explained
from exam.errors import ExamError
from exam.files import file_digest, read_object, write_json
from exam.precision import log_replaced, with_formats
from exam.runtime import draws_bars, log_progress
from exam.safety import leads_out

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
WHOLE = "whole.json"  # written into a checkpoint after everything else
EARLIER_NAMES = {  # fields of the Trainer's arguments before transformers 5.23
    "activation_checkpointing": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
}
Arguments = TypeVar("Arguments", bound="SingleDeviceArguments")


class SingleDeviceArguments(TrainingArguments):
    """Training arguments for one device per process, never `DataParallel`.

    Its replicas compute without autocast, and its steps take more questions than configured.
    """

    @property
    def n_gpu(self) -> int:
        """The number of GPUs that this process trains on: one or none."""
        visible: int = super().n_gpu
        return min(1, visible)


class LogCallback(TrainerCallback):
    """One log line for every figure the Trainer reports, and one for the size of a step."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log how much a step takes, again where the library tries a smaller batch."""
        size, rounds = state.train_batch_size, args.gradient_accumulation_steps
        if state.is_world_process_zero:
            log.debug(
                "train: %d examples a step: %d at a time%s%s",
                size * rounds * args.world_size,
                size,
                f" × {rounds} accumulated" if rounds > 1 else "",
                f" × {args.world_size} processes" if args.world_size > 1 else "",
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


class ChecksumCallback(TrainerCallback):
    """Mark each checkpoint as whole once all of it is written; no pickled arguments are kept."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the digests of the checkpoint's files, those of other processes too."""
        ranks.wait()
        if args.should_save:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            (folder / ARGUMENTS).unlink(missing_ok=True)
            files = [p for p in folder.rglob("*") if p.is_file() and p.name != WHOLE]
            write_json(folder / WHOLE, {str(p.relative_to(folder)): file_digest(p) for p in files})


def add_callbacks(trainer: Trainer) -> None:
    """Log in this project's way, and mark whole checkpoints; a bar is drawn for a person only."""
    trainer.add_callback(LogCallback())
    trainer.add_callback(ChecksumCallback())
    if (tracking := tracker.callback()) is not None:
        trainer.add_callback(tracking)
    trainer.remove_callback(PrinterCallback)
    if not draws_bars():
        trainer.remove_callback(ProgressCallback)


def build_training_arguments(
    kind: type[Arguments],
    values: dict[str, Any],
    folder: Path,
    seed: int,
    metric: str,
    *,
    choose_format: bool = False,
    **own: Any,
) -> Arguments:
    """The Trainer's arguments of a configuration, saving below `folder`.

    `metric` chooses the checkpoint where the configuration asks for the best one. Number formats
    are those the device computes in; with `choose_format`, also where none is set.
    """
    formats = with_formats(values, choose=choose_format)
    log_replaced(values, formats)
    values = formats
    best = values.get("load_best_model_at_end")
    defaults = {"metric_for_best_model": metric} if best else {}
    try:
        given = deepcopy({**defaults, **values})  # the library changes dictionaries in place
        if given.get("auto_find_batch_size") and ranks.world_size() > 1:
            log.info("train: trainer.auto_find_batch_size needs one process, and is off")
            given["auto_find_batch_size"] = False  # the rest would wait for one that retries
        return kind(**_installed_names(kind, {**given, **own}), output_dir=str(folder), seed=seed)
    except (ValueError, ImportError) as error:
        raise ExamError(f"trainer: {error}") from None


def _installed_names(kind: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """Name each value as the installed transformers does."""
    known = {field.name for field in fields(kind)}
    return {
        name if name in known else EARLIER_NAMES.get(name, name): value
        for name, value in values.items()
    }


def format_of(args: TrainingArguments) -> Literal["bf16", "fp16", "fp32"]:
    """Return the number format that a Trainer's matrix products are computed in."""
    return "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"


def fit(trainer: Trainer) -> dict[str, Any]:
    """Train, from the last whole checkpoint if there is one; the best checkpoint is left loaded.

    Returns the Trainer's final figures. The state file lies beside the checkpoints' folder.
    """
    folder = Path(str(trainer.args.output_dir))
    checkpoint = ranks.told(last_complete_checkpoint(folder) if ranks.rank() == 0 else None)
    if checkpoint:
        _check_safe(checkpoint)
        state = read_object(checkpoint / STATE, "global_step", "max_steps")
        _check_step(checkpoint, state.get("train_batch_size"), trainer.args)
        log.info("train: resuming at step %d of %d", state["global_step"], state["max_steps"])
    with explained(folder), _no_objects(folder):
        found = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    figures: dict[str, Any] = found.metrics
    # The Trainer's mean over this process's steps alone: another one after an interruption.
    for own in (figures, *trainer.state.log_history):
        own.pop("train_loss", None)
    if ranks.rank() == 0:
        trainer.state.save_to_json(str(folder.parent / STATE))
    if torch.cuda.is_available():
        figures["peak_gpu_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
    figures |= {"steps": trainer.state.global_step, "best": trainer.state.best_metric}
    return {**figures, "format": format_of(trainer.args)}


@contextmanager
def _no_objects(folder: Path) -> Iterator[None]:
    """Turn torch's refusal to unpickle a checkpoint's state into one message."""
    try:
        yield
    except UnpicklingError as error:
        raise ExamError(
            f"A checkpoint in {folder} holds more than numbers: {str(error).splitlines()[0]}\n"
            "This project wrote no such file: delete the folder, and run the same command again."
        ) from None


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose files are those that were written; broken ones are removed.

    A checkpoint that names a best one is whole only together with that one: the Trainer would
    otherwise finish with the last weights instead of the best.
    """
    while folder.is_dir() and (found := get_last_checkpoint(str(folder))):  # type: ignore[no-untyped-call]
        checkpoint = Path(found)
        if _is_whole(checkpoint):
            best = read_object(checkpoint / STATE, "best_global_step")["best_global_step"]
            if not best or _is_whole(folder / f"checkpoint-{best}"):
                return checkpoint
        log.warning("train: %s is not whole, or its best one is not; removed", checkpoint)
        shutil.rmtree(checkpoint)
    return None


def _is_whole(checkpoint: Path) -> bool:
    if not (checkpoint / WHOLE).is_file():
        return False
    try:
        files = read_object(checkpoint / WHOLE)
    except ExamError:
        return False
    return (
        STATE in files
        and not any(map(leads_out, files))
        and all(
            (checkpoint / name).is_file() and file_digest(checkpoint / name) == digest
            for name, digest in files.items()
        )
    )


def _check_safe(checkpoint: Path) -> None:
    """Refuse weights that are no safetensors: without those the library would read them.

    The optimizer's, scheduler's and random states (*.pt, *.pth) it reads with weights_only=True.
    """
    weights = [path for pattern in PICKLED for path in sorted(checkpoint.rglob(pattern))]
    if weights:
        raise ExamError(
            f"{weights[0]} holds weights as a pickle; this project writes safetensors.\n"
            f"Delete {checkpoint}, and run the same command again."
        )


def _check_step(checkpoint: Path, size: int | None, args: TrainingArguments) -> None:
    """Refuse to resume with steps of another size: other batches, or another number of processes.

    `size` is the batch size of each process when the checkpoint was written.
    """
    before = len(list(checkpoint.glob("rng_state*.pth"))), size
    now = ranks.world_size(), size if args.auto_find_batch_size else args.train_batch_size
    if before[0] and size is not None and before != now:
        raise ExamError(
            f"{checkpoint} was written by {_step(*before)}, and the training goes on in "
            f"{_step(*now)}: its steps would be of another size.\n"
            "Start as many processes again, or begin anew: resume=never"
        )


def _step(processes: int, size: int | None) -> str:
    return f"{processes} process{'es' if processes > 1 else ''} with batches of {size}"


def list_run_files(folder: Path) -> list[str]:
    """Every file of a run folder but its key and its checkpoints."""
    paths = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file() and p.name != KEY)
    return [str(path) for path in paths if path.parts[0] != CHECKPOINTS]
