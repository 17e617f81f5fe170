"""Refuse settings that cannot work together, before anything heavy is imported."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from exam.config.commands import (
    Bundle,
    Command,
    Generate,
    Infer,
    Retrieving,
    Task,
    TrackerMode,
    Train,
)
from exam.config.generation import GeneratorKind
from exam.config.reader import BatchBy, Layout, ReaderKind, Scoring, Tuning, WeightsLocation
from exam.config.retrieval import READER, Query, Target, TrainingPairs
from exam.config.training_args import is_trained, trainer_values
from exam.config.values import check_folder_name, check_values, to_dict
from exam.core import distributed
from exam.core.errors import ExamError
from exam.core.security import UNPRINTABLE, has_secret

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")  # owner/name
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def validate(config: Command) -> None:
    """Refuse values out of range and settings that contradict each other.

    Raises:
        ExamError: the first of them.
    """
    _check_secrets(config)  # first: other messages quote values
    check_values(config)
    if isinstance(config, Retrieving):
        _check_reranker(config)
    if isinstance(config, Infer):
        _check_inputs(config)
    if isinstance(config, Infer | Bundle):
        _check_combination(config)
    if isinstance(config, Train):
        _check_train(config)
    if isinstance(config, Train | Infer):
        _check_launch(config.launch)
    if config.offline:
        _check_offline(config)


def _check_reranker(config: Retrieving) -> None:
    """Refuse a reranker without a ranking to reorder."""
    reranker, retriever = config.reranker, config.retriever
    if reranker.ckpt is None:
        return
    if not retriever.kind.searches:
        raise ExamError(
            f"reranker={reranker.name} needs a ranking, but retriever={retriever.name} makes none."
            "\nChoose a retriever that searches, or reranker=none"
        )
    if reranker.top_k > retriever.top_k:
        raise ExamError(
            f"reranker.top_k={reranker.top_k} exceeds retriever.top_k={retriever.top_k}.\n"
            f"Set retriever.top_k={reranker.top_k}, or a smaller reranker.top_k."
        )


def _check_inputs(config: Infer) -> None:
    """Require either runs or saved predictions."""
    if (config.ckpt is None) == (config.predictions is None):
        if config.ckpt is not None:
            raise ExamError("ckpt and predictions exclude each other.\nLeave one of them out.")
        raise ExamError(
            "ckpt and predictions are missing.\n"
            "Give runs, ckpt=<folder>, or saved predictions, predictions=[<file>,…]"
        )
    if config.predictions is not None and (
        config.variants or config.option_rotations > 1 or config.run
    ):
        raise ExamError(
            "variants, option_rotations and run.<key> need a run, but predictions=… loads none.\n"
            "Give the runs instead of predictions: ckpt=[<folder>,…]"
        )


def _check_combination(config: Infer | Bundle) -> None:
    """Refuse more than one way to combine readers."""
    ways = (config.ensemble, config.cascade.escalate_fraction, config.cascade.threshold)
    if sum(way is not None for way in ways) > 1:
        raise ExamError(
            "ensemble=, cascade.escalate_fraction= and cascade.threshold= exclude each other.\n"
            "Leave all but one of them out."
        )


def _check_launch(launch: Any) -> None:
    if launch not in ("auto", "single") and not (type(launch) is int and launch >= 1):
        raise ExamError(
            f"launch must be auto, single or a number of processes (got {launch}).\n"
            "Leave it out for one process on each GPU, or set launch=single for one in all."
        )


def _check_secrets(config: Command) -> None:
    """Refuse keys, tokens and addresses with a login: every value is saved, logged and compared."""
    for key, text in _texts(to_dict(config)):
        if UNPRINTABLE.search(text):
            raise ExamError(f"{key} contains unprintable characters: {text!a}.\nRemove them.")
        if has_secret(text):
            raise ExamError(
                f"{key} contains a key, a token or an address with a login, and would be saved.\n"
                "Set it in the environment (HF_TOKEN, WANDB_API_KEY, OPENAI_API_KEY)."
            )


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every string of nested values, names included, with its dotted key."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield key, str(name)
            yield from _texts(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, key)
    elif isinstance(value, str):
        yield key, value


def _check_offline(config: Command) -> None:
    """Refuse settings that always need the network; downloads may be in the cache."""
    needs = {"exam bundle": isinstance(config, Bundle)}
    if isinstance(config, Retrieving | Generate):
        generator, writer = config.generator, config.generator.llm
        is_remote = urlsplit(writer.base_url or "").hostname not in LOOPBACK and not writer.local
        needs["generator=llm"] = generator.kind is GeneratorKind.llm and is_remote
    if isinstance(config, Train):
        reported = trainer_values(config.trainer).get("report_to") or "none"
        needs["hub.push=true"] = config.hub.push
        needs["tracker=wandb"] = config.tracker.mode is TrackerMode.online
        needs[f"trainer.report_to={reported}"] = reported not in ("none", ["none"])
    for name, is_needed in needs.items():
        if is_needed:
            raise ExamError(
                f"{name} needs a network, but offline=true forbids it.\nLeave one of them out."
            )


def _check_train(config: Train) -> None:
    check_folder_name("name", config.name)
    _check_hub(config)
    _check_seeds(config)
    _check_task(config)
    _check_passages(config)
    trainer = trainer_values(config.trainer)
    _check_checkpoints(config, trainer)
    _check_model(config, trainer)
    _check_soft_labels(config)


def _check_hub(config: Train) -> None:
    """Refuse an upload without a repository, or of several runs to one."""
    hub = config.hub
    if not hub.push:
        return
    if _trains_several(config) or config.task is not Task.reader:
        raise ExamError(
            "hub.push=true uploads one reader.\n"
            "Leave it out, or train one reader: one seed, and no data.cross_validate."
        )
    if not REPOSITORY.fullmatch(hub.repo or ""):
        raise ExamError(
            f"hub.push=true needs a repository (got hub.repo={hub.repo}).\n"
            "Give it in full: hub.repo=<owner>/<name>"
        )


def _trains_several(config: Train) -> bool:
    return isinstance(config.seed, list) or config.data.cross_validate


def _check_seeds(config: Train) -> None:
    seeds = config.seed if isinstance(config.seed, list) else [config.seed]
    are_numbers = all(type(seed) is int for seed in seeds)
    if not are_numbers or (isinstance(config.seed, list) and len(set(seeds)) < max(2, len(seeds))):
        raise ExamError(
            f"seed must be a whole number, or a list of different ones (got {config.seed}).\n"
            "Give one, seed=42, or several: seed=[0,1,2]"
        )
    if not _trains_several(config):
        return
    if config.resume not in ("auto", "never"):
        raise ExamError(
            f"resume={config.resume} resumes one run, but you train several seeds or folds.\n"
            "Leave it out: resume=auto resumes each of them."
        )
    if config.task is not Task.reader:
        raise ExamError(
            f"Several seeds or folds need task=reader (got task={config.task.value}).\n"
            "Give one seed, and leave data.cross_validate out."
        )


def _check_task(config: Train) -> None:
    """Refuse to train a reranker or an encoder without a model, a ranking or pairs."""
    if config.task is Task.reader:
        return
    distributed.require_single_process(f"task={config.task.value}")
    if config.task is Task.reranker and config.reranker.ckpt is None:
        raise ExamError(
            "task=reranker trains reranker.ckpt, which has no value.\n"
            "Give a hub id or a folder: reranker.ckpt=cross-encoder/ms-marco-MiniLM-L6-v2"
        )
    retriever, pairs = config.retriever, config.training_pairs
    if config.task is Task.encoder and not retriever.encodes:
        raise ExamError(
            "task=encoder needs a retriever that uses the encoder "
            f"(got retriever={retriever.name}).\nChoose retriever=two_stage, or retriever=passages"
        )
    if not 1 <= pairs.min_rank < pairs.max_rank <= retriever.top_k:
        top_k = max(2, retriever.top_k)
        raise ExamError(
            f"training_pairs.min_rank={pairs.min_rank} and training_pairs.max_rank="
            f"{pairs.max_rank} must be ranks of retriever={retriever.name}, which keeps "
            f"{retriever.top_k}.\n"
            f"Set training_pairs.min_rank={max(1, min(pairs.min_rank, top_k - 1))} "
            f"training_pairs.max_rank={top_k}"
            + (f" retriever.top_k={top_k}" if retriever.top_k < top_k else "")
        )
    group = "reranker" if config.task is Task.reranker else "retriever"
    if getattr(config, group).query is Query.per_option:
        raise ExamError(
            f"{group}.query=per_option shows one option at a time, but training pairs need the "
            f"whole question.\nSet {group}.query=prompt_options"
        )
    if config.task is Task.encoder and pairs.target is Target.support:
        raise ExamError(
            "task=encoder needs positives and negatives, but training_pairs.target=support "
            "grades passages.\nChoose training_pairs=binary"
        )
    _check_positives(pairs)


def _check_positives(pairs: TrainingPairs) -> None:
    """Refuse positives that are neither a file nor a reader's run."""
    if (pairs.positives == READER) != (pairs.reader is not None):
        raise ExamError(
            f"training_pairs.positives={pairs.positives or 'null'} and training_pairs.reader="
            f"{pairs.reader or 'null'} must be set together.\n"
            "Set training_pairs.positives=reader and training_pairs.reader=<run folder>, or "
            "neither."
        )
    if pairs.positives not in (None, READER) and not Path(pairs.positives).is_file():
        raise ExamError(
            f"training_pairs.positives={pairs.positives} does not exist.\n"
            "Give a file, or a trained reader: training_pairs.positives=reader "
            "training_pairs.reader=<run folder>"
        )


def _check_passages(config: Train) -> None:
    """Refuse to read more passages than the retriever or the reranker keeps."""
    context, retriever, reranker = config.context, config.retriever, config.reranker
    kept = {"retriever.top_k": retriever.top_k} if retriever.kind.searches else {}
    if reranker.ckpt is not None and config.task is Task.reader:
        kept = {"reranker.top_k": reranker.top_k, **kept}
    for key in ("num_passages", "train_num_passages", "eval_num_passages"):
        top_k = getattr(context, key) or 0
        for limit, depth in kept.items():
            if top_k > depth:
                raise ExamError(
                    f"context.{key}={top_k} exceeds {limit}={depth}.\n"
                    f"Set {limit}={top_k}, or a smaller context.{key}."
                )


def _check_checkpoints(config: Train, trainer: dict[str, Any]) -> None:
    """Refuse to select a checkpoint without questions, or to keep too few."""
    selects = trainer.get("load_best_model_at_end")
    evaluates, saves = trainer.get("eval_strategy", "no"), trainer.get("save_strategy", "steps")
    if config.data.fold is None and (evaluates != "no" or selects):
        raise ExamError(
            "data.fold=null leaves no questions to select a checkpoint on, but "
            "trainer.eval_strategy or trainer.load_best_model_at_end needs them.\n"
            "Set data.fold=0, or trainer.eval_strategy=no trainer.load_best_model_at_end=false"
        )
    if selects and saves not in (evaluates, "best"):
        raise ExamError(
            "trainer.load_best_model_at_end=true needs equal strategies (got "
            f"trainer.eval_strategy={evaluates} and trainer.save_strategy={saves}).\n"
            f"Set trainer.save_strategy={evaluates}"
        )
    if trainer.get("save_total_limit") == 1:
        raise ExamError(
            "trainer.save_total_limit=1 leaves no complete checkpoint while one is written.\n"
            "Set trainer.save_total_limit=2, or null to keep all."
        )
    if trainer.get("fp16") and trainer.get("use_cpu"):
        raise ExamError(
            "trainer.fp16=true needs a GPU, but trainer.use_cpu=true.\n"
            "Set trainer.fp16=false, or choose trainer=gpu"
        )


def _check_model(config: Train, trainer: dict[str, Any]) -> None:
    """Refuse a reader that does not suit the trainer, the context, the tuning or the task."""
    model = config.model
    if model.kind is ReaderKind.causal_lm:
        _check_causal_lm(config)
    if config.context.chunks > 1 and model.kind is not ReaderKind.transformer:
        raise ExamError(
            f"context.chunks={config.context.chunks} has no effect with "
            f"model.kind={model.kind.value}, which reads all passages at once.\n"
            "Leave context.chunks out."
        )
    sampling = trainer.get("train_sampling_strategy", "random")
    if model.batch_by is BatchBy.tokens and sampling != "random":
        raise ExamError(
            f"trainer.train_sampling_strategy={sampling} has no effect with model.batch_by=tokens."
            "\nLeave it out, or set model.batch_by=questions"
        )
    tuning = replace(config.tuning, awp_start_epoch=Tuning().awp_start_epoch)  # debug=smoke sets it
    if tuning != Tuning() and (config.task is not Task.reader or not model.kind.is_neural):
        raise ExamError(
            f"tuning={tuning.name} needs a transformer as reader (got task={config.task.value} "
            f"model={model.name}).\nLeave tuning out, or choose another task or model."
        )


def _check_causal_lm(config: Train) -> None:
    """Refuse training that only letters in memory allow, and a layout that the template sets."""
    model = config.model
    if config.context.layout is not Layout.context_first:
        raise ExamError(
            "context.layout has no effect with model.kind=causal_lm: model.template orders the "
            "parts.\nLeave context.layout out."
        )
    if not is_trained(config.trainer):
        distributed.require_single_process("A language model without training")
    elif (model.scoring, model.weights_location) != (Scoring.letters, WeightsLocation.memory):
        raise ExamError(
            f"model.scoring={model.scoring.value} with model.weights_location="
            f"{model.weights_location.value} cannot be trained.\nChoose trainer=zero_shot, or set "
            "model.scoring=letters model.weights_location=memory"
        )


def _check_soft_labels(config: Train) -> None:
    if config.data.soft_labels is None:
        return
    learns = config.model.kind.is_neural and is_trained(config.trainer)
    if not learns or config.task is not Task.reader:
        raise ExamError(
            "data.soft_labels need a transformer that is trained.\n"
            "Leave them out, or choose another model, trainer or task."
        )
