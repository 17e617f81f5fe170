"""Attention over sequences that start with a shared part.

In a packed question, the shared part attends to itself, and each option to the shared part and to
itself; an ordinary sequence is a shared part without options. On a GPU, one call of SDPA takes the
whole mask. On a CPU, SDPA also computes masked scores, and its backward pass in bfloat16 costs nine
times its forward pass. There, training computes each question separately, at its length and in
blocks that fit the processor's cache: first the shared part, then the options.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention

from exam.config import FLASH
from exam.core.errors import ExamError

NAME = "one_by_one"
STEP = 16  # tokens; each new shape of a product costs the construction of a kernel


def round_up(length: int) -> int:
    """Round a length up to a multiple of STEP."""
    return math.ceil(length / STEP) * STEP


@dataclass(frozen=True)
class Distances:
    """DeBERTa's terms of a score by the distance of two tokens.

    A query times the key of the distance, and a key times the query of the distance; either may be
    missing.
    """

    keys: Tensor | None  # (heads, size, distances)
    queries: Tensor | None  # (heads, size, distances), scaled
    index: Tensor | None  # (questions or 1, length, length): which distance


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor,
    scale: float,
    dropout: float = 0.0,
    distances: Distances | None = None,
) -> Tensor:
    """Attend with heads `(questions, heads, length, size)`.

    Returns `(questions, length, heads, size)`. `allowed` `(questions, 1, length, length)` tells
    which token attends to which: padding is at the end, and the first token attends to the shared
    part only.
    """
    separate = torch.is_grad_enabled() or dropout > 0 or distances is not None
    compute = per_question_attention if query.device.type == "cpu" and separate else sdpa_attention
    return compute(query * scale, key, value, allowed, dropout, distances)


def sdpa_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor,
    dropout: float,
    distances: Distances | None,
) -> Tensor:
    """Compute all questions in one call, masked scores too; the query is scaled."""
    mask = allowed
    if distances is not None and distances.index is not None:
        index = distances.index[:, None].expand(*query.shape[:-1], -1)
        bias = torch.zeros((), dtype=query.dtype, device=query.device)
        if distances.keys is not None:
            bias = bias + (query @ distances.keys).gather(-1, index)
        if distances.queries is not None:
            bias = bias + (key @ distances.queries).gather(-1, index.mT).mT
        mask = bias.masked_fill(~allowed, torch.finfo(bias.dtype).min)
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, scale=1.0
    ).transpose(1, 2)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def per_question_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor,
    dropout: float,
    distances: Distances | None,
) -> Tensor:
    """Compute each question separately, without masked scores; the query is scaled."""
    heads = [x.contiguous() for x in (query, key, value)]
    by = Distances(None, None, None) if distances is None else distances
    apply: Any = PerQuestionAttention.apply
    states: Tensor = apply(*heads, by.keys, by.queries, by.index, allowed, dropout)
    return states


@dataclass(frozen=True)
class Block:
    """Rows and columns of a question's scores that are computed in one product."""

    first: int
    last: int
    columns: int
    mask: Tensor | None  # (last - first, columns): blocked scores; None: all after `open`
    open: int  # number of columns that every row attends to


def split_blocks(allowed: Tensor) -> list[list[Block]]:
    """Split each question into its shared part, and its options with the shared part's last rows.

    Rows and columns end at multiples of STEP where the length allows it.
    """
    length = allowed.shape[-1]
    shared = allowed[:, 0, 0].sum(dim=-1).tolist()
    total = allowed[:, 0].any(dim=1).sum(dim=-1).tolist()
    questions = []
    for number, (part, end) in enumerate(zip(shared, total, strict=True)):
        first, last = part // STEP * STEP, min(length, round_up(end))
        columns = min(length, round_up(part))
        blocks = [Block(0, first, columns, None, part)] if first else []
        if last > first:
            blocks.append(Block(first, last, last, ~allowed[number, 0, first:last, :last], 0))
        questions.append(blocks)
    return questions


class PerQuestionAttention(torch.autograd.Function):
    """Attention and its gradient for one question after another; it keeps the weights."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        keys: Tensor | None,
        queries: Tensor | None,
        index: Tensor | None,
        allowed: Tensor,
        dropout: float,
    ) -> Tensor:
        """Return attended values `(questions, length, heads, size)`."""
        states = torch.zeros_like(query.transpose(1, 2), memory_format=torch.contiguous_format)
        ctx.blocks, ctx.dropout = split_blocks(allowed), dropout
        kept: list[Tensor] = []
        for number, blocks in enumerate(ctx.blocks):
            end = blocks[-1].last
            by_key = None if keys is None else query[number, :, :end] @ keys
            by_query = None if queries is None else key[number, :, :end] @ queries
            for block in blocks:
                rows, columns = slice(block.first, block.last), block.columns
                scores = query[number, :, rows] @ key[number, :, :columns].contiguous().mT
                if index is not None:
                    at = _distance_index(index, number, block, len(scores))
                    if by_key is not None:
                        scores += by_key[:, rows].gather(-1, at)
                    if by_query is not None:
                        scores += by_query[:, :columns].gather(-1, at.mT).mT
                if block.mask is None:
                    scores[..., block.open :] = -torch.inf
                else:
                    scores.masked_fill_(block.mask, torch.finfo(scores.dtype).min)
                weights = torch.softmax(scores, dim=-1)
                kept.append(weights)
                if dropout:
                    kept.append(torch.empty_like(weights).bernoulli_(1 - dropout).div_(1 - dropout))
                    weights = weights * kept[-1]
                states[number, rows] = (weights @ value[number, :, :columns]).transpose(0, 1)
        ctx.save_for_backward(query, key, value, keys, queries, index, *kept)
        return states

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Return the gradients of query, key, value and of the distances' keys and queries."""
        query, key, value, keys, queries, index, *kept = ctx.saved_tensors
        to_query, to_key, to_value = (torch.zeros_like(x) for x in (query, key, value))
        to_keys = None if keys is None else torch.zeros_like(keys)
        to_queries = None if queries is None else torch.zeros_like(queries)
        remaining = iter(kept)
        for number, blocks in enumerate(ctx.blocks):
            end = blocks[-1].last
            by_key, by_query = (
                None if x is None else query.new_zeros(query.shape[1], end, x.shape[-1])
                for x in (keys, queries)
            )
            for block in blocks:
                rows, columns = slice(block.first, block.last), block.columns
                weights = next(remaining)
                mask = next(remaining) if ctx.dropout else None
                gradient = gradients[0][number, rows].transpose(0, 1).contiguous()
                used = weights if mask is None else weights * mask
                to_value[number, :, :columns] += used.mT @ gradient
                to_weights = gradient @ value[number, :, :columns].contiguous().mT
                if mask is not None:
                    to_weights *= mask
                to_scores = torch._softmax_backward_data(  # noqa: SLF001
                    to_weights, weights, -1, weights.dtype
                )
                to_query[number, :, rows] = to_scores @ key[number, :, :columns]
                to_key[number, :, :columns] += to_scores.mT @ query[number, :, rows]
                if index is not None:
                    at = _distance_index(index, number, block, len(weights))
                    if by_key is not None:
                        by_key[:, rows].scatter_add_(-1, at, to_scores)
                    if by_query is not None:
                        by_query[:, :columns].scatter_add_(-1, at.mT, to_scores.mT)
            if to_keys is not None:
                to_query[number, :, :end] += by_key @ keys.mT
                to_keys += query[number, :, :end].mT @ by_key
            if to_queries is not None:
                to_key[number, :, :end] += by_query @ queries.mT
                to_queries += key[number, :, :end].mT @ by_query
        return to_query, to_key, to_value, to_keys, to_queries, None, None, None


def _distance_index(index: Tensor, number: int, block: Block, heads: int) -> Tensor:
    """Return the distances of a question's block for each head."""
    rows = index[number % len(index), block.first : block.last, : block.columns]
    return rows.expand(heads, -1, -1)


def _attend_for_library(
    _module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend as the library's models call it."""
    return attend(query, key, value, attention_mask, scaling, dropout), None


AttentionInterface.register(NAME, _attend_for_library)


# DeBERTa's attention.

POSITIONS = {"c2p", "p2c"}


class DisentangledAttention(DisentangledSelfAttention):
    """The library's module with the same weights and the same result up to rounding.

    He and others, "DeBERTa: Decoding-enhanced BERT with Disentangled Attention" (2021). The
    library copies the distances' keys and queries for every sequence and head; here the batch
    shares them, and only one question's scores are held at a time.
    """

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: Any = None,
        rel_embeddings: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Return hidden states `(batch, length, hidden)` after attention.

        `attention_mask` `(batch, 1, length, length)` tells which token attends to which;
        `relative_pos` `(batch or 1, length, length)` holds the bucketed distances.
        """
        queries = hidden_states if query_states is None else query_states
        query = self._split_heads(self.query_proj(queries))
        key, value = (self._split_heads(p(hidden_states)) for p in (self.key_proj, self.value_proj))
        scale = 1 / math.sqrt(query.shape[-1] * (1 + len(POSITIONS & {*self.pos_att_type})))
        distances = None
        if self.relative_attention and self.pos_att_type:
            distances = self._build_distances(relative_pos, rel_embeddings, scale)
        dropout = self.dropout.p if self.training else 0.0
        states = attend(query, key, value, attention_mask.bool(), scale, dropout, distances)
        return states.flatten(2), None

    def _split_heads(self, states: Tensor) -> Tensor:
        """Reshape `(…, length, hidden)` to `(…, heads, length, size)`."""
        split = states.view(*states.shape[:-1], self.num_attention_heads, -1)
        return split.transpose(-2, -3)

    def _build_distances(
        self, relative_pos: Tensor, rel_embeddings: Any, scale: float
    ) -> Distances:
        """Build the terms content to position and position to content."""
        span = self.pos_ebd_size
        embedded = self.pos_dropout(rel_embeddings[: 2 * span])
        keys = queries = None
        if "c2p" in self.pos_att_type:
            project = self.key_proj if self.share_att_key else self.pos_key_proj
            keys = self._split_heads(project(embedded)).mT
        if "p2c" in self.pos_att_type:
            project = self.query_proj if self.share_att_key else self.pos_query_proj
            queries = self._split_heads(project(embedded)).mT * scale
        return Distances(keys, queries, (relative_pos + span).clamp(0, 2 * span - 1))


def use_disentangled_attention(model: PreTrainedModel, *, flash: bool = False) -> None:
    """Replace DeBERTa's attention in a model by this module's, or by flashdeberta's.

    Raises:
        ExamError: flashdeberta is not installed, or not for this model.
    """
    kind = load_flash_attention(model.config) if flash else DisentangledAttention
    for module in model.modules():
        if type(module) is DisentangledSelfAttention:
            module.__class__ = kind


def load_flash_attention(config: PreTrainedConfig) -> type:
    """Load flashdeberta's attention class.

    Raises:
        ExamError: it is not installed, or the model is not DeBERTa-v2 or v3.
    """
    if config.model_type != "deberta-v2":
        raise ExamError(
            f"model.attn_implementation={FLASH} is for DeBERTa, and this is a "
            f"{config.model_type} model.\nLeave model.attn_implementation out."
        )
    try:
        from flashdeberta.model import FlashDisentangledSelfAttention
    except ImportError as error:
        raise ExamError(
            f"model.attn_implementation={FLASH} needs the package flashdeberta ({error}).\n"
            "Install it (pip install flashdeberta), or leave model.attn_implementation out."
        ) from None
    kind: type = FlashDisentangledSelfAttention
    return kind
