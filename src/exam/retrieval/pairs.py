"""(question, passage) pairs to train on: positives, and hard negatives from the first ranking."""

import logging
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from random import Random
from typing import Any

from datasets import Dataset

from exam.config import Pairs, Query, Target
from exam.errors import ExamError
from exam.retrieval.evaluation import SUPPORTED, Contexts, passage_support
from exam.retrieval.passages import passage_text
from exam.retrieval.queries import query_texts
from exam.tables import read_rows

log = logging.getLogger(__name__)

Row = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """One query with its passages, positives first, and what each should be given (0 … 1)."""

    query: str
    passages: list[str]
    labels: list[float]
    positives: int


def mine_pairs(
    questions: Dataset,
    contexts: Contexts,
    rarity: dict[str, float],
    pairs: Pairs,
    query: Query,
    seed: int,
) -> list[Example]:
    """Each question's positives and its hard negatives: highly ranked passages that are neither.

    Positives come from `pairs.positives` or, without that file, are the passages that best support
    the right option: any with graded targets, with binary ones those of the own article (where
    none is known, any that support it). A question that lacks either kind is left out, and counted.

    Raises:
        ExamError: no question is left.
    """
    given = None if pairs.positives is None else read_positives(Path(pairs.positives))
    examples: list[Example] = []
    for question in questions.to_list():
        candidates = contexts.get(question["id"], [])[pairs.first - 1 : pairs.last]
        support = [passage_support(question, c, rarity) for c in candidates]
        if given is None:
            positives = _supported(question, candidates, support, pairs)
        else:
            positives = _given(given.get(question["id"], []), candidates, pairs)
        negatives = _negatives(question, candidates, support, positives, pairs, seed)
        if positives and negatives:
            graded = rarity if pairs.target is Target.support else None
            examples.append(_example(question, positives, negatives, graded, query))
    log.info("pairs: %d of %d questions have both kinds", len(examples), len(questions))
    if not examples:
        raise ExamError(
            f"None of {len(questions)} training questions has both a positive and a negative "
            f"passage among ranks {pairs.first} to {pairs.last}.\n"
            "Rank deeper (retriever.depth, pairs.last), give pairs.positives=<file>, or allow "
            f"better negatives: pairs.max_support above {pairs.max_support}."
        )
    return examples


def _example(
    question: Row,
    positives: list[Row],
    negatives: list[Row],
    rarity: dict[str, float] | None,
    query: Query,
) -> Example:
    """A question with its passages, graded by their support where words have a rarity."""
    chosen = [*positives, *negatives]
    labels = [1.0] * len(positives) + [0.0] * len(negatives)
    if rarity is not None:
        labels = [passage_support(question, row, rarity) for row in chosen]
    texts = [passage_text(row) for row in chosen]
    (text,) = query_texts(question, query)
    return Example(text, texts, labels, len(positives))


def _supported(
    question: Row, candidates: list[Row], support: list[float], pairs: Pairs
) -> list[Row]:
    """The passages that best support the right option, best first."""

    def may(i: int) -> bool:
        if pairs.target is Target.support:
            return True
        if question["article"] is None:
            return support[i] > SUPPORTED
        return bool(candidates[i]["article_id"] == question["article"])

    found = sorted(filter(may, range(len(candidates))), key=lambda i: -support[i])
    return [candidates[i] for i in found[: pairs.per_question]]


def _given(rows: list[Row], candidates: list[Row], pairs: Pairs) -> list[Row]:
    """A file's positives: by passage where it names one, else by text."""
    ranked = {row["passage_id"]: row for row in candidates}
    found = [
        ranked.get(row.get("passage_id") or "") or {"passage_id": None, "title": "", **row}
        for row in rows
    ]
    return [row for row in found if row.get("text")][: pairs.per_question]


def _negatives(
    question: Row,
    candidates: list[Row],
    support: list[float],
    positives: list[Row],
    pairs: Pairs,
    seed: int,
) -> list[Row]:
    """Seeded draws of passages that are no positives.

    With graded targets any passage is a lesson. With binary ones a negative must be wrong: not of
    the own article, and of little support to the right option.
    """
    taken = {row["text"] for row in positives}
    rest = [
        row
        for row, share in zip(candidates, support, strict=True)
        if row["text"] not in taken
        and (
            pairs.target is Target.support
            or (row["article_id"] != question["article"] and share <= pairs.max_support)
        )
    ]
    draw = Random(f"{seed}:{question['id']}")
    return draw.sample(rest, min(pairs.negatives, len(rest)))


def _gain(value: Any, number: int, path: Path) -> float:
    with suppress(TypeError, ValueError, OverflowError):
        if isfinite(gain := float(value)):
            return gain
    raise ExamError(f"{path}, row {number}: gain {value!r} is no finite number.\nCorrect the row.")


def read_positives(path: Path) -> dict[str, list[Row]]:
    """Each question's positives, best first.

    The file has `question_id` and `passage_id` or `text`. Where it has `gain` (as with
    `pairs.positives=reader`), passages without a positive gain are left out, and the rest are
    sorted by it.

    Raises:
        ExamError: it cannot be read, or lacks those columns.
    """
    rows = [dict(row) for row in read_rows(path)]
    columns = [c for c in rows[0] if all(c in row for row in rows)] if rows else []
    if "question_id" not in columns or not {"passage_id", "text"} & set(columns):
        raise ExamError(
            f"{path} has columns {', '.join(columns) or 'none'}; question_id and passage_id or "
            "text are required.\nAdd them, or set pairs.positives=reader pairs.reader=<run folder>"
        )
    if "gain" in columns:
        gains = [_gain(row["gain"], number, path) for number, row in enumerate(rows, 1)]
        order = sorted(range(len(rows)), key=lambda i: -gains[i])
        rows = [rows[i] for i in order if gains[i] > 0]
    for row in rows:
        if not all(isinstance(row.get(n), str | None) for n in ("passage_id", "title", "text")):
            raise ExamError(f"{path} holds a passage that is no text.\nWrite texts alone.")
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(str(row["question_id"]), []).append(row)
    return found
