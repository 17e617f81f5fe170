"""Check a loaded model: weights that its checkpoint lacks, and the longest input it reads."""

from typing import Any

from torch import nn

from exam.core.checkpoints import Checkpoint
from exam.core.errors import ExamError

POOLERS = ("pooler", "head")  # between the layers and the score, in some architectures


def check_new_weights(
    checkpoint: Checkpoint, model: Any, info: dict[str, Any], *, of_head: bool
) -> list[str]:
    """Return the modules that a checkpoint lacks, or has in another size: they start at random.

    With `of_head`, a head and a pooler may be missing.

    Raises:
        ExamError: another module is missing.
    """
    new = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    inside = "" if model.base_model is model else f"{model.base_model_prefix}."
    heads = {name for name in new if of_head and _is_of_head(name, inside)}
    if lacking := sorted(new - heads):
        raise ExamError(
            f"{checkpoint.key}={checkpoint.name}: {len(lacking)} weights of the "
            f"{model.config.model_type} model are missing or of another size, first {lacking[0]}.\n"
            "config.json and weights are of different checkpoints, or a file is incomplete. Copy "
            f"all files again, or choose another checkpoint: {checkpoint.key}=<hub id or folder>"
        )
    return sorted({name.rpartition(".")[0] for name in heads})


def _is_of_head(name: str, inside: str) -> bool:
    """Tell whether a weight belongs to a pooler, or lies outside the network named `inside`."""
    return not name.startswith(inside) or name.removeprefix(inside).split(".")[0] in POOLERS


def embedding_rows(model: Any) -> int | None:
    """Return the number of a model's token embeddings; None where it has none of a known kind."""
    try:
        embeddings = model.get_input_embeddings()
    except NotImplementedError:  # of characters, as CANINE's
        return None
    return getattr(embeddings, "num_embeddings", None)


def longest_input(model: Any, max_length: int, key: str = "model.max_length") -> int:
    """Return how many tokens a model reads: at least 4096 where positions have no limit.

    Raises:
        ExamError: `max_length`, set by `key`, is more than the model's position embeddings.
    """
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            reserved = 0 if module.padding_idx is None else module.padding_idx + 1
            limit = module.num_embeddings - reserved
            if max_length > limit:
                raise ExamError(
                    f"{key}={max_length} is more than the {limit} tokens this model "
                    f"reads.\nSet {key}={limit}, or choose another model."
                )
            return limit
    return max(max_length, 4096)
