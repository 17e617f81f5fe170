"""`exam infer`: answer questions with one run, with several, or from saved predictions."""

import logging
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from omegaconf import OmegaConf

from exam.config import (
    Infer,
    ReaderKind,
    Restore,
    Scoring,
    Source,
    Train,
    as_list,
    is_trained,
    reader_values,
    to_dict,
)
from exam.config.compose import GROUPS, compose_config
from exam.config.saved import CONFIG, load_run
from exam.core import distributed
from exam.core.artifacts import Stage, load_stage, log_reused, shared_stage
from exam.core.checkpoints import MODEL, checkpoint_fingerprint
from exam.core.environment import describe_environment
from exam.core.errors import ExamError, spell_command
from exam.core.files import checksum_matches, read_object, write_with_checksum
from exam.core.logging import print_result
from exam.core.trainer import CHECKPOINTS, ENVIRONMENT, RESULTS, list_run_files
from exam.data.option_order import choose_order, fixed_orders_key
from exam.data.questions import questions_digest, read_questions, warn_of_repeats
from exam.data.schema import LETTERS, permute_options
from exam.evaluation.learned import describe_learned, find_learned
from exam.evaluation.predictions import (
    ORIGINAL_ORDER,
    Predictions,
    make_predictions,
    read_predictions,
    write_predictions,
)
from exam.evaluation.results import (
    PREDICTIONS,
    Run,
    ScoredSystem,
    check_k,
    choose_k,
    list_warnings,
    load_answers,
    log_warnings,
    metric_key,
    print_results,
    score_systems,
    write_scores,
)
from exam.evaluation.submission import write_submission
from exam.metrics import Ints
from exam.pipelines.ensemble import (
    ONE_METRIC,
    SUBMISSION,
    ReaderOutput,
    check_readers,
    combine,
    is_cascade,
    load_predictions,
    replay_cascade,
    run_cascade,
)
from exam.pipelines.preflight import check_models, check_saved_reader
from exam.pipelines.revisions import pin_revisions
from exam.readers.base import Reader, load_reader, resolve_model
from exam.readers.multiple_choice.features import TokenCounts
from exam.report.run import write_run
from exam.retrieval.retriever import Retrieval

log = logging.getLogger(__name__)


def run_infer(infer: Infer) -> Run:
    """Answer questions with one run, or combine several runs, variants or predictions."""
    run = _run_predictions(infer) if infer.predictions is not None else _run_readers(infer)
    log_reused(run.stages)
    return run


def _run_predictions(infer: Infer) -> Run:
    outputs = load_predictions(as_list(infer.predictions))
    check_readers(infer, len(outputs))
    remembered = {output.source: output.k for output in outputs if output.k is not None}
    k = choose_k(infer.metric.k, remembered, ONE_METRIC)
    check_k(k, max(output.logits.shape[1] for output in outputs))
    run = replay_cascade if infer.ensemble is None else combine
    return run(infer, outputs, k)


def _run_readers(infer: Infer) -> Run:
    variants = [
        _override(replace(infer, ckpt=ckpt), overrides)
        for ckpt in as_list(infer.ckpt)
        for overrides in infer.variants or [""]
    ]
    if len(variants) == 1 and infer.ensemble is None and not is_cascade(infer):
        output = answer(variants[0])
        stage = output.stages[-1]
        print_result(str(stage.folder / SUBMISSION))
        if output.systems:
            print_results(stage.folder)
        return Run(stage, output.stages, output.systems)
    check_readers(infer, len(variants))
    remembered = {}
    for variant in variants:  # check all before the first answers
        run, config = restore_run(variant)
        check_saved_reader(config, run.folder / MODEL)
        remembered[str(run.folder)] = config.metric.k
    k = choose_k(None, remembered, ONE_METRIC)
    if is_cascade(infer):
        return run_cascade(infer, [partial(answer, variant) for variant in variants], k)
    return combine(infer, [answer(variant) for variant in variants], k)


def _override(infer: Infer, overrides: str) -> Infer:
    """Return the command with a variant's overrides, given as on the command line."""
    if not overrides:
        return infer
    try:
        words = shlex.split(overrides)
    except ValueError as error:
        raise ExamError(
            f"variants={overrides!r} cannot be read: {error}.\n"
            "Write each value as on the command line, and close its quotes."
        ) from None
    keys = [re.split("[=.@]", word.lstrip("+~"), maxsplit=1)[0] for word in words]
    if unknown := [key for key in keys if key not in (*GROUPS, "run")]:
        raise ExamError(
            f"variants={overrides!r} sets {unknown[0]}, which holds for the whole command.\n"
            f"Each value changes {', '.join(GROUPS)} or run.<key>; set the rest beside variants."
        )
    variant: Infer = compose_config("infer", "ckpt=run", *words)
    groups: dict[str, Any] = {
        name: getattr(variant, name) or getattr(infer, name) for name in GROUPS
    }
    run: Any = OmegaConf.to_container(OmegaConf.merge(infer.run, variant.run))
    metric = infer.metric if variant.metric.k is None else variant.metric
    return replace(infer, **groups, run=run, variants=[], metric=metric)


def restore_run(command: Restore, *, reads_questions: bool = True) -> tuple[Stage, Train]:
    """Return the finished run that a command names, and its configuration with the overrides.

    Check the encoder and the reranker. With `reads_questions`, also pin a hub data set.

    Raises:
        ExamError: `ckpt` is not the folder of a run, or an override is not one of its settings.
    """
    folder = Path(command.ckpt)
    run = load_stage(folder)
    if CONFIG not in run.files:
        raise ExamError(f"{folder} is not a run of exam train.\nSet a folder of outputs/train.")
    config = _pin(load_run(folder / CONFIG, command), folder / MODEL, reads_questions)
    _warn_of_versions(folder)
    return run, config


def _pin(run: Train, saved: Path, reads_questions: bool) -> Train:
    """Pin and check the models that a restored run loads; skip its training questions.

    The saved reader replaces the checkpoint that it started from, which may be gone.
    """
    model = resolve_model(run, saved)
    source = run.data.source if reads_questions else Source.files
    data = replace(run.data, train=None, extra_train=None, source=source)
    pinned = pin_revisions(replace(run, model=model, data=data))
    check_models(pinned)
    return replace(
        run,
        model=pinned.model if model is run.model else run.model,
        data=replace(run.data, revision=pinned.data.revision),
        encoder=pinned.encoder,
        reranker=pinned.reranker,
    )


def _warn_of_versions(folder: Path) -> None:
    """Warn of each package whose version differs from training: it may change the inputs."""
    then, now = read_object(folder / ENVIRONMENT), describe_environment()
    for name in sorted(then.keys() & now.keys()):
        if then[name] != now[name] and name != "machine":
            log.warning("infer: %s is %s; training used %s", name, now[name], then[name])


def read_test_questions(config: Train) -> Dataset:
    """Read the test questions, or else the validation questions."""
    data = replace(config.data, shuffle_options=False)  # submissions follow the file's order
    questions = read_questions(data, data.test or data.valid)
    if not len(questions):
        raise ExamError(f"data={data.name} has no questions.\nGive a file: data.test=<file>")
    warn_of_repeats(questions, "test")
    if data.limit is None:  # the first questions may have fewer options
        check_k(config.metric.k, max(map(len, questions["options"])))
    return questions


def answers_name(questions: str, run: Path) -> str:
    """Return the name of a run's answers: the questions', unless the run's begins with it."""
    return run.name if run.name.startswith(f"{questions}-") else f"{questions}-{run.name}"


def answers_key(run: Stage, config: Train, questions: Dataset, contexts: Stage) -> dict[str, Any]:
    """Return everything that determines a run's answers."""
    return {
        "run": run.hash,
        "weights": run.files,
        "questions": questions_digest(questions),
        "contexts": contexts.hash,
        "context": to_dict(config.context),
        "model": {**to_dict(config.model), **_checkpoint_key(run, config)},
        "trainer": reader_values(config),
        **metric_key(config.metric.k),
    }


def _checkpoint_key(run: Stage, config: Train) -> dict[str, Any]:
    """Identify the checkpoint of an untrained language model, which its run does not hold.

    Raises:
        ExamError: the checkpoint differs from the run's.
    """
    model, before = config.model, run.key.get("model", {})
    if model.kind is not ReaderKind.causal_lm or is_trained(config.trainer):
        return {}
    fingerprint = checkpoint_fingerprint(model.checkpoint)
    has_moved = model.name_or_path != before.get("name_or_path")
    if not has_moved and fingerprint != before.get("checkpoint"):
        raise ExamError(
            f"{model.name_or_path} is missing or has changed since {run.folder.name} "
            "answered with it.\nPut the same files there again, or run "
            f"{spell_command('train')} again."
        )
    return {"checkpoint": fingerprint}


def answer(infer: Infer, rows: Ints | None = None) -> ReaderOutput:
    """Answer the questions, or some rows of them, with one run; reuse a finished stage."""
    folder = Path(infer.ckpt)
    run, config = restore_run(infer)
    check_questions = check_saved_reader(config, folder / MODEL)
    retrieval = Retrieval.from_config(config)
    questions = read_test_questions(config)
    if rows is not None:
        questions = questions.select(rows)
    if check_questions is not None:
        check_questions(questions)
    if distributed.world_size() > 1:
        retrieval.build(generates=False)
    with distributed.main_process_first():
        contexts = retrieval.contexts(questions, f"{config.data.name}-test")
    inputs = [*retrieval.stages, contexts]
    letters = config.data.options or LETTERS
    key = {
        **answers_key(run, config, questions, contexts),
        "merge": infer.merge_adapters,
        "rotations": infer.option_rotations,
        **(fixed_orders_key(questions["options"]) if infer.option_rotations > 1 else {}),
        **({} if LETTERS.startswith(letters) else {"letters": letters}),
    }
    systems: list[ScoredSystem] = []
    outputs, name = Path(infer.outputs), answers_name(config.data.name, folder)
    with shared_stage(outputs, "infer", name, key, infer.resume.value) as stage:
        if not stage.reused:
            reader = load_reader(config, folder / MODEL, stage.folder, merge=infer.merge_adapters)
            rotations = infer.option_rotations
            rotated = _predict_rotated(reader, questions, contexts, rotations, config, stage)
            predictions, tokens = zip(*rotated, strict=True)
            if distributed.rank() == 0:
                learned = find_learned(run, questions)
                warnings = list_warnings([run])
                if learned:
                    warnings.append(describe_learned(folder.name, learned, len(questions)))
                write_predictions(stage.folder / PREDICTIONS, predictions)
                final = load_answers(stage.folder)
                path, k = stage.folder / SUBMISSION, config.metric.k
                write_submission(path, final.ids, final.logits, k, letters)
                if None not in questions["label"]:
                    systems = write_scores(stage, questions, contexts, inputs, learned, warnings)
                write_run(stage, config, questions, contexts, tokens[-1])
                stage.finish(
                    list_run_files(stage.folder), questions=len(questions), warnings=warnings
                )
        if distributed.rank() == 0:
            shutil.rmtree(stage.folder / CHECKPOINTS, ignore_errors=True)
            log_warnings(stage)
    if not systems and (stage.folder / RESULTS).is_file():
        systems = score_systems(stage, questions, contexts)
    return ReaderOutput(
        load_answers(stage.folder),
        source=str(stage.folder),
        hash=stage.hash,
        k=config.metric.k,
        seconds=stage.seconds / len(questions),
        letters=letters,
        stages=[*inputs, stage],
        systems=systems,
        opened=retrieval.opened_stages,
    )


def _predict_rotated(
    reader: Reader,
    questions: Dataset,
    contexts: Stage,
    rotations: int,
    config: Train,
    stage: Stage,
) -> Iterator[tuple[Predictions, TokenCounts | None]]:
    """Yield predictions and token counts for each rotation of the options, from 0 on.

    Read the predictions that an interrupted run left; they have no token counts.
    """
    model = config.model
    by_letter = model.kind is ReaderKind.causal_lm and model.scoring is Scoring.letters
    if rotations > 1 and not by_letter:
        log.warning("infer: this reader ignores the order of options: option_rotations=1 is enough")
    for shift in range(rotations):
        order = f"rotated by {shift}" if shift else ORIGINAL_ORDER
        path = stage.folder / CHECKPOINTS / f"order-{shift}.parquet"
        is_done = checksum_matches(path) if distributed.rank() == 0 else None
        if distributed.broadcast_from_rank0(is_done):
            log.info("infer: reusing predictions with options %s", order)
            yield read_predictions(path), None
            continue
        orders = [_rotation(options, shift) for options in questions["options"]]
        rotated = questions.map(
            lambda question, row, orders=orders: permute_options(question, orders[row]),
            with_indices=True,
            load_from_cache_file=False,
        )
        logits, tokens = reader.predict(rotated, contexts)
        for row, positions in zip(logits, orders, strict=True):
            row[positions] = row[: len(positions)].copy()
        predictions = make_predictions(questions, logits, config.name, contexts.folder.name, order)
        if distributed.rank() == 0:
            with write_with_checksum(path) as temporary:
                write_predictions(temporary, [predictions])
        yield predictions, tokens


def _rotation(options: list[str], by: int) -> list[int]:
    """Return the order that puts option `by` first, if the options may move."""
    number = len(options)
    return choose_order(options, [(position + by) % number for position in range(number)])
