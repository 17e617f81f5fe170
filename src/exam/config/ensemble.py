"""Ensemble and cascade: how several readers' answers become one."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from omegaconf import MISSING

from exam.config.values import setting
from exam.core.errors import ExamError


class EnsembleKind(Enum):
    """The way to combine several readers' answers."""

    mean = "mean"
    rank = "rank"  # the mean rank
    vote = "vote"  # points for a reader's first choices
    max_over_contexts = "max_over_contexts"  # the greatest probability over one reader's contexts
    fitted = "fitted"  # the mean, with the weights of the best metric on held-out questions


class Scale(Enum):
    """The scores of a reader that are averaged."""

    probability = "probability"
    logit = "logit"


@dataclass
class Ensemble:
    """The combination of several readers' predictions."""

    name: str = setting(MISSING, "Name in messages and reports.")
    kind: EnsembleKind = setting(MISSING, "How the answers are combined.")
    space: Scale = setting(Scale.probability, "Which scores are averaged.")
    weights: list[float] | None = setting(None, "Weight of each member; null: equal.", minimum=0)
    vote_points: list[float] | None = setting(None, "vote: points by rank; null: 3, 2, 1.")
    fit_on: Any = setting(None, "fitted: labelled predictions, one for each member, in order.")
    seed: int = setting(0, "Seed of the fit.")

    def validate(self) -> None:
        """Refuse weights and held-out predictions that do not suit the kind."""
        is_fitted = self.kind is EnsembleKind.fitted
        if is_fitted != (self.fit_on is not None):
            state = "needs" if is_fitted else "does not use"
            raise ExamError(
                f"ensemble={self.name} {state} ensemble.fit_on.\nTo fit weights, give "
                "ensemble=fitted 'ensemble.fit_on=[<folder>,…]' with each reader's predictions "
                "of held-out questions."
            )
        if self.weights is not None and (is_fitted or sum(self.weights) <= 0):
            state = "chooses its weights" if is_fitted else "needs a weight above 0"
            raise ExamError(f"ensemble={self.name} {state}.\nLeave ensemble.weights out.")


@dataclass
class Cascade:
    """Escalation: each further reader answers only the least certain questions."""

    escalate_fraction: Any = setting(None, "Share of questions to escalate.", minimum=0, maximum=1)
    threshold: float | None = setting(None, "Escalate if the best probability is lower.")
