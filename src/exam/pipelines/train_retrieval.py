"""`exam train task=reranker|encoder`: train a retrieval model, and score it before and after."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from exam.config import READER, Reranker, Task, Train, TrainingPairs, to_dict, trainer_values
from exam.config.saved import CONFIG, save_run
from exam.core.artifacts import Stage, log_reused, open_stage
from exam.core.checkpoints import checkpoint_fingerprint
from exam.core.environment import describe_environment
from exam.core.files import file_digest, read_json, write_json
from exam.core.logging import print_result
from exam.core.precision import choose_formats
from exam.core.trainer import CHECKPOINTS, ENVIRONMENT, RESULTS, list_run_files
from exam.data.questions import questions_digest
from exam.data.splits import Split, read_split
from exam.evaluation.results import Run
from exam.evaluation.retrieval import compare_contexts, format_retrieval_table, rank_contexts
from exam.generation.generate import QUESTIONS, generate_if_used
from exam.pipelines.passage_gain import measure_gains, restore_reader
from exam.pipelines.tracking import track_training
from exam.retrieval.contexts import read_contexts, read_idf
from exam.retrieval.reranker import has_head
from exam.retrieval.retriever import Retrieval
from exam.retrieval.training import tune

DEV = "dev.json"


def train_retrieval(config: Train) -> Run:
    """Train the reranker or the encoder, then score the validation questions before and after.

    The dev fold of the training questions chooses the checkpoint. Scores go to results.json in the
    run's folder.

    Raises:
        ExamError: `training_pairs.reader` cannot be used, or no training pair is left.
    """
    retrieval = Retrieval.from_config(config)
    generation = generate_if_used(config.data, retrieval, config.generator)
    split = read_split(config.data, generation.folder / QUESTIONS if generation else None)
    outputs, by_reader = Path(config.outputs), config.training_pairs.positives == READER
    reader = restore_reader(config) if by_reader else None
    pool = retrieval.first_contexts(split.all_train, f"{config.data.name}-train")
    pairs = config.training_pairs
    if reader is not None:
        gains = measure_gains(*reader, split.train, pool, pairs.max_rank, outputs)
        pairs = replace(pairs, positives=str(gains), reader=None)
    key = _key(config, pairs, split, pool)
    with open_stage(outputs, "train", config.name, key, config.resume) as stage:
        if not stage.reused:
            save_run(config, stage.folder / CONFIG)
            write_json(stage.folder / ENVIRONMENT, describe_environment())
            mining = replace(config, training_pairs=pairs)
            with track_training(config, stage):
                figures = tune(mining, split, read_contexts(pool), read_idf(pool), stage.folder)
            write_json(stage.folder / DEV, figures)
            stage.finish(list_run_files(stage.folder), questions=len(split.train))
        shutil.rmtree(stage.folder / CHECKPOINTS, ignore_errors=True)
    stages = [*retrieval.stages, pool, stage]
    log_reused(stages)
    _report(config, retrieval, split, stage)
    return Run(stage, stages, [])


def _key(config: Train, pairs: TrainingPairs, split: Split, pool: Stage) -> dict[str, Any]:
    """Return everything that determines the trained weights."""
    parts = {"train": split.train, "dev": split.dev}
    trained = config.reranker if config.task is Task.reranker else config.encoder
    positives = None if pairs.positives is None else file_digest(Path(pairs.positives))
    return {
        "task": config.task.value,
        "questions": {part: questions_digest(questions) for part, questions in parts.items()},
        "contexts": pool.hash,
        "pairs": {**to_dict(pairs), "positives": positives},
        config.task.value: {
            **to_dict(trained),
            "checkpoint": checkpoint_fingerprint(trained.checkpoint),
        },
        "trainer": choose_formats(trainer_values(config.trainer), choose=False),
        "seed": config.seed,
    }


def _report(config: Train, retrieval: Retrieval, split: Split, stage: Stage) -> None:
    """Rank the validation questions before and after; print and save the paired figures."""
    name = f"{config.data.name}-valid"
    contexts = [r.contexts(split.valid, name) for r in _rankings(config, retrieval, stage)]
    figures = compare_contexts([rank_contexts(ranked, config.metric.k) for ranked in contexts])
    write_json(stage.folder / RESULTS, {**figures, "dev": read_json(stage.folder / DEV)})
    print_result(f"{format_retrieval_table(figures)}\n{stage.folder / RESULTS}")


def _rankings(config: Train, retrieval: Retrieval, stage: Stage) -> list[Retrieval]:
    """Return retrieval after training, then before, then (for a reranker with a head) without."""
    trained = str(stage.folder)
    if config.task is Task.encoder:
        encoder = replace(config.encoder, name_or_path=trained, revision=None)
        return [replace(retrieval, encoder=encoder), retrieval]
    after = replace(retrieval, reranker=replace(config.reranker, ckpt=trained, revision=None))
    first = replace(retrieval, reranker=Reranker())
    return [after, retrieval, first] if has_head(config.reranker) else [after, first]
