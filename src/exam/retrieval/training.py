"""Fine-tune a cross-encoder or a sentence encoder with the Trainers of sentence-transformers."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss, LambdaLoss
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import set_seed

from exam.config import Dtype, PairLoss, Query, Task, Train, trainer_values
from exam.core.checkpoints import MODEL
from exam.core.trainer import (
    CHECKPOINTS,
    SingleDeviceArguments,
    add_callbacks,
    build_training_arguments,
    fit,
)
from exam.data.splits import Split
from exam.metrics import Floats
from exam.retrieval.chunking import passage_text
from exam.retrieval.contexts import Contexts, option_support, question_scores
from exam.retrieval.encoder import SentenceEncoder
from exam.retrieval.mining import Example, mine_pairs
from exam.retrieval.queries import query_texts, split_by_group
from exam.retrieval.reranker import Pair, PairScorer, reorder

log = logging.getLogger(__name__)

METRIC = "support"  # selects the checkpoint: finer than the share of supported questions
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
Scorer = Callable[[Sequence[Pair]], Floats]
Preparation = tuple[Scorer, Callable[..., Any]]  # and the Trainer, which lacks its evaluator


class RerankerArguments(SingleDeviceArguments, CrossEncoderTrainingArguments):
    """Training arguments of a cross-encoder."""


class EncoderArguments(SingleDeviceArguments, SentenceTransformerTrainingArguments):
    """Training arguments of a sentence encoder."""


@dataclass(eq=False)
class RankingEvaluator(BaseEvaluator):
    """Reorders the dev questions' passages by the model in training, and scores the rankings.

    `support` is the mean support of the right options by the best passages; `supported` is the
    share of questions above the threshold.
    """

    questions: Dataset
    contexts: Contexts
    idf: dict[str, float]
    query: Query
    weight: float
    scorer: Scorer  # holds the model in training

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __call__(self, model: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Return the figures of the model's ranking."""
        return self.figures(self.scores(), self.weight)

    def scores(self) -> list[Floats]:
        """Return the model's scores of each question's passages."""
        pairs = [
            [(text, passage_text(p)) for p in self.contexts.get(question["id"], [])]
            for question in self.questions
            for text in query_texts(question, self.query)  # one: the command refuses per_option
        ]
        return split_by_group(self.scorer(list(chain.from_iterable(pairs))), pairs)

    def figures(self, scores: list[Floats], weight: float) -> dict[str, float]:
        """Return the figures of the rankings that blend in `scores` by `weight`."""
        ranked = {
            key: reorder(self.contexts.get(key, []), new, weight)
            for key, new in zip(self.questions["id"], scores, strict=True)
        }
        support = option_support(self.questions, ranked, self.idf)
        scored = question_scores(self.questions, ranked, support)
        right = [s[label] for s, label in zip(support, self.questions["label"], strict=True)]
        names = [name for name in ("supported", "mrr") if name in scored]
        return {METRIC: float(np.mean(right)), **{n: float(np.mean(scored[n])) for n in names}}


def tune(
    config: Train, split: Split, contexts: Contexts, idf: dict[str, float], folder: Path
) -> dict[str, Any]:
    """Train the reranker or the encoder, and save it below `folder`.

    Returns the dev questions' figures by weight of the new ranking (0: only the first ranking).
    """
    set_seed(config.seed)  # a new head starts from random weights
    is_reranker = config.task is Task.reranker
    query = config.reranker.query if is_reranker else config.retriever.query
    examples = mine_pairs(split.train, contexts, idf, config.training_pairs, query, config.seed)
    depth = config.reranker.top_k if is_reranker else config.training_pairs.max_rank
    best = {key: passages[:depth] for key, passages in contexts.items()}
    prepare = _prepare_reranker if is_reranker else _prepare_encoder
    scorer, make_trainer = prepare(config, examples, folder / CHECKPOINTS)
    weight = config.reranker.weight if is_reranker else 1.0
    evaluator = RankingEvaluator(split.dev, best, idf, query, weight, scorer)
    trainer = make_trainer(evaluator=evaluator if len(split.dev) else None)
    add_callbacks(trainer)
    figures = fit(trainer)
    log.debug("train: %s", " · ".join(f"{k} {v}" for k, v in figures.items()))
    # Without a model card, which differs between equal runs: the files identify the model.
    trainer.model.save_pretrained(str(folder / MODEL), create_model_card=False)
    return _score_weights(evaluator) if len(split.dev) else {}


def _score_weights(evaluator: RankingEvaluator) -> dict[str, dict[str, float]]:
    """Return the dev figures of every blend of the first ranking and the model's."""
    scores = evaluator.scores()
    by_weight = {str(weight): evaluator.figures(scores, weight) for weight in WEIGHTS}
    for weight, figures in by_weight.items():
        text = " · ".join(f"{name} {value:.3f}" for name, value in figures.items())
        log.info("dev: weight %s · %s", weight, text)
    return by_weight


def _prepare_reranker(config: Train, examples: list[Example], checkpoints: Path) -> Preparation:
    scorer = PairScorer(replace(config.reranker, dtype=Dtype.float32))
    is_listwise = config.training_pairs.loss is PairLoss.lambda_loss
    loss = LambdaLoss if is_listwise else BinaryCrossEntropyLoss
    return scorer.scores, partial(
        CrossEncoderTrainer,
        model=scorer.model,
        args=build_training_arguments(
            RerankerArguments, trainer_values(config.trainer), checkpoints, config.seed, METRIC
        ),
        train_dataset=(_lists if is_listwise else _label_pairs)(examples),
        loss=loss(scorer.model),
    )


def _prepare_encoder(config: Train, examples: list[Example], checkpoints: Path) -> Preparation:
    settings = replace(config.encoder, dtype=Dtype.float32)
    encoder = SentenceEncoder(settings)

    def cosines(pairs: Sequence[Pair]) -> Floats:
        queries = encoder.queries([query for query, _ in pairs])
        passages = encoder.passages([passage for _, passage in pairs])
        return np.asarray((queries * passages).sum(axis=1), dtype=np.float64)

    return cosines, partial(
        SentenceTransformerTrainer,
        model=encoder.model,
        args=build_training_arguments(
            EncoderArguments,
            trainer_values(config.trainer),
            checkpoints,
            config.seed,
            METRIC,
            batch_sampler="no_duplicates",  # a repeated passage would be a negative of its query
        ),
        train_dataset=_triplets(examples, encoder, config.training_pairs.num_negatives),
        loss=MultipleNegativesRankingLoss(encoder.model),
    )


def _label_pairs(examples: list[Example]) -> Dataset:
    """Return one row for each pair, for losses over single passages."""
    return Dataset.from_list(
        [
            {"query": example.query, "passage": passage, "label": label}
            for example in examples
            for passage, label in zip(example.passages, example.labels, strict=True)
        ]
    )


def _lists(examples: list[Example]) -> Dataset:
    """Return one row for each question, for losses over the order of its passages."""
    return Dataset.from_list(
        [{"query": e.query, "passages": e.passages, "labels": e.labels} for e in examples]
    )


def _triplets(examples: list[Example], encoder: SentenceEncoder, negatives: int) -> Dataset:
    """Return one row for each positive, with hard negatives, which repeat if there are too few."""
    rows = []
    for example in examples:
        hard = [encoder.passage_prefix + text for text in example.passages[example.positives :]]
        rows += [
            {
                "query": encoder.query_prefix + example.query,
                "positive": encoder.passage_prefix + positive,
                **{f"negative_{i}": hard[i % len(hard)] for i in range(negatives)},
            }
            for positive in example.passages[: example.positives]
        ]
    return Dataset.from_list(rows)
