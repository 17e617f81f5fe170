"""Refuse values, and pairs of values, that cannot work, before anything heavy is imported."""

import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any
from urllib.parse import urlsplit

from exam.config import (
    ALL_FOLDS,
    Bundle,
    Command,
    Data,
    EnsembleKind,
    Generate,
    Generator,
    GeneratorKind,
    Infer,
    Restore,
    Retrieving,
    Source,
    TrackerMode,
    Train,
    plain,
    trainer_values,
)
from exam.errors import ExamError
from exam.retrieval_checks import check_index, check_reranker, check_retriever
from exam.safety import NO_TEXT, has_secret
from exam.train_checks import check_train

POSITIVE = {
    "n", "neighbours", "shard_size", "probe", "refine", "batch_tokens", "max_length",
    "min_sentence_chars", "limit", "encode_at_most", "batch_size",
    "eval_max_length", "lora_rank",
    "per_question", "negatives", "rotations", "words", "ngrams",
    "per_article", "sentences", "max_tokens", "attempts", "parallel",
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
}  # fmt: skip


LOOPBACK = ("localhost", "127.0.0.1", "::1")


def check(config: Command) -> None:
    """Refuse values and pairs that cannot work, before anything loads."""
    _check_positive("", config)
    if isinstance(config, Retrieving | Generate):
        check_index(config.index)
        _check_generator(config.generator)
    if isinstance(config, Retrieving):
        _check_data(config.data)
        check_retriever(config.retriever)
        check_reranker(config.reranker, config.retriever)
    if isinstance(config, Restore) and config.data is not None:
        _check_data(config.data)
    if isinstance(config, Infer | Bundle):
        _check_joined(config)
    if isinstance(config, Train):
        _check_name("name", config.name)
        check_train(config)
    if isinstance(config, Train | Infer):
        _check_launch(config.launch)
    _check_secrets(config)
    if config.offline:
        _check_offline(config)
    levels = ("debug", "info", "warning", "error")
    if config.log_level not in levels:
        raise ExamError(f"log_level={config.log_level} is not one of {', '.join(levels)}.")


def _check_launch(launch: Any) -> None:
    is_number = isinstance(launch, int) and not isinstance(launch, bool)
    if launch not in ("auto", "single") and not (is_number and launch >= 1):
        raise ExamError(
            f"launch={launch} must be auto, single or a number of processes.\n"
            "Leave it out for one process on each GPU; set launch=single for one in all."
        )


def _check_positive(place: str, values: Any) -> None:
    """Refuse a count or size below one, however deep it stands."""
    own = vars(values) if is_dataclass(values) else values if isinstance(values, dict) else {}
    for name, value in own.items():
        where = f"{place}.{name}" if place else str(name)
        if name in POSITIVE and isinstance(value, int) and value < 1:
            raise ExamError(f"{where}={value} must be at least 1.")
        _check_positive(where, value)


def _check_secrets(config: Any) -> None:
    """Refuse keys, tokens and addresses with a login: every value is saved, logged and compared."""
    for key, text in _texts(plain(config)):
        if NO_TEXT.search(text):
            raise ExamError(f"{key} holds what is no text: {text!a}.\nLeave it out.")
        if has_secret(text):
            raise ExamError(
                f"{key} holds a key, a token or an address with a login, and it is saved.\n"
                "Give it in the environment (HF_TOKEN, WANDB_API_KEY, OPENAI_API_KEY)."
            )


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every string of nested values, with the dotted name of where it stands; names too."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield key, str(name)
            yield from _texts(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, key)
    elif isinstance(value, str):
        yield key, value


def _check_offline(config: Any) -> None:
    """Refuse what always needs the network; what may be cached is tried."""
    writer = config.generator.writer if isinstance(config, Retrieving | Generate) else None
    asks = writer and not writer.local and config.generator.kind is GeneratorKind.llm
    host = urlsplit((writer and writer.base_url) or "").hostname
    trainer = trainer_values(config.trainer) if isinstance(config, Train) else {}
    reported = trainer.get("report_to") or "none"
    wanted = {
        "hub.push=true": isinstance(config, Train) and config.hub.push,
        "generator=llm": asks and host not in LOOPBACK,
        "tracker=wandb": isinstance(config, Train) and config.tracker.mode is TrackerMode.online,
        f"trainer.report_to={reported}": reported not in ("none", ["none"]),
        "exam bundle": isinstance(config, Bundle),
    }
    for what, is_wanted in wanted.items():
        if is_wanted:
            raise ExamError(
                f"{what} needs a network, and offline=true forbids it.\nLeave one of them out."
            )


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
    known = [None, ALL_FOLDS, *range(data.folds)]
    if data.folds < 2 or isinstance(data.fold, bool) or data.fold not in known:
        raise ExamError(
            f"data.fold={data.fold} is not one of the {data.folds} folds.\n"
            f"Choose data.fold between 0 and {data.folds - 1}, data.folds of at least 2, "
            "data.fold=null to train on all questions, or data.fold=all to predict every fold."
        )
    if not 0 <= data.valid_share < 1:
        raise ExamError(f"data.valid_share={data.valid_share} is not a share: give 0 to 0.99.")


def _check_generator(generator: Generator) -> None:
    """A question has options; secrets do not belong into what is saved."""
    if not 2 <= generator.options <= 26:
        raise ExamError(
            f"generator.options={generator.options}: a question has 2 to 26.\n"
            "Give as many as the exam's questions have: generator.options=5"
        )
    url = urlsplit(generator.writer.base_url or "")
    if url.username or url.password or url.query:
        raise ExamError(
            "generator.writer.base_url carries a name, a password or a query, and it is saved.\n"
            "Give the address alone; the key is read from OPENAI_API_KEY."
        )


def _check_infer(config: Infer) -> None:
    """Runs or predictions, made into one by an ensemble or a cascade."""
    if (config.ckpt is None) == (config.predictions is None):
        state = "are missing" if config.ckpt is None else "are both given"
        raise ExamError(
            f"ckpt and predictions {state}.\n"
            "Give runs, ckpt=<folder>, or what they predicted before, predictions=[<file>,…]."
        )
    if config.predictions is not None and (config.passes or config.rotations > 1 or config.run):
        raise ExamError(
            "passes, rotations and run.<key> ask a reader again; predictions=… runs none.\n"
            "Give the runs: ckpt=[<folder>,…]"
        )


def _check_joined(config: Infer | Bundle) -> None:
    """An ensemble's or a cascade's own values."""
    if isinstance(config, Infer):
        _check_infer(config)
    cascade, ensemble = config.cascade, config.ensemble
    shares = cascade.share if isinstance(cascade.share, list) else [cascade.share]
    given = cascade.share is not None
    if given and not all(isinstance(s, (int, float)) and 0 <= s <= 1 for s in shares):
        raise ExamError(f"cascade.share={cascade.share} is no share: give 0 to 1.")
    if given + (cascade.threshold is not None) + (ensemble is not None) > 1:
        raise ExamError(
            "ensemble=, cascade.share= and cascade.threshold= exclude each other.\nGive one."
        )
    if ensemble is None:
        return
    fitted = ensemble.kind is EnsembleKind.fitted
    if fitted != (ensemble.fit_on is not None):
        state = "is missing" if fitted else "is for ensemble=fitted alone"
        raise ExamError(
            f"ensemble={ensemble.name}: ensemble.fit_on {state}.\nGive ensemble=fitted "
            "'ensemble.fit_on=[<folder>,…]', each reader's predictions of held-out questions."
        )
    weights = ensemble.weights
    if weights is not None and (fitted or min(weights, default=-1) < 0 or sum(weights) <= 0):
        state = "are chosen" if fitted else "must be 0 or more, and not all 0"
        raise ExamError(f"ensemble={ensemble.name}: weights {state}.\nLeave ensemble.weights out.")
