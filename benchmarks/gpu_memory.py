"""Compute the GPU memory that training takes: the table of the memory guide.

    python benchmarks/gpu_memory.py

Weights, gradients and optimizer are counted on the architectures themselves, without their
weights; `exam.core.estimates.step_mib` estimates activations for a batch of full-length questions
with five options in 16 bits. A fifth is added for what libraries and fragmentation take, and 1 GB.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForMultipleChoice

from exam.config import trainer_values
from exam.config.compose import compose_config
from exam.core.estimates import step_mib
from exam.core.logging import print_result, quiet_libraries
from exam.readers.multiple_choice.heads import make_decoder_class
from exam.readers.tuning import apply_tuning, get_layers

GPUS = (8, 16, 24, 40, 80)  # GB
OPTIONS = 5
ENCODERS: Any = AutoModelForMultipleChoice
ENCODER: dict[str, Any] = {
    "vocab_size": 128_100,
    "relative_attention": True,
    "position_biased_input": False,
    "type_vocab_size": 0,
}
SHAPES: dict[str, dict[str, Any]] = {  # as their config.json has them
    "deberta_base": {
        **ENCODER,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
    },
    "deberta_large": {
        **ENCODER,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
    },
    "mistral_7b": {},  # the library's defaults
}
LORA = "tuning=lora trainer=gpu"
IN_4_BITS = (
    0.516  # bytes a weight of NF4 with doubly quantised constants (Dettmers and others, 2023)
)
WAYS = (
    ("deberta_base", "trainer=gpu"),
    ("deberta_large", "tuning=frozen trainer=gpu"),
    ("deberta_large", "trainer=low_memory trainer.bf16=true"),
    ("deberta_large", "trainer=gpu"),
    ("deberta_large", "trainer=gpu model.max_length=1024"),
    ("mistral_7b", f"{LORA} model.load_in_4bit=true trainer.per_device_train_batch_size=1"),
    ("mistral_7b", f"{LORA} trainer.per_device_train_batch_size=1"),
    ("mistral_7b", f"{LORA} trainer.per_device_train_batch_size=4"),
    ("mistral_7b", f"{LORA} trainer.per_device_train_batch_size=4 model.max_length=2048"),
)


@dataclass(frozen=True)
class Need:
    """What a way of training takes."""

    parameters: int
    trained: int
    mib: dict[str, int]

    @property
    def gigabytes(self) -> float:
        """All of it, with what else lies on a GPU."""
        return 1 + 1.2 * sum(self.mib.values()) * 2**20 / 1e9

    @property
    def gpu(self) -> int:
        """The smallest of the usual sizes that holds it."""
        return next(size for size in GPUS if size >= self.gigabytes)


def need(model: str, overrides: str) -> Need:
    """Count a model that is never loaded."""
    config = compose_config("train", f"model={model}", *overrides.split())
    own, values = config.model, trainer_values(config.trainer)
    architecture = AutoConfig.for_model(own.architecture, **SHAPES[model])
    with torch.device("meta"):
        kind = make_decoder_class(architecture)
        made: Any = kind(architecture) if kind else ENCODERS.from_config(architecture)
        made = made.to(getattr(torch, own.dtype.value) if kind else torch.float32)
        layers: Any = get_layers(made)
        linear = sum(m.weight.numel() for m in layers.modules() if is_linear(m))
        made = apply_tuning(made, config.tuning, None)
    arguments: Any = SimpleNamespace(
        optim=values.get("optim", "adamw_torch"),
        bf16=True,
        fp16=False,
        gradient_checkpointing=values.get("activation_checkpointing", False),
    )
    tokens = values["per_device_train_batch_size"] * OPTIONS * own.max_length
    sizes = [(p.numel(), p.requires_grad) for p in made.parameters()]
    mib = step_mib(made, arguments, tokens, own.max_length)
    if own.load_in_4bit:
        mib["weights"] -= round(linear * (2 - IN_4_BITS) / 2**20)
    return Need(sum(n for n, _ in sizes), sum(n for n, learns in sizes if learns), mib)


def is_linear(module: object) -> bool:
    """Whether 4-bit loading packs a module's weight."""
    return isinstance(module, torch.nn.Linear)


def main() -> None:
    """Print the table."""
    quiet_libraries()
    print_result("| GPU | `exam train …` | parameters, trained | computed GB |\n|---|---|---|---|")
    for model, overrides in WAYS:
        found = need(model, overrides)
        parameters = f"{found.parameters / 1e6:,.0f} M, {found.trained / 1e6:,.0f} M"
        command = f"`model={model} {overrides}`"
        print_result(f"| {found.gpu} GB | {command} | {parameters} | {found.gigabytes:.1f} |")


if __name__ == "__main__":
    main()
