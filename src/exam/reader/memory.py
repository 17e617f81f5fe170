"""What training will take of a device's memory, estimated before it starts."""

from typing import Any

from torch import nn
from transformers import TrainingArguments

from exam.estimates import FP32, optimizer_bytes

# Bytes that a layer keeps of every token for the gradient, in units of its width and in 16 bits,
# without the attention's scores (Korthikanti and others, "Reducing Activation Recomputation in
# Large Transformer Models", 2022).
KEPT = 34
SCORES = 5  # the same of every pair of tokens and head


def estimated_mib(
    model: nn.Module, args: TrainingArguments, tokens: int, length: int
) -> dict[str, int]:
    """MiB of `weights`, `gradients`, `optimizer` and `activations` of one step.

    For batches of `tokens` tokens in sequences of `length`. Activations are an upper estimate:
    what attends to nothing is not kept by every kernel.
    """
    config: Any = model.config
    weights = sum(p.numel() * p.element_size() for p in model.parameters())  # packed where 4-bit
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    width = 1 if args.bf16 or args.fp16 else 2
    layers, hidden = config.num_hidden_layers, config.hidden_size
    heads = getattr(config, "num_attention_heads", 0)
    whole = tokens * (KEPT * hidden + SCORES * heads * length) * width
    if args.gradient_checkpointing:  # the name that every transformers 5 fills
        activations = 2 * tokens * hidden * width * layers + whole
    else:
        activations = layers * whole
    found = {
        "weights": weights,
        "gradients": FP32 * learning,
        "optimizer": optimizer_bytes(str(args.optim)) * learning,
        "activations": activations,
    }
    return {name: round(number / 2**20) for name, number in found.items()}
