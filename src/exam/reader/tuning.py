"""Which weights of a reader are trained, and at which learning rate."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.trainer_pt_utils import get_model_param_count

from exam.checkpoints import checkpoint_fingerprint
from exam.config import Checkpoint, Tuning, names
from exam.errors import ExamError
from exam.files import read_object, write_json
from exam.loading import POOLERS

log = logging.getLogger(__name__)

ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
BASE = "base.json"  # beside an adapter: the checkpoint it changes, and its files' digests
LAST_NORMS = ("final_norm", "norm")


def layers_of(model: Any) -> nn.ModuleList:
    """The layers of a model's encoder, lowest first.

    Raises:
        ExamError: the architecture keeps them elsewhere.
    """
    backbone = model.base_model
    for place in ("encoder.layer", "layers"):
        try:
            layers: nn.ModuleList = backbone.get_submodule(place)
        except AttributeError:
            continue
        return layers
    raise ExamError(
        f"tuning reads the layers of a model one by one, and a {model.config.model_type} model has "
        "none under a known name.\nChoose tuning=full without tuning.layer_decay."
    )


def tuned(model: PreTrainedModel, tuning: Tuning, base: str | None) -> PreTrainedModel:
    """Apply `with_tuning`, and log how many parameters learn."""
    model = with_tuning(model, tuning, base)
    parameters = "{trained:,} of {all:,} parameters ({share:.1%})".format(**counts(model))
    log.debug("train: %s", parameters)
    return model


def with_tuning(model: PreTrainedModel, tuning: Tuning, base: str | None) -> PreTrainedModel:
    """The model with frozen parts, or with adapters; `base` is the checkpoint it was read from.

    Raises:
        ExamError: more layers are to be frozen than there are, or no module is to be adapted.
    """
    if is_adapted(model):  # in an earlier run
        model = merged(model).requires_grad_(True)
    given, adapts = tuning.freeze_layers, tuning.lora_rank is not None
    layers = layers_of(model) if given or adapts else nn.ModuleList()
    frozen = round(given * len(layers)) if given < 1 else int(given)
    if frozen > len(layers):
        raise ExamError(
            f"tuning.freeze_layers={given:g}, but the model has {len(layers)} layers.\n"
            f"Set at most {len(layers)}, or a share below 1."
        )
    if adapts:
        model = _adapted(model, tuning, frozen, base)
    else:
        fixed = [_embeddings(model.base_model)] if tuning.freeze_embeddings else []
        for part in [*fixed, *layers[:frozen]]:
            part.requires_grad_(False)
    return model


def _embeddings(backbone: Any) -> nn.Module:
    """What turns ids into vectors: of an encoder with positions and norm, of a decoder alone."""
    found: nn.Module = getattr(backbone, "embeddings", None) or backbone.get_input_embeddings()
    return found


def counts(model: Any) -> dict[str, Any]:
    """How many parameters a model has, how many of them are trained, and their share."""
    everything, trained = (
        get_model_param_count(model, trainable_only=learns)  # type: ignore[no-untyped-call]
        for learns in (False, True)
    )
    return {"all": everything, "trained": trained, "share": trained / everything}


# Adapters.


def _adapted(
    model: PreTrainedModel, tuning: Tuning, frozen: int, base: str | None
) -> PreTrainedModel:
    """With low-rank adapters in the layers above the frozen ones; head and pooler train whole.

    Hu and others, "LoRA" (2021); Kalajdzievski, "rsLoRA" (2023); Liu and others, "DoRA" (2024).
    """
    from peft import LoraConfig, get_peft_model

    linear, wanted = list(_linear_modules(model, frozen)), names(tuning.lora_targets)
    chosen = [name for name in linear if not wanted or name.rpartition(".")[2] in wanted]
    known = sorted({name.rpartition(".")[2] for name in linear})
    unknown = sorted(set(wanted) - set(known))
    if unknown or not chosen:
        raise ExamError(
            f"tuning.lora_targets={','.join(unknown) or wanted} matches no module of the layers.\n"
            f"There are: {', '.join(known) or 'none above the frozen ones'}."
        )
    config = LoraConfig(
        r=tuning.lora_rank,
        lora_alpha=tuning.lora_alpha,
        lora_dropout=tuning.lora_dropout,
        target_modules=chosen,
        modules_to_save=_heads(model),
        use_rslora=tuning.rslora,
        use_dora=tuning.dora,
    )
    wrapped: Any = get_peft_model(model, config)
    wrapped.peft_config["default"].base_model_name_or_path = base  # not where it lies here
    adapted: PreTrainedModel = wrapped
    return adapted


def _linear_modules(model: Any, frozen: int) -> Iterator[str]:
    """Full names of the linear modules in the layers that are not frozen."""
    places = {id(module): name for name, module in model.named_modules()}
    for layer in layers_of(model)[frozen:]:
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                yield places[id(module)]


def _heads(model: Any) -> list[str]:
    """Names of what a model learns with above its layers; a vocabulary is no head of its own."""
    own = [
        name
        for name, module in model.named_children()
        if name != model.base_model_prefix
        and module is not model.get_output_embeddings()
        and any(True for _ in module.parameters())
    ]
    inside = [name for name in POOLERS if getattr(model.base_model, name, None) is not None]
    return [*own, *inside]


def is_adapted(model: Any) -> bool:
    """Whether a model carries adapters."""
    return hasattr(model, "peft_config")


def merged(model: Any) -> PreTrainedModel:
    """A model with its adapters' changes in its own weights."""
    found: PreTrainedModel = model.merge_and_unload()
    return found


def save_adapters(model: Any, base: Checkpoint, folder: Path, state: Any = None) -> None:
    """Write adapters, the architecture's configuration, and what checkpoint they change.

    `state` holds the weights where no process has the model whole.
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


def adapters_base(folder: Path) -> Checkpoint | None:
    """The checkpoint that a folder's adapters change; None where it holds a whole model.

    Raises:
        ExamError: that checkpoint is no longer the one they were trained on, or is unknown.
    """
    if not (folder / ADAPTER).is_file():
        return None
    if not (folder / BASE).is_file() or not (folder / ADAPTER_WEIGHTS).is_file():
        raise ExamError(
            f"{folder} holds adapters that this project did not write: {BASE} or "
            f"{ADAPTER_WEIGHTS} is missing.\nMerge them into their model, and give its folder."
        )
    noted = read_object(folder / BASE, "name_or_path", "identity")
    base = Checkpoint(
        "base of the adapters", "base.name_or_path", noted["name_or_path"], noted.get("revision")
    )
    if checkpoint_fingerprint(base) != noted["identity"]:
        raise ExamError(
            f"{folder} holds adapters of {base.name}, which is missing or has changed since.\n"
            "Put the same files there again, or train again."
        )
    return base


def with_adapters(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """A checkpoint's model with the adapters of a folder."""
    from peft import PeftModel

    wrapped: Any = PeftModel.from_pretrained(model, str(folder), is_trainable=False)
    adapted: PreTrainedModel = wrapped
    return adapted


# Learning rates.


def set_learning_rates(
    model: Any, optimizer: torch.optim.Optimizer, tuning: Tuning, rate: float
) -> None:
    """Split an optimizer's groups by the rate each weight learns at.

    The highest layer learns at `rate`, every lower one at `layer_decay` times the next, the
    embeddings at that of one more layer; what lies above the layers at `head_learning_rate`.
    """
    rates = _rates(model, tuning, rate)
    groups = []
    for group in optimizer.param_groups:
        by_rate: dict[float, list[nn.Parameter]] = {}
        for weight in group["params"]:
            by_rate.setdefault(rates[id(weight)], []).append(weight)
        groups += [{**group, "params": own, "lr": own_rate} for own_rate, own in by_rate.items()]
    optimizer.param_groups[:] = groups


def _rates(model: Any, tuning: Tuning, rate: float) -> dict[int, float]:
    plain = model.get_base_model() if is_adapted(model) else model
    layers = layers_of(plain)
    head = rate if tuning.head_learning_rate is None else tuning.head_learning_rate
    found = {id(weight): head for weight in plain.parameters()}
    lowest = rate * tuning.layer_decay ** len(layers)
    for name, part in plain.base_model.named_children():
        if name not in (*POOLERS, *LAST_NORMS):
            found |= {id(weight): lowest for weight in part.parameters()}
    for place, layer in enumerate(layers):
        own = rate * tuning.layer_decay ** (len(layers) - 1 - place)
        found |= {id(weight): own for weight in layer.parameters()}
    return found
