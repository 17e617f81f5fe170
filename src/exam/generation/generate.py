"""The stage that writes generated questions, by rules or by a language model."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from datasets import concatenate_datasets

from exam.config import Data, Generator, GeneratorKind, as_list, to_dict
from exam.core.artifacts import Stage, open_stage
from exam.core.errors import ExamError
from exam.core.files import write_atomically
from exam.core.logging import track
from exam.data.cells import read_articles
from exam.data.questions import (
    DEMO,
    empty_questions,
    find_qrels,
    questions_digest,
    read_exam_csv,
    read_qrels,
)
from exam.data.schema import LETTERS
from exam.data.sentences import SENTENCES_VERSION, splitter
from exam.data.tables import read_rows, write_csv
from exam.generation import rules
from exam.retrieval.retriever import Retrieval

log = logging.getLogger(__name__)

QUESTIONS = "questions.csv"
Rows = list[dict[str, str]]
Write = Callable[[], tuple[Rows, dict[str, Any]]]


def generate_if_used(data: Data, retrieval: Retrieval, generator: Generator) -> Stage | None:
    """Generate questions if the data name them."""
    return generate(retrieval, generator) if data.uses_generated_questions else None


def generate(retrieval: Retrieval, generator: Generator, resume: str = "auto") -> Stage:
    """Write `questions.csv`: Kaggle's columns and `article`.

    Warn if the corpus gives fewer questions than configured.

    Raises:
        ExamError: no question can be written, or their lengths give the answers away.
    """
    by_llm = generator.kind is GeneratorKind.llm
    key, write = (_prepare_llm if by_llm else _prepare_rules)(retrieval, generator)
    label = f"{generator.name}-{retrieval.corpus.name}"
    with open_stage(retrieval.outputs, "generate", label, key, resume) as stage:
        if not stage.reused:
            rows, counts = write()
            longest = _check(rows, generator)
            with write_atomically(stage.folder / QUESTIONS) as temporary:
                write_csv(temporary, list(rows[0]), [list(row.values()) for row in rows])
            stage.finish([QUESTIONS], questions=len(rows), longest_option_correct=longest, **counts)
    written, number = stage.metadata["questions"], generator.num_questions
    if written < number:
        log.warning(
            "generate: %d of %d questions: the corpus gives no more, and %d are missing. For more, "
            "give a larger corpus, or set a higher %s",
            written, number, number - written, _limit(generator),
        )  # fmt: skip
    return stage


def _limit(generator: Generator) -> str:
    """Return the setting that limits how many questions a corpus gives."""
    by_llm = generator.kind is GeneratorKind.llm
    return "generator.llm.attempts" if by_llm else "generator.num_neighbors"


def _prepare_rules(retrieval: Retrieval, generator: Generator) -> tuple[dict[str, Any], Write]:
    """Return the stage's key and a function that writes the questions by rules."""
    excluded: set[str] = set()
    for path in _excluded_files(generator):
        articles = _articles(path)
        if not articles:
            raise ExamError(
                f"generator.exclude={path} names no articles.\nIt needs a column `article`, or "
                f"{path.stem}_qrels.csv (question,article) beside it."
            )
        excluded |= articles
    key = {
        "index": retrieval.article_index.stage.hash,
        "generator": {k: v for k, v in to_dict(generator).items() if k not in ("kind", "llm")},
        "left_out": sorted(excluded),
    }

    def write() -> tuple[Rows, dict[str, Any]]:
        questions = rules.generate_questions(retrieval.article_index, generator, excluded)
        return list(track(questions, "generated", generator.num_questions, "questions")), {}

    return key, write


def _prepare_llm(retrieval: Retrieval, generator: Generator) -> tuple[dict[str, Any], Write]:
    """Return the stage's key and a function that has a language model write the questions."""
    from exam.generation import llm

    articles = retrieval.articles
    paths = _excluded_files(generator)
    exams = concatenate_datasets([empty_questions(), *map(read_exam_csv, paths)])
    excluded = set().union(*map(_articles, paths))
    settings = to_dict(generator)
    key = {
        "corpus": articles.key,
        "generator": {k: settings[k] for k in ("kind", "num_questions", "options", "seed")},
        "writer": {**llm.llm_key(generator.llm), "attempts": generator.llm.attempts},
        "exams": questions_digest(exams),
        "left_out": sorted(excluded),
        "format": 2,
        "sentences": SENTENCES_VERSION,
        **splitter().key,
    }
    outputs = retrieval.outputs
    return key, partial(llm.generate_questions, articles.files, generator, excluded, exams, outputs)


def _check(rows: Rows, generator: Generator) -> int:
    """Refuse no questions, and rules that give answers away; count longest right options."""
    by_llm = generator.kind is GeneratorKind.llm
    if not rows:
        raise ExamError(
            "The corpus gives no question.\n"
            f"Give a larger corpus, or set a higher {_limit(generator)}."
        )
    longest = sum(
        max((c for c in LETTERS if c in row), key=lambda c: len(row[c])) == row["answer"]
        for row in rows
    )
    chance = len(rows) / generator.options
    if by_llm:
        log.info(
            "generate: the longest option is right in %d of %d, by chance in %.0f",
            longest,
            len(rows),
            chance,
        )
    elif longest > chance + 3 * chance**0.5:
        raise ExamError(
            f"The longest option is right in {longest} of {len(rows)} questions, which gives "
            f"answers away: {chance:.0f} are expected.\nSet another generator.seed."
        )
    return longest


def _excluded_files(generator: Generator) -> list[Path]:
    return [DEMO if name == "demo" else Path(name) for name in as_list(generator.exclude)]


def _articles(path: Path) -> set[str]:
    """Return the ids or titles of the articles of a file's questions, if it names them."""
    column = {a for row in read_rows(path) for a in read_articles(row.get("article"), str(path))}
    qrels = find_qrels(path)
    return column.union(*read_qrels(qrels).values()) if qrels else column
