"""Readers as configured, of every kind: fitted or loaded, and ready to answer."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from datasets import Dataset, concatenate_datasets

from exam import ranks
from exam.answers.results import of_logits
from exam.artefacts import Stage, write_json
from exam.config import Layout, Packing, ReaderKind, Train, answering_values, trainer_values
from exam.errors import ExamError
from exam.metrics import Floats
from exam.reader.features import Reading, saved_features, shuffle_options
from exam.reader.lexical import (
    LexicalReader,
    cross_fitted,
    fit,
    lexical_features,
    load_lexical,
    save_lexical,
)
from exam.reader.model import longest_input
from exam.reader.training import Reader, predict, train
from exam.reader.tuning import ADAPTER, merged
from exam.retrieval.evaluation import figures
from exam.runs import CHECKPOINTS
from exam.splits import Split
from exam.weights import MODEL

log = logging.getLogger(__name__)

LEXICAL = "lexical.json"
TRAINING = "training.json"  # how a run was trained: figures, trained parameters, memory
Answer = Callable[[Dataset, Stage], Floats]  # logits of questions, read with a stage's contexts


def fitted(config: Train, folder: Path, split: Split, pool: Stage) -> Answer:
    """Train the configured reader, and save it in `folder`."""
    lexical = config.model.kind is ReaderKind.lexical
    return (_fit_lexical if lexical else _fit)(config, folder, split, pool)


def loaded(config: Train, saved: Path, work: Path, *, merge: bool) -> Answer:
    """A run's reader, ready to answer; `merge` saves it without adapters in `work`, and answers so.

    Raises:
        ExamError: there are no adapters to merge.
    """
    if merge and not (saved / ADAPTER).is_file():
        raise ExamError(
            f"merge=true, but {saved.parent} has no adapters: it is no run of tuning=lora.\n"
            "Leave merge out; the run's model is whole."
        )
    if config.model.kind is ReaderKind.lexical:
        return _answering_lexical(load_lexical(saved / LEXICAL), config)
    model = replace(config.model, name_or_path=str(saved))
    values, layout = answering_values(config.trainer), config.context.layout
    reader = Reader.load(model, values, work, config.seed, layout=layout)
    if merge:
        reader = replace(reader, model=merged(reader.model))
        reader.save(work / MODEL)
    return _answering(reader, config)


def _fit(config: Train, folder: Path, split: Split, pool: Stage) -> Answer:
    """Train, and save model, tokenizer and trainer state."""
    texts = (t for q in split.train for t in [q["prompt"], *q["options"]])
    values = trainer_values(config.trainer)
    work, layout = folder / CHECKPOINTS, config.context.layout
    reader = Reader.load(config.model, values, work, config.seed, texts, layout)
    shuffled = shuffle_options(split.train, config.seed)
    features = {
        name: _features(
            reader, config, part, pool, f"{config.data.name}-{name}", training=name == "train"
        )
        for name, part in (("train", shuffled), ("dev", split.dev))
    }
    reader = reader.to_train(features["train"], config.tuning, config.adversary)
    reader, how = train(reader, features["train"], features["dev"])
    reader.save(folder / MODEL)
    if ranks.rank() == 0:
        write_json(folder / TRAINING, how)
    return _answering(reader, config)


def _answering(reader: Reader, config: Train) -> Answer:
    return lambda questions, contexts: predict(
        reader, _features(reader, config, questions, contexts, contexts.folder.name)
    )


def _fit_lexical(config: Train, folder: Path, split: Split, pool: Stage) -> Answer:
    """Fit on all training questions, as no checkpoint is chosen; say how well that generalises."""
    questions = concatenate_datasets([split.train, split.dev])
    top_k, budget = config.context.passages(training=True), config.model.max_length
    features, labels = lexical_features(questions, pool, top_k, budget), questions["label"]
    logits = cross_fitted(questions, features)
    if logits is not None:
        found = figures(of_logits("", logits, labels).scores)
        log.info(
            "train: cross-fitted MAP@3 %.3f [%.3f, %.3f] (n = %d)",
            found["value"],
            *found["ci"],
            found["n"],
        )
    reader = fit(features, np.array(labels))
    save_lexical(reader, folder / MODEL / LEXICAL)
    return _answering_lexical(reader, config)


def _answering_lexical(reader: LexicalReader, config: Train) -> Answer:
    top_k = config.context.passages(training=False)
    budget = config.model.length(training=False)
    return lambda questions, contexts: reader.logits(
        lexical_features(questions, contexts, top_k, budget)
    )


def _features(
    reader: Reader,
    config: Train,
    questions: Dataset,
    contexts: Stage,
    name: str,
    *,
    training: bool = False,
) -> Dataset:
    context, longer = config.context, config.model.length(training=training)
    if config.model.packing is not Packing.none and context.layout is Layout.question_first:
        longer -= 1  # the context ends with a token of its own
    reading = Reading(
        top_k=context.passages(training=training),
        max_length=longer,
        longest=longest_input(reader.model, longer),
        order=context.order,
        evidence=config.model.evidence,
    )
    with ranks.leader_first():
        return saved_features(name, questions, contexts, reader.tokenizer, reading)
