"""Freeze a reader's layers, add adapters, and set learning rates by layer."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.trainer_pt_utils import get_model_param_count

from exam.config import Checkpoint, Tuning, as_list
from exam.core.checkpoints import POOLERS, checkpoint_fingerprint
from exam.core.errors import ExamError
from exam.core.files import read_object, write_json

ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
BASE = "base.json"  # beside an adapter: the checkpoint it changes, and its files' digests
LAST_NORMS = ("final_norm", "norm")


def get_layers(model: Any) -> nn.ModuleList:
    """Return the layers of a model's encoder, lowest first.

    Raises:
        ExamError: the architecture has another name for them.
    """
    modules = dict(model.base_model.named_modules())
    layers: nn.ModuleList | None = modules.get("encoder.layer", modules.get("layers"))
    if layers is None:
        raise ExamError(
            f"tuning needs a model's layers, and a {model.config.model_type} model has none under "
            "a known name.\nChoose tuning=full without tuning.layer_decay."
        )
    return layers


def apply_tuning(model: PreTrainedModel, tuning: Tuning, base: str | None) -> PreTrainedModel:
    """Return the model with frozen parts or with adapters; `base` is the name of its checkpoint.

    Raises:
        ExamError: `tuning` freezes more layers than there are, or its adapters fit no module.
    """
    if is_adapted(model):  # by an earlier run
        model = merge_adapters(model).requires_grad_(True)
    amount, has_adapters = tuning.freeze_layers, tuning.lora_rank is not None
    layers = get_layers(model) if amount or has_adapters else nn.ModuleList()
    frozen = round(amount * len(layers)) if amount < 1 else int(amount)
    if frozen > len(layers):
        raise ExamError(
            f"tuning.freeze_layers={amount:g}, but the model has {len(layers)} layers.\n"
            f"Set at most {len(layers)}, or a share below 1."
        )
    if has_adapters:
        return _add_adapters(model, tuning, frozen, base)
    backbone: Any = model.base_model
    if tuning.freeze_embeddings:  # an encoder's with positions and norm, or a decoder's of tokens
        embeddings = getattr(backbone, "embeddings", None) or backbone.get_input_embeddings()
        embeddings.requires_grad_(False)
    for layer in layers[:frozen]:
        layer.requires_grad_(False)
    return model


def count_parameters(model: Any) -> dict[str, Any]:
    """Count all parameters of a model and those that are trained, and return their share."""
    count: Any = get_model_param_count
    number, trained = count(model), count(model, trainable_only=True)
    return {"all": number, "trained": trained, "share": trained / number}


# Adapters.


def _add_adapters(
    model: PreTrainedModel, tuning: Tuning, frozen: int, base: str | None
) -> PreTrainedModel:
    """Add low-rank adapters to the layers above the frozen ones; head and pooler train whole.

    Hu and others, "LoRA" (2021); Kalajdzievski, "rsLoRA" (2023); Liu and others, "DoRA" (2024).
    """
    from peft import LoraConfig, get_peft_model

    trained = {part for layer in get_layers(model)[frozen:] for part in layer.modules()}
    linear = [
        name
        for name, module in model.named_modules()
        if module in trained and isinstance(module, nn.Linear)
    ]
    targets = as_list(tuning.lora_targets)
    selected = [name for name in linear if not targets or name.rpartition(".")[2] in targets]
    known = sorted({name.rpartition(".")[2] for name in linear})
    unknown = sorted(set(targets) - set(known))
    if unknown or not selected:
        raise ExamError(
            f"tuning.lora_targets={','.join(unknown) or targets} matches no module of the layers.\n"
            f"Choose from: {', '.join(known) or 'none; freeze fewer layers'}."
        )
    config = LoraConfig(
        r=tuning.lora_rank,
        lora_alpha=tuning.lora_alpha,
        lora_dropout=tuning.lora_dropout,
        target_modules=selected,
        modules_to_save=_head_names(model),
        use_rslora=tuning.use_rslora,
        use_dora=tuning.use_dora,
    )
    wrapped: Any = get_peft_model(model, config)
    wrapped.peft_config["default"].base_model_name_or_path = base  # not its folder on this machine
    adapted: PreTrainedModel = wrapped
    return adapted


def _head_names(model: Any) -> list[str]:
    """Return the names of the trained modules above the layers, without a vocabulary's."""
    heads = [
        name
        for name, module in model.named_children()
        if name != model.base_model_prefix
        and module is not model.get_output_embeddings()
        and any(True for _ in module.parameters())
    ]
    poolers = [name for name in POOLERS if getattr(model.base_model, name, None) is not None]
    return [*heads, *poolers]


def is_adapted(model: Any) -> bool:
    """Return whether a model carries adapters."""
    return hasattr(model, "peft_config")


def merge_adapters(model: Any) -> PreTrainedModel:
    """Merge a model's adapters into its weights."""
    merged: PreTrainedModel = model.merge_and_unload()
    return merged


def save_adapters(model: Any, base: Checkpoint, folder: Path, state: Any = None) -> None:
    """Write adapters, the architecture's configuration, and the checkpoint that they change.

    `state` holds the weights of a sharded model.
    """
    model.save_pretrained(folder, state_dict=state)
    model.config.save_pretrained(folder)
    write_json(
        folder / BASE,
        {
            "name_or_path": base.name,
            "revision": base.revision,
            "identity": checkpoint_fingerprint(base),
        },
    )


def find_adapter_base(folder: Path) -> Checkpoint | None:
    """Return the checkpoint that a folder's adapters change; None where it holds a whole model.

    Raises:
        ExamError: that checkpoint has changed since training, or is unknown.
    """
    if not (folder / ADAPTER).is_file():
        return None
    if not (folder / BASE).is_file() or not (folder / ADAPTER_WEIGHTS).is_file():
        raise ExamError(
            f"{folder} holds adapters, but {BASE} or {ADAPTER_WEIGHTS} is missing.\n"
            "Merge the adapters into their model, and set its folder."
        )
    record = read_object(folder / BASE, "name_or_path", "identity")
    base = Checkpoint(
        "base of the adapters", "base.name_or_path", record["name_or_path"], record.get("revision")
    )
    if checkpoint_fingerprint(base) != record["identity"]:
        raise ExamError(
            f"{folder} holds adapters of {base.name}, which is missing or has changed since.\n"
            "Restore its files, or train again."
        )
    return base


def load_adapters(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Add the adapters of a folder to the model that they change."""
    from peft import PeftModel

    wrapped: Any = PeftModel.from_pretrained(model, str(folder), is_trainable=False)
    adapted: PreTrainedModel = wrapped
    return adapted


# Learning rates.


def set_learning_rates(
    model: Any,
    optimizer: torch.optim.Optimizer,
    rate: float,
    layer_decay: float,
    head_rate: float | None,
) -> None:
    """Split an optimizer's groups by the learning rate of each weight.

    The highest layer learns at `rate`, every lower one at `layer_decay` times the next, the
    embeddings at that of one more layer; modules above the layers at `head_rate`, by default
    `rate`.
    """
    whole = model.get_base_model() if is_adapted(model) else model
    layers = get_layers(whole)
    rates = dict.fromkeys(map(id, whole.parameters()), rate if head_rate is None else head_rate)
    lowest = rate * layer_decay ** len(layers)
    for name, part in whole.base_model.named_children():
        if name not in (*POOLERS, *LAST_NORMS):
            rates |= dict.fromkeys(map(id, part.parameters()), lowest)
    for depth, layer in enumerate(reversed(layers)):
        rates |= dict.fromkeys(map(id, layer.parameters()), rate * layer_decay**depth)
    groups = []
    for group in optimizer.param_groups:
        by_rate: dict[float, list[nn.Parameter]] = {}
        for weight in group["params"]:
            by_rate.setdefault(rates[id(weight)], []).append(weight)
        groups += [{**group, "params": weights, "lr": lr} for lr, weights in by_rate.items()]
    optimizer.param_groups[:] = groups
