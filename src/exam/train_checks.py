"""Refuse what cannot be trained: a task, the Trainer's arguments."""

import re
from pathlib import Path
from typing import Any

from exam import ranks
from exam.config import (
    ALL_FOLDS,
    READER,
    Pairs,
    Query,
    Target,
    Task,
    Train,
    is_trained,
    trainer_values,
)
from exam.config.trainer import check_trainer_values
from exam.errors import ExamError
from exam.model_checks import check_model, check_tuning

REPO = re.compile(r"[\w.-]+/[\w.-]+")  # of the hub, in full


def check_train(config: Train) -> None:
    """Refuse what `exam train` cannot do."""
    _check_hub(config)
    _check_seeds(config)
    _check_task(config)
    _check_depth(config)
    trainer = trainer_values(config.trainer)
    check_trainer_values(trainer)
    _check_evaluation(config, trainer)
    check_model(config)
    check_tuning(config)
    _check_soft_labels(config)


def _check_hub(config: Train) -> None:
    """A push to nowhere, or of several runs to one place, is refused before any work."""
    hub = config.hub
    if not hub.push:
        return
    several = isinstance(config.seed, list) or config.data.fold == ALL_FOLDS
    if several or config.task is not Task.reader:
        made = "several readers" if several else f"a run of task={config.task.value}"
        raise ExamError(
            f"hub.push=true pushes one reader, and this makes {made}.\n"
            "Leave it out, or give one seed and one fold."
        )
    if not REPO.fullmatch(hub.repo or ""):
        raise ExamError(
            f"hub.push=true, and hub.repo={hub.repo} names no repository.\n"
            "Give it in full: hub.repo=<owner>/<name>"
        )


def _check_seeds(config: Train) -> None:
    seeds = config.seed if isinstance(config.seed, list) else [config.seed]
    whole = all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds)
    if not whole or (isinstance(config.seed, list) and len(set(seeds)) < max(2, len(seeds))):
        raise ExamError(
            f"seed={config.seed} is no whole number, nor a list of different ones.\n"
            "Give one, seed=42, or several: seed=[0,1,2]"
        )
    several = isinstance(config.seed, list) or config.data.fold == ALL_FOLDS
    if several and config.resume not in ("auto", "never"):
        raise ExamError(
            f"resume={config.resume} is one run, and several seeds or folds are several.\n"
            "Leave it out: resume=auto goes on with each."
        )
    if several and config.task is not Task.reader:
        raise ExamError(
            f"Several seeds or folds are for a reader, and task={config.task.value} trains none.\n"
            "Give one seed, and data.fold as a number."
        )


def _check_task(config: Train) -> None:
    """Training of a reranker or an encoder needs one, and pairs."""
    if config.task is Task.reader:
        return
    ranks.check_single(f"task={config.task.value}")
    if config.task is Task.reranker and config.reranker.ckpt is None:
        raise ExamError(
            "task=reranker trains reranker.ckpt, which has no value.\n"
            "Give a hub id or a folder: reranker.ckpt=cross-encoder/ms-marco-MiniLM-L6-v2"
        )
    _check_pairs(config)


def _check_pairs(config: Train) -> None:
    """A ranking to mine, and whole questions to mine it with."""
    retriever, pairs, task = config.retriever, config.pairs, config.task
    if task is Task.encoder and not retriever.encodes:
        raise ExamError(
            f"task=encoder is scored by its own ranking, but retriever={retriever.name} uses no "
            "encoder.\nChoose retriever=two_stage, passages or hybrid."
        )
    if not retriever.kind.searches or not 1 <= pairs.first < pairs.last <= retriever.depth:
        raise ExamError(
            f"pairs.first={pairs.first} and pairs.last={pairs.last} are no ranks of "
            f"retriever={retriever.name}, which keeps {retriever.depth}.\n"
            f"Set pairs.last to at most retriever.depth, and pairs.first below it."
        )
    query = config.reranker.query if task is Task.reranker else retriever.query
    if query is Query.per_option:
        raise ExamError(
            "query=per_option shows one option at a time; training pairs carry a whole question.\n"
            f"Set {'reranker' if task is Task.reranker else 'retriever'}.query=prompt_options."
        )
    if task is Task.encoder and pairs.target is Target.support:
        raise ExamError(
            "task=encoder tells positives from negatives; pairs.target=support grades passages.\n"
            "Choose pairs=binary."
        )
    _check_positives(pairs)


def _check_positives(pairs: Pairs) -> None:
    """Positives come from a file, or from a reader's run."""
    if (pairs.positives == READER) != (pairs.reader is not None):
        raise ExamError(
            f"pairs.positives={pairs.positives or 'null'} and pairs.reader="
            f"{pairs.reader or 'null'} must be set together.\n"
            "Set pairs.positives=reader and pairs.reader=<run folder>, or neither."
        )
    if pairs.positives not in (None, READER) and not Path(pairs.positives).is_file():
        raise ExamError(
            f"pairs.positives={pairs.positives} does not exist.\n"
            "Give a file, or a trained reader: pairs.positives=reader pairs.reader=<run folder>"
        )


def _check_soft_labels(config: Train) -> None:
    data = config.data
    if data.soft_labels is None:
        return
    if not 0 < data.soft_weight <= 1:
        raise ExamError(
            f"data.soft_weight={data.soft_weight:g} is no share of a label.\n"
            "Set it above 0 and to at most 1."
        )
    if data.shuffle_options:
        raise ExamError(
            "data.shuffle_options=true reads options in another order than they were predicted in."
            "\nLeave data.soft_labels out, or write the questions' options in their order."
        )
    learns = config.model.kind.is_neural and is_trained(config.trainer)
    if not learns or config.task is not Task.reader:
        raise ExamError(
            "data.soft_labels are for a transformer that is trained, and nothing here would learn "
            "from them.\nLeave them out, or choose another model, trainer or task."
        )


def _check_depth(config: Train) -> None:
    context, reranker = config.context, config.reranker
    depths = {"top_k": context.top_k}
    for key in ("train_top_k", "eval_top_k"):
        if (own := getattr(context, key)) is not None:
            depths[key] = own
    kept = {"retriever.depth": config.retriever.depth} if config.retriever.kind.searches else {}
    if reranker.ckpt is not None and config.task is Task.reader:
        kept = {"reranker.depth": reranker.depth, **kept}
    for key, top_k in depths.items():
        if top_k < 0:
            raise ExamError(f"context.{key}={top_k} must be 0 or more.")
        for limit, depth in kept.items():
            if top_k > depth:
                raise ExamError(
                    f"context.{key}={top_k} asks for more passages than {limit}={depth} keeps.\n"
                    f"Set {limit}={top_k}, or a smaller context.{key}."
                )


def _check_evaluation(config: Train, trainer: dict[str, Any]) -> None:
    if (epochs := trainer.get("num_train_epochs", 1)) < 0:
        raise ExamError(
            f"trainer.num_train_epochs={epochs:g} must be 0 or more; with 0 the checkpoint answers "
            "as it is."
        )
    best = trainer.get("load_best_model_at_end")
    evaluates, saves = trainer.get("eval_strategy", "no"), trainer.get("save_strategy", "steps")
    if config.data.fold is None and (evaluates != "no" or best):
        raise ExamError(
            "data.fold=null leaves no questions to choose a checkpoint on, but "
            "trainer.eval_strategy or trainer.load_best_model_at_end asks for them.\n"
            "Set data.fold=0, or trainer.eval_strategy=no trainer.load_best_model_at_end=false."
        )
    if best and saves not in (evaluates, "best"):
        raise ExamError(
            f"trainer.load_best_model_at_end needs trainer.eval_strategy={evaluates} and "
            f"trainer.save_strategy={saves} to be the same."
        )
    if trainer.get("save_total_limit") == 1:
        raise ExamError(
            "trainer.save_total_limit=1 leaves no whole checkpoint while one is being written.\n"
            "Set trainer.save_total_limit=2, or null to keep all."
        )
    if trainer.get("fp16") and trainer.get("use_cpu"):
        raise ExamError(
            "trainer.fp16=true needs a GPU, but trainer.use_cpu=true.\n"
            "Set trainer.fp16=false, or choose trainer=gpu."
        )
