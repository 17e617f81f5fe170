"""Sentence vectors."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from exam.config import Encoder
from exam.runtime import is_terminal
from exam.weights import locate, reaching

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Vectors = NDArray[np.float32]


def load_encoder(config: Encoder) -> "SentenceTransformer":
    """The encoder on the best device that sentence-transformers finds."""
    from sentence_transformers import SentenceTransformer

    place = locate(config.name_or_path, config.package, config.sha256)
    with reaching("encoder", config.name_or_path, "encoder.name_or_path"):
        model = SentenceTransformer(
            place,
            trust_remote_code=config.trust_remote_code,
            model_kwargs={"use_safetensors": True},
        )
    model.max_seq_length = config.max_length
    return model


def encode(model: "SentenceTransformer", texts: Sequence[str], config: Encoder) -> Vectors:
    """Unit vectors of the texts, shape `(texts, dimension)`, each distinct text encoded once."""
    distinct = list(dict.fromkeys(texts))
    row = {text: i for i, text in enumerate(distinct)}
    vectors = model.encode(
        distinct,
        batch_size=config.batch_size,
        normalize_embeddings=True,
        convert_to_numpy=True,
        show_progress_bar=is_terminal(),
    )
    chosen: Vectors = np.asarray(vectors, dtype=np.float32)[[row[text] for text in texts]]
    return chosen


def encoder_key(config: Encoder) -> dict[str, Any]:
    """What of an encoder's configuration determines its vectors."""
    return {
        "name_or_path": config.name_or_path,
        "sha256": config.sha256,
        "max_length": config.max_length,
        "query_prefix": config.query_prefix,
        "passage_prefix": config.passage_prefix,
    }
