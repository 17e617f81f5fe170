"""`infer.py`: what runs make of questions, each by itself, together, or one after the other."""

import logging
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from exam import ranks
from exam.answers.cascade import curve, plot, replaced, unsure
from exam.answers.ensemble import carries, combined, fit_weights
from exam.answers.predictions import (
    Predictions,
    aligned,
    read_all,
    write_predictions,
)
from exam.answers.results import System, baselines, blind, of_logits, results, table
from exam.answers.scored import PREDICTIONS, Run, answers, report
from exam.artefacts import Stage, finished, shared_stage
from exam.compose import GROUPS, composed, with_prefix
from exam.config import (
    Bundle,
    Ensemble,
    EnsembleKind,
    Infer,
    names,
    plain,
)
from exam.errors import ExamError
from exam.files import file_digest, read_json, write_json
from exam.inference import SUBMISSION, Answered, answer, submit
from exam.metrics import Floats
from exam.report.page import REPORT
from exam.report.run import write_results
from exam.retrieval.contexts import read_support
from exam.runs import RESULTS, run_files
from exam.runtime import say

log = logging.getLogger(__name__)

CURVE = "cascade.png"


@dataclass(frozen=True)
class Member:
    """What one reader made of the questions, and where that came from."""

    name: str
    found: Predictions
    source: str  # a folder or file, for messages
    hash: str
    seconds: float = 0.0  # a question
    stages: tuple[Stage, ...] = ()


def answered(infer: Infer) -> Run:
    """A run's reader answers other questions; several runs, or passes, answer them together."""
    if infer.predictions is not None:
        members = _saved(names(infer.predictions))
        check_readers(infer, len(members))
        made = _cascaded_before if infer.ensemble is None else _together
        return made(infer, members)
    variants = [
        _with(replace(infer, ckpt=ckpt), overrides)
        for ckpt in names(infer.ckpt)
        for overrides in infer.passes or [""]
    ]
    if len(variants) == 1 and infer.ensemble is None and not _cascades(infer):
        return _single(variants[0])
    check_readers(infer, len(variants))
    if _cascades(infer):
        return _cascaded(infer, variants)
    each = [answer(variant) for variant in variants]
    return _together(infer, [_member(one) for one in each], each[0])


def check_readers(infer: Infer | Bundle, readers: int) -> None:
    """Refuse, before any of them answers, several readers that nothing makes one.

    Raises:
        ExamError: neither ensemble nor cascade is given, or not as many weights, shares or held-out
            predictions as the readers need, or there is a single reader.
    """
    ensemble, share = infer.ensemble, infer.cascade.share
    if _cascades(infer):
        if readers < 2 or (isinstance(share, list) and len(share) != readers - 1):
            raise ExamError(
                f"cascade.share={share} is given for {readers} readers.\n"
                "Give two readers or more, and one share for each but the first."
            )
        return
    if ensemble is None or readers < 2:
        given = "no ensemble" if ensemble is None else f"ensemble={ensemble.name}"
        raise ExamError(
            f"{readers} readers are given, and {given}.\n"
            "Give two or more, and how they become one: ensemble=mean, rank, vote, "
            "max_over_contexts or fitted."
        )
    if ensemble.weights is not None and len(ensemble.weights) != readers:
        raise ExamError(
            f"ensemble.weights gives {len(ensemble.weights)} weights for {readers} readers.\n"
            "Give one for each, in their order."
        )
    if ensemble.kind is EnsembleKind.fitted:
        held_out = len(_saved(names(ensemble.fit_on)))
        if held_out != readers:
            raise ExamError(
                f"ensemble.fit_on gives {held_out} predictions for {readers} readers.\n"
                "Give each reader's predictions of questions it was not trained on, in their "
                "order: folders that train.py data.fold=all wrote."
            )


def _single(infer: Infer) -> Run:
    done = answer(infer)
    say(str(done.stage.folder / SUBMISSION))
    if (done.stage.folder / RESULTS).is_file():
        return report(done.stage, done.questions, done.contexts, done.before)
    return Run(done.stage, [*done.before, done.stage], [])


def _with(infer: Infer, overrides: str) -> Infer:
    """The command with further overrides of its own, as they are given to it."""
    if not overrides:
        return infer
    try:
        words = shlex.split(overrides)
    except ValueError as error:
        raise ExamError(
            f"passes={overrides!r} cannot be read: {error}.\n"
            "Write every pass as on the command line, its quotes closed."
        ) from None
    given: Infer = composed("infer", f"ckpt={infer.ckpt}", *map(with_prefix, words))
    groups: dict[str, Any] = {name: getattr(given, name) or getattr(infer, name) for name in GROUPS}
    run: Any = OmegaConf.to_container(OmegaConf.merge(infer.run, given.run))
    return replace(infer, **groups, run=run, passes=[])


def _member(done: Answered) -> Member:
    """One run's answers as a member."""
    found, folder = answers(done.stage.folder), done.stage.folder
    cost = done.stage.seconds / len(done.questions)
    stages = (*done.before, done.stage)
    return Member(found.name, found, str(folder), done.stage.hash, cost, stages)


# Several of them.


def _saved(given: list[str]) -> list[Member]:
    """The members that prediction files, or the folders of runs, hold."""
    members = []
    for place in map(Path, given):
        stage = finished(place) if place.is_dir() else None
        path = place / PREDICTIONS if stage else place
        for found in read_all(path):
            cost = stage.seconds / len(found.ids) if stage and stage.kind == "infer" else 0.0
            key = f"{file_digest(path)} {found.name}"
            members.append(Member(found.name, found, str(path), key, cost))
    return members


def _together(infer: Infer, members: list[Member], asked: Answered | None = None) -> Run:
    """The members' answers made into one, scored beside them where answers are known."""
    ensemble: Any = infer.ensemble
    members = _aligned(members)
    logits = [m.found.logits for m in members]
    key = {"members": [m.hash for m in members], "ensemble": plain(ensemble)}
    weights, fitted = ensemble.weights, None
    if ensemble.kind is EnsembleKind.fitted:
        held_out = _saved(names(ensemble.fit_on))
        key["fit_on"] = [m.hash for m in held_out]
        weights, fitted = _fitted(ensemble, members, held_out)
    mean = combined(logits, Ensemble("mean", EnsembleKind.mean))
    found = combined(logits, ensemble, weights)
    return _finished(infer, Outcome(ensemble.name, members, found, key, mean, fitted), asked)


def _aligned(members: list[Member]) -> list[Member]:
    found = aligned([m.found for m in members], [m.source for m in members])
    return [replace(m, found=one) for m, one in zip(members, found, strict=True)]


def _fitted(
    ensemble: Ensemble, members: list[Member], held_out: list[Member]
) -> tuple[list[float], dict[str, Any]]:
    """Weights that raise MAP@3 most on held-out questions, and what that choice is worth.

    Raises:
        ExamError: the held-out predictions have no answers, or are of the questions that are asked.
    """
    held_out = _aligned(held_out)
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
    if not carries(len(members), len(known)):
        log.warning(
            "ensemble: %d weights from %d questions: too few to trust; see the nested score",
            len(members),
            len(known),
        )
    chosen = fit_weights(logits, known, ensemble.seed)
    each = [
        of_logits(name, values, labels)
        for name, values in zip(_names(members), logits, strict=True)
    ]
    best = max(each, key=lambda system: float(system.scores.mean()))
    equal = combined(logits, Ensemble("mean", EnsembleKind.mean))
    nested = System("fitted, weights from other folds (honest)", chosen.nested)
    rows = [
        *each,
        of_logits("mean (equal weights)", equal, labels),
        System("fitted, weights from the same questions (optimistic)", chosen.optimistic),
        nested,
    ]
    found = results(rows, [(nested, best), (nested, rows[-3])], [])
    weights = dict(zip(_names(members), chosen.weights, strict=True))
    shown = {"weights": weights, "rows": found["rows"], "paired": found["paired"]}
    return chosen.weights, {"fitted": shown}


def _same_questions(held_out: Predictions, asked: Predictions) -> set[str]:
    """Ids that both have, unless their answers tell that they are other questions.

    Files number their questions alike: an id alone does not make two of them one.
    """
    known, answers_ = (dict(zip(one.ids, one.labels, strict=True)) for one in (held_out, asked))
    shared = known.keys() & answers_.keys()
    return shared if all(known[key] == answers_[key] for key in shared) else set()


def _names(members: list[Member]) -> list[str]:
    """Each member's name, with a number where it is not the only one of that name."""
    plain_names = [m.name for m in members]
    return [
        f"{name} ({place})" if plain_names.count(name) > 1 else name
        for place, name in enumerate(plain_names, 1)
    ]


@dataclass(frozen=True)
class Outcome:
    """What members make together: logits, and what determines and explains them."""

    name: str
    members: list[Member]
    logits: Floats
    key: dict[str, Any]
    beside: Floats | None = None  # what it is compared with besides the best member: their mean
    explained: dict[str, Any] | None = None  # how weights were fitted, or a cascade's curve

    @property
    def predictions(self) -> Predictions:
        """As one reader's."""
        return replace(
            self.members[0].found,
            logits=self.logits,
            reader=self.name,
            contexts="+".join(_names(self.members)),
        )


def _finished(infer: Infer, outcome: Outcome, asked: Answered | None) -> Run:
    """Write the answers, the submission and, where answers are known, the scores."""
    outputs, members = Path(infer.outputs), outcome.members
    name = f"{len(members)}-{outcome.name}"
    before = list({s.folder: s for m in members for s in m.stages}.values())
    systems = _systems(outcome, asked)
    with shared_stage(outputs, "ensemble", name, outcome.key, infer.resume.value) as stage:
        if not stage.reused and ranks.rank() == 0:
            write_predictions(stage.folder / PREDICTIONS, [outcome.predictions])
            letters = asked.config.data.options if asked else None
            submit(stage, outcome.predictions, letters)
            stage.measure()
            if systems:
                scored = _results(outcome, systems, [*before, stage])
                write_json(stage.folder / RESULTS, scored)
                write_results(stage.folder / REPORT, stage.folder.name, scored)
            if outcome.explained and "curve" in outcome.explained:
                plot(outcome.explained["curve"], stage.folder / CURVE)
            stage.finish(run_files(stage.folder), questions=len(outcome.logits))
    say(str(stage.folder / SUBMISSION))
    if systems:
        say(f"{_shown(read_json(stage.folder / RESULTS))}\n{stage.folder / RESULTS}")
        say(str(stage.folder / REPORT))
    return Run(stage, [*before, stage], systems)


def _systems(outcome: Outcome, asked: Answered | None) -> list[System]:
    """Baselines, members, their mean, and last what they make together; none without answers."""
    labels = outcome.members[0].found.known
    if labels is None:
        return []
    if asked is None:
        options = np.isfinite(outcome.logits).sum(axis=1)
        rows = blind(options, labels)
    else:
        rows = baselines(asked.questions, read_support(asked.contexts, asked.questions["id"]))
    for name, member in zip(_names(outcome.members), outcome.members, strict=True):
        rows.append(of_logits(name, member.found.logits, labels))
    if outcome.beside is not None:
        rows.append(of_logits("mean of probabilities", outcome.beside, labels))
    return [*rows, of_logits(outcome.name, outcome.logits, labels)]


def _results(outcome: Outcome, systems: list[System], stages: list[Stage]) -> dict[str, Any]:
    """results.json: what they make together against the best of them, and against their mean."""
    first = len(systems) - len(outcome.members) - 1 - (outcome.beside is not None)
    members = systems[first : first + len(outcome.members)]
    best = max(members, key=lambda system: float(system.scores.mean()))
    others = [best, *([systems[-2]] if outcome.beside is not None else [])]
    found = results(systems, [(systems[-1], other) for other in others], stages)
    return found | (outcome.explained or {})


def _shown(found: dict[str, Any]) -> str:
    """The table, and below it how weights were fitted."""
    lines = [table(found)]
    if "fitted" in found:
        weights = " · ".join(f"{n} {w:.2f}" for n, w in found["fitted"]["weights"].items())
        lines += ["", f"weights, fitted on held-out questions: {weights}", table(found["fitted"])]
    return "\n".join(lines)


# One after the other.


def _cascades(infer: Infer | Bundle) -> bool:
    return infer.cascade.share is not None or infer.cascade.threshold is not None


def _cascaded(infer: Infer, variants: list[Infer]) -> Run:
    """The first reader answers all questions, each further one those least sure so far."""
    first = answer(variants[0])
    member = _member(first)
    members, logits, asked = [member], member.found.logits, []
    for number, variant in enumerate(variants[1:], 1):
        rows = unsure(logits, infer.cascade, number)
        asked.append(len(rows))
        log.info("cascade: %d of %d questions asked further", len(rows), len(logits))
        if not len(rows):
            continue
        further = _member(answer(variant, rows))
        logits = replaced(logits, rows, further.found.logits)
        members.append(replace(further, found=replace(member.found, logits=logits)))
    key = {"members": [m.hash for m in members], "cascade": plain(infer.cascade)}
    outcome = Outcome("cascade", members, logits, key, explained={"asked_further": asked})
    return _finished(infer, outcome, first)


def _cascaded_before(infer: Infer, members: list[Member]) -> Run:
    """The same of what every reader has already answered, and what other shares would give."""
    members = _aligned(members)
    logits, asked = members[0].found.logits, []
    for number, member in enumerate(members[1:], 1):
        rows = unsure(logits, infer.cascade, number)
        asked.append(len(rows))
        logits = replaced(logits, rows, member.found.logits[rows])
    explained: dict[str, Any] = {"asked_further": asked}
    labels = members[0].found.known
    if labels is not None:
        cheap, dear = members[:2]
        costs = cheap.seconds, dear.seconds
        explained["curve"] = curve(cheap.found.logits, dear.found.logits, np.array(labels), costs)
    key = {"members": [m.hash for m in members], "cascade": plain(infer.cascade)}
    return _finished(infer, Outcome("cascade", members, logits, key, explained=explained), None)
