"""Which questions train, choose the checkpoint, and are reported on."""

import logging
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets

from exam.config import Data
from exam.errors import ExamError
from exam.questions import read

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """Questions to train on, to choose the checkpoint on, and to report the result on.

    `pool` holds all questions of `data.train` in their order, whatever part they went to.
    """

    pool: Dataset
    train: Dataset
    dev: Dataset
    valid: Dataset


def read_split(data: Data, generated: Path | None) -> Split:
    """The training, checkpoint-choosing and reported questions of a configuration."""
    pool = train = read(data, data.train, generated)
    if not len(train):
        raise ExamError(
            f"data={data.name} has no training questions.\nGive a file: data.train=<file>"
        )
    if data.valid is not None:
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
    _warn_of_leaks(train, valid)
    if data.fold is None:
        return Split(pool, train, train.select([]), valid)
    inside = fold_of(train, data.folds, data.split_seed) == data.fold
    return Split(pool, _where(train, ~inside), _where(train, inside), valid)


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
    import numpy as np
    from sklearn.model_selection import GroupKFold

    groups = related(questions)
    if len(set(groups.tolist())) < folds:
        raise ExamError(
            f"{len(questions)} questions form {len(set(groups.tolist()))} groups of their own, "
            f"but {folds} folds are asked for.\nSet a smaller data.folds, or data.fold=null."
        )
    fold = np.empty(len(questions), dtype=np.int64)
    splitter = GroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    for number, (_, inside) in enumerate(splitter.split(fold, groups=groups)):
        fold[inside] = number
    return fold


def related(questions: Dataset, threshold: float = 0.9, block: int = 2000) -> Any:
    """Group number of every question, shape `(questions,)`.

    Questions are related when they were written from one article, or when the cosine of their
    TF-IDF vectors (words and word pairs of prompt and options) reaches `threshold`.
    """
    import numpy as np
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    from sklearn.feature_extraction.text import TfidfVectorizer

    n = len(questions)
    texts = [" ".join([q["prompt"], *sorted(q["options"])]) for q in questions]
    vectors = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+").fit_transform(texts)
    rows, columns = [], []
    for start in range(0, n, block):
        near = (vectors[start : start + block] @ vectors.T) >= threshold
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


def _warn_of_leaks(train: Dataset, valid: Dataset) -> None:
    """Count reported questions that training has, or nearly has, seen."""
    group = related(concatenate_datasets([train, valid]))
    seen = set(group[: len(train)].tolist())
    leaks = sum(g in seen for g in group[len(train) :].tolist())
    if leaks:
        log.warning(
            "questions: %d of %d valid questions nearly equal a training question "
            "or share an article with one",
            leaks,
            len(valid),
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
