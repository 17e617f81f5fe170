"""Packed readers: one sequence for each question, with all options after a shared context.

The shared part attends to itself; an option attends to the shared part and to itself. The positions
of every option continue from the prompt, so the context is computed once for all options. There is
no pooler: an option's score is a linear function of the mean of its last hidden states.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_MULTIPLE_CHOICE_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MultipleChoiceModelOutput
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position
from transformers.models.mpnet.modeling_mpnet import MPNetLayer

from exam.config import Packing
from exam.core.checkpoints import POOLERS
from exam.core.errors import ExamError
from exam.readers.multiple_choice.attention import NAME
from exam.readers.multiple_choice.heads import make_subclass


@dataclass(frozen=True)
class PackedBatch:
    """Tokens of a batch, with their positions and attention mask."""

    ids: Tensor  # (questions, length)
    types: Tensor  # (questions, length): token types
    positions: Tensor  # (questions, length)
    allowed: Tensor  # (questions, length, length): which token attends to which

    @property
    def distances(self) -> Tensor:
        """Each token's position minus every other's, `(questions, length, length)`."""
        return self.positions[:, :, None] - self.positions[:, None, :]


def attention_mask_for(attention_mask: Tensor, option_tokens: Tensor) -> Tensor:
    """Return which token attends to which, `(questions, length, length)`.

    `attention_mask` `(questions, length)` marks padding, `option_tokens`
    `(questions, options, length)` the tokens of each option.
    """
    membership = option_tokens.float()
    same_option = (membership.transpose(1, 2) @ membership) > 0
    shared = ~option_tokens.any(dim=1)
    return attention_mask[:, None].bool() & (shared[:, None] | same_option)


def make_packed_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Make the multiple-choice class of an architecture for packed questions.

    It has the weights of the library's model without a pooler. With `packing=cross`, the options
    attend to each other before they are scored.

    Raises:
        ExamError: the architecture takes no attention mask of two dimensions.
    """
    convolves = getattr(config, "conv_kernel_size", None)
    if config.model_type not in FAMILIES or convolves:
        raise ExamError(
            f"model.packing={config.packing} needs one of {', '.join(FAMILIES)}, and this is a "
            f"{config.model_type} model{' with a convolution' if convolves else ''}.\n"
            "Set model.packing=none"
        )
    return make_subclass(PackedReader, MODEL_FOR_MULTIPLE_CHOICE_MAPPING[type(config)])


class PackedReader(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Mixin of a multiple-choice architecture: read packed questions."""

    supports_gradient_checkpointing = True  # the library's MPNet does not

    def __init__(self, config: PreTrainedConfig) -> None:
        """Build the architecture without its pooler; see `make_packed_class`."""
        super().__init__(config)
        for owner in (self, self.base_model):
            for name in POOLERS:
                if hasattr(owner, name):
                    setattr(owner, name, None)
        if config.packing == Packing.cross.value:
            self.cross = nn.TransformerEncoderLayer(
                config.hidden_size,
                config.num_attention_heads,
                dim_feedforward=config.hidden_size,
                dropout=0.0,
                batch_first=True,
                norm_first=True,
            )
        for module in self.modules():
            if type(module) is MPNetLayer:
                module.__class__ = _CheckpointedLayer
        if FAMILIES[config.model_type] is _run_absolute:
            self.set_attn_implementation(NAME)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        option_tokens: Tensor,
    ) -> MultipleChoiceModelOutput:
        """Return logits `(questions, options)` of ids `(questions, length)`."""
        allowed = attention_mask_for(attention_mask, option_tokens)
        batch = PackedBatch(input_ids, token_type_ids, position_ids, allowed)
        hidden = FAMILIES[self.config.model_type](self.base_model, batch)
        with torch.autocast(hidden.device.type, enabled=False):
            share = option_tokens.float()
            share = share / share.sum(dim=-1, keepdim=True).clamp(min=1)
            pooled = share @ hidden.float()
            if self.config.packing == Packing.cross.value:
                missing = ~option_tokens.any(dim=-1)
                pooled = pooled.to(self.cross.linear1.weight.dtype)  # bf16 under DeepSpeed
                pooled = self.cross(pooled, src_key_padding_mask=missing)
            logits = self.get_submodule("classifier")(pooled).squeeze(-1)
        return MultipleChoiceModelOutput(logits=logits)


class _CheckpointedLayer(GradientCheckpointingLayer, MPNetLayer):  # type: ignore[no-untyped-call]
    """MPNet's layer with gradient checkpointing."""


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """Return the number format of autocast, or the tensor's without autocast."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _run_absolute(backbone: Any, batch: PackedBatch) -> Any:
    """Run a backbone with position embeddings; RoBERTa's start after the padding's."""
    padding = backbone.embeddings.position_embeddings.padding_idx
    return backbone(
        input_ids=batch.ids,
        token_type_ids=batch.types,
        position_ids=batch.positions + (0 if padding is None else padding + 1),
        attention_mask=batch.allowed[:, None],
    ).last_hidden_state


def _run_mpnet(backbone: Any, batch: PackedBatch) -> Any:
    """Run MPNet: position embeddings, and a bias by distance that all layers share."""
    embeddings, encoder = backbone.embeddings, backbone.encoder
    hidden = embeddings(
        input_ids=batch.ids, position_ids=batch.positions + embeddings.padding_idx + 1
    )
    dtype = compute_dtype(hidden)
    farthest = int(batch.positions.shape[1])
    steps = torch.arange(-farthest, farthest + 1, device=batch.ids.device)
    by_distance = encoder.relative_attention_bias(encoder.relative_position_bucket(-steps))
    bias = by_distance.to(dtype)[batch.distances + farthest].permute(0, 3, 1, 2)
    blocked = torch.zeros_like(batch.allowed, dtype=dtype)
    blocked = blocked.masked_fill(~batch.allowed, torch.finfo(dtype).min)
    bias = bias + blocked[:, None]
    for layer in encoder.layer:
        hidden = layer(hidden, bias)[0]
    return hidden


def _run_modernbert(backbone: Any, batch: PackedBatch) -> Any:
    """Run ModernBERT: rotary positions, and layers that attend to a window only."""
    near = batch.distances.abs() <= backbone.config.sliding_window
    masks = {
        "full_attention": batch.allowed[:, None],
        "sliding_attention": (batch.allowed & near)[:, None],
    }
    return backbone(
        input_ids=batch.ids, position_ids=batch.positions, attention_mask=masks
    ).last_hidden_state


def _run_deberta(backbone: Any, batch: PackedBatch) -> Any:
    """Run DeBERTa: relative positions in buckets that widen with the distance."""
    encoder = backbone.encoder
    distances = batch.distances
    if encoder.relative_attention and encoder.position_buckets > 0:
        distances = make_log_bucket_position(
            distances, encoder.position_buckets, encoder.max_relative_positions
        ).long()
    hidden = backbone.embeddings(
        input_ids=batch.ids, token_type_ids=batch.types, position_ids=batch.positions
    )
    return encoder(
        hidden, batch.allowed[:, None], relative_pos=distances, output_hidden_states=False
    ).last_hidden_state


FAMILIES: dict[str, Callable[[Any, PackedBatch], Any]] = {
    "bert": _run_absolute,
    "roberta": _run_absolute,
    "xlm-roberta": _run_absolute,
    "mpnet": _run_mpnet,
    "modernbert": _run_modernbert,
    "deberta-v2": _run_deberta,
}
