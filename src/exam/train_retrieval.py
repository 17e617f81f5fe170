"""`train.py task=reranker|encoder`: pairs → training → rankings before and after."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from exam.answers.context_scores import comparison, ranked, table
from exam.artefacts import open_stage
from exam.checkpoints import checkpoint_fingerprint
from exam.config import Reranker, Task, Train, plain, trainer_values
from exam.files import file_digest, read_json, write_json
from exam.precision import with_formats
from exam.questions import questions_digest
from exam.retrieval.contexts import read_contexts, read_rarity
from exam.retrieval.rerank import has_head
from exam.retrieval.retrieval import Retrieval
from exam.retrieval.training import tune
from exam.run_config import CONFIG, save_run
from exam.runs import CHECKPOINTS, ENVIRONMENT, RESULTS, run_files
from exam.runtime import environment, say
from exam.splits import Split
from exam.stage import Stage, log_reused

DEV = "dev.json"


def train_retrieval(config: Train, retrieval: Retrieval, split: Split) -> Stage:
    """Train the reranker or the encoder, then score the reported questions before and after.

    Training sees the training questions alone, their dev fold chooses the checkpoint; the reported
    questions are ranked once it is done. results.json lies in the run folder.
    """
    name = config.data.name
    pool = retrieval.first_contexts(split.pool, f"{name}-train")
    with open_stage(
        Path(config.outputs), "train", config.name, _key(config, split, pool), config.resume
    ) as stage:
        if not stage.reused:
            save_run(config, stage.folder / CONFIG)
            write_json(stage.folder / ENVIRONMENT, environment())
            found = tune(config, split, read_contexts(pool), read_rarity(pool), stage.folder)
            write_json(stage.folder / DEV, found)
            stage.finish(run_files(stage.folder), questions=len(split.train))
        shutil.rmtree(stage.folder / CHECKPOINTS, ignore_errors=True)
    log_reused([*retrieval.stages, pool, stage])
    _report(config, retrieval, split, stage)
    return stage


def _key(config: Train, split: Split, pool: Stage) -> dict[str, Any]:
    """What determines the trained weights."""
    parts = {"train": split.train, "dev": split.dev}
    own = config.reranker if config.task is Task.reranker else config.encoder
    pairs = plain(config.pairs)
    if config.pairs.positives is not None:
        pairs["positives"] = file_digest(Path(config.pairs.positives))
    return {
        "task": config.task.value,
        "questions": {part: questions_digest(questions) for part, questions in parts.items()},
        "contexts": pool.hash,
        "pairs": pairs,
        config.task.value: {**plain(own), "checkpoint": checkpoint_fingerprint(own.checkpoint)},
        "trainer": with_formats(trainer_values(config.trainer), choose=False),
        "seed": config.seed,
    }


def _report(config: Train, retrieval: Retrieval, split: Split, stage: Stage) -> None:
    """Rank the reported questions anew and as before, and print and save the figures, paired."""
    name = f"{config.data.name}-valid"
    rankings = _rankings(config, retrieval, stage)
    found = comparison([ranked(ranking.contexts(split.valid, name)) for ranking in rankings])
    write_json(stage.folder / RESULTS, {**found, "dev": read_json(stage.folder / DEV)})
    say(f"{table(found)}\n{stage.folder / RESULTS}")


def _rankings(config: Train, retrieval: Retrieval, stage: Stage) -> list[Retrieval]:
    """With the trained weights; with the checkpoint as it was, where it can score; without."""
    trained = str(stage.folder)
    if config.task is Task.encoder:
        encoder = replace(config.encoder, name_or_path=trained, revision=None)
        return [replace(retrieval, encoder=encoder), retrieval]
    after = replace(retrieval, reranker=replace(config.reranker, ckpt=trained, revision=None))
    first = replace(retrieval, reranker=Reranker())
    return [after, retrieval, first] if has_head(config.reranker) else [after, first]
