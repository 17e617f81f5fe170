"""Refuse values, and pairs of values, that cannot work, before anything heavy is imported."""

import re
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from exam.config import (
    BatchBy,
    Data,
    Index,
    Infer,
    Model,
    Packing,
    Query,
    ReaderKind,
    Reranker,
    Retrieve,
    Retriever,
    RetrieverKind,
    Source,
    Target,
    Task,
    Train,
    trainer_values,
)
from exam.errors import ExamError
from exam.trainer_fields import CHOICES

MANAGED = {
    "output_dir": "the run folder is outputs/train/<name>-<hash>",
    "seed": "set seed=… at the top level",
    "resume_from_checkpoint": "resume=auto continues by itself",
    "remove_unused_columns": "the collator reads its own columns",
    "label_names": "the reader's label is always `labels`",
    "do_train": "choose the verb: train.py or infer.py",
    "do_eval": "choose the verb: train.py or infer.py",
    "do_predict": "choose the verb: train.py or infer.py",
    "local_rank": "the launcher sets it",
    "dataloader_drop_last": "every question is trained on and answered",
    "eval_do_concat_batches": "MAP@3 is measured over all questions at once",
    "batch_eval_metrics": "MAP@3 is measured over all questions at once",
}
POSITIVE = {
    "n", "neighbours", "shard_size", "probe", "refine", "batch_tokens", "max_length",
    "min_sentence_chars", "limit", "encode_at_most", "batch_size",
    "per_question", "negatives",
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
}  # fmt: skip


def check(config: Any) -> None:
    """Refuse values and pairs that cannot work, before anything loads."""
    for group, value in (("", config), *vars(config).items()):
        _check_positive(group, value)
    if not isinstance(config, Infer):
        _check_index(config.index)
    if isinstance(config, (Train, Retrieve)):
        _check_data(config.data)
        _check_retriever(config.retriever)
        _check_reranker(config.reranker, config.retriever)
    if isinstance(config, Infer) and config.data is not None:
        _check_data(config.data)
    if isinstance(config, Train):
        _check_train(config)
    levels = ("debug", "info", "warning", "error")
    if config.log_level not in levels:
        raise ExamError(f"log_level={config.log_level} is not one of {', '.join(levels)}.")


def _check_positive(group: str, values: Any) -> None:
    """Refuse a count or size below one."""
    for name, value in vars(values).items() if is_dataclass(values) else ():
        if name in POSITIVE and isinstance(value, int) and value < 1:
            raise ExamError(f"{group + '.' if group else ''}{name}={value} must be at least 1.")


def _check_index(index: Index) -> None:
    if index.memory_gib <= 0:
        raise ExamError(f"index.memory_gib={index.memory_gib:g} must be more than 0.")


def _check_name(key: str, name: str) -> None:
    """Names become folders."""
    if not re.fullmatch(r"[\w.-]+", name):
        raise ExamError(
            f"{key}={name} is no folder's name.\nUse letters, digits, dots, dashes and underscores."
        )


def _check_data(data: Data) -> None:
    _check_name("data.name", data.name)
    if data.source is Source.hub and not data.hub:
        raise ExamError("data.source=hub needs data.hub=<owner/name>.")
    if data.options is not None and len(set(data.options)) < len(data.options):
        raise ExamError(f"data.options={data.options} names an option twice.")
    if data.options is not None and not 2 <= len(data.options) <= 26:
        raise ExamError(
            f"data.options={data.options} names {len(data.options)} options.\n"
            "A question has 2 to 26: give one letter for each, such as data.options=ABCD."
        )
    if data.folds < 2 or (data.fold is not None and not 0 <= data.fold < data.folds):
        raise ExamError(
            f"data.fold={data.fold} is not one of the {data.folds} folds.\n"
            f"Choose data.fold between 0 and {data.folds - 1}, data.folds of at least 2, "
            "or data.fold=null to train on all questions."
        )
    if not 0 <= data.valid_share < 1:
        raise ExamError(f"data.valid_share={data.valid_share} is not a share: give 0 to 0.99.")


def _check_retriever(retriever: Retriever) -> None:
    if retriever.kind.searches and min(retriever.articles, retriever.depth) < 1:
        raise ExamError(
            f"retriever.articles={retriever.articles} and retriever.depth={retriever.depth} must "
            "be at least 1.\nFor a closed-book reader choose retriever=none."
        )
    if retriever.kind is RetrieverKind.hybrid:
        _check_members(retriever)


def _check_members(retriever: Retriever) -> None:
    """A hybrid fuses at least two rankings that search, and weights name its members."""
    members = retriever.members
    wrong = [name for name, m in members.items() if not m.kind.searches or m.kind is retriever.kind]
    if wrong or len(members) < 2:
        raise ExamError(
            f"retriever=hybrid fuses {', '.join(members) or 'nothing'}; it needs two or more of "
            "two_stage, bm25, tfidf, passages.\n"
            "Add one: +retriever@retriever.members.tfidf=tfidf"
        )
    unknown = [name for name in retriever.weights if name not in members]
    if unknown:
        raise ExamError(
            f"retriever.weights.{unknown[0]} is the weight of no member.\n"
            f"The members are {', '.join(members)}."
        )


def _check_reranker(reranker: Reranker, retriever: Retriever) -> None:
    if reranker.ckpt is None:
        return
    if not retriever.kind.searches:
        raise ExamError(
            f"reranker={reranker.name} has nothing to reorder: retriever={retriever.name}.\n"
            "Choose a retriever that searches, or reranker=none."
        )
    if reranker.depth < 1:
        raise ExamError(f"reranker.depth={reranker.depth} must be at least 1.")
    if not 0 < reranker.weight <= 1:
        raise ExamError(
            f"reranker.weight={reranker.weight} is no share of the new order.\n"
            "Give more than 0, and at most 1 for the reranker alone."
        )
    if reranker.depth > retriever.depth:
        raise ExamError(
            f"reranker.depth={reranker.depth} asks for more passages than "
            f"retriever.depth={retriever.depth} keeps.\n"
            f"Set retriever.depth={reranker.depth}, or a smaller reranker.depth."
        )


def _check_task(config: Train) -> None:
    """Training of a reranker or an encoder needs one, a ranking to mine, and whole questions."""
    if config.task is Task.reader:
        return
    retriever, pairs, task = config.retriever, config.pairs, config.task
    if task is Task.reranker and config.reranker.ckpt is None:
        raise ExamError(
            "task=reranker trains reranker.ckpt, which has no value.\n"
            "Give a hub id or a folder: reranker.ckpt=cross-encoder/ms-marco-MiniLM-L6-v2"
        )
    kinds = {retriever.kind, *(member.kind for member in retriever.members.values())}
    if task is Task.encoder and not kinds & {RetrieverKind.two_stage, RetrieverKind.passages}:
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
    if pairs.positives is not None and not Path(pairs.positives).is_file():
        raise ExamError(
            f"pairs.positives={pairs.positives} does not exist.\n"
            "Write one with: python evidence.py ckpt=<run of train.py>"
        )


def _check_train(config: Train) -> None:
    _check_name("name", config.name)
    _check_task(config)
    named = config.model.name_or_path is not None or config.model.config is not None
    if config.model.kind is ReaderKind.transformer and not named:
        raise ExamError("model.name_or_path has no value.\nGive a hub id or a folder.")
    _check_depth(config)
    trainer = trainer_values(config.trainer)
    for name, value in trainer.items():
        _check_trainer_value(name, value)
    _check_evaluation(config, trainer)
    _check_model(config.model, trainer)


def _check_model(model: Model, trainer: dict[str, Any]) -> None:
    sampling = trainer.get("train_sampling_strategy", "random")
    if model.batch_by is BatchBy.tokens and sampling != "random":
        raise ExamError(
            f"trainer.train_sampling_strategy={sampling}, but model.batch_by=tokens draws the "
            "batches.\nLeave it out, or set model.batch_by=questions."
        )
    if model.flash and model.packing is not Packing.none:
        raise ExamError(
            f"model.flash=true, but model.packing={model.packing.value}: flashdeberta reads "
            "one sequence for each option.\nSet model.packing=none, or leave model.flash out."
        )


def _check_depth(config: Train) -> None:
    top_k, depth = config.context.top_k, config.retriever.depth
    if top_k < 0:
        raise ExamError(f"context.top_k={top_k} must be 0 or more.")
    reranker = config.reranker
    if reranker.ckpt is not None and config.task is Task.reader and top_k > reranker.depth:
        raise ExamError(
            f"context.top_k={top_k} asks for more passages than reranker.depth={reranker.depth} "
            f"keeps.\nSet reranker.depth={top_k}, or a smaller context.top_k."
        )
    if config.retriever.kind.searches and top_k > depth:
        raise ExamError(
            f"context.top_k={top_k} asks for more passages than retriever.depth={depth} keeps.\n"
            f"Set retriever.depth={top_k}, or a smaller context.top_k."
        )


def _check_trainer_value(name: str, value: Any) -> None:
    if name in MANAGED:
        raise ExamError(f"trainer.{name} is not yours to set: {MANAGED[name]}.")
    if name in CHOICES and value is not None and value not in CHOICES[name]:
        raise ExamError(
            f"trainer.{name}={value} is not one of its values: {', '.join(CHOICES[name])}."
        )


def _check_evaluation(config: Train, trainer: dict[str, Any]) -> None:
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
