"""DeBERTa's attention, without what the library copies for every sequence and head.

He and others, "DeBERTa: Decoding-enhanced BERT with Disentangled Attention" (2021): to the score
of two tokens come the query against the key of their distance, and the key against the query of
their distance. Here the distances' keys and queries stay one for the whole batch, and the scores
of one question at a time are held.
"""

import math
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention

from exam.errors import ExamError
from exam.reader.attention import Distances, attend

POSITIONS = {"c2p", "p2c"}


class DisentangledAttention(DisentangledSelfAttention):
    """The library's module with the same weights and, but for rounding, the same result."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        output_attentions: bool = False,
        query_states: torch.Tensor | None = None,
        relative_pos: Any = None,
        rel_embeddings: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None]:
        """Hidden states `(batch, length, hidden)` after attention.

        `attention_mask` `(batch, 1, length, length)` says what attends to what; `relative_pos`
        `(batch or 1, length, length)` holds the bucketed distances.
        """
        asking = hidden_states if query_states is None else query_states
        query = self._heads(self.query_proj(asking))
        key, value = (self._heads(p(hidden_states)) for p in (self.key_proj, self.value_proj))
        scale = 1 / math.sqrt(query.shape[-1] * (1 + len(POSITIONS & {*self.pos_att_type})))
        distances = None
        if self.relative_attention and self.pos_att_type:
            distances = self._distances(relative_pos, rel_embeddings, scale)
        dropout = self.dropout.p if self.training else 0.0
        found = attend(query, key, value, attention_mask.bool(), scale, dropout, distances)
        return found.flatten(2), None

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        """`(…, length, hidden)` as `(…, heads, length, size)`."""
        split = states.view(*states.shape[:-1], self.num_attention_heads, -1)
        return split.transpose(-2, -3)

    def _distances(
        self, relative_pos: torch.Tensor, rel_embeddings: Any, scale: float
    ) -> Distances:
        """Content to position and position to content."""
        span = self.pos_ebd_size
        embedded = self.pos_dropout(rel_embeddings[: 2 * span])
        keys = queries = None
        if "c2p" in self.pos_att_type:
            project = self.key_proj if self.share_att_key else self.pos_key_proj
            keys = self._heads(project(embedded)).mT
        if "p2c" in self.pos_att_type:
            project = self.query_proj if self.share_att_key else self.pos_query_proj
            queries = self._heads(project(embedded)).mT * scale
        return Distances(keys, queries, (relative_pos + span).clamp(0, 2 * span - 1))


def use_disentangled(model: PreTrainedModel, *, flash: bool = False) -> None:
    """Let every such attention of a model compute as this module does, or as flashdeberta does.

    Raises:
        ExamError: flashdeberta is wanted and cannot be had.
    """
    kind = flash_attention(model.config) if flash else DisentangledAttention
    for module in model.modules():
        if type(module) is DisentangledSelfAttention:
            module.__class__ = kind


def flash_attention(config: PreTrainedConfig) -> type:
    """The package flashdeberta's form of the attention.

    Raises:
        ExamError: it is not installed, or the model is no DeBERTa-v2 or v3.
    """
    if config.model_type != "deberta-v2":
        raise ExamError(
            f"model.flash=true, but this is a {config.model_type} model and no DeBERTa.\n"
            "Leave model.flash out."
        )
    try:
        from flashdeberta.model import FlashDisentangledSelfAttention
    except ImportError as error:
        raise ExamError(
            f"model.flash=true needs the package flashdeberta ({error}).\n"
            "Install it (pip install flashdeberta), or leave model.flash out."
        ) from None
    kind: type = FlashDisentangledSelfAttention
    return kind
