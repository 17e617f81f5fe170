"""Predictions in Parquet: one row for each question, option, reader, contexts and order."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
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
        return " · ".join(
            [self.reader, self.contexts, *([self.order] * (self.order != ORIGINAL_ORDER))]
        )


def to_probabilities(logits: Floats) -> Floats:
    """Return the softmax over each question's options, shape `(questions, options)`."""
    from scipy.special import softmax

    result: Floats = softmax(logits, axis=1)
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
    groups = ["reader", "contexts", "order"]
    codes = np.stack([_codes(table[name])[0] for name in groups])
    _, first, group = np.unique(codes, axis=1, return_index=True, return_inverse=True)
    order = np.argsort(first)
    predictions = []
    for number in order:
        rows = table.filter(pa.array(group.ravel() == number))
        names = {name: rows[name][0].as_py() for name in groups}
        predictions.append(_read_one(path, rows, names))
    return predictions


def _codes(column: Any) -> tuple[Any, list[Any]]:
    """Return a number for every value, by first appearance, and the distinct values."""
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy(), encoded.dictionary.to_pylist()


def _read_one(path: Path, rows: pa.Table, names: dict[str, str]) -> Predictions:
    question, ids = _codes(rows["question_id"])
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
    label = rows["label"].fill_null(-1).to_numpy()
    low, high = np.full(len(ids), 127), np.full(len(ids), -1)
    np.minimum.at(low, question, label)
    np.maximum.at(high, question, label)
    _refuse(path, ids, (low != high)[:, None], "two answers")
    _refuse(path, ids, ((high < -1) | (high >= times.sum(axis=1)))[:, None], "an unknown answer")
    labels = [None if value < 0 else int(value) for value in high.tolist()]
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
    known = set(first.ids)
    matched = []
    for one, source in zip(predictions, sources, strict=True):
        row_of = {key: row for row, key in enumerate(one.ids)}
        unknown = next((key for key in one.ids if key not in known), None)
        lacking = next((key for key in first.ids if key not in row_of), None)
        if unknown is not None or lacking is not None:
            key, has, lacks = (
                (unknown, source, name) if unknown is not None else (lacking, name, source)
            )
            raise ExamError(
                f"{has} answers question {key!r}, which {lacks} does not.\n"
                "Give predictions of the same questions."
            )
        rows = [row_of[key] for key in first.ids]
        logits, labels = one.logits[rows], [one.labels[row] for row in rows]
        _check_same(first, name, logits, labels, source)
        matched.append(replace(one, ids=first.ids, logits=logits, labels=labels))
    return matched


def _check_same(
    first: Predictions, name: str, logits: Floats, labels: list[int | None], source: str
) -> None:
    """Refuse a question with different numbers of options, or different right options."""
    counts = [np.isfinite(values).sum(axis=1).tolist() for values in (first.logits, logits)]
    for key, number, other, label, theirs in zip(
        first.ids, *counts, first.labels, labels, strict=True
    ):
        if number != other:
            raise ExamError(
                f"Question {key!r} has {number} options in {name} and {other} in {source}.\n"
                "Give predictions of the same questions."
            )
        if label != theirs:
            answers = [LETTERS[v] if v is not None else "unknown" for v in (label, theirs)]
            raise ExamError(
                f"The right option of question {key!r} is {answers[0]} in {name} and {answers[1]} "
                f"in {source}.\nThe order of the options or the answers differ: predict both from "
                "one file of questions."
            )
