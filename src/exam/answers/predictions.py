"""The prediction store: question × option × reader × context set × option order."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from exam.artefacts import atomic
from exam.errors import ExamError
from exam.metrics import Floats

SCHEMA = pa.schema(
    {
        "question_id": pa.string(),
        "option": pa.int8(),  # place in the question's own list, from 0
        "reader": pa.string(),
        "contexts": pa.string(),
        "order": pa.string(),  # how the options were laid out for the reader
        "logit": pa.float64(),
        "probability": pa.float64(),
        "label": pa.int8(),  # the right option, where it is known
    }
)


@dataclass(frozen=True)
class Predictions:
    """One reader's logits over one set of questions, `-inf` where there is no such option."""

    ids: list[str]
    logits: Floats  # (questions, options)
    labels: list[int | None]


def probabilities(logits: Floats) -> Floats:
    """Softmax over each question's options."""
    from scipy.special import softmax

    result: Floats = softmax(logits, axis=1)
    return result


def write_predictions(
    path: Path, questions: Dataset, logits: Floats, reader: str, contexts: str
) -> None:
    """Write one row per question and option."""
    rows = [
        {
            "question_id": question["id"],
            "option": option,
            "reader": reader,
            "contexts": contexts,
            "order": "given",
            "logit": float(logit[option]),
            "probability": float(probability[option]),
            "label": question["label"],
        }
        for question, logit, probability in zip(
            questions, logits, probabilities(logits), strict=True
        )
        for option in range(len(question["options"]))
    ]
    with atomic(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary)


def read_predictions(path: Path) -> Predictions:
    """Read a file of one reader, context set and option order.

    Raises:
        ExamError: the file is missing, broken, of another form, or holds several readers' rows.
    """
    try:
        rows = pq.read_table(path, schema=SCHEMA).to_pylist()
    except FileNotFoundError:
        raise ExamError(f"{path} does not exist.\nGive a run folder with predictions.") from None
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ExamError(f"{path} is not a predictions file: {reason}\nPredict again.") from None
    if len({(r["reader"], r["contexts"], r["order"]) for r in rows}) != 1:
        raise ExamError(f"{path} holds no rows of one reader.\nGive one reader's predictions.")
    ids = list(dict.fromkeys(r["question_id"] for r in rows))
    place = {key: i for i, key in enumerate(ids)}
    logits = np.full((len(ids), max(r["option"] for r in rows) + 1), -np.inf)
    labels: list[int | None] = [None] * len(ids)
    for row in rows:
        logits[place[row["question_id"]], row["option"]] = row["logit"]
        labels[place[row["question_id"]]] = row["label"]
    return Predictions(ids, logits, labels)
