"""Which questions train, choose the checkpoint, and are reported on."""

import logging
from collections import Counter
from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from exam.config import Data, Source, names
from exam.core.errors import ExamError
from exam.data.questions import prefixed, read
from exam.data.schema import LETTERS
from exam.metrics import count_questions_for

log = logging.getLogger(__name__)

SHOWN = 10  # ids in a log line
NEAR = 0.9  # cosine of questions that nearly repeat each other
BLOCK = 2000  # questions compared with all at a time
WORTH_SEEING = 0.005
SPREAD = 0.37  # of a question's paired difference, which two readers of this project had (n = 300)


@dataclass(frozen=True)
class Split:
    """Questions to train on, to choose the checkpoint on, and to report the result on.

    `pool` holds all questions of `data.train` and `data.extra` in their order, whatever part they
    went to. Where every fold is to be left out once, `train` and `valid` both hold all of them, and
    `extra` those that every fold may learn from; otherwise it is empty.
    """

    pool: Dataset
    train: Dataset
    dev: Dataset
    valid: Dataset
    extra: Dataset


def read_split(data: Data, generated: Path | None) -> Split:
    """The training, checkpoint-choosing and reported questions of a configuration."""
    train = read(data, data.train, generated)
    extra = prefixed(read(data, data.extra, generated), "extra")
    pool = concatenate_datasets([train, extra])
    if not len(train):
        raise ExamError(
            f"data={data.name} has no training questions.\nGive a file: data.train=<file>"
        )
    if data.cross_validate:
        valid = train
    elif data.valid is not None:
        valid = read(data, data.valid, generated)
    elif data.valid_share:
        train, valid = _hold_out(train, data.valid_share, data.split_seed)
    else:
        raise ExamError(
            f"data={data.name} names no questions to report the result on.\n"
            "Give a file, data.valid=<file>, or hold out a share: data.valid_share=0.2"
        )
    _require_labels(train, "train")
    _require_labels(valid, "valid")
    if data.soft_labels is None:
        _require_labels(extra, "extra")
    none = train.select([])
    if data.cross_validate:
        train = _without_leaks(train, _tested(data), data.drop_leaks, required=True)
        extra = _without_leaks(extra, {"train": train, **_tested(data)}, data.drop_leaks)
        _log_parts(concatenate_datasets([train, extra]), train)
        return Split(pool, train, none, train, extra)
    reported = {"valid": valid, **_tested(data)}
    train = _without_leaks(train, reported, data.drop_leaks, required=True)
    dev = none
    if data.fold is not None:
        inside = fold_of(train, data.folds, data.split_seed) == data.fold
        train, dev = _where(train, ~inside), _where(train, inside)
    chosen_by = {"dev": dev} if len(dev) else {}
    extra = _without_leaks(extra, {**reported, **chosen_by}, data.drop_leaks)
    learned = concatenate_datasets([train, extra])
    _log_parts(concatenate_datasets([learned, dev]), valid)
    return Split(pool, learned, dev, valid, none)


def _hold_out(questions: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """The rest and about `share` of the questions, related ones on one side."""
    from sklearn.model_selection import GroupShuffleSplit

    groups = related(questions)
    apart = len(set(groups.tolist()))
    if ceil(share * apart) >= apart:
        raise ExamError(
            f"data.valid_share={share} of {len(questions)} questions, {apart} when related ones "
            "count once, leaves none to train on.\n"
            "Set a smaller share, bring more questions, or give a file: data.valid=<file>"
        )
    splitter = GroupShuffleSplit(n_splits=1, test_size=share, random_state=seed)
    rest, held_out = next(splitter.split(questions["id"], groups=groups))
    return questions.select(sorted(rest)), questions.select(sorted(held_out))


def fold_of(questions: Dataset, folds: int, seed: int) -> Any:
    """The fold (0 … folds-1) of every question, shape `(questions,)`.

    Near-duplicates and questions of one article stay in one fold, else a reader is judged on
    what it has seen.
    """
    from sklearn.model_selection import GroupKFold

    groups = related(questions)
    if (number := len(set(groups.tolist()))) < folds:
        raise ExamError(
            f"{len(questions)} questions form {number} groups of their own, but {folds} folds are "
            f"asked for.\nSet data.folds={max(2, number)} or less, or give more questions."
        )
    fold = np.empty(len(questions), dtype=np.int64)
    splitter = GroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    for number, (_, inside) in enumerate(splitter.split(fold, groups=groups)):
        fold[inside] = number
    return fold


def related(questions: Dataset) -> Any:
    """Group number of every question, shape `(questions,)`.

    Questions are related when they were written from one article, or when the cosine of their
    TF-IDF vectors (words and word pairs of prompt and options) reaches NEAR.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    from sklearn.feature_extraction.text import TfidfVectorizer

    n = len(questions)
    texts = [" ".join([q["prompt"], *sorted(q["options"])]) for q in questions]
    vectors = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+").fit_transform(texts)
    rows, columns = [], []
    for start in range(0, n, BLOCK):
        near = (vectors[start : start + BLOCK] @ vectors.T) >= NEAR
        found = near.tocoo()
        rows.append(found.row + start)
        columns.append(found.col)
    first: dict[str, int] = {}
    for i, article in enumerate(questions["article"]):
        if article is not None:
            rows.append(np.array([i]))
            columns.append(np.array([first.setdefault(article, i)]))
    row, column = np.concatenate(rows), np.concatenate(columns)
    graph = coo_matrix((np.ones(len(row)), (row, column)), shape=(n, n))
    return connected_components(graph, directed=False)[1]


def _without_leaks(
    train: Dataset, reported: dict[str, Dataset], drop: bool, *, required: bool = False
) -> Dataset:
    """The training questions; without those related to a reported one, where that is wanted.

    Which reported questions training has, or nearly has, seen is logged.
    """
    if not len(train) or not reported:
        return train
    group = related(concatenate_datasets([train, *reported.values()]))
    ends = np.cumsum([len(train), *map(len, reported.values())])
    learned, *others = np.split(group, ends[:-1])
    for (name, questions), own in zip(reported.items(), others, strict=True):
        leaks = np.array(questions["id"])[np.isin(own, learned)].tolist()
        if leaks:
            log.warning(
                "questions: %d of %d %s questions nearly equal a training question "
                "or share an article with one: %s",
                len(leaks),
                len(questions),
                name,
                ", ".join(leaks[:SHOWN]) + (" …" if len(leaks) > SHOWN else ""),
            )
    clean = ~np.isin(learned, group[len(train) :])
    leaking = int((~clean).sum())
    if not drop or not leaking:
        return train
    if not clean.any() and required:
        raise ExamError(
            f"data.drop_leaks=true leaves none of {len(train)} training questions: all are related "
            "to questions that are reported on.\nTrain on other questions: data.train=<file>"
        )
    log.info("questions: %d training questions left out (data.drop_leaks)", leaking)
    return _where(train, clean)


def _tested(data: Data) -> dict[str, Dataset]:
    """The questions to be answered later, where their files are there already."""
    known = data.source is Source.files and all(
        (Path(data.dir or ".") / name).is_file() for name in names(data.test)
    )
    return {"test": read(data, data.test)} if known and data.test is not None else {}


def _log_parts(train: Dataset, valid: Dataset) -> None:
    """Log how many questions there are, and which differences are noise.

    For debugging, also how the right options are spread.
    """
    log.info("questions: %d train, %d valid", len(train), len(valid))
    for name, part in (("train", train), ("valid", valid)):
        counts = Counter(label for label in part["label"] if label is not None)
        spread = " ".join(f"{LETTERS[i]} {counts[i] / len(part):.0%}" for i in sorted(counts))
        log.debug("questions: %d %s · right options %s", len(part), name, spread)
    if len(valid) < count_questions_for(WORTH_SEEING, SPREAD):
        log.info(
            "With %d validation questions, differences under %.3f are noise; to see %.3f "
            "takes about %d.",
            len(valid),
            1.96 * SPREAD / sqrt(len(valid)),
            WORTH_SEEING,
            count_questions_for(WORTH_SEEING, SPREAD),
        )


def _where(questions: Dataset, mask: Any) -> Dataset:
    return questions.select(mask.nonzero()[0])


def _require_labels(questions: Dataset, name: str) -> None:
    unknown = [q["id"] for q in questions if q["label"] is None]
    if unknown:
        raise ExamError(
            f"{len(unknown)} of {len(questions)} {name} questions have no answer "
            f"(first: {unknown[0]}).\nTraining and scoring need all of them: map the column with "
            "data.columns.answer=<name>, or remove those rows."
        )
