"""Fine-tune a cross-encoder or a sentence encoder with sentence-transformers' own Trainers."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from sentence_transformers import (
    CrossEncoder,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss, LambdaLoss
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import Trainer, set_seed

from exam.config import Dtype, Encoder, PairLoss, Query, Task, Train, trainer_values
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
from exam.retrieval.encoder import SentenceEncoder
from exam.retrieval.evaluation import Contexts, option_support, question_scores
from exam.retrieval.mining import Example, mine_pairs
from exam.retrieval.queries import query_texts
from exam.retrieval.reranker import Pair, PairScorer, reorder

log = logging.getLogger(__name__)

METRIC = "support"  # chooses the checkpoint: finer than the share of supported questions
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
Scorer = Callable[[Sequence[Pair]], Floats]
# A model, how it scores, and its Trainer given an evaluator.
Tuned = tuple[CrossEncoder | SentenceTransformer, Scorer, Callable[[BaseEvaluator | None], Trainer]]


class RerankerArguments(SingleDeviceArguments, CrossEncoderTrainingArguments):
    """Training arguments of a cross-encoder."""


class EncoderArguments(SingleDeviceArguments, SentenceTransformerTrainingArguments):
    """Training arguments of a sentence encoder."""


class RankingEvaluator(BaseEvaluator):
    """Scores the dev questions' rankings, reordered by the model in training.

    `support` is the mean support of the right options by the best passages; `supported` is the
    share of questions above the threshold.
    """

    def __init__(
        self,
        questions: Dataset,
        contexts: Contexts,
        idf: dict[str, float],
        query: Query,
        weight: float,
        scorer: Scorer,
    ) -> None:
        """Store the inputs of every evaluation; `scorer` holds the model in training."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.questions, self.contexts, self.idf = questions, contexts, idf
        self.query, self.weight, self.scorer = query, weight, scorer

    def __call__(self, model: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Return the figures of the model's ranking."""
        return self.figures(self.scores(), self.weight)

    def scores(self) -> list[Floats]:
        """Return the model's scores of each question's passages."""
        pairs: list[Pair] = []
        for question in self.questions:
            (query,) = query_texts(question, self.query)
            pairs += [(query, passage_text(p)) for p in self.contexts.get(question["id"], [])]
        sizes = [len(self.contexts.get(key, [])) for key in self.questions["id"]]
        return np.split(self.scorer(pairs), np.cumsum(sizes)[:-1])

    def figures(self, scores: list[Floats], weight: float) -> dict[str, float]:
        """Return the figures of the rankings by some scores."""
        ranked = {
            key: reorder(self.contexts.get(key, []), new, weight)
            for key, new in zip(self.questions["id"], scores, strict=True)
        }
        support = option_support(self.questions, ranked, self.idf)
        scored = question_scores(self.questions, ranked, support)
        right = [s[label] for s, label in zip(support, self.questions["label"], strict=True)]
        figures = {METRIC: float(np.mean(right))}
        for name in ("supported", "mrr"):
            if name in scored:
                figures[name] = float(np.mean(scored[name]))
        return figures


def tune(
    config: Train, split: Split, contexts: Contexts, idf: dict[str, float], folder: Path
) -> dict[str, Any]:
    """Train the reranker or the encoder, and save it below `folder`.

    Returns the dev questions' figures by weight of the new ranking (0: the first ranking alone).
    """
    set_seed(config.seed)  # a new head starts from random weights
    query = config.reranker.query if config.task is Task.reranker else config.retriever.query
    examples = mine_pairs(split.train, contexts, idf, config.training_pairs, query, config.seed)
    depth = (
        config.reranker.top_k if config.task is Task.reranker else config.training_pairs.max_rank
    )
    best = {key: passages[:depth] for key, passages in contexts.items()}
    prepare = _reranker if config.task is Task.reranker else _encoder
    model, scorer, build_trainer = prepare(config, examples, folder)
    weight = config.reranker.weight if config.task is Task.reranker else 1.0
    evaluator = RankingEvaluator(split.dev, best, idf, query, weight, scorer)
    trainer = build_trainer(evaluator if len(split.dev) else None)
    add_callbacks(trainer)
    figures = fit(trainer)
    log.debug("train: %s", " · ".join(f"{k} {v}" for k, v in figures.items()))
    # Without a model card, which differs between equal runs: the files identify the model.
    model.save_pretrained(str(folder / MODEL), create_model_card=False)
    return _by_weight(evaluator) if len(split.dev) else {}


def _by_weight(evaluator: RankingEvaluator) -> dict[str, dict[str, float]]:
    """Return the dev figures of every blend of the first ranking and the model's."""
    scores = evaluator.scores()
    by_weight = {str(weight): evaluator.figures(scores, weight) for weight in WEIGHTS}
    for weight, figures in by_weight.items():
        text = " · ".join(f"{name} {value:.3f}" for name, value in figures.items())
        log.info("dev: weight %s · %s", weight, text)
    return by_weight


def _reranker(config: Train, examples: list[Example], folder: Path) -> Tuned:
    """Prepare the training of the cross-encoder."""
    scorer = PairScorer(replace(config.reranker, dtype=Dtype.float32))
    model = scorer.model
    lists = config.training_pairs.loss is PairLoss.lambda_loss
    loss = LambdaLoss(model) if lists else BinaryCrossEntropyLoss(model)
    arguments = build_training_arguments(
        RerankerArguments,
        trainer_values(config.trainer),
        folder / CHECKPOINTS,
        config.seed,
        METRIC,
    )

    def trainer(evaluator: BaseEvaluator | None) -> Trainer:
        return CrossEncoderTrainer(
            model=model,
            args=arguments,
            train_dataset=_lists(examples) if lists else _labelled(examples),
            loss=loss,
            evaluator=evaluator,
        )

    return model, scorer.scores, trainer


def _encoder(config: Train, examples: list[Example], folder: Path) -> Tuned:
    """Prepare the training of the sentence encoder."""
    settings = replace(config.encoder, dtype=Dtype.float32)
    encoder = SentenceEncoder(settings)
    model = encoder.model
    arguments = build_training_arguments(
        EncoderArguments,
        trainer_values(config.trainer),
        folder / CHECKPOINTS,
        config.seed,
        METRIC,
        batch_sampler="no_duplicates",  # a passage twice in a batch would be its own negative
    )

    def trainer(evaluator: BaseEvaluator | None) -> Trainer:
        return SentenceTransformerTrainer(
            model=model,
            args=arguments,
            train_dataset=_triplets(examples, settings, config.training_pairs.num_negatives),
            loss=MultipleNegativesRankingLoss(model),
            evaluator=evaluator,
        )

    def cosines(pairs: Sequence[Pair]) -> Floats:
        queries = encoder.queries([query for query, _ in pairs])
        passages = encoder.passages([passage for _, passage in pairs])
        return np.asarray((queries * passages).sum(axis=1), dtype=np.float64)

    return model, cosines, trainer


def _labelled(examples: list[Example]) -> Dataset:
    """Return one row a pair, for losses over single passages."""
    return Dataset.from_list(
        [
            {"query": example.query, "passage": passage, "label": label}
            for example in examples
            for passage, label in zip(example.passages, example.labels, strict=True)
        ]
    )


def _lists(examples: list[Example]) -> Dataset:
    """Return one row a question, for losses over the order of its passages."""
    return Dataset.from_list(
        [{"query": e.query, "passages": e.passages, "labels": e.labels} for e in examples]
    )


def _triplets(examples: list[Example], settings: Encoder, negatives: int) -> Dataset:
    """Return one row a positive, with hard negatives, which repeat if there are too few."""
    rows = []
    for example in examples:
        hard = [settings.passage_prefix + text for text in example.passages[example.positives :]]
        rows += [
            {
                "query": settings.query_prefix + example.query,
                "positive": settings.passage_prefix + positive,
                **{f"negative_{i}": hard[i % len(hard)] for i in range(negatives)},
            }
            for positive in example.passages[: example.positives]
        ]
    return Dataset.from_list(rows)
