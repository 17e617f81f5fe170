"""Ensemble and cascade: how several readers' answers become one."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from omegaconf import MISSING


class EnsembleKind(Enum):
    """How several readers' answers become one."""

    mean = "mean"
    rank = "rank"  # the mean place
    vote = "vote"  # points for a reader's first choices
    max_over_contexts = (
        "max_over_contexts"  # the greatest probability, of one reader's context sets
    )
    fitted = "fitted"  # the mean by weights that raise MAP@3 on held-out questions most


class Scale(Enum):
    """What of a reader is averaged."""

    probability = "probability"
    logit = "logit"


@dataclass
class Ensemble:
    """How several readers' predictions become one answer."""

    name: str = MISSING
    kind: EnsembleKind = MISSING
    of: Scale = Scale.probability
    weights: list[float] | None = None  # one a member; null: equal ones
    points: list[float] | None = None  # of a voter's choices, best first; null: 3, 2, 1
    fit_on: Any = None  # predictions with answers, one a member and in their order: `fitted` alone
    seed: int = 0


@dataclass
class Cascade:
    """Every further reader answers only what those before it are least sure of."""

    share: Any = None  # of all questions, for each further reader; or
    threshold: float | None = None  # asked further where the best option has less probability
