"""Encode texts as unit vectors with a sentence encoder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from exam.config import Checkpoint, Dtype, Encoder
from exam.core.checkpoints import (
    check_new_weights,
    checkpoint_fingerprint,
    count_embeddings,
    dropout_fields,
    max_input_tokens,
    resolve_checkpoint,
    translate_load_errors,
)
from exam.core.logging import progress_bar
from exam.core.precision import resolve_dtype
from exam.retrieval.vectors import Vectors

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

WIDTH = 16  # tokens


@dataclass(frozen=True)
class SentenceEncoder:
    """An encoder that loads at its first use, on the device that sentence-transformers chooses."""

    config: Encoder

    @cached_property
    def dtype(self) -> Dtype:
        """The number format of weights and activations on this machine."""
        return resolve_dtype(self.config.dtype, "encoder.dtype")

    @cached_property
    def model(self) -> "SentenceTransformer":
        """The loaded model."""
        from exam.core.tokenization import adopt_tokenizer

        model = _load(self.config, {"dtype": self.dtype.value})
        with translate_load_errors(self.config.checkpoint):
            adopt_tokenizer(model)
        model.max_seq_length = self.config.max_length
        return model

    @property
    def key(self) -> dict[str, Any]:
        """Everything that determines the vectors."""
        config = self.config
        return {
            "checkpoint": checkpoint_fingerprint(config.checkpoint),
            "max_length": config.max_length,
            "query_prefix": config.query_prefix,
            "passage_prefix": config.passage_prefix,
            "dtype": self.dtype.value,
        }

    def queries(self, texts: Sequence[str]) -> Vectors:
        """Return unit vectors of queries, shape `(texts, dimension)`."""
        return self.encode([self.config.query_prefix + text for text in texts])

    def passages(self, texts: Sequence[str]) -> Vectors:
        """Return unit vectors of passages, shape `(texts, dimension)`."""
        return self.encode([self.config.passage_prefix + text for text in texts])

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return unit vectors of texts without a prefix; each distinct text is encoded once."""
        distinct = list(dict.fromkeys(texts))
        row = {text: i for i, text in enumerate(distinct)}
        vectors = np.zeros((len(distinct), self.model.get_embedding_dimension() or 0), np.float32)
        multiple = width_multiple(self.config.max_length)
        lengths = -(-self._lengths(distinct) // multiple) * multiple
        with progress_bar("encoded", len(distinct), "texts") as bar:
            for batch in batches(lengths, self.config.max_tokens_per_batch):
                vectors[batch] = self.model.encode(
                    [distinct[i] for i in batch],
                    batch_size=len(batch),
                    show_progress_bar=False,
                    processing_kwargs={"text": {"pad_to_multiple_of": multiple}},
                )
                bar.update(len(batch))
        # Here and not in the model: bfloat16 would round the lengths.
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        repeated: Vectors = vectors[[row[text] for text in texts]]
        return repeated

    def _lengths(self, texts: list[str]) -> NDArray[np.int64]:
        """Count the tokens of each text, up to the model's limit."""
        if not texts:
            return np.empty(0, np.int64)
        limit = self.model.max_seq_length
        tokens = self.model.tokenizer(texts, truncation=True, max_length=limit)
        return np.array(list(map(len, tokens["input_ids"])))


def inspect_encoder(config: Encoder) -> None:
    """Refuse an encoder that cannot be loaded as configured.

    Raises:
        ExamError: its files cannot be read, or do not agree, or it reads fewer tokens.
    """
    resolve_dtype(config.dtype, "encoder.dtype")
    model = _load(config, {"device_map": "meta"})
    inspect_network(config.checkpoint, model, config.max_length, of_head=True)


def _load(config: Encoder, weights: dict[str, Any]) -> "SentenceTransformer":
    from sentence_transformers import SentenceTransformer

    from exam.core.tokenization import check_sentencepiece

    folder = resolve_checkpoint(config.checkpoint)
    with translate_load_errors(config.checkpoint):
        check_sentencepiece(folder)
        return SentenceTransformer(
            str(folder),
            trust_remote_code=config.trust_remote_code,
            model_kwargs={"use_safetensors": True, **weights},
            config_kwargs=dropout_fields(config.dropout),
        )


def inspect_network(checkpoint: Checkpoint, model: Any, max_length: int, *, of_head: bool) -> None:
    """Refuse a model of sentence-transformers whose files do not agree.

    Raises:
        ExamError: weights or the vocabulary are missing, the vocabulary is larger than the
            embeddings, or the model reads fewer than `max_length` tokens.
    """
    from exam.core.tokenization import check_complete, check_vocabulary

    network = getattr(model[0], "auto_model", None)
    if network is None:  # a module of its own kind, such as static embeddings
        return
    folder = resolve_checkpoint(checkpoint)
    root = next((p for p in folder.glob("0_*") if (p / "config.json").is_file()), folder)
    check_complete(model.tokenizer, root)
    check_vocabulary(model.tokenizer, count_embeddings(network))
    with translate_load_errors(checkpoint):
        _, info = type(network).from_pretrained(
            root, config=network.config, device_map="meta", output_loading_info=True
        )
    check_new_weights(checkpoint, network, info, of_head=of_head)
    max_input_tokens(network, max_length, f"{checkpoint.group}.max_length")


def width_multiple(max_length: int) -> int:
    """Return the number that sequences are padded to a multiple of, never beyond `max_length`.

    A CPU spends time and memory on every new shape.
    """
    return gcd(WIDTH, max_length)


def batches(lengths: NDArray[np.int64], tokens: int) -> Iterator[NDArray[np.int64]]:
    """Yield positions of texts of similar length, longest first, in batches of at most `tokens`.

    Padding counts. A longer text is the only one of its batch.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, tokens // max(1, int(lengths[order[start]])))
        yield order[start : start + size]
        start += size
