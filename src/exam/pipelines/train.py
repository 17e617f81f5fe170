"""`exam train`: train a reader, once or for every fold and seed, or a reranker or an encoder."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from exam.config import Data, Task, Train, is_trained, plain, reader_values
from exam.config.saved import CONFIG, save_run
from exam.core import distributed
from exam.core.artifacts import MANIFEST, Stage, log_reused, shared_stage
from exam.core.checkpoints import checkpoint_fingerprint
from exam.core.environment import describe_environment
from exam.core.files import read_json, write_json
from exam.core.logging import print_result
from exam.core.trainer import CHECKPOINTS, ENVIRONMENT, REPORT, RESULTS, TRAINING, list_run_files
from exam.data.questions import questions_digest
from exam.data.splits import Split, assign_folds, read_split
from exam.evaluation.predictions import read_predictions
from exam.evaluation.results import BLIND, System, results, table
from exam.evaluation.scored import PREDICTIONS, Run, log_scores, report, score, write_answers
from exam.generation.generate import QUESTIONS, generate_if_used
from exam.metrics import Floats
from exam.pipelines.preflight import ReaderLimits, check_models, check_reader
from exam.pipelines.room import check_room
from exam.pipelines.soft_labels import with_soft_labels
from exam.pipelines.tracking import log_summary, track_run
from exam.readers.base import reader_class
from exam.readers.lexical import OVERLAP_FEATURES
from exam.report.card import push, write_card
from exam.report.run import write_results, write_run
from exam.retrieval.retriever import Retrieval


@dataclass(frozen=True)
class Prepared:
    """Questions, contexts and their stages, shared by the runs of a configuration."""

    split: Split
    fold: Any  # of every training question, where all are reported on
    pool_contexts: Stage  # of every training question
    valid_contexts: Stage  # of those that are reported on
    stages: list[Stage]


def run_train(config: Train) -> Run:
    """Train a reader, a reranker or an encoder; only a reader's run has systems."""
    check_models(config)
    with track_run(config):
        if config.task is not Task.reader:
            return _train_retrieval(config)
        run = train_reader(config)
        figures = read_json(run.stage.folder / RESULTS)["rows"][-1]
        log_summary({**figures, "selection_score": run.selection_score})
        return run


def _train_retrieval(config: Train) -> Run:
    from exam.pipelines.train_retrieval import train_retrieval

    retrieval = Retrieval.from_config(config)
    generation = generate_if_used(config.data, retrieval, config.generator)
    split = read_split(config.data, generation.folder / QUESTIONS if generation else None)
    return train_retrieval(config, retrieval, split)


def train_reader(config: Train) -> Run:
    """Retrieve, fine-tune, and score on the reported questions.

    With `data.cross_validate=true`, every training question is reported on, answered by the reader
    that did not train on its fold. Several seeds repeat this with each.
    """
    limits = check_reader(config.model)
    prepared = _prepare(config, limits)
    train = _cross_validate if config.data.cross_validate else _train_run
    if isinstance(config.seed, list):
        runs = [train(replace(config, seed=seed), prepared) for seed in config.seed]
        run = _average_seeds(config, runs)
    else:
        runs, run = [], train(config, prepared)
    log_reused(stage for one in (*runs, run) for stage in one.stages)
    return run


def _prepare(config: Train, limits: ReaderLimits | None) -> Prepared:
    retrieval, data = Retrieval.from_config(config), config.data
    if distributed.world_size() > 1:
        if not data.uses_generated_questions:
            _read_questions(data, None, limits)  # refused before the indexes are built
        retrieval.build(generates=data.uses_generated_questions)
    with distributed.main_process_first():
        written = generate_if_used(data, retrieval, config.generator)
        split = _read_questions(data, written, limits)
        fold = (
            assign_folds(split.train, data.folds, data.split_seed) if data.cross_validate else None
        )
        if distributed.rank() == 0 and not _has_earlier_run(config):
            check_room(config)
        pool, valid = _retrieve_contexts(retrieval, split, data)
    log_scores(valid, "valid")
    stages = (*retrieval.stages, written, pool, None if valid is pool else valid)
    return Prepared(split, fold, pool, valid, [stage for stage in stages if stage is not None])


def _read_questions(data: Data, written: Stage | None, limits: ReaderLimits | None) -> Split:
    """Read the questions, with those that the stage `written` generated.

    Raises:
        ExamError: a file or row is invalid, or a question is too long for the reader.
    """
    split = with_soft_labels(
        read_split(data, written.folder / QUESTIONS if written else None), data
    )
    if limits is not None:
        limits.check(split.all_train)
        limits.check(split.valid)
    return split


def _retrieve_contexts(retrieval: Retrieval, split: Split, data: Data) -> tuple[Stage, Stage]:
    """Retrieve the passages of every training question, and of the reported questions."""
    pool = retrieval.contexts(split.all_train, f"{data.name}-train")
    if data.valid is None or data.cross_validate:
        return pool, pool
    return pool, retrieval.contexts(split.valid, f"{data.name}-valid")


def _has_earlier_run(config: Train) -> bool:
    """Return whether a finished run has this name, possibly the configured one."""
    return any(Path(config.outputs).glob(f"train/{config.name}-*/{MANIFEST}"))


def _train_run(config: Train, prepared: Prepared) -> Run:
    """Train one run; its folder holds model, predictions and results."""
    split, pool, valid = prepared.split, prepared.pool_contexts, prepared.valid_contexts
    key = _stage_key(config, split, pool, valid)
    leads = distributed.rank() == 0
    outputs = Path(config.outputs)
    with shared_stage(outputs, "train", config.name, key, config.resume) as stage:
        if not stage.reused:
            if leads:
                check_room(config)
                save_run(config, stage.folder / CONFIG)
                write_json(stage.folder / ENVIRONMENT, describe_environment())
            reader = reader_class(config).fit(config, stage.folder, split, pool)
            logits, tokens = reader.predict(split.valid, valid)
            if leads:
                write_answers(stage, config, split.valid, valid, logits)
                score(stage, split.valid, valid, prepared.stages)
                write_run(stage, config, split.valid, valid, tokens)
                write_card(stage, config)
                stage.finish(list_run_files(stage.folder), questions=len(split.train))
        if leads:
            shutil.rmtree(stage.folder / CHECKPOINTS, ignore_errors=True)
    run = report(stage, split.valid, valid, prepared.stages)
    if leads and config.hub.push:
        push(stage.folder, config)
    path = stage.folder / TRAINING  # only of a reader that chose a checkpoint
    return replace(run, selection_score=read_json(path).get("best") if path.is_file() else None)


def _stage_key(config: Train, split: Split, pool: Stage, valid: Stage) -> dict[str, Any]:
    """Return everything that determines a trained run."""
    parts = {"train": split.train, "dev": split.dev, "valid": split.valid}
    evidence = {"overlap_features": list(OVERLAP_FEATURES)} if config.model.overlap_features else {}
    checkpoint = checkpoint_fingerprint(config.model.checkpoint)
    return {
        "questions": {name: questions_digest(part) for name, part in parts.items()},
        "contexts": {"train": pool.hash, "valid": valid.hash},
        "context": plain(config.context),
        "model": {**plain(config.model), **evidence, "checkpoint": checkpoint},
        "tuning": plain(config.tuning),
        "trainer": reader_values(config),
        "seed": config.seed,
        **_processes(config),
    }


def _processes(config: Train) -> dict[str, int]:
    """Return the number of processes where it changes a reader: a step takes more questions."""
    learns = config.model.kind.is_neural and is_trained(config.trainer)
    return (
        {"processes": distributed.world_size()} if learns and distributed.world_size() > 1 else {}
    )


def _iterate_folds(config: Train, split: Split, fold: Any) -> Iterator[tuple[Train, Split, Any]]:
    """Yield each fold's configuration, its split, and the rows that it predicts.

    Predicted questions must not select a checkpoint, so every run keeps its last one.
    """
    data, questions = config.data, split.train
    none = questions.select([])
    for number in range(data.folds):
        (inside,), (outside,) = (fold == number).nonzero(), (fold != number).nonzero()
        train = concatenate_datasets([questions.select(outside), split.extra])
        part = replace(
            config,
            name=f"{config.name}-fold{number}",
            data=replace(data, fold=number, cross_validate=False),
            trainer=replace(
                config.trainer,
                eval_strategy="no",
                save_strategy="no",
                load_best_model_at_end=False,
            ),
        )
        yield part, Split(split.all_train, train, none, questions.select(inside), none), inside


def _cross_validate(config: Train, prepared: Prepared) -> Run:
    """Train a run for every fold, and join their predictions and results."""
    split = prepared.split
    questions, contexts = split.train, prepared.pool_contexts
    logits: list[Floats] = []
    rows: list[Any] = []
    stages: list[Stage] = []
    for part, part_split, inside in _iterate_folds(config, split, prepared.fold):
        run = _train_run(part, replace(prepared, split=part_split))
        stages.append(run.stage)
        rows.append(inside)
        logits.append(read_predictions(run.stage.folder / PREDICTIONS).logits)
    key = {"runs": [stage.hash for stage in stages], "questions": questions_digest(questions)}
    outputs = Path(config.outputs)
    with shared_stage(outputs, "folds", config.name, key, config.resume) as stage:
        if not stage.reused and distributed.rank() == 0:
            joined = _join_folds(questions, rows, logits)
            write_answers(stage, config, questions, contexts, joined)
            score(stage, questions, contexts, [*prepared.stages, *stages])
            write_run(stage, config, questions, contexts)
            stage.finish([PREDICTIONS, RESULTS, REPORT], questions=len(questions))
    run = report(stage, questions, contexts, [*prepared.stages, *stages])
    return replace(run, selection_score=float(run.systems[-1].scores.mean()))


def _join_folds(questions: Dataset, rows: list[Any], logits: list[Floats]) -> Floats:
    """Join the folds' logits in the order of the questions, `(questions, options)`."""
    options = max(map(len, questions["options"]))
    joined = np.full((len(questions), options), -np.inf)
    for inside, fold in zip(rows, logits, strict=True):
        joined[inside, : fold.shape[1]] = fold
    return joined


def _average_seeds(config: Train, runs: list[Run]) -> Run:
    """Report all runs and their mean; its interval is over questions, not seeds."""
    systems = [run.systems[-1] for run in runs]
    scores = np.array([system.scores for system in systems])
    mean = System(f"mean of {len(runs)} seeds", scores.mean(axis=0))
    values = scores.mean(axis=1)
    *baselines, _ = runs[0].systems
    outputs, key = Path(config.outputs), {"runs": [run.stage.hash for run in runs]}
    with shared_stage(outputs, "seeds", config.name, key, config.resume) as stage:
        if not stage.reused and distributed.rank() == 0:
            stages = {s.folder: s for run in runs for s in run.stages}
            pairs = [(mean, row) for row in baselines[BLIND:]]
            figures = results([*baselines, *systems, mean], pairs, list(stages.values()))
            figures["seeds"] = {
                "seeds": config.seed,
                "map_at_3": values.tolist(),
                "mean": float(values.mean()),
                "sd": float(values.std(ddof=1)),
            }
            write_json(stage.folder / RESULTS, figures)
            write_results(stage.folder / REPORT, stage.folder.name, figures)
            stage.finish([RESULTS, REPORT], seeds=len(runs))
    figures = read_json(stage.folder / RESULTS)
    seeds = figures["seeds"]
    line = f"MAP@3 over seeds: {seeds['mean']:.3f} ± {seeds['sd']:.3f} (standard deviation)"
    print_result(f"{table(figures)}\n{line}\n{stage.folder / RESULTS}\n{stage.folder / REPORT}")
    selection = [run.selection_score for run in runs if run.selection_score is not None]
    mean_selection = float(np.mean(selection)) if selection else None
    return Run(stage, [*runs[0].stages, stage], [*baselines, *systems, mean], mean_selection)
