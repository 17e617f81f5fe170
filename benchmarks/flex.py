"""Replace SDPA with a dense mask by FlexAttention, for packed questions.

`flex_at_once` has the signature and the result of
`exam.readers.multiple_choice.attention.sdpa_attention`. It skips blocks of tokens that a packed
question masks, and adds DeBERTa's distances to each score when computing it, instead of keeping
them in memory for every pair of tokens. It has no dropout.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.utils.weak import WeakTensorKeyDictionary

from exam.readers.multiple_choice import attention
from exam.readers.multiple_choice.attention import Distances

MASKS: Any = WeakTensorKeyDictionary()  # one a batch: its layers share the dense mask


def flex_at_once(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    allowed: torch.Tensor,
    dropout: float,
    distances: Distances | None,
) -> torch.Tensor:
    """Attend within all questions in one call, skipping masked blocks; the query is scaled.

    Raises:
        ValueError: there is dropout, which FlexAttention does not have.
    """
    if dropout:
        raise ValueError("FlexAttention has no dropout")
    if (mask := MASKS.get(allowed)) is None:
        mask = MASKS[allowed] = block_mask(allowed)
    by = distances or Distances(None, None, None)
    compute = compiled() if query.is_cuda else scored
    index = None if by.index is None else by.index.expand(len(query), -1, -1).int()
    result: torch.Tensor = compute(query, key, value, mask, by.keys, by.queries, index)
    return result.transpose(1, 2)


def block_mask(allowed: torch.Tensor) -> BlockMask:
    """Return the mask in blocks of tokens, of `allowed` `(questions, 1, length, length)`."""

    def attends(question: Any, _head: Any, row: Any, column: Any) -> torch.Tensor:
        return allowed[question, 0, row, column]

    questions, _, rows, columns = allowed.shape
    return create_block_mask(attends, questions, None, rows, columns, device=allowed.device)


def scored(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: BlockMask,
    keys: torch.Tensor | None,
    queries: torch.Tensor | None,
    index: torch.Tensor | None,
) -> torch.Tensor:
    """Compute attention, adding the distances' terms to each score."""
    by_key = None if keys is None else query @ keys
    by_query = None if queries is None else key @ queries

    def with_distance(score: Any, question: Any, head: Any, row: Any, column: Any) -> torch.Tensor:
        if index is not None:
            at = index[question, row, column]
            if by_key is not None:
                score = score + by_key[question, head, row, at]
            if by_query is not None:
                score = score + by_query[question, head, column, at]
        result: torch.Tensor = score
        return result

    result: Any = flex_attention(query, key, value, with_distance, block_mask=mask, scale=1.0)
    attended: torch.Tensor = result
    return attended


@cache
def compiled() -> Any:
    """Compile the attention: one kernel for every shape and number format."""
    torch._dynamo.config.recompile_limit = 64  # noqa: SLF001 - beyond it nothing is compiled
    return torch.compile(scored, dynamic=False)


@contextmanager
def flex() -> Iterator[None]:
    """Let packed readers compute their attention with FlexAttention, on a CPU too."""
    originals = attention.sdpa_attention, attention.per_question_attention
    attention.sdpa_attention = attention.per_question_attention = flex_at_once
    try:
        yield
    finally:
        attention.sdpa_attention, attention.per_question_attention = originals
