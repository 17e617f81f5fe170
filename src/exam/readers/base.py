"""Readers as configured, of every kind: fitted or loaded, and ready to answer."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from exam.config import Model, ReaderKind, Train, answering_values, is_trained, trainer_values
from exam.core import distributed
from exam.core.artifacts import Stage
from exam.core.checkpoints import MODEL
from exam.core.errors import ExamError
from exam.core.files import write_json
from exam.core.trainer import CHECKPOINTS, TRAINING
from exam.data.splits import Split
from exam.metrics import Floats, K, average_precision, figures, ranking
from exam.readers.causal_lm.load import inspect_decoder, load_causal, random_decoder
from exam.readers.causal_lm.reader import LetterReader
from exam.readers.causal_lm.scoring import option_scores
from exam.readers.lexical import (
    LexicalReader,
    cross_fit,
    fit,
    lexical_features,
    load_lexical,
    save_lexical,
)
from exam.readers.multiple_choice.features import TARGETS, TokenCounts, shuffle_options
from exam.readers.multiple_choice.model import inspect_reader
from exam.readers.multiple_choice.reader import Reader, predict, train
from exam.readers.trainer import refuse_nan
from exam.readers.tuning import ADAPTER, merge_adapters
from exam.retrieval.contexts import read_contexts

log = logging.getLogger(__name__)

LEXICAL = "lexical.json"


@dataclass(frozen=True)
class Output:
    """The logits of questions, of shape `(questions, options)`, and counts of the tokens read."""

    logits: Floats
    tokens: TokenCounts | None = None  # of readers that keep features


Answer = Callable[[Dataset, Stage], Output]  # of questions, read with a stage's contexts


def inspect(model: Model) -> tuple[Any, PreTrainedTokenizerBase]:
    """Return a checkpoint's model without memory for its weights, and its tokenizer.

    Raises:
        ExamError: it cannot be loaded as configured.
    """
    causal = model.kind is ReaderKind.causal_lm
    return (inspect_decoder if causal else inspect_reader)(model)


def saved_model(config: Train, saved: Path) -> Model:
    """Return the model that a run answers with: the one in its folder, where it holds one."""
    is_whole = any((saved / name).is_file() for name in ("config.json", ADAPTER))
    return config.model.at(saved) if is_whole else config.model


def fitted(config: Train, folder: Path, split: Split, pool: Stage) -> Answer:
    """Train the configured reader, and save it in `folder`."""
    if config.model.kind is ReaderKind.causal_lm and not is_trained(config.trainer):
        return _as_it_is(config, folder, split)
    lexical = config.model.kind is ReaderKind.lexical
    return (_fit_lexical if lexical else _fit)(config, folder, split, pool)


def loaded(config: Train, saved: Path, work: Path, *, merge: bool) -> Answer:
    """A run's reader, ready to answer; `merge` saves it without adapters in `work`, and answers so.

    Raises:
        ExamError: there are no adapters to merge.
    """
    if merge and not (saved / ADAPTER).is_file():
        raise ExamError(
            f"merge_adapters=true, but {saved.parent} has no adapters: it is no run of "
            "tuning=lora.\n"
            "Leave merge out; the run's model is whole."
        )
    if config.model.kind is ReaderKind.lexical:
        return _answering_lexical(load_lexical(saved / LEXICAL), config)
    model = saved_model(config, saved)
    if config.model.kind is ReaderKind.causal_lm and not is_trained(config.trainer):
        return _answering_causal(replace(config, model=model), work / CHECKPOINTS)
    values, layout = answering_values(config.trainer), config.context.layout
    reader = _kind(config).load(model, values, work, config.seed, layout=layout)
    if merge:
        reader = replace(reader, model=merge_adapters(reader.model))
        reader.save(work / MODEL)
    return _answering(reader, config)


def _fit(config: Train, folder: Path, split: Split, pool: Stage) -> Answer:
    """Train, and save model, tokenizer and trainer state."""
    values = trainer_values(config.trainer)
    work, layout = folder / CHECKPOINTS, config.context.layout
    reader = _kind(config).load(config.model, values, work, config.seed, _texts(split), layout)
    shuffled = shuffle_options(split.train, config.seed)
    asked = shuffled.select_columns(list(split.dev.column_names))  # without soft labels
    features = {
        name: reader.features(
            f"{config.data.name}-{name}", part, pool, config.context, training=name == "train"
        )[0]
        for name, part in (("train", asked), ("dev", split.dev))
    }
    if TARGETS in shuffled.column_names:
        features["train"] = features["train"].add_column(TARGETS, shuffled[TARGETS][:])
    reader = reader.prepare_for_training(features["train"], config.tuning)
    reader, how = train(reader, features["train"], features["dev"])
    reader.save(folder / MODEL)
    if distributed.rank() == 0:
        write_json(folder / TRAINING, how)
    return _answering(reader, config)


def _kind(config: Train) -> type[Reader]:
    return LetterReader if config.model.kind is ReaderKind.causal_lm else Reader


def _texts(split: Split) -> Iterator[str]:
    """What a random model's tokenizer learns its words from."""
    return (t for q in split.train for t in [q["prompt"], *q["options"]])


def _answering(reader: Reader, config: Train) -> Answer:
    def answer(questions: Dataset, contexts: Stage) -> Output:
        name = contexts.folder.name
        features, tokens = reader.features(name, questions, contexts, config.context)
        return Output(predict(reader, features), tokens)

    return answer


def _fit_lexical(config: Train, folder: Path, split: Split, pool: Stage) -> Answer:
    """Fit on all training questions, as no checkpoint is chosen; say how well that generalises."""
    questions = concatenate_datasets([split.train, split.dev])
    top_k, budget = config.context.passages(training=True), config.model.max_length
    features, labels = lexical_features(questions, pool, top_k, budget), questions["label"]
    logits = cross_fit(questions, features)
    if logits is not None:
        scores = average_precision(ranking(logits), np.array(labels), K)
        estimate = figures(scores)
        log.info(
            "train: cross-fitted MAP@3 %.3f [%.3f, %.3f] (n = %d)",
            estimate["value"],
            *estimate["ci"],
            estimate["n"],
        )
    reader = fit(features, np.array(labels))
    save_lexical(reader, folder / MODEL / LEXICAL)
    return _answering_lexical(reader, config)


def _answering_lexical(reader: LexicalReader, config: Train) -> Answer:
    top_k = config.context.passages(training=False)
    budget = config.model.length(training=False)
    return lambda questions, contexts: Output(
        reader.logits(lexical_features(questions, contexts, top_k, budget))
    )


def _as_it_is(config: Train, folder: Path, split: Split) -> Answer:
    """A causal language model answers without having been trained; the run keeps random ones."""
    model = config.model
    if model.name_or_path is None:
        for part in random_decoder(model, config.seed, _texts(split)):
            part.save_pretrained(folder / MODEL)
        model = model.at(folder / MODEL)
    return _answering_causal(replace(config, model=model), folder / CHECKPOINTS)


def _answering_causal(config: Train, work: Path) -> Answer:
    runner, prompter, window = load_causal(config.model, work)
    top_k = config.context.passages(training=False)
    size = trainer_values(config.trainer).get("per_device_eval_batch_size", 8)

    def answer(questions: Dataset, contexts: Stage) -> Output:
        passages = read_contexts(contexts, top_k)
        prompts = prompter.asked(questions, passages, window, config.context.order)
        logits = option_scores(runner, prompter, prompts, size)
        refuse_nan(logits)
        return Output(logits)

    return answer
