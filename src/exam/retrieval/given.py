"""Contexts that came with the questions."""

import logging
from collections.abc import Iterator
from typing import Any

from datasets import Dataset

from exam.errors import ExamError

log = logging.getLogger(__name__)


def given_contexts(questions: Dataset) -> Iterator[list[dict[str, Any]]]:
    """Each question's own context, as its only passage.

    Raises:
        ExamError: no question has one.
    """
    _check_given(questions)
    return map(_given, questions)


def _check_given(questions: Dataset) -> None:
    """Refuse questions that all lack a context; count those that do."""
    lacking = questions["context"][:].count(None)
    if lacking == len(questions):
        raise ExamError(
            "retriever=given reads the context of each question, but none has one.\n"
            "Map its column with data.columns.context=<name>, or choose another retriever."
        )
    if lacking:
        log.warning("contexts: %d of %d questions have no context", lacking, len(questions))


def _given(question: dict[str, Any]) -> list[dict[str, Any]]:
    """The context that came with a question, as its only passage."""
    if question["context"] is None:
        return []
    return [
        {
            "question_id": question["id"],
            "rank": 1,
            "score": 1.0,
            "article_id": question["article"],
            "passage_id": question["id"],
            "title": "",
            "text": question["context"],
            "source": "given",
        }
    ]
