"""One reader after the other: each further one answers what those before are least sure of."""

import logging
from dataclasses import replace
from typing import Any

import numpy as np

from exam.config import Bundle, Infer, plain
from exam.evaluation.ensemble import cascade_curve, merge_logits, select_uncertain
from exam.evaluation.results import Run, metric_key
from exam.metrics import Floats
from exam.pipelines.infer import Answered, answer
from exam.pipelines.members import Member, aligned_members, member_of
from exam.pipelines.outcome import Outcome, finish

log = logging.getLogger(__name__)


def cascades(infer: Infer | Bundle) -> bool:
    """Whether readers are asked one after the other."""
    return infer.cascade.share is not None or infer.cascade.threshold is not None


def cascaded(infer: Infer, variants: list[Infer], k: int) -> Run:
    """The first reader answers all questions, each further one those least sure so far."""
    first = answer(variants[0])
    member = member_of(first)
    members, logits, asked = [member], member.found.logits, []
    for number, variant in enumerate(variants[1:], 1):
        rows = select_uncertain(logits, infer.cascade, number)
        asked.append(len(rows))
        log.info("cascade: %d of %d questions asked further", len(rows), len(logits))
        if not len(rows):
            continue
        further = member_of(answer(variant, rows))
        logits = merge_logits(logits, rows, further.found.logits)
        members.append(replace(further, found=replace(member.found, logits=logits)))
    return _finish(infer, members, logits, k, {"asked_further": asked}, first)


def cascaded_before(infer: Infer, members: list[Member], k: int) -> Run:
    """The same of what every reader has already answered, and what other shares would give."""
    members = aligned_members(members)
    logits, asked = members[0].found.logits, []
    for number, member in enumerate(members[1:], 1):
        rows = select_uncertain(logits, infer.cascade, number)
        asked.append(len(rows))
        logits = merge_logits(logits, rows, member.found.logits[rows])
    explained: dict[str, Any] = {"asked_further": asked}
    labels = members[0].found.known
    if labels is not None:
        cheap, expensive = members[:2]
        costs = cheap.seconds, expensive.seconds
        explained["curve"] = cascade_curve(
            cheap.found.logits, expensive.found.logits, np.array(labels), costs, k
        )
    return _finish(infer, members, logits, k, explained, None)


def _finish(
    infer: Infer,
    members: list[Member],
    logits: Floats,
    k: int,
    explained: dict[str, Any],
    asked: Answered | None,
) -> Run:
    """Write and score the cascade's answers."""
    hashes = [member.hash for member in members]
    key = {"members": hashes, "cascade": plain(infer.cascade), **metric_key(k)}
    outcome = Outcome("cascade", members, logits, key, k, explained=explained)
    return finish(infer, outcome, asked)
