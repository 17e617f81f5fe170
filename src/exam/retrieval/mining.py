"""Mine (question, passage) pairs to train on: positives, and hard negatives from a ranking."""

import logging
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from random import Random
from typing import Any

from datasets import Dataset

from exam.config import Query, Target, TrainingPairs
from exam.core.errors import ExamError
from exam.data.tables import read_rows
from exam.retrieval.chunking import passage_text
from exam.retrieval.contexts import SUPPORT_THRESHOLD, Contexts, Row, passage_support
from exam.retrieval.queries import query_texts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    """A query with its passages, positives first, and their labels from 0 to 1."""

    query: str
    passages: list[str]
    labels: list[float]
    positives: int


def mine_pairs(
    questions: Dataset,
    contexts: Contexts,
    idf: dict[str, float],
    pairs: TrainingPairs,
    query: Query,
    seed: int,
) -> list[Example]:
    """Return each question's positives and hard negatives: other passages of high rank.

    Positives come from the file `pairs.positives` or, without one, are the passages that best
    support the right option. With binary targets these belong to the question's articles or, if no
    article is known, support the option. Questions without both kinds are skipped.

    Raises:
        ExamError: no question has both kinds.
    """
    listed = None if pairs.positives is None else read_positives(Path(pairs.positives))
    examples: list[Example] = []
    for question in questions.to_list():
        candidates = contexts.get(question["id"], [])[pairs.min_rank - 1 : pairs.max_rank]
        scored = [(passage_support(question, row, idf), row) for row in candidates]
        if listed is None:
            positives = _best_supporting(question, scored, pairs)
        else:
            positives = _look_up(listed.get(question["id"], []), candidates, pairs)
        negatives = _draw_negatives(question, scored, positives, pairs, seed)
        if positives and negatives:
            rows = [*positives, *negatives]
            labels = [1.0] * len(positives) + [0.0] * len(negatives)
            if pairs.target is Target.support:
                labels = [passage_support(question, row, idf) for row in rows]
            (text,) = query_texts(question, query)
            examples.append(Example(text, list(map(passage_text, rows)), labels, len(positives)))
    log.info("pairs: mined from %d of %d questions", len(examples), len(questions))
    if not examples:
        raise ExamError(
            f"None of {len(questions)} training questions has both a positive and a negative "
            f"passage among ranks {pairs.min_rank} to {pairs.max_rank}.\n"
            "Rank deeper (retriever.top_k, training_pairs.max_rank), set "
            "training_pairs.positives=<file>, or allow better negatives: "
            f"training_pairs.max_support above {pairs.max_support}."
        )
    return examples


def _best_supporting(
    question: Row, scored: list[tuple[float, Row]], pairs: TrainingPairs
) -> list[Row]:
    """Return the passages that best support the right option, best first."""

    def is_positive(share: float, row: Row) -> bool:
        if pairs.target is Target.support:
            return True
        if not question["articles"]:
            return share > SUPPORT_THRESHOLD
        return row["article_id"] in question["articles"]

    ranked = sorted(scored, key=lambda pair: -pair[0])
    return [row for share, row in ranked if is_positive(share, row)][: pairs.num_positives]


def _look_up(rows: list[Row], candidates: list[Row], pairs: TrainingPairs) -> list[Row]:
    """Return the positives of a file: candidates by `passage_id`, or else the file's texts."""
    ranked = {row["passage_id"]: row for row in candidates}
    passages = [
        ranked.get(row.get("passage_id") or "") or {"passage_id": None, "title": "", **row}
        for row in rows
    ]
    return [passage for passage in passages if passage.get("text")][: pairs.num_positives]


def _draw_negatives(
    question: Row,
    scored: list[tuple[float, Row]],
    positives: list[Row],
    pairs: TrainingPairs,
    seed: int,
) -> list[Row]:
    """Draw passages that are not positives, by the seed.

    With binary targets a negative belongs to another article, and supports the right option little.
    """
    positive_texts = {row["text"] for row in positives}
    rest = [
        row
        for share, row in scored
        if row["text"] not in positive_texts
        and (
            pairs.target is Target.support
            or (
                row["article_id"] not in (question["articles"] or ()) and share <= pairs.max_support
            )
        )
    ]
    random = Random(f"{seed}:{question['id']}")
    return random.sample(rest, min(pairs.num_negatives, len(rest)))


def _read_gain(value: Any, number: int, path: Path) -> float:
    with suppress(TypeError, ValueError, OverflowError):
        if isfinite(gain := float(value)):
            return gain
    raise ExamError(
        f"{path}, row {number}: gain {value!r} is not a finite number.\nCorrect the row."
    )


def read_positives(path: Path) -> dict[str, list[Row]]:
    """Read each question's positives, best first.

    The file has `question_id` and `passage_id` or `text`. If it has `gain` (as with
    `training_pairs.positives=reader`), passages without a positive gain are dropped, and the rest
    are sorted by gain.

    Raises:
        ExamError: it cannot be read, or lacks those columns.
    """
    rows = [dict(row) for row in read_rows(path)]
    columns = [c for c in rows[0] if all(c in row for row in rows)] if rows else []
    if "question_id" not in columns or not {"passage_id", "text"} & set(columns):
        raise ExamError(
            f"{path} has columns {', '.join(columns) or 'none'}; question_id and passage_id or "
            "text are required.\nAdd them, or set training_pairs.positives=reader "
            "training_pairs.reader=<run folder>"
        )
    if "gain" in columns:
        gains = [_read_gain(row["gain"], number, path) for number, row in enumerate(rows, 1)]
        ranked = sorted(zip(gains, rows, strict=True), key=lambda pair: -pair[0])
        rows = [row for gain, row in ranked if gain > 0]
    for row in rows:
        if not all(isinstance(row.get(n), str | None) for n in ("passage_id", "title", "text")):
            raise ExamError(
                f"{path} holds a passage id, title or text that is not a string.\nWrite strings."
            )
    positives: dict[str, list[Row]] = {}
    for row in rows:
        positives.setdefault(str(row["question_id"]), []).append(row)
    return positives
