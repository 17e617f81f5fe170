"""Soft labels: a reader's probabilities for another one to learn from.

Hinton and others, "Distilling the Knowledge in a Neural Network" (2015), at temperature 1.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, List, Value

from exam.config import Data
from exam.core.errors import ExamError, spell_command
from exam.data.schema import LETTERS
from exam.data.splits import Split
from exam.evaluation.predictions import probabilities, read_predictions
from exam.readers.multiple_choice.features import TARGETS

log = logging.getLogger(__name__)

OF_EXTRA = "extra:"  # what this project puts before the ids of `data.extra_train`
Known = dict[str, tuple[list[float], int | None]]  # probabilities and label, by id


def with_soft_labels(split: Split, data: Data) -> Split:
    """The split whose training questions have the probabilities of `data.soft_labels`.

    They are found by id. A question without a row keeps its answer alone.

    Raises:
        ExamError: the file answers none of the questions, or others of the same ids, or a question
            has neither an answer nor a row.
    """
    if data.soft_labels is None:
        return split
    path = Path(data.soft_labels)
    known = _known(path)
    _check_apart(split, known, path)
    parts = {
        name: _softened(questions, known, data.soft_weight, path)
        for name, questions in (("train", split.train), ("extra", split.extra))
    }
    found = sum(number for _, number in parts.values())
    log.info("soft labels: %d of %d questions", found, len(split.train) + len(split.extra))
    if not found:
        raise ExamError(
            f"data.soft_labels={path} answers none of the training questions "
            f"(it has {next(iter(known))!r} …, they have {split.train['id'][0]!r} …).\n"
            f"Predict the same files: {spell_command('infer')} ckpt=<run> data.test=<file>"
        )
    return replace(split, **{name: questions for name, (questions, _) in parts.items()})


def _check_apart(split: Split, known: Known, path: Path) -> None:
    """Refuse an id that two questions answer to, as ids that count from 0 in every file do."""
    everything = set(split.all_train["id"])  # training may hold the extra ones too, or none of them
    both = [key for key in split.train["id"] if key in known and f"{OF_EXTRA}{key}" in everything]
    if both:
        raise ExamError(
            f"{path} answers question {both[0]!r}, and data.train and data.extra_train both have "
            "one of "
            "that id.\nGive the questions of one file other ids, and predict them again."
        )


def _known(path: Path) -> Known:
    found = read_predictions(path)
    exists = np.isfinite(found.logits)
    rows = zip(found.ids, probabilities(found.logits), exists, found.labels, strict=True)
    return {key: (own[real].tolist(), label) for key, own, real, label in rows}


def _softened(questions: Dataset, known: Known, weight: float, path: Path) -> tuple[Dataset, int]:
    """The questions with a column of targets, and how many the file answers."""
    rows, found = [], 0
    for question in questions.to_list():
        key, number, label = question["id"], len(question["options"]), question["label"]
        right = [float(place == label) for place in range(number)]
        row = known.get(key) or known.get(key.removeprefix(OF_EXTRA))
        if row is None and label is None:
            raise ExamError(
                f"Question {key!r} has no answer, and {path} has none either.\n"
                "Predict it too, or leave it out."
            )
        if row is None:
            rows.append(right)
            continue
        _check_same(key, number, label, row, path)
        share = 1.0 if label is None else weight
        rows.append([share * p + (1 - share) * r for p, r in zip(row[0], right, strict=True)])
        found += 1
    return questions.add_column(TARGETS, rows, feature=List(Value("float64"))), found


def _check_same(key: str, number: int, label: int | None, row: Any, path: Path) -> None:
    """Refuse what was predicted for another question of the same id."""
    chances, other = row
    if len(chances) != number:
        raise ExamError(
            f"Question {key!r} has {number} options, and {len(chances)} in {path}.\n"
            "Give predictions of the same questions."
        )
    if label is not None and other is not None and label != other:
        raise ExamError(
            f"The right option of question {key!r} is {LETTERS[label]}, and {LETTERS[other]} in "
            f"{path}.\nGive predictions of the same questions."
        )
