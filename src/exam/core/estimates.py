"""Estimate the memory and disk that a command needs, and refuse one that cannot fit."""

import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exam.core.errors import ExamError

if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainingArguments

log = logging.getLogger(__name__)

FP32 = 4  # bytes of a value
# Bytes that a layer keeps of every token for the gradient, in units of its width and in 16 bits,
# without the attention's scores (Korthikanti and others, "Reducing Activation Recomputation in
# Large Transformer Models", 2022).
KEPT_PER_TOKEN = 34
KEPT_PER_SCORE = 5  # of every pair of tokens and head
GIB = 1 << 30
MEMINFO = Path("/proc/meminfo")
LIMITS = (  # of a container: the second and later versions of control groups, the first
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def optimizer_bytes(optimizer: str, weight_bytes: float = FP32) -> float:
    """Return the bytes an optimizer keeps of each trained weight, by the Trainer's name of it.

    Adam keeps two values as wide as the weight. Of other optimizers it is a lower bound: 0.
    """
    if not optimizer.startswith(("adamw", "paged_adamw")) or "4bit" in optimizer:
        return 0
    return 2 if "8bit" in optimizer else 2 * weight_bytes


def training_bytes(
    parameters: int, trained: int, *, weight_bytes: float = FP32, optimizer: str = "adamw_torch"
) -> dict[str, int]:
    """Return the bytes of `weights`, `gradients` and `optimizer`; activations come on top.

    `trained` of the `parameters` learn; with none, the sum is the need of answering.
    """
    width = weight_bytes if trained == parameters else FP32  # adapters and heads learn in fp32
    return {
        "weights": round(parameters * weight_bytes),
        "gradients": round(width * trained),
        "optimizer": round(optimizer_bytes(optimizer, width) * trained),
    }


def step_mib(
    model: "nn.Module", args: "TrainingArguments", tokens: int, length: int
) -> dict[str, int]:
    """Return MiB of `weights`, `gradients`, `optimizer` and `activations` of a training step.

    For batches of `tokens` tokens in sequences of `length`. Activations are an upper estimate:
    some kernels do not keep the attention's scores.
    """
    config: Any = model.config
    parameters = list(model.parameters())
    number = sum(p.numel() for p in parameters)
    sizes = training_bytes(
        number,
        sum(p.numel() for p in parameters if p.requires_grad),
        weight_bytes=sum(p.nbytes for p in parameters) / number,  # packed where 4-bit
        optimizer=args.optim,
    )
    width = 1 if args.bf16 or args.fp16 else 2
    layers, hidden = config.num_hidden_layers, config.hidden_size
    heads = getattr(config, "num_attention_heads", 0)
    layer = tokens * (KEPT_PER_TOKEN * hidden + KEPT_PER_SCORE * heads * length) * width
    if args.gradient_checkpointing:  # the name that every transformers 5 fills
        sizes["activations"] = 2 * tokens * hidden * width * layers + layer
    else:
        sizes["activations"] = layers * layer
    return {name: round(size / 2**20) for name, size in sizes.items()}


def checkpoint_bytes(
    saved: int, trained: int, *, number: int, optimizer: str = "adamw_torch"
) -> int:
    """Return the bytes of `number` checkpoints that lie side by side.

    Each holds the `saved` weights in fp32 and the optimizer's states of those `trained`.
    """
    return round(number * (FP32 * saved + optimizer_bytes(optimizer) * trained))


def check_fits(task: str, parts: dict[str, int], free: int, where: str, remedy: str) -> None:
    """Log the bytes that a task needs and those that are free, and refuse a task that cannot fit.

    `where` names the memory or the disk. The message has the sum and the parts, such as
    `6.5 GiB (weights 1.6 · optimizer 4.9)`.
    """
    total = sum(parts.values())
    listed = " · ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items() if size)
    needed = f"{task} takes about {total / GIB:.1f} GiB ({listed})"
    available = f"{where} has {free / GIB:.1f} GiB"
    if total > free:
        raise ExamError(f"{needed}, and {available}.\n{remedy}")
    log.debug("room: %s; %s", needed, available)


def check_disk(
    task: str,
    parts: dict[str, int],
    folder: Path,
    alternative: str = "write to another disk: outputs=<folder>",
) -> None:
    """Refuse a task whose files do not fit on the disk that holds a folder, or will hold it."""
    absolute = folder.absolute()
    existing = next(path for path in (absolute, *absolute.parents) if path.exists())
    remedy = f"Make room there, or {alternative}"
    check_fits(task, parts, shutil.disk_usage(existing).free, f"the disk of {folder}", remedy)


def free_memory() -> int:
    """Return the bytes of available memory within a container's limit; all where unreported."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if MEMINFO.is_file():
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        available = int(lines["MemAvailable"].split()[0]) * 1024
    limits = [path.read_text().strip() for path in LIMITS if path.is_file()]
    return min([available, *(int(limit) for limit in limits if limit.isdecimal())])
