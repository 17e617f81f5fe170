"""The submission file: the best k labels of every question, in the order of the input."""

import csv
from pathlib import Path

import numpy as np

from exam.core.errors import ExamError
from exam.core.files import write_atomically
from exam.data.schema import LETTERS
from exam.data.tables import write_csv
from exam.metrics import Floats, rank_options


def write_submission(
    path: Path, ids: list[str], logits: Floats, k: int, letters: str = LETTERS
) -> None:
    """Write `id,prediction` with the best `k` labels, then read the file back and validate it."""
    options = np.isfinite(logits).sum(axis=1).tolist()
    rows = [
        [key, " ".join(letters[option] for option in best[: min(k, count)])]
        for key, best, count in zip(ids, rank_options(logits), options, strict=True)
    ]
    with write_atomically(path) as temporary:
        write_csv(temporary, ["id", "prediction"], rows)
        validate_submission(temporary, ids, options, k, letters)


def validate_submission(
    path: Path, ids: list[str], options: list[int], k: int, letters: str = LETTERS
) -> None:
    """Require every id once, in the order of the input, with `k` distinct labels of its options.

    A question with fewer options needs all of them.

    Raises:
        ExamError: the first row that differs.
    """
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    if header != ["id", "prediction"]:
        raise ExamError(f"{path} has columns {', '.join(header)}; id,prediction is required.")
    if [row[0] for row in rows] != ids:
        raise ExamError(
            f"{path} holds {len(rows)} ids that are not the {len(ids)} questions in their order."
        )
    for (key, prediction), count in zip(rows, options, strict=True):
        labels = prediction.split(" ")
        distinct = set(labels) & set(letters[:count])
        if len(labels) != min(k, count) or len(distinct) != len(labels):
            raise ExamError(
                f"{path}: question {key!r} has prediction {prediction!r}; "
                f"{min(k, count)} distinct labels of {letters[:count]} are required."
            )
