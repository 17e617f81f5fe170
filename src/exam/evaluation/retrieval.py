"""Score and compare contexts without a neural reader, also over their depth.

Article recall saturates on small corpora. Answer support and the lexical reader's score on the
passages (*reader-free MAP@k*) tell retrievers apart.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from datasets import Dataset

from exam.core.artifacts import Stage
from exam.evaluation.results import ScoredSystem, format_pair, pair_systems
from exam.metrics import (
    Floats,
    average_precision,
    find_metric,
    metric_name,
    rank_options,
    recall_at_k,
    summarize,
    summarize_metric,
)
from exam.readers.lexical import compute_features, compute_logits, cross_fit, fit_weights
from exam.retrieval.contexts import (
    DEPTHS,
    Contexts,
    article_ranks,
    question_scores,
    read_contexts,
    read_idf,
    read_questions,
    read_support,
)
from exam.retrieval.idf import WORD_BUDGET

CURVES_UP_TO = 2000  # questions: beyond, fitting the lexical reader at every depth takes long
METRICS = (*(f"recall_at_{k}" for k in DEPTHS), "mrr", "supported")


@dataclass(frozen=True)
class RankedContexts:
    """A contexts stage, and the contexts that the lexical reader is fitted on.

    Attributes:
        stage: The contexts to score.
        k: Ranks of the right option that score; 1 is accuracy.
        fitted_on: Contexts of other questions; without them the reader is cross-fitted.
        among: Some of the stage's questions, if not all count.
    """

    stage: Stage
    k: int
    fitted_on: "RankedContexts | None" = None
    among: Dataset | None = None

    @property
    def name(self) -> str:
        """The stage's folder."""
        return self.stage.folder.name

    @cached_property
    def questions(self) -> Dataset:
        """The questions that count."""
        return read_questions(self.stage) if self.among is None else self.among

    @cached_property
    def answered(self) -> Dataset:
        """The questions that count and whose answer is known."""
        labels = self.questions["label"]
        return self.questions.select([i for i, label in enumerate(labels) if label is not None])

    @cached_property
    def contexts(self) -> Contexts:
        """Every ranked passage."""
        return read_contexts(self.stage)

    @property
    def deepest(self) -> int:
        """The number of passages in the longest ranking."""
        return max(map(len, self.contexts.values()), default=0)

    @cached_property
    def scores(self) -> dict[str, Floats]:
        """Each question's score by every metric that the questions allow."""
        options = self.questions["options"]
        support = read_support(self.stage, self.questions["id"]) or [
            [0.0] * len(o) for o in options
        ]
        scores = question_scores(self.questions, self.contexts, support)
        precision = self.precision(None, WORD_BUDGET)
        return scores if precision is None else {**scores, metric_name(self.k): precision}

    def scored(self, metric: str) -> ScoredSystem:
        """Return the questions' scores by one metric, under the stage's name."""
        return ScoredSystem(self.name, self.scores[metric], self.k)

    def features(self, top_k: int | None, budget: int | None) -> Floats:
        """Return lexical features of the answered questions."""
        contexts = {key: passages[:top_k] for key, passages in self.contexts.items()}
        return compute_features(self.answered, contexts, read_idf(self.stage), budget)

    def precision(self, top_k: int | None, budget: int | None) -> Floats | None:
        """Return each answered question's average precision; None if no reader can be fitted."""
        if not len(self.answered):
            return None
        features, labels = self.features(top_k, budget), np.array(self.answered["label"])
        if self.fitted_on is None:
            logits = cross_fit(self.answered, features)
        else:
            known = np.array(self.fitted_on.answered["label"])
            weights = fit_weights(self.fitted_on.features(top_k, budget), known)
            logits = compute_logits(features, weights)
        return None if logits is None else average_precision(rank_options(logits), labels, self.k)

    def curves(self) -> dict[str, list[dict[str, Any]]]:
        """Return recall at every depth, and reader-free MAP@k at some; passages count whole."""
        ranks = article_ranks(self.questions, self.contexts)
        depths = range(1, self.deepest + 1)
        precision = {depth: self.precision(depth, None) for depth in DEPTHS if depth in depths}
        recall = {depth: recall_at_k(ranks, depth) if len(ranks) else None for depth in depths}
        return {
            metric: [
                {"depth": depth, **summarize(values)}
                for depth, values in curve.items()
                if values is not None
            ]
            for metric, curve in (("recall", recall), (metric_name(self.k), precision))
        }


def rank_contexts(stage: Stage, k: int, fitted_on: Stage | None = None) -> RankedContexts:
    """Prepare a contexts stage for scoring; cross-fit if no other answers are known."""
    other = None if fitted_on is None else RankedContexts(fitted_on, k)
    return RankedContexts(stage, k, other if other and len(other.answered) else None)


def compare_contexts(systems: list[RankedContexts]) -> dict[str, Any]:
    """Return the content of results.json: every system's scores, and the first less each other."""
    first, *rest = systems
    return {
        "rows": [_row(system) for system in systems],
        "paired": [
            {"metric": metric, **pair_systems(first.scored(metric), other.scored(metric))}
            for other in rest
            for metric in first.scores
            if metric in other.scores
        ],
        "seconds": {s.name: round(s.stage.seconds, 1) for s in systems},
        "peak_mib": {s.name: round(s.stage.peak_mib) for s in systems},
    }


def _row(system: RankedContexts) -> dict[str, Any]:
    scores = {**system.scores}
    precision = scores.pop(metric_name(system.k), None)
    return {
        "system": system.name,
        **({} if precision is None else summarize_metric(precision, system.k)),
        "lexical_reader": "cross-fitted" if system.fitted_on is None else system.fitted_on.name,
        **{metric: summarize(values) for metric, values in scores.items()},
    }


def format_retrieval_table(results: dict[str, Any]) -> str:
    """Return a comparison as text: value ± half of the 95 % interval, and paired differences.

    The text has the differences in support and MAP@k; results.json has all.
    """
    rows = [(row["system"], _cells(row)) for row in results["rows"]]
    used = {metric for _, cells in rows for metric in cells}
    metric = find_metric(used)
    metrics = [*(name for name in METRICS if name in used), *([metric] if metric else [])]
    width = max(len(name) for name, _ in rows)
    heads = "".join(f"{name:>14}" for name in metrics)
    lines = [f"{'contexts':<{width}}{heads}  seconds     MiB"]
    for name, cells in rows:
        values = "".join(f"{cells.get(column, '–'):>14}" for column in metrics)
        cost = f"{results['seconds'][name]:>9.1f}{results['peak_mib'][name]:>8,}"
        lines.append(f"{name:<{width}}{values}{cost}")
    pairs = [pair for pair in results["paired"] if pair["metric"] in ("supported", metric)]
    lines += [f"{pair['metric']}: {format_pair(pair)}" for pair in pairs]
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> dict[str, str]:
    scores = {name: value for name, value in row.items() if isinstance(value, dict)}
    if metric := find_metric(row):
        scores[metric] = {"value": row[metric], "ci": row["ci"]}
    return {
        name: f"{v['value']:.3f} ±{(v['ci'][1] - v['ci'][0]) / 2:.3f}" for name, v in scores.items()
    }
