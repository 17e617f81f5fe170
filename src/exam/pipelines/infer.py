"""One run's reader answers questions that it was not trained on."""

import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from exam.config import (
    Data,
    Infer,
    ReaderKind,
    Restore,
    Scoring,
    Source,
    Train,
    is_trained,
    plain,
    reader_values,
)
from exam.config.saved import CONFIG, load_run
from exam.core import distributed
from exam.core.artifacts import shared_stage
from exam.core.checkpoints import MODEL, checkpoint_fingerprint
from exam.core.errors import ExamError, spell_command
from exam.core.files import is_sealed, read_object, sealed
from exam.core.logging import environment
from exam.core.stage import Stage, finished
from exam.core.trainer import CHECKPOINTS, ENVIRONMENT, list_run_files
from exam.data.questions import questions_digest, read
from exam.data.schema import LETTERS, in_order
from exam.evaluation.predictions import (
    ORIGINAL_ORDER,
    Predictions,
    make_predictions,
    read_predictions,
    write_predictions,
)
from exam.evaluation.results import PREDICTIONS, check_k, load_answers, metric_key, write_scores
from exam.evaluation.submission import write_submission
from exam.pipelines.preflight import check_saved_reader, prepare
from exam.readers.base import Answer, loaded, saved_model
from exam.readers.multiple_choice.features import TokenCounts
from exam.report.run import write_run
from exam.retrieval.retriever import Retrieval

log = logging.getLogger(__name__)

SUBMISSION = "submission.csv"


def restored(own: Restore, *, reads_questions: bool = True) -> tuple[Stage, Train]:
    """A finished run of a reader, and its configuration with a command's overrides.

    The encoder and reranker are checked; with `reads_questions`, a hub data set is pinned, too.

    Raises:
        ExamError: `ckpt` is no such folder, or an override is not one of its values.
    """
    folder = Path(own.ckpt)
    trained = finished(folder)
    if CONFIG not in trained.files:
        raise ExamError(f"{folder} is no run of exam train.\nGive a folder of outputs/train.")
    config = _pinned(load_run(folder / CONFIG, own), folder / MODEL, reads_questions)
    _warn_of_versions(folder)
    return trained, config


def _pinned(run: Train, saved: Path, reads_questions: bool) -> Train:
    """Pin and check what a restored run loads: the reader that it saved, and no training questions.

    The checkpoint that a saved reader started from may be gone.
    """
    model = saved_model(run, saved)
    source = run.data.source if reads_questions else Source.files
    data = replace(run.data, train=None, extra=None, source=source)
    pinned = prepare(replace(run, model=model, data=data))
    return replace(
        run,
        model=pinned.model if model is run.model else run.model,
        data=replace(run.data, revision=pinned.data.revision),
        encoder=pinned.encoder,
        reranker=pinned.reranker,
    )


def _warn_of_versions(folder: Path) -> None:
    """Name each package that may prepare the questions otherwise than at training."""
    then, now = read_object(folder / ENVIRONMENT), environment()
    for name in sorted(then.keys() & now.keys()):
        if then[name] != now[name] and name != "machine":
            log.warning("infer: %s is %s, the run was made with %s", name, now[name], then[name])


@dataclass(frozen=True)
class Answered:
    """A finished stage of one reader's answers, and the stages it rests on."""

    stage: Stage
    questions: Dataset
    contexts: Stage
    before: list[Stage]
    config: Train
    opened: list[Stage]  # every stage of retrieval, also those that only others read


def asked_questions(config: Train) -> Dataset:
    """The questions that are to be answered: the test set, or the reported ones."""
    # The submission speaks of the options as the file has them.
    asked = replace(config.data, shuffle_options=False)
    questions = read(asked, asked.test or asked.valid)
    if not len(questions):
        raise ExamError(f"data={asked.name} names no questions.\nGive a file: data.test=<file>")
    check_k(config.metric.k, max(map(len, questions["options"])))
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
        "trainer": reader_values(config),
        **metric_key(config.metric.k),
    }


def _as_it_was(trained: Stage, config: Train) -> dict[str, Any]:
    """What identifies a checkpoint that the run itself does not hold, as it answers untrained.

    Raises:
        ExamError: it is another one than the run's.
    """
    model, before = config.model, trained.key.get("model", {})
    if model.kind is not ReaderKind.causal_lm or is_trained(config.trainer):
        return {}
    found = checkpoint_fingerprint(model.checkpoint)
    moved = model.name_or_path != before.get("name_or_path")
    if not moved and found != before.get("checkpoint"):
        raise ExamError(
            f"{model.name_or_path} is missing or has changed since {trained.folder.name} "
            "answered with it.\nPut the same files there again, or run "
            f"{spell_command('train')} again."
        )
    return {"checkpoint": found}


def answer(infer: Infer, rows: Any = None) -> Answered:
    """One run's answers to the questions, or to some rows of them; reused where they are there."""
    folder = Path(infer.ckpt)
    trained, config = restored(infer)
    limits = check_saved_reader(config, folder / MODEL)
    retrieval = Retrieval.of(config)
    questions = asked_questions(config)
    if rows is not None:
        questions = questions.select(rows)
    if limits is not None:
        limits.check(questions)
    if distributed.world_size() > 1:
        retrieval.build(generates=False)
    with distributed.leader_first():
        contexts = retrieval.contexts(questions, f"{config.data.name}-test")
    before = [*retrieval.stages, contexts]
    letters = letters_of(config.data)
    key = {
        **answers_key(trained, config, questions, contexts),
        "merge": infer.merge,
        "rotations": infer.rotations,
        **({} if LETTERS.startswith(letters) else {"letters": letters}),
    }
    outputs, name = Path(infer.outputs), f"{config.data.name}-{folder.name}"
    with shared_stage(outputs, "infer", name, key, infer.resume.value) as stage:
        if not stage.reused:
            reader = loaded(config, folder / MODEL, stage.folder, merge=infer.merge)
            work = stage.folder / CHECKPOINTS
            rotated = _rotated(reader, questions, contexts, infer.rotations, config, work)
            predictions, tokens = zip(*rotated, strict=True)
        if not stage.reused and distributed.rank() == 0:
            write_predictions(stage.folder / PREDICTIONS, list(predictions))
            submit(stage, load_answers(stage.folder), config.metric.k, letters)
            if None not in questions["label"]:
                write_scores(stage, questions, contexts, before)
            write_run(stage, config, questions, contexts, tokens[-1])
            stage.finish(list_run_files(stage.folder), questions=len(questions))
        if distributed.rank() == 0:
            shutil.rmtree(stage.folder / CHECKPOINTS, ignore_errors=True)
    return Answered(stage, questions, contexts, before, config, retrieval.opened)


def _rotated(
    reader: Answer,
    questions: Dataset,
    contexts: Stage,
    rotations: int,
    config: Train,
    work: Path,
) -> Iterator[tuple[Predictions, TokenCounts | None]]:
    """Yield predictions and token counts for each rotation of the options, from 0 places up.

    Predictions that an interrupted run kept in `work` are read, without counts.
    """
    model = config.model
    by_letter = model.kind is ReaderKind.causal_lm and model.scoring is Scoring.letters
    if rotations > 1 and not by_letter:
        log.warning("infer: this reader scores options alike in any order: rotations=1 is enough")
    for turn in range(rotations):
        order, path = (
            f"rotated by {turn}" if turn else ORIGINAL_ORDER,
            work / f"order-{turn}.parquet",
        )
        if distributed.told(is_sealed(path) if distributed.rank() == 0 else None):
            log.info("infer: options %s are answered already", order)
            yield read_predictions(path), None
            continue
        output = reader(questions.map(_turned, fn_kwargs={"by": turn}), contexts)
        for row, options in zip(output.logits, questions["options"], strict=True):
            row[: len(options)] = np.roll(row[: len(options)], turn)
        predictions = make_predictions(
            questions, output.logits, config.name, contexts.folder.name, order
        )
        if distributed.rank() == 0:
            with sealed(path) as temporary:
                write_predictions(temporary, [predictions])
        yield predictions, output.tokens


def _turned(question: dict[str, Any], by: int) -> dict[str, Any]:
    """A question whose options begin `by` places further on."""
    number = len(question["options"])
    return in_order(question, [(place + by) % number for place in range(number)])


def letters_of(data: Data) -> str:
    """What a submission calls the options, in their order."""
    return data.options or LETTERS


def submit(stage: Stage, found: Predictions, k: int, letters: str) -> None:
    """Write submission.csv beside the answers."""
    write_submission(stage.folder / SUBMISSION, found.ids, found.logits, k, letters)
