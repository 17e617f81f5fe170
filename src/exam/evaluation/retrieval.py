"""Contexts scored without a neural reader, compared in pairs, and drawn over depth.

Article recall saturates on small corpora; answer support and what the lexical reader gets out of
the passages (*reader-free MAP@3*) tell retrievers apart.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from datasets import Dataset

from exam.core.artifacts import Stage
from exam.evaluation.results import System, paired, shown_pair
from exam.metrics import Floats, average_precision, figures, ranking, recall_at_k
from exam.readers.lexical import compute_features, compute_logits, cross_fit, fit_weights
from exam.retrieval.contexts import read_contexts, read_idf, read_questions, read_support
from exam.retrieval.evaluation import DEPTHS, Contexts, article_ranks, question_scores
from exam.retrieval.idf import WORD_BUDGET

MAP = "map_at_3"
CURVES_UP_TO = 2000  # questions: beyond, fitting the lexical reader at every depth takes long
METRICS = (*(f"recall_at_{k}" for k in DEPTHS), "mrr", "supported", MAP)
PRINTED = ("supported", MAP)  # of the paired differences; the JSON has all


@dataclass(frozen=True)
class Ranked:
    """A contexts stage and what the lexical reader is fitted on.

    That is the contexts of other questions or, without them, the other folds of the same ones.
    """

    stage: Stage
    fitted_on: "Ranked | None" = None
    among: Dataset | None = None  # some of its questions, where not all count

    @property
    def name(self) -> str:
        """The stage's folder."""
        return self.stage.folder.name

    @cached_property
    def questions(self) -> Dataset:
        """The questions that passages were ranked for, or those of them that count."""
        return read_questions(self.stage) if self.among is None else self.among

    @cached_property
    def answered(self) -> Dataset:
        """Those of them whose answer is known."""
        labels = self.questions["label"]
        return self.questions.select([i for i, label in enumerate(labels) if label is not None])

    @cached_property
    def contexts(self) -> Contexts:
        """Every ranked passage."""
        return read_contexts(self.stage)

    @property
    def deepest(self) -> int:
        """How many passages the longest ranking has."""
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
        return scores if precision is None else {**scores, MAP: precision}

    def features(self, top_k: int | None, budget: int | None) -> Floats:
        """Lexical features of the answered questions."""
        contexts = {key: passages[:top_k] for key, passages in self.contexts.items()}
        return compute_features(self.answered, contexts, read_idf(self.stage), budget)

    def precision(self, top_k: int | None, budget: int | None) -> Floats | None:
        """Each answered question's average precision; None when no reader can be fitted."""
        if not len(self.answered):
            return None
        features, labels = self.features(top_k, budget), np.array(self.answered["label"])
        if self.fitted_on is None:
            logits = cross_fit(self.answered, features)
        else:
            known = np.array(self.fitted_on.answered["label"])
            weights = fit_weights(self.fitted_on.features(top_k, budget), known)
            logits = compute_logits(features, weights)
        return None if logits is None else average_precision(ranking(logits), labels)

    @cached_property
    def curves(self) -> dict[str, dict[int, Floats]]:
        """Recall at every depth; MAP@3 of the best k passages, however long, at some depths."""
        ranks = article_ranks(self.questions, self.contexts)
        depths = [k for k in DEPTHS if k <= self.deepest]
        precision = {k: self.precision(k, None) for k in depths}
        recall = {k: recall_at_k(ranks, k) for k in range(1, self.deepest + 1)}
        return {
            "recall": recall if len(ranks) else {},
            MAP: {k: values for k, values in precision.items() if values is not None},
        }


def ranked(stage: Stage, fitted_on: Stage | None = None) -> Ranked:
    """A contexts stage to be scored; the reader is cross-fitted where no other answer is known."""
    others = None if fitted_on is None else Ranked(fitted_on)
    return Ranked(stage, others if others and len(others.answered) else None)


def comparison(systems: list[Ranked]) -> dict[str, Any]:
    """The content of results.json: every system's figures, and the first less each other one."""
    first, *others = systems
    return {
        "rows": [_row(system) for system in systems],
        "paired": [
            {"metric": metric, **paired(System(first.name, values), System(other.name, theirs))}
            for other in others
            for metric, values in first.scores.items()
            if (theirs := other.scores.get(metric)) is not None
        ],
        "seconds": {s.name: round(s.stage.seconds, 1) for s in systems},
        "peak_mib": {s.name: round(s.stage.peak_mib) for s in systems},
    }


def curves(systems: list[Ranked]) -> dict[str, Any]:
    """Every system's figures over depth."""
    return {
        system.name: {
            metric: [{"depth": k, **figures(values)} for k, values in curve.items()]
            for metric, curve in system.curves.items()
        }
        for system in systems
    }


def _row(system: Ranked) -> dict[str, Any]:
    found = {metric: figures(values) for metric, values in system.scores.items()}
    last = found.pop(MAP, None)
    own = {} if last is None else {"n": last["n"], MAP: last["value"], "ci": last["ci"]}
    fitted_on = "cross-fitted" if system.fitted_on is None else system.fitted_on.name
    return {"system": system.name, **own, "lexical_reader": fitted_on, **found}


def table(found: dict[str, Any]) -> str:
    """A comparison as plain text: value ± half of the 95 % interval, and paired differences."""
    rows = [(row["system"], _cells(row)) for row in found["rows"]]
    metrics = [metric for metric in METRICS if any(metric in cells for _, cells in rows)]
    width = max(len(name) for name, _ in rows)
    heads = "".join(f"{metric:>14}" for metric in metrics)
    lines = [f"{'contexts':<{width}}{heads}  seconds     MiB"]
    for name, cells in rows:
        values = "".join(f"{cells.get(metric, '–'):>14}" for metric in metrics)
        cost = f"{found['seconds'][name]:>9.1f}{found['peak_mib'][name]:>8,}"
        lines.append(f"{name:<{width}}{values}{cost}")
    shown = [pair for pair in found["paired"] if pair["metric"] in PRINTED]
    lines += [f"{pair['metric']}: {shown_pair(pair)}" for pair in shown]
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> dict[str, str]:
    found = {name: value for name, value in row.items() if isinstance(value, dict)}
    if MAP in row:
        found[MAP] = {"value": row[MAP], "ci": row["ci"]}
    return {
        name: f"{v['value']:.3f} ±{(v['ci'][1] - v['ci'][0]) / 2:.3f}" for name, v in found.items()
    }
