"""Predictions in Parquet: one row for each question, option, reader, contexts and order."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import reduce
from operator import and_
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset

from exam.core.errors import ExamError
from exam.core.files import write_atomically
from exam.data.schema import LETTERS
from exam.metrics import Floats

SCHEMA = pa.schema(
    {
        "question_id": pa.string(),  # the question's id in its file
        "option": pa.int8(),  # position in the question's list of options, from 0
        "reader": pa.string(),  # name of the run or ensemble
        "contexts": pa.string(),  # name of the passages it read, or a perturbation
        "order": pa.string(),  # order of the options that the reader saw: `given` or a rotation
        "logit": pa.float64(),  # the reader's score of the option
        "probability": pa.float64(),  # softmax of the logits over the question's options
        "label": pa.int8(),  # position of the right option; null where the answer is unknown
    }
)
ORIGINAL_ORDER = "given"  # the options in the order of the question


@dataclass(frozen=True)
class Predictions:
    """One reader's logits over one set of questions.

    Attributes:
        ids: The questions' ids.
        logits: Shape `(questions, options)`; `-inf` for options that a question lacks.
        labels: Positions of the right options; None where the answer is unknown.
        reader: The name of a run or ensemble.
        contexts: The name of the passages that it read.
        order: The order of the options that it saw.
    """

    ids: list[str]
    logits: Floats
    labels: list[int | None]
    reader: str
    contexts: str
    order: str = ORIGINAL_ORDER

    @property
    def known(self) -> list[int] | None:
        """The right options; None if any is unknown."""
        labels = [label for label in self.labels if label is not None]
        return labels if len(labels) == len(self.labels) else None

    @property
    def name(self) -> str:
        """The name in tables."""
        order = [] if self.order == ORIGINAL_ORDER else [self.order]
        return " · ".join([self.reader, self.contexts, *order])


def to_probabilities(logits: Floats) -> Floats:
    """Return the softmax over the options of `(…, options)` logits."""
    from scipy.special import softmax

    result: Floats = softmax(logits, axis=-1)
    return result


def make_predictions(
    questions: Dataset, logits: Floats, reader: str, contexts: str, order: str = ORIGINAL_ORDER
) -> Predictions:
    """Return logits `(questions, options)` as predictions of the questions."""
    ids, labels = list(questions["id"]), list(questions["label"])
    return Predictions(ids, logits, labels, reader, contexts, order)


def write_predictions(path: Path, predictions: Iterable[Predictions]) -> None:
    """Write one row per question, option and reader, context set and order."""
    rows = [
        {
            "question_id": key,
            "option": option,
            "reader": one.reader,
            "contexts": one.contexts,
            "order": one.order,
            "logit": float(logit[option]),
            "probability": float(probability[option]),
            "label": label,
        }
        for one in predictions
        for key, label, logit, probability in zip(
            one.ids, one.labels, one.logits, to_probabilities(one.logits), strict=True
        )
        for option in np.flatnonzero(logit > -np.inf).tolist()
    ]
    with write_atomically(path) as temporary:
        pq.write_table(
            pa.Table.from_pylist(rows, schema=SCHEMA), temporary, write_page_checksum=True
        )


def read_predictions(path: Path) -> Predictions:
    """Read a file of one reader, context set and option order.

    Raises:
        ExamError: the file is missing or wrong, or holds several readers' rows.
    """
    predictions = read_all_predictions(path)
    if len(predictions) != 1:
        names = ", ".join(one.name for one in predictions[:3])
        raise ExamError(f"{path} holds rows of {names}.\nGive one reader's predictions.")
    return predictions[0]


def read_all_predictions(path: Path) -> list[Predictions]:
    """Read a file: one item for each reader, context set and option order, in order of appearance.

    Raises:
        ExamError: the file is missing or broken, or a question lacks an option, has one twice, or
            has a logit that is not finite.
    """
    if not path.is_file():
        raise ExamError(
            f"{path} does not exist.\nGive a file of predictions, or a run folder with one."
        )
    try:
        table = pq.read_table(path, schema=SCHEMA, page_checksum_verification=True)
        table.validate(full=True)  # finds invalid UTF-8
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ExamError(f"{path} is not a predictions file: {reason}\nPredict again.") from None
    needed = [name for name in SCHEMA.names if name != "label"]
    empty = [name for name in needed if table[name].null_count]
    if empty or not len(table):
        where = f"empty cells in {empty[0]}" if empty else "no rows"
        raise ExamError(f"{path} has {where}.\nPredict again.")
    groups = table.group_by(["reader", "contexts", "order"], use_threads=False).aggregate([])
    return [_read_one(path, table, names) for names in groups.to_pylist()]


def _read_one(path: Path, table: pa.Table, names: dict[str, str]) -> Predictions:
    rows = table.filter(reduce(and_, (pc.field(name) == names[name] for name in names)))
    encoded = rows["question_id"].combine_chunks().dictionary_encode()
    question, ids = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
    option, logit = rows["option"].to_numpy(), rows["logit"].to_numpy()
    if option.min() < 0 or option.max() >= len(LETTERS):
        raise _wrong(path, ids[question[option.argmin()]], f"option {option.min()}")
    times = np.zeros((len(ids), option.max() + 1), dtype=np.int64)
    np.add.at(times, (question, option), 1)
    _refuse(path, ids, times > 1, "two rows for option {}")
    expected = np.arange(times.shape[1]) < times.sum(axis=1)[:, None]
    _refuse(path, ids, expected & (times == 0), "no row for option {}")
    logits = np.full(times.shape, -np.inf)
    logits[question, option] = logit
    _refuse(path, ids, (times > 0) & ~np.isfinite(logits), "an infinite logit or NaN at option {}")
    answers = np.full(times.shape, -1)
    answers[question, option] = rows["label"].fill_null(-1).to_numpy()
    answer = answers[:, :1]
    _refuse(path, ids, expected & (answers != answer), "two answers")
    _refuse(
        path, ids, (answer < -1) | (answer >= expected.sum(1, keepdims=True)), "an unknown answer"
    )
    labels = [None if value < 0 else value for value in answer[:, 0].tolist()]
    return Predictions(ids, logits, labels, **names)


def _refuse(path: Path, ids: list[str], wrong: Any, what: str) -> None:
    """Name the first question and option that a mask of shape `(questions, options)` marks."""
    if wrong.any():
        question, option = np.argwhere(wrong)[0]
        raise _wrong(path, ids[question], what.format(LETTERS[option]))


def _wrong(path: Path, key: str, what: str) -> ExamError:
    return ExamError(
        f"{path}: question {key!r} has {what}.\n"
        "Every option of a question needs one row with a finite logit; predict again."
    )


def align(predictions: list[Predictions], sources: list[str]) -> list[Predictions]:
    """Return the predictions in the order of the first one's questions.

    Raises:
        ExamError: two of `sources` answer different questions, or their options or answers differ.
    """
    first, name = predictions[0], sources[0]
    matched = []
    for one, source in zip(predictions, sources, strict=True):
        row_of = {key: row for row, key in enumerate(one.ids)}
        _check_ids(one.ids, first.ids, source, name)
        _check_ids(first.ids, one.ids, name, source)
        rows = [row_of[key] for key in first.ids]
        labels = [one.labels[row] for row in rows]
        matched.append(replace(one, ids=first.ids, logits=one.logits[rows], labels=labels))
        _check_same(first, matched[-1], name, source)
    return matched


def _check_ids(ids: list[str], others: list[str], name: str, source: str) -> None:
    """Refuse a question that others lack."""
    known = set(others)
    if lacking := [key for key in ids if key not in known]:
        raise ExamError(
            f"{name} answers question {lacking[0]!r}, which {source} does not.\n"
            "Give predictions of the same questions."
        )


def _check_same(first: Predictions, second: Predictions, name: str, source: str) -> None:
    """Refuse a question with different numbers of options, or different right options."""
    a, b = (np.isfinite(one.logits).sum(axis=1).tolist() for one in (first, second))
    for row, key in enumerate(first.ids):
        if a[row] != b[row]:
            raise ExamError(
                f"Question {key!r} has {a[row]} options in {name} and {b[row]} in {source}.\n"
                "Give predictions of the same questions."
            )
        labels = first.labels[row], second.labels[row]
        if labels[0] != labels[1]:
            answers = ["unknown" if label is None else LETTERS[label] for label in labels]
            raise ExamError(
                f"The right option of question {key!r} is {answers[0]} in {name} and {answers[1]} "
                f"in {source}.\nThe order of the options or the answers differ: predict both from "
                "one file of questions."
            )
