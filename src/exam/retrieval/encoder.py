"""Sentence vectors."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from exam.config import Encoder
from exam.runtime import is_terminal
from exam.weights import identity, locate, reaching

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class SentenceEncoder:
    """An encoder that loads at its first use, on the best device sentence-transformers finds."""

    config: Encoder

    @cached_property
    def model(self) -> "SentenceTransformer":
        """The loaded model."""
        from sentence_transformers import SentenceTransformer

        config = self.config
        place = locate(config.name_or_path)
        with reaching("encoder", config.name_or_path, "encoder.name_or_path"):
            model = SentenceTransformer(
                place,
                trust_remote_code=config.trust_remote_code,
                model_kwargs={"use_safetensors": True},
            )
        model.max_seq_length = config.max_length
        return model

    @property
    def key(self) -> dict[str, Any]:
        """What of the configuration determines the vectors."""
        config = self.config
        return {
            "checkpoint": identity(config.name_or_path),
            "max_length": config.max_length,
            "query_prefix": config.query_prefix,
            "passage_prefix": config.passage_prefix,
        }

    def queries(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors of what is searched for, shape `(texts, dimension)`."""
        return self.encode([self.config.query_prefix + text for text in texts])

    def passages(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors of what is searched, shape `(texts, dimension)`."""
        return self.encode([self.config.passage_prefix + text for text in texts])

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors of texts as they are; each distinct text is encoded once."""
        distinct = list(dict.fromkeys(texts))
        row = {text: i for i, text in enumerate(distinct)}
        vectors = self.model.encode(
            distinct,
            batch_size=self.config.batch_size,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=is_terminal(),
        )
        chosen: Vectors = np.asarray(vectors, dtype=np.float32)[[row[text] for text in texts]]
        return chosen
