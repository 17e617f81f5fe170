"""The questions a reader is least sure of go to a dearer one."""

from typing import Any

import numpy as np

from exam.config import Cascade
from exam.evaluation.predictions import probabilities
from exam.metrics import Floats, Ints, average_precision, figures, ranking

SHARES = np.linspace(0, 1, 21)


def doubt(logits: Floats) -> Floats:
    """How much probability each question's best option lacks, shape `(questions,)`."""
    lacking: Floats = 1 - probabilities(logits).max(axis=1)
    return lacking


def unsure(logits: Floats, cascade: Cascade, stage: int) -> Ints:
    """Rows that the reader of number `stage` (from 1) is asked, in their order.

    Those with least probability for their best option: a share of all questions, or all below the
    threshold.
    """
    lacking = doubt(logits)
    if cascade.threshold is not None:
        return np.flatnonzero(1 - lacking < cascade.threshold)
    share = (
        cascade.escalate_fraction[stage - 1]
        if isinstance(cascade.escalate_fraction, list)
        else cascade.escalate_fraction
    )
    return least_sure(lacking, share)


def least_sure(lacking: Floats, share: float) -> Ints:
    """Rows of a share of all questions, those with most doubt; equal ones as they come."""
    return np.sort(np.argsort(-lacking, kind="stable")[: round(share * len(lacking))])


def replaced(logits: Floats, rows: Ints, by: Floats) -> Floats:
    """Logits with some questions' replaced by a further reader's, which may have fewer options."""
    found = logits.copy()
    found[rows] = -np.inf
    found[rows, : by.shape[1]] = by
    return found


def curve(cheap: Floats, dear: Floats, labels: Ints, seconds: tuple[float, float]) -> list[Any]:
    """MAP@3 and seconds a question, over the share of questions that the dearer reader is asked."""
    lacking, found = doubt(cheap), []
    for share in SHARES:
        rows = least_sure(lacking, float(share))
        logits = replaced(cheap, rows, dear[rows])
        own = figures(average_precision(ranking(logits), labels))
        cost = seconds[0] + seconds[1] * len(rows) / len(labels)
        found.append(
            {
                "share": float(share),
                "n": own["n"],
                "map_at_3": own["value"],
                "ci": own["ci"],
                "seconds_a_question": cost,
            }
        )
    return found
