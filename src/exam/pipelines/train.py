"""`exam train`: train a reader, once or for every fold and seed, or a reranker or an encoder."""

import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, List, Value, concatenate_datasets

from exam.config import Data, ReaderKind, Task, Train, is_trained, reader_values, to_dict
from exam.config.saved import CONFIG, save_run
from exam.core import distributed
from exam.core.artifacts import MANIFEST, Stage, log_reused, shared_stage
from exam.core.checkpoints import checkpoint_fingerprint
from exam.core.environment import describe_environment
from exam.core.errors import ExamError, spell_command
from exam.core.files import digest, read_json, write_json
from exam.core.trainer import CHECKPOINTS, ENVIRONMENT, REPORT, RESULTS, TRAINING, list_run_files
from exam.data.option_order import fixed_orders_key
from exam.data.questions import questions_digest
from exam.data.schema import LETTERS
from exam.data.splits import Split, assign_folds, group_repetitions, read_split
from exam.evaluation.learned import write_learned
from exam.evaluation.predictions import read_predictions, to_probabilities
from exam.evaluation.results import (
    NON_READING,
    PREDICTIONS,
    Run,
    ScoredSystem,
    build_results,
    check_k,
    describe_training,
    list_warnings,
    log_scores,
    log_warnings,
    metric_key,
    print_report,
    print_results,
    write_answers,
    write_scores,
)
from exam.generation.generate import QUESTIONS, generate_if_used
from exam.metrics import metric_name, metric_title
from exam.pipelines.preflight import CheckQuestions, check_models, check_reader, check_room
from exam.pipelines.tracking import find_mode, log_summary, track_sweep, track_training
from exam.readers.base import reader_class
from exam.readers.lexical import FEATURES, OVERLAP_FEATURES
from exam.readers.multiple_choice.features import TARGETS
from exam.report.card import push, write_card
from exam.report.run import write_results, write_run
from exam.retrieval.retriever import Retrieval

log = logging.getLogger(__name__)

EXTRA_PREFIX = "extra:"  # of the ids of `data.extra_train`
SoftLabel = tuple[list[float], int | None]  # probabilities of the options, and the label


@dataclass(frozen=True)
class Inputs:
    """Questions and contexts that the runs of a configuration share.

    Attributes:
        split: The questions.
        fold: The fold of every training question, with cross-validation.
        pool_contexts: The contexts of every training question.
        valid_contexts: The contexts of the questions that are reported on.
        stages: The stages that made all these.
        group: The name that joins the trainings of several folds or seeds; None for one training.
    """

    split: Split
    fold: Any
    pool_contexts: Stage
    valid_contexts: Stage
    stages: list[Stage]
    group: str | None


def run_train(config: Train) -> Run:
    """Train a reader, a reranker or an encoder; only a reader's run has systems."""
    find_mode(config.tracker)
    check_models(config)
    with track_sweep(config):
        if config.task is not Task.reader:
            from exam.pipelines.train_retrieval import train_retrieval

            return train_retrieval(config)
        run = train_reader(config)
        _log_figures(run.stage, run.selection_score)
        return run


def _log_figures(stage: Stage, selection_score: float | None) -> None:
    figures = read_json(stage.folder / RESULTS)["rows"][-1]
    log_summary({**figures, "selection_score": selection_score})


def train_reader(config: Train) -> Run:
    """Retrieve, train a reader, and score it on the validation questions.

    With `data.cross_validate=true`, train a reader for each fold and score it on that fold. With
    several seeds, repeat the training with each, and average.
    """
    inputs = _prepare(config)
    train = _cross_validate if config.data.cross_validate else _train_run
    if isinstance(config.seed, list):
        runs = [train(replace(config, seed=seed), inputs) for seed in config.seed]
        split = inputs.split
        scored = split.train if config.data.cross_validate else split.valid
        run = _average_seeds(config, runs, scored)
    else:
        runs, run = [], train(config, inputs)
    log_reused([stage for part in (*runs, run) for stage in part.stages])
    return run


def _prepare(config: Train) -> Inputs:
    """Check the reader, read the questions, and retrieve their contexts."""
    check_questions = check_reader(config.model)
    retrieval, data = Retrieval.from_config(config), config.data
    if distributed.world_size() > 1:
        if not data.uses_generated_questions:
            # Refuse mistakes before building indexes.
            _read_questions(config, None, check_questions)
        retrieval.build(generates=data.uses_generated_questions)
    with distributed.main_process_first():
        generation = generate_if_used(data, retrieval, config.generator)
        split = _read_questions(config, generation, check_questions)
        fold = (
            assign_folds(split.train, data.folds, data.split_seed) if data.cross_validate else None
        )
        if distributed.rank() == 0:
            _check_room_early(config)
        pool = valid = retrieval.contexts(split.all_train, f"{data.name}-train")
        if data.valid is not None and not data.cross_validate:
            valid = retrieval.contexts(split.valid, f"{data.name}-valid")
    log_scores(valid, "valid", split.valid if valid is pool else None)
    stages = (*retrieval.stages, generation, pool, None if valid is pool else valid)
    group = None
    if isinstance(config.seed, list) or data.cross_validate:
        folds = [data.folds, data.split_seed] if data.cross_validate else []
        key = {"folds": folds, **_stage_key(config, split, pool, valid)}
        group = f"{config.name}-{digest(key)[:8]}"
    return Inputs(split, fold, pool, valid, [s for s in stages if s is not None], group)


def _read_questions(
    config: Train, generation: Stage | None, check_questions: CheckQuestions | None
) -> Split:
    """Read the questions, including the generated ones.

    Raises:
        ExamError: a file or row is invalid, or a question is too long for the reader.
    """
    split = read_split(config.data, generation.folder / QUESTIONS if generation else None)
    split = add_soft_labels(split, config.data)
    check_k(config.metric.k, max(map(len, split.valid["options"])))
    if check_questions is not None:
        check_questions(split.all_train)
        check_questions(split.valid)
    return split


def _check_room_early(config: Train) -> None:
    """Refuse, before retrieval, a run that cannot fit; warn if the run may be finished already.

    Raises:
        ExamError: the run does not fit, and no finished run has its name.
    """
    try:
        check_room(config)
    except ExamError as error:
        if not any(Path(config.outputs).glob(f"train/{config.name}-*/{MANIFEST}")):
            raise
        log.warning("%s", error)


def _train_run(config: Train, inputs: Inputs) -> Run:
    """Train one run; its folder holds the model, the predictions and the results."""
    split, pool, valid = inputs.split, inputs.pool_contexts, inputs.valid_contexts
    key = _stage_key(config, split, pool, valid)
    leads = distributed.rank() == 0
    outputs = Path(config.outputs)
    systems = None
    with shared_stage(outputs, "train", config.name, key, config.resume) as stage:
        if not stage.reused:
            with track_training(config, stage, inputs.group):
                systems = _fit(config, stage, inputs)
        if leads:
            shutil.rmtree(stage.folder / CHECKPOINTS, ignore_errors=True)
    log_warnings(stage)
    run = print_report(stage, split.valid, valid, inputs.stages, systems)
    if leads and config.hub.push:
        push(stage.folder, config)
    return replace(run, selection_score=_read_selection_score(stage))


def _fit(config: Train, stage: Stage, inputs: Inputs) -> list[ScoredSystem] | None:
    """Train and score a reader, and finish its stage; on rank 0, return its scores."""
    split, pool, valid = inputs.split, inputs.pool_contexts, inputs.valid_contexts
    leads = distributed.rank() == 0
    if leads:
        check_room(config)
        save_run(config, stage.folder / CONFIG)
        write_json(stage.folder / ENVIRONMENT, describe_environment())
        write_learned(stage.folder, config, split)
    reader = reader_class(config).fit(config, stage.folder, split, pool)
    logits, tokens = reader.predict(split.valid, valid)
    if not leads:
        return None
    warnings = describe_training(stage.folder)
    write_answers(stage, config, split.valid, valid, logits)
    systems = write_scores(stage, split.valid, valid, inputs.stages, warnings=warnings)
    write_run(stage, config, split.valid, valid, tokens)
    write_card(stage, config)
    files = list_run_files(stage.folder)
    stage.finish(files, questions=len(split.train), warnings=warnings)
    _log_figures(stage, _read_selection_score(stage))
    return systems


def _read_selection_score(stage: Stage) -> float | None:
    """Return the best score on the dev fold; None if a reader chose no checkpoint."""
    path = stage.folder / TRAINING
    score: float | None = read_json(path).get("best") if path.is_file() else None
    return score


def _stage_key(config: Train, split: Split, pool: Stage, valid: Stage) -> dict[str, Any]:
    """Return everything that determines a trained run."""
    parts = {"train": split.train, "dev": split.dev, "valid": split.valid}
    evidence = {}
    if config.model.overlap_features:
        evidence = {"overlap_features": list(OVERLAP_FEATURES)}
    elif config.model.kind is ReaderKind.lexical:
        evidence = {"features": list(FEATURES)}
    checkpoint = checkpoint_fingerprint(config.model.checkpoint)
    learns = config.model.kind.is_neural and is_trained(config.trainer)
    shuffles = learns and config.model.kind is ReaderKind.transformer
    # Several processes change what a reader learns: a step then has more questions.
    processes = distributed.world_size() if learns else 1
    return {
        "questions": {name: questions_digest(part) for name, part in parts.items()},
        "contexts": {"train": pool.hash, "valid": valid.hash},
        "context": to_dict(config.context),
        "model": {**to_dict(config.model), **evidence, "checkpoint": checkpoint},
        "tuning": to_dict(config.tuning),
        "trainer": reader_values(config),
        "seed": config.seed,
        **metric_key(config.metric.k),
        **({"processes": processes} if processes > 1 else {}),
        **(fixed_orders_key(split.train["options"]) if shuffles else {}),
    }


def _cross_validate(config: Train, inputs: Inputs) -> Run:
    """Train a run for every fold, and join their predictions and results.

    Predicted questions must not choose a checkpoint, so every run keeps its last one.
    """
    split, data, contexts = inputs.split, config.data, inputs.pool_contexts
    questions, empty = split.train, split.train.select([])
    last = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    trainer = replace(config.trainer, **last)
    joined = np.full((len(questions), max(map(len, questions["options"]))), -np.inf)
    stages: list[Stage] = []
    for number in range(data.folds):
        (inside,), (outside,) = (inputs.fold == number).nonzero(), (inputs.fold != number).nonzero()
        train = concatenate_datasets([questions.select(outside), split.extra])
        fold = replace(
            config,
            name=f"{config.name}-fold{number}",
            data=replace(data, fold=number, cross_validate=False),
            trainer=trainer,
        )
        part = Split(split.all_train, train, empty, questions.select(inside), empty)
        run = _train_run(fold, replace(inputs, split=part))
        logits = read_predictions(run.stage.folder / PREDICTIONS).logits
        joined[inside, : logits.shape[1]] = logits
        stages.append(run.stage)
    key = {
        "runs": [stage.hash for stage in stages],
        "questions": questions_digest(questions),
        **metric_key(config.metric.k),
    }
    outputs, systems = Path(config.outputs), None
    with shared_stage(outputs, "folds", config.name, key, config.resume) as stage:
        if not stage.reused and distributed.rank() == 0:
            write_answers(stage, config, questions, contexts, joined)
            warnings = list_warnings(stages)
            previous = [*inputs.stages, *stages]
            systems = write_scores(stage, questions, contexts, previous, warnings=warnings)
            write_run(stage, config, questions, contexts)
            stage.finish([PREDICTIONS, RESULTS, REPORT], questions=len(questions))
    run = print_report(stage, questions, contexts, [*inputs.stages, *stages], systems)
    return replace(run, selection_score=float(run.systems[-1].scores.mean()))


def _average_seeds(config: Train, runs: list[Run], questions: Dataset) -> Run:
    """Report all runs and their mean, whose interval is over seeds and questions."""
    systems = [run.systems[-1] for run in runs]
    scores = np.array([system.scores for system in systems])
    groups = group_repetitions(questions)
    mean = ScoredSystem(f"mean of {len(runs)} seeds", scores, config.metric.k, groups)
    values = scores.mean(axis=1)
    *baselines, _ = runs[0].systems
    metric = metric_name(config.metric.k)
    key = {"runs": [run.stage.hash for run in runs], "interval": "seeds and groups of questions"}
    selection = [run.selection_score for run in runs if run.selection_score is not None]
    mean_selection = float(np.mean(selection)) if selection else None
    outputs, warnings = Path(config.outputs), list_warnings([run.stage for run in runs])
    with shared_stage(outputs, "seeds", config.name, key, config.resume) as stage:
        if not stage.reused and distributed.rank() == 0:
            stages = {stage.folder: stage for run in runs for stage in run.stages}
            pairs = [(mean, row) for row in baselines[NON_READING:]]
            rows = [*baselines, *systems, mean]
            figures = build_results(rows, pairs, list(stages.values()), warnings)
            if mean_selection is not None:
                figures["selection_score"] = mean_selection
            figures["seeds"] = {
                "seeds": config.seed,
                metric: values.tolist(),
                "mean": float(values.mean()),
                "sd": float(values.std(ddof=1)),
                "runs": [f"{run.stage.kind}/{run.folder.name}" for run in runs],
                "groups": groups.tolist(),
            }
            write_results(stage.folder, figures)
            stage.finish([RESULTS, REPORT], seeds=len(runs), warnings=warnings)
    seeds = read_json(stage.folder / RESULTS)["seeds"]
    spread = f"{seeds['mean']:.3f} ± {seeds['sd']:.3f} (standard deviation)"
    print_results(stage.folder, f"{metric_title(metric)} over seeds: {spread}")
    return Run(stage, [*runs[0].stages, stage], [*baselines, *systems, mean], mean_selection)


def add_soft_labels(split: Split, data: Data) -> Split:
    """Add the probabilities of `data.soft_labels` to the training questions, as targets.

    The file's predictions are matched by id. A question without one keeps its label as the target.
    This is distillation at temperature 1 (Hinton and others, "Distilling the Knowledge in a Neural
    Network", 2015).

    Raises:
        ExamError: the file answers none of the questions, or different ones with the same ids, or
            a question has neither a label nor a prediction.
    """
    if data.soft_labels is None:
        return split
    path = Path(data.soft_labels)
    soft_labels = _read_soft_labels(path)
    _check_unique(split, soft_labels, path)
    parts, total = {}, 0
    for name, questions in (("train", split.train), ("extra", split.extra)):
        targets = []
        for question in questions.to_list():
            key = question["id"]
            soft = soft_labels.get(key) or soft_labels.get(key.removeprefix(EXTRA_PREFIX))
            targets.append(_mix_targets(question, soft, data.soft_weight, path))
            total += soft is not None
        feature = List(Value("float64"))
        parts[name] = questions.add_column(TARGETS, targets, feature=feature)
    log.info("soft labels: %d of %d questions", total, len(split.train) + len(split.extra))
    if not total:
        raise ExamError(
            f"data.soft_labels={path} answers none of the training questions "
            f"(it has {next(iter(soft_labels))!r} …, they have {split.train['id'][0]!r} …).\n"
            f"Predict the same files: {spell_command('infer')} ckpt=<run> data.test=<file>"
        )
    return replace(split, **parts)


def _check_unique(split: Split, soft_labels: dict[str, SoftLabel], path: Path) -> None:
    """Refuse an id that two questions have, as when every file numbers its questions from 0."""
    ids = {*split.all_train["id"]}  # training may hold all the extra questions or none
    for key in split.train["id"]:
        if key in soft_labels and f"{EXTRA_PREFIX}{key}" in ids:
            raise ExamError(
                f"{path} answers question {key!r}; data.train and data.extra_train both have one "
                "with that id.\nRename the ids of one file, and predict its questions again."
            )


def _read_soft_labels(path: Path) -> dict[str, SoftLabel]:
    predictions = read_predictions(path)
    is_option = np.isfinite(predictions.logits)
    values = to_probabilities(predictions.logits)
    rows = zip(predictions.ids, values, is_option, predictions.labels, strict=True)
    return {key: (row[mask].tolist(), label) for key, row, mask, label in rows}


def _mix_targets(
    question: dict[str, Any], soft: SoftLabel | None, weight: float, path: Path
) -> list[float]:
    """Return the target of each option; refuse a prediction of another question with this id."""
    key, number, label = question["id"], len(question["options"]), question["label"]
    hard = [float(option == label) for option in range(number)]
    if soft is None:
        if label is None:
            raise ExamError(
                f"Question {key!r} has no right option and no prediction in {path}.\n"
                "Predict it, too, or leave it out."
            )
        return hard
    values, other_label = soft
    if len(values) != number:
        raise ExamError(
            f"Question {key!r} has {number} options, and {len(values)} in {path}.\n"
            "Set predictions of the same questions."
        )
    if label is not None and other_label is not None and label != other_label:
        raise ExamError(
            f"The right option of question {key!r} is {LETTERS[label]}, and "
            f"{LETTERS[other_label]} in {path}.\nSet predictions of the same questions."
        )
    share = 1.0 if label is None else weight
    return [share * p + (1 - share) * h for p, h in zip(values, hard, strict=True)]
