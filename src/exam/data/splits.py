"""Decide which questions train, which choose the checkpoint, and which are reported on."""

import logging
from collections import Counter
from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from exam.config import Data, Source, as_list
from exam.core.errors import ExamError
from exam.core.logging import progress_bar, track
from exam.data.files import find_local_files
from exam.data.questions import MAX_IDS, prefix_ids, read_questions, warn_of_repeats
from exam.data.schema import LETTERS
from exam.data.words import split_words
from exam.metrics import count_questions_for

log = logging.getLogger(__name__)

MIN_COSINE = 0.9  # of near-duplicates
BLOCK = 500  # questions compared with all others at a time
MIN_DIFFERENCE = 0.005
PAIRED_STD = 0.37  # of a question's paired difference between two of our readers (n = 300)


@dataclass(frozen=True)
class Split:
    """Questions to train on, to choose the checkpoint on, and to report the result on.

    `all_train` holds every question of `data.train` and `data.extra_train` in order, whichever
    part it went to. With cross-validation, `train` and `valid` are the same questions, and every
    fold also trains on `extra`; otherwise `extra` is empty.
    """

    all_train: Dataset
    train: Dataset
    dev: Dataset
    valid: Dataset
    extra: Dataset


def read_split(data: Data, generated: Path | None) -> Split:
    """Read and split the questions of a configuration.

    `generated` is the generator's file, for entries of that name.

    Raises:
        ExamError: a part is missing, lacks answers, or is too small to split.
    """
    train = read_questions(data, data.train, generated)
    extra = prefix_ids(read_questions(data, data.extra_train, generated), "extra")
    all_train = concatenate_datasets([train, extra])
    if not len(train):
        raise ExamError(
            f"data={data.name} has no training questions.\nGive a file: data.train=<file>"
        )
    train, valid = _separate_valid(data, train, generated)
    _require_labels(train, "train")
    _require_labels(valid, "valid")
    warn_of_repeats(valid, "valid")
    if data.soft_labels is None:
        _require_labels(extra, "extra")
    test = _read_available_test(data)
    held_out = test if data.cross_validate else {"valid": valid, **test}
    train = _drop_leaks(train, held_out, data.drop_leaks, required=True)
    empty = dev = train.select([])
    if data.cross_validate:
        valid, held_out = train, {"train": train, **test}
    elif data.fold is not None:
        in_fold = assign_folds(train, data.folds, data.split_seed) == data.fold
        train, dev = _select(train, ~in_fold), _select(train, in_fold)
    if len(dev):
        held_out["dev"] = dev
    extra = _drop_leaks(extra, held_out, data.drop_leaks)
    _log_sizes(concatenate_datasets([train, extra, dev]), valid)
    if data.cross_validate:
        return Split(all_train, train, dev, valid, extra)
    return Split(all_train, concatenate_datasets([train, extra]), dev, valid, empty)


def _separate_valid(data: Data, train: Dataset, generated: Path | None) -> tuple[Dataset, Dataset]:
    """Return the questions to train on and to report on, which cross-validation makes the same."""
    if data.cross_validate:
        return train, train
    if data.valid is not None:
        return train, read_questions(data, data.valid, generated)
    if data.valid_fraction:
        return _hold_out(train, data.valid_fraction, data.split_seed)
    raise ExamError(
        f"data={data.name} names no questions to report the result on.\n"
        "Give a file, data.valid=<file>, or hold out a fraction: data.valid_fraction=0.2"
    )


def _hold_out(questions: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Return the rest and about `fraction` of the questions, without splitting a group."""
    from sklearn.model_selection import GroupShuffleSplit

    groups = group_near_duplicates(questions)
    count = len(set(groups.tolist()))
    if ceil(fraction * count) >= count:
        raise ExamError(
            f"data.valid_fraction={fraction} of {len(questions)} questions, {count} without "
            "near-duplicates, leaves none to train on.\n"
            "Set a smaller fraction, bring more questions, or give a file: data.valid=<file>"
        )
    splitter = GroupShuffleSplit(n_splits=1, test_size=fraction, random_state=seed)
    rest, held_out = next(splitter.split(questions["id"], groups=groups))
    return questions.select(sorted(rest)), questions.select(sorted(held_out))


def assign_folds(questions: Dataset, folds: int, seed: int) -> Any:
    """Return the fold (0 … folds-1) of every question, shape `(questions,)`.

    Near-duplicates and questions of one article share a fold: a reader must not be scored on
    questions that it trained on.

    Raises:
        ExamError: there are fewer groups than folds.
    """
    from sklearn.model_selection import GroupKFold

    groups = group_near_duplicates(questions)
    if (number := len(set(groups.tolist()))) == 1:
        raise ExamError(
            f"All {len(questions)} questions share an article or nearly repeat each other, so that "
            "no fold can choose the checkpoint.\nTrain without one: data.fold=null "
            "trainer.eval_strategy=no trainer.load_best_model_at_end=false"
        )
    if number < folds:
        raise ExamError(
            f"{len(questions)} questions form {number} groups of near-duplicates, too few for "
            f"data.folds={folds}.\nSet data.folds={number}"
        )
    fold = np.empty(len(questions), dtype=np.int64)
    splitter = GroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    for number, (_, in_fold) in enumerate(splitter.split(fold, groups=groups)):
        fold[in_fold] = number
    return fold


def group_near_duplicates(questions: Dataset) -> Any:
    """Return the group number of every question, shape `(questions,)`.

    A group connects questions that share an article, and questions whose TF-IDF vectors (words and
    word pairs of prompt and options) have a cosine of at least MIN_COSINE.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    from sklearn.feature_extraction.text import TfidfVectorizer

    n = len(questions)
    texts = [" ".join([q["prompt"], *sorted(q["options"])]) for q in questions]
    vectorizer = TfidfVectorizer(
        tokenizer=lambda text: split_words(text) or [text],  # signs without a word
        token_pattern=None,
        lowercase=False,
        ngram_range=(1, 2),
    )
    vectors = vectorizer.fit_transform(track(texts, "words", n, "questions"))
    columns, edges = vectors.T.tocsr(), []
    with progress_bar("near-duplicates", n, "questions") as bar:
        for start in range(0, n, BLOCK):
            block = vectors[start : start + BLOCK]
            similar = ((block @ columns) >= MIN_COSINE).tocoo()
            edges.append(np.stack([similar.row + start, similar.col]))
            bar.update(block.shape[0])
    first: dict[str, int] = {}
    articles = [(i, a) for i, ids in enumerate(questions["articles"]) for a in ids or []]
    pairs = [(i, first.setdefault(article, i)) for i, article in articles]
    edges.append(np.array(pairs, dtype=np.int64).reshape(-1, 2).T)
    row, column = np.concatenate(edges, axis=1)
    graph = coo_matrix((np.ones(len(row)), (row, column)), shape=(n, n))
    return connected_components(graph, directed=False)[1]


def group_repetitions(questions: Dataset) -> Any:
    """Return the group of every question as `group_near_duplicates` does, by texts only."""
    texts = questions.remove_columns("articles").add_column("articles", [[]] * len(questions))
    return group_near_duplicates(texts)


def mark_repetitions(questions: Dataset, others: Dataset) -> Any:
    """Mark the questions that equal or nearly repeat one of `others`; a shared article is none."""
    if not len(questions) or not len(others):
        return np.zeros(len(questions), dtype=bool)
    groups = group_repetitions(concatenate_datasets([others, questions]))
    return np.isin(groups[len(others) :], groups[: len(others)])


def _drop_leaks(
    train: Dataset, held_out: dict[str, Dataset], drop: bool, *, required: bool = False
) -> Dataset:
    """Log which held-out questions leak into training, and with `drop` remove their groups."""
    if not len(train) or not held_out:
        return train
    groups = group_near_duplicates(concatenate_datasets([train, *held_out.values()]))
    ends = np.cumsum([len(train), *map(len, held_out.values())])
    train_groups, *parts = np.split(groups, ends[:-1])
    for (name, questions), part in zip(held_out.items(), parts, strict=True):
        leaks = np.array(questions["id"])[np.isin(part, train_groups)].tolist()
        if leaks:
            log.warning(
                "questions: %d of %d %s questions nearly equal a training question "
                "or share an article with one: %s",
                len(leaks),
                len(questions),
                name,
                ", ".join(leaks[:MAX_IDS]) + (" …" if len(leaks) > MAX_IDS else ""),
            )
    is_clean = ~np.isin(train_groups, groups[len(train) :])
    if not drop or is_clean.all():
        return train
    if required and not is_clean.any():
        raise ExamError(
            f"data.drop_leaks=true drops all {len(train)} training questions: each nearly equals a "
            "reported one or shares its article.\nTrain on other questions: data.train=<file>"
        )
    log.info("questions: dropped %d training questions (data.drop_leaks)", (~is_clean).sum())
    return _select(train, is_clean)


def _read_available_test(data: Data) -> dict[str, Dataset]:
    """Read the test questions if their files are already there."""
    available = data.source is Source.files and all(
        find_local_files(data, name) for name in as_list(data.test)
    )
    return {"test": read_questions(data, data.test)} if available and data.test else {}


def _log_sizes(train: Dataset, valid: Dataset) -> None:
    """Log the number of questions and which differences are noise; at debug level, the labels."""
    log.info("questions: %d train, %d valid", len(train), len(valid))
    for name, part in (("train", train), ("valid", valid)):
        counts = Counter(label for label in part["label"] if label is not None)
        shares = " ".join(f"{LETTERS[i]} {counts[i] / len(part):.0%}" for i in sorted(counts))
        log.debug("questions: %d %s · right options %s", len(part), name, shares)
    required = count_questions_for(MIN_DIFFERENCE, PAIRED_STD)
    if len(valid) < required:
        log.info(
            "With %s validation questions, differences under %.3f are noise; to see %.3f "
            "takes about %s.",
            f"{len(valid):,}",
            1.96 * PAIRED_STD / sqrt(len(valid)),
            MIN_DIFFERENCE,
            f"{required:,}",
        )


def _select(questions: Dataset, mask: Any) -> Dataset:
    return questions.select(mask.nonzero()[0])


def _require_labels(questions: Dataset, name: str) -> None:
    unlabelled = [question["id"] for question in questions if question["label"] is None]
    if unlabelled:
        raise ExamError(
            f"{len(unlabelled)} of {len(questions)} {name} questions have no answer "
            f"(first: {unlabelled[0]}).\nTraining and scoring need all of them: map the column "
            "with data.columns.answer=<name>, or remove those rows."
        )
