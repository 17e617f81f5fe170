"""The submission file: the best k labels of every question, in the order of the input."""

import csv
from pathlib import Path

from exam.artefacts import atomic
from exam.errors import ExamError
from exam.metrics import Floats, ranking
from exam.questions import LETTERS


def write_submission(path: Path, ids: list[str], logits: Floats, k: int = 3) -> None:
    """Write `id,prediction`, then read the file back and validate it."""
    order = ranking(logits)
    with atomic(path) as temporary:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["id", "prediction"])
            for key, best in zip(ids, order[:, :k].tolist(), strict=True):
                writer.writerow([key, " ".join(LETTERS[option] for option in best)])
        validate_submission(temporary, ids, logits.shape[1], k)


def validate_submission(path: Path, ids: list[str], options: int, k: int = 3) -> None:
    """Every id once, in the input's order, each with k distinct labels of the question.

    Raises:
        ExamError: the first row that is not so.
    """
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    if header != ["id", "prediction"]:
        raise ExamError(f"{path} has columns {', '.join(header)}; id,prediction is required.")
    found = [row[0] for row in rows]
    if found != ids:
        raise ExamError(
            f"{path} holds {len(found)} ids that are not the {len(ids)} questions in their order.\n"
            "Predict again."
        )
    letters = set(LETTERS[:options])
    for key, prediction in rows:
        labels = prediction.split(" ")
        if len(labels) != min(k, options) or len(set(labels)) != len(labels):
            raise ExamError(
                f"{path}: question {key!r} has prediction {prediction!r}, not {k} labels."
            )
        if not set(labels) <= letters:
            raise ExamError(f"{path}: question {key!r} has a label that is none of its options.")
