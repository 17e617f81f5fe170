"""`infer.py`: what runs make of questions, each by itself, together, or one after the other."""

import logging
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from omegaconf import OmegaConf

from exam import ranks
from exam.answering import Answer, loaded
from exam.answers.cascade import curve, plot, replaced, unsure
from exam.answers.ensemble import carries, combined, fit_weights
from exam.answers.predictions import (
    Predictions,
    aligned,
    predictions_of,
    read_all,
    write_predictions,
)
from exam.answers.results import System, baselines, blind, of_logits, results, table
from exam.answers.scored import PREDICTIONS, Run, answers, report, score
from exam.answers.submission import write_submission
from exam.artefacts import (
    Stage,
    file_digest,
    finished,
    open_stage,
    read_json,
    shared_stage,
    write_json,
)
from exam.compose import GROUPS, composed, load_run, with_prefix
from exam.config import (
    Ensemble,
    EnsembleKind,
    Infer,
    ReaderKind,
    Restore,
    Scoring,
    Train,
    is_trained,
    names,
    plain,
    trainer_values,
)
from exam.errors import ExamError
from exam.metrics import Floats
from exam.questions import LETTERS, questions_digest, read
from exam.retrieval.contexts import read_support
from exam.retrieval.rerank import check_reachable as check_reranker
from exam.retrieval.retrieval import Retrieval
from exam.runs import CONFIG, ENVIRONMENT, RESULTS, run_files
from exam.runtime import environment, say
from exam.weights import MODEL, identity

log = logging.getLogger(__name__)

SUBMISSION = "submission.csv"
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
        return _together(infer, _saved(names(infer.predictions)), None)
    variants = [
        _with(replace(infer, ckpt=ckpt), overrides)
        for ckpt in names(infer.ckpt)
        for overrides in infer.passes or [""]
    ]
    if len(variants) == 1 and infer.ensemble is None and not _cascades(infer):
        return _single(variants[0])
    if ranks.world_size() > 1:
        raise ExamError("Several readers answer in one process.\nRun infer.py without torchrun.")
    if _cascades(infer):
        _check_shares(infer, len(variants))
        return _cascaded(infer, variants)
    each = [_answered(variant) for variant in variants]
    return _together(infer, [one.member for one in each], each[0])


def restored(own: Restore) -> tuple[Stage, Train]:
    """A finished run of a reader, and its configuration with a command's overrides.

    Raises:
        ExamError: `ckpt` is no such folder, or an override is not one of its values.
    """
    folder = Path(own.ckpt)
    trained = finished(folder)
    if CONFIG not in trained.files:
        raise ExamError(f"{folder} is no run of train.py.\nGive a folder of outputs/train.")
    config = load_run(folder / CONFIG, own)
    check_reranker(config.reranker)
    _warn_of_versions(folder)
    return trained, config


def _warn_of_versions(folder: Path) -> None:
    """Name each package that may prepare the questions otherwise than at training."""
    then, now = read_json(folder / ENVIRONMENT), environment()
    for name in sorted(then.keys() & now.keys()):
        if then[name] != now[name] and name != "machine":
            log.warning("infer: %s is %s, the run was made with %s", name, now[name], then[name])


# One reader.


@dataclass(frozen=True)
class Answered:
    """A finished stage of one reader's answers, and what it rests on."""

    stage: Stage
    questions: Dataset
    contexts: Stage
    before: list[Stage]
    config: Train

    @property
    def member(self) -> Member:
        """The same as a member of an ensemble."""
        found, folder = answers(self.stage.folder), self.stage.folder
        cost = self.stage.seconds / len(self.questions)
        stages = (*self.before, self.stage)
        return Member(found.name, found, str(folder), self.stage.hash, cost, stages)


def asked_questions(config: Train) -> Dataset:
    """The questions that are to be answered: the test set, or the reported ones."""
    # The submission speaks of the options as the file has them.
    asked = replace(config.data, shuffle_options=False)
    questions = read(asked, asked.test or asked.valid)
    if not len(questions):
        raise ExamError(f"data={asked.name} names no questions.\nGive a file: data.test=<file>")
    return questions


def answers_key(
    trained: Stage, config: Train, questions: Dataset, contexts: Stage
) -> dict[str, Any]:
    """What determines a run's answers to questions."""
    return {
        "run": trained.hash,
        "weights": trained.files,
        "questions": questions_digest(questions),
        "contexts": contexts.hash,
        "context": plain(config.context),
        "model": {**plain(config.model), **_as_it_was(trained, config)},
        "trainer": trainer_values(config.trainer),
    }


def _as_it_was(trained: Stage, config: Train) -> dict[str, Any]:
    """What identifies a checkpoint that the run itself does not hold, as it answers untrained.

    Raises:
        ExamError: it is another one than the run's.
    """
    model, before = config.model, trained.key.get("model", {})
    if model.kind is not ReaderKind.causal_lm or is_trained(config.trainer):
        return {}
    found = identity(model.name_or_path)
    moved = model.name_or_path != before.get("name_or_path")
    if not moved and found != before.get("checkpoint"):
        raise ExamError(
            f"{model.name_or_path} is missing or has changed since {trained.folder.name} "
            "answered with it.\nPut the same files there again, or run train.py again."
        )
    return {"checkpoint": found}


def _answered(infer: Infer, rows: Any = None) -> Answered:
    """One run's answers to the questions, or to some rows of them; reused where they are there."""
    folder = Path(infer.ckpt)
    trained, config = restored(infer)
    retrieval = Retrieval.of(config)
    if ranks.world_size() > 1:
        retrieval.build(generates=False)
    questions = asked_questions(config)
    if rows is not None:
        questions = questions.select(rows)
    with ranks.leader_first():
        contexts = retrieval.contexts(questions, f"{config.data.name}-test")
    before = [*retrieval.stages, contexts]
    key = {
        **answers_key(trained, config, questions, contexts),
        "merge": infer.merge,
        "rotations": infer.rotations,
    }
    outputs, name = Path(infer.outputs), f"{config.data.name}-{folder.name}"
    with shared_stage(outputs, "infer", name, key, infer.resume.value) as stage:
        if not stage.reused:
            answer = loaded(config, folder / MODEL, stage.folder, merge=infer.merge)
            found = list(_rotated(answer, questions, contexts, infer.rotations, config))
        if not stage.reused and ranks.rank() == 0:
            write_predictions(stage.folder / PREDICTIONS, found)
            _submit(stage, answers(stage.folder), config.data.options)
            files = run_files(stage.folder)
            if None not in questions["label"]:
                score(stage, questions, contexts, before)
                files.append(RESULTS)
            stage.finish(files, questions=len(questions))
    return Answered(stage, questions, contexts, before, config)


def _rotated(
    answer: Answer, questions: Dataset, contexts: Stage, rotations: int, config: Train
) -> Any:
    """Predictions for the options as given, and moved on by one place, by two and so on."""
    model = config.model
    by_letter = model.kind is ReaderKind.causal_lm and model.scoring is Scoring.letters
    if rotations > 1 and not by_letter:
        log.warning("infer: this reader scores options alike in any order: rotations=1 is enough")
    for turn in range(rotations):
        logits = answer(questions.map(_turned, fn_kwargs={"by": turn}), contexts)
        for row, options in zip(logits, questions["options"], strict=True):
            row[: len(options)] = np.roll(row[: len(options)], turn)
        order = f"rotated by {turn}" if turn else "given"
        yield predictions_of(questions, logits, config.name, contexts.folder.name, order)


def _turned(question: dict[str, Any], by: int) -> dict[str, Any]:
    """A question whose options begin `by` places further on."""
    options, label = question["options"], question["label"]
    by %= len(options)
    moved = None if label is None else (label - by) % len(options)
    return {"options": [*options[by:], *options[:by]], "label": moved}


def _submit(stage: Stage, found: Predictions, letters: str | None) -> None:
    write_submission(stage.folder / SUBMISSION, found.ids, found.logits, letters or LETTERS)


def _single(infer: Infer) -> Run:
    done = _answered(infer)
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


def _together(infer: Infer, members: list[Member], asked: Answered | None) -> Run:
    """The members' answers made into one, scored beside them where answers are known."""
    if _cascades(infer):
        return _cascaded_before(infer, members)
    ensemble = infer.ensemble
    if ensemble is None or len(members) < 2:
        given = "no ensemble" if ensemble is None else f"ensemble={ensemble.name}"
        raise ExamError(
            f"{len(members)} readers are given, and {given}.\n"
            "Give two or more, and how they become one: ensemble=mean, rank, vote, "
            "max_over_contexts or fitted."
        )
    members = _aligned(members)
    logits = [m.found.logits for m in members]
    key = {"members": [m.hash for m in members], "ensemble": plain(ensemble)}
    weights, fitted = ensemble.weights, None
    if ensemble.kind is EnsembleKind.fitted:
        held_out = _saved(names(ensemble.fit_on))
        key["fit_on"] = [m.hash for m in held_out]
        weights, fitted = _fitted(ensemble, members, held_out)
    if weights is not None and len(weights) != len(members):
        raise ExamError(
            f"ensemble.weights gives {len(weights)} weights for {len(members)} readers.\n"
            "Give one for each, in their order."
        )
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
        ExamError: there is not one held-out file for each member, with answers.
    """
    if len(held_out) != len(members):
        raise ExamError(
            f"ensemble.fit_on gives {len(held_out)} predictions for {len(members)} readers.\n"
            "Give each reader's predictions of questions it was not trained on, in their order: "
            "folders that train.py data.fold=all wrote."
        )
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
    with open_stage(outputs, "ensemble", name, outcome.key, infer.resume.value) as stage:
        if not stage.reused:
            write_predictions(stage.folder / PREDICTIONS, [outcome.predictions])
            letters = asked.config.data.options if asked else None
            _submit(stage, outcome.predictions, letters)
            stage.measure()
            if systems:
                write_json(stage.folder / RESULTS, _results(outcome, systems, [*before, stage]))
            if outcome.explained and "curve" in outcome.explained:
                plot(outcome.explained["curve"], stage.folder / CURVE)
            stage.finish(run_files(stage.folder), questions=len(outcome.logits))
    say(str(stage.folder / SUBMISSION))
    if systems:
        say(f"{_shown(read_json(stage.folder / RESULTS))}\n{stage.folder / RESULTS}")
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


def _cascades(infer: Infer) -> bool:
    return infer.cascade.share is not None or infer.cascade.threshold is not None


def _check_shares(infer: Infer, readers: int) -> None:
    """Refuse a single reader, and more or fewer shares than there are further ones."""
    share = infer.cascade.share
    if readers < 2 or (isinstance(share, list) and len(share) != readers - 1):
        raise ExamError(
            f"cascade.share={share} is given for {readers} readers.\n"
            "Give two readers or more, and one share for each but the first."
        )


def _cascaded(infer: Infer, variants: list[Infer]) -> Run:
    """The first reader answers all questions, each further one those least sure so far."""
    first = _answered(variants[0])
    members, logits, asked = [first.member], first.member.found.logits, []
    for number, variant in enumerate(variants[1:], 1):
        rows = unsure(logits, infer.cascade, number)
        asked.append(len(rows))
        if not len(rows):
            break
        further = _answered(variant, rows).member
        logits = replaced(logits, rows, further.found.logits)
        members.append(replace(further, found=replace(first.member.found, logits=logits)))
        log.info("cascade: %d of %d questions asked further", len(rows), len(logits))
    key = {"members": [m.hash for m in members], "cascade": plain(infer.cascade)}
    outcome = Outcome("cascade", members, logits, key, explained={"asked_further": asked})
    return _finished(infer, outcome, first)


def _cascaded_before(infer: Infer, members: list[Member]) -> Run:
    """The same of what every reader has already answered, and what other shares would give."""
    _check_shares(infer, len(members))
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
