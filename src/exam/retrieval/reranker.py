"""Reorder the best passages of each question with a cross-encoder."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from exam.config import Dtype, Reranker
from exam.core.checkpoints import (
    checkpoint_fingerprint,
    resolve_checkpoint,
    translate_load_errors,
)
from exam.core.errors import ExamError, spell_command
from exam.core.files import checksum_matches, digest, write_with_checksum
from exam.core.logging import log_progress, show_progress
from exam.core.precision import resolve_dtype
from exam.metrics import Floats
from exam.retrieval.chunking import passage_text
from exam.retrieval.contexts import Contexts, Row, rank_rows
from exam.retrieval.encoder import inspect_network, load_model, width_multiple
from exam.retrieval.queries import query_texts

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

log = logging.getLogger(__name__)

PAIRS_PER_SHARD = 4096
SCORES = "scores-{}.npy"
SCORING = ("ForSequenceClassification", "ForCausalLM")  # a causal model answers "yes" or "no"
Pair = tuple[str, str]  # query, passage


@dataclass(frozen=True)
class PairScorer:
    """A cross-encoder that loads at its first use, on the device sentence-transformers chooses."""

    config: Reranker

    @cached_property
    def dtype(self) -> Dtype:
        """The number format of weights and activations on this machine."""
        return resolve_dtype(self.config.dtype, "reranker.dtype")

    @cached_property
    def model(self) -> "CrossEncoder":
        """The loaded model."""
        return load_cross_encoder(self.config, {"dtype": self.dtype.value})

    @property
    def key(self) -> dict[str, Any]:
        """Everything in the configuration that determines the ranking."""
        config = self.config
        return {
            "checkpoint": checkpoint_fingerprint(config.checkpoint),
            "depth": config.top_k,
            "max_length": config.max_length,
            "query": config.query.value,
            "weight": config.weight,
            "dtype": self.dtype.value,
        }

    def scores(self, pairs: Sequence[Pair]) -> Floats:
        """Return the logit of each pair, shape `(pairs,)`; a sigmoid would round the best to 1."""
        from torch.nn import Identity

        scores = self.model.predict(
            list(pairs),
            batch_size=self.config.batch_size,
            activation_fn=Identity(),
            show_progress_bar=show_progress(),
            processing_kwargs={
                "text": {"pad_to_multiple_of": width_multiple(self.config.max_length)}
            },
        )
        return np.asarray(scores, dtype=np.float64)


def has_head(config: Reranker) -> bool:
    """Tell whether a checkpoint has a head that scores passages.

    Raises:
        ExamError: it cannot be read.
    """
    from transformers import AutoConfig

    checkpoint = config.required_checkpoint
    folder = resolve_checkpoint(checkpoint)
    with translate_load_errors(checkpoint):
        architecture = AutoConfig.from_pretrained(
            folder, trust_remote_code=config.trust_remote_code
        )
    return any(name.endswith(SCORING) for name in architecture.architectures or [])


def inspect_reranker(config: Reranker, *, trained: bool = True) -> None:
    """Refuse a reranker that cannot be loaded or, if it must be `trained`, has no head.

    Raises:
        ExamError: either; or its files do not agree, or it reads fewer tokens.
    """
    if trained and not has_head(config):
        raise ExamError(
            f"reranker.ckpt={config.ckpt} has no head that scores passages.\n"
            "Choose a cross-encoder, or train one from it: "
            f"{spell_command('train')} task=reranker reranker.ckpt={config.ckpt}"
        )
    resolve_dtype(config.dtype, "reranker.dtype")
    model = load_cross_encoder(config, {"device_map": "meta"})
    inspect_network(config.required_checkpoint, model, config.max_length, of_head=not trained)


def load_cross_encoder(config: Reranker, weights: dict[str, Any]) -> "CrossEncoder":
    """Load a model that scores a pair; a head that its checkpoint lacks starts at random.

    `weights` is that of `load_model`.

    Raises:
        ExamError: the checkpoint cannot be read, or gives several scores for each pair.
    """
    from sentence_transformers import CrossEncoder

    model: CrossEncoder = load_model(
        CrossEncoder,
        config.required_checkpoint,
        config.dropout,
        weights,
        num_labels=None if has_head(config) else 1,
        max_length=config.max_length,
    )
    if model.num_labels != 1:
        raise ExamError(
            f"reranker.ckpt={config.ckpt} gives {model.num_labels} scores for each passage; a "
            "reranker gives one.\n"
            "Choose another checkpoint, such as cross-encoder/ms-marco-MiniLM-L6-v2."
        )
    return model


def rerank(
    questions: Dataset, contexts: Contexts, scorer: PairScorer, work: Path
) -> Iterator[list[Row]]:
    """Yield each question's best `depth` passages in their new order, as rows of the contexts file.

    With several queries for a question, a passage has the best of their scores. `work` holds scores
    in shards, so that an interrupted scoring continues.
    """
    config = scorer.config
    inputs = [
        (query_texts(question, config.query), contexts.get(question["id"], [])[: config.top_k])
        for question in questions.to_list()
    ]
    pairs = dict.fromkeys(
        (query, passage_text(passage))
        for queries, passages in inputs
        for query in queries
        for passage in passages
    )
    score = dict(zip(pairs, _score(list(pairs), scorer, work).tolist(), strict=True))
    for queries, passages in inputs:
        best = [max(score[query, passage_text(p)] for query in queries) for p in passages]
        yield reorder(passages, np.array(best), config.weight)


def reorder(passages: list[Row], scores: Floats, weight: float) -> list[Row]:
    """Sort a question's passages by `weight` × new score + (1 - weight) × first score.

    The scores have different units, so both are standardised over the question's passages.
    """
    first = np.array([passage["score"] for passage in passages], dtype=np.float64)
    blended = weight * standardize(scores) + (1 - weight) * standardize(first)
    order = np.argsort(-blended, kind="stable")
    return rank_rows((float(blended[i]), passages[i]) for i in order)


def standardize(scores: Floats) -> Floats:
    """Shift and scale scores to mean 0 and deviation 1; equal scores become 0."""
    spread = scores.std() if len(scores) else 0.0
    return (scores - scores.mean()) / spread if spread > 0 else np.zeros(len(scores))


def _score(pairs: list[Pair], scorer: PairScorer, work: Path) -> Floats:
    """Score distinct pairs, a shard at a time; read finished shards."""
    parts = [np.empty(0)]
    for start in range(0, len(pairs), PAIRS_PER_SHARD):
        shard = pairs[start : start + PAIRS_PER_SHARD]
        path = work / SCORES.format(digest(shard)[:16])
        if not checksum_matches(path):
            scores = scorer.scores(shard)
            with write_with_checksum(path) as temporary, temporary.open("wb") as file:
                np.save(file, scores, allow_pickle=False)
            truncated = count_truncated(shard, scorer.model, scorer.config.max_length)
            log_progress(
                log, "contexts: scored %d of %d pairs · truncated %d, by %d tokens in all",
                start + len(shard), len(pairs), *truncated,
            )  # fmt: skip
        parts.append(np.load(path, allow_pickle=False))
    return np.concatenate(parts)


def count_truncated(
    pairs: Sequence[Pair], model: "CrossEncoder", max_length: int
) -> tuple[int, int]:
    """Count the pairs that `max_length` truncates, and the tokens that it removes."""
    tokenizer: Any = model.tokenizer
    distinct = list(dict.fromkeys(text for pair in pairs for text in pair))
    ids = tokenizer(distinct, add_special_tokens=False, truncation=False, verbose=False)
    length = dict(zip(distinct, map(len, ids["input_ids"]), strict=True))
    special = tokenizer.num_special_tokens_to_add(pair=True)
    over = [max(0, length[a] + length[b] + special - max_length) for a, b in pairs]
    return sum(n > 0 for n in over), sum(over)
