"""Several readers' answers made into one, by weights that may be fitted on held-out answers."""

import logging
from typing import Any

import numpy as np

from exam.config import Ensemble, EnsembleKind, Infer, names, plain
from exam.core.errors import ExamError
from exam.evaluation.ensemble import FittedWeights, combine, fit_weights, has_enough_questions
from exam.evaluation.predictions import Predictions
from exam.evaluation.results import Run, ScoredSystem, build_results, metric_key, score_logits
from exam.metrics import Floats
from exam.pipelines.infer import Answered
from exam.pipelines.members import Member, aligned_members, numbered_names, saved
from exam.pipelines.outcome import Outcome, finish

log = logging.getLogger(__name__)


def together(infer: Infer, members: list[Member], k: int, asked: Answered | None = None) -> Run:
    """The members' answers made into one, scored beside them where answers are known."""
    ensemble: Any = infer.ensemble
    members = aligned_members(members)
    logits = [m.found.logits for m in members]
    key = {"members": [m.hash for m in members], "ensemble": plain(ensemble), **metric_key(k)}
    weights, fitted = ensemble.weights, None
    if ensemble.kind is EnsembleKind.fitted:
        held_out = saved(names(ensemble.fit_on))
        key["fit_on"] = [m.hash for m in held_out]
        weights, fitted = _fitted(ensemble, members, held_out, k)
    mean = combine(logits, Ensemble("mean", EnsembleKind.mean))
    found = combine(logits, ensemble, weights)
    return finish(infer, Outcome(ensemble.name, members, found, key, k, mean, fitted), asked)


def _fitted(
    ensemble: Ensemble, members: list[Member], held_out: list[Member], k: int
) -> tuple[list[float], dict[str, Any]]:
    """Weights that raise MAP@k most on held-out questions, and what that choice is worth.

    Raises:
        ExamError: the held-out predictions have no answers, or are of the questions that are asked.
    """
    held_out = aligned_members(held_out)
    labels = held_out[0].found.known
    same = _same_questions(held_out[0].found, members[0].found)
    if labels is None or same:
        state = f"question {min(same)!r} is asked" if same else "answers are missing"
        raise ExamError(
            f"ensemble.fit_on={held_out[0].source}: {state}.\n"
            "Weights are chosen on answered questions that are not those asked."
        )
    known = np.array(labels)
    logits = [m.found.logits for m in held_out]
    if not has_enough_questions(len(members), len(known)):
        log.warning(
            "ensemble: %d weights from %d questions: too few to trust; see the nested score",
            len(members),
            len(known),
        )
    chosen = fit_weights(logits, known, k, ensemble.seed)
    readers = numbered_names(members)
    weights = dict(zip(readers, chosen.weights, strict=True))
    worth = _worth(readers, logits, labels, chosen, k)
    return chosen.weights, {"fitted": {"weights": weights, **worth}}


def _worth(
    readers: list[str], logits: list[Floats], labels: list[int], chosen: FittedWeights, k: int
) -> dict[str, Any]:
    """A table of the held-out questions: each reader, equal weights, the chosen ones."""
    each = [
        score_logits(name, values, labels, k) for name, values in zip(readers, logits, strict=True)
    ]
    best = max(each, key=lambda system: float(system.scores.mean()))
    equal = combine(logits, Ensemble("mean", EnsembleKind.mean))
    nested = ScoredSystem("fitted, weights from other folds (honest)", chosen.nested, k)
    rows = [
        *each,
        score_logits("mean (equal weights)", equal, labels, k),
        ScoredSystem("fitted, weights from the same questions (optimistic)", chosen.optimistic, k),
        nested,
    ]
    found = build_results(rows, [(nested, best), (nested, rows[-3])], [])
    return {"rows": found["rows"], "paired": found["paired"]}


def _same_questions(held_out: Predictions, asked: Predictions) -> set[str]:
    """Ids that both have, unless their answers tell that they are other questions.

    Files number their questions alike: an id alone does not make two of them one.
    """
    known, answers_ = (dict(zip(one.ids, one.labels, strict=True)) for one in (held_out, asked))
    shared = known.keys() & answers_.keys()
    return shared if all(known[key] == answers_[key] for key in shared) else set()
