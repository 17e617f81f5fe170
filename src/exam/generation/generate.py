"""The stage that writes generated questions, by rules or by a language model."""

import logging
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from datasets import concatenate_datasets

from exam.config import Data, Generator, GeneratorKind, names, plain
from exam.core.artifacts import Stage, open_stage
from exam.core.errors import ExamError
from exam.core.files import write_atomically
from exam.core.logging import track
from exam.data.corpus import corpus_files, corpus_key
from exam.data.questions import DEMO, empty_questions, questions_digest, read_exam_csv, read_qrels
from exam.data.schema import LETTERS
from exam.data.sentences import splitter
from exam.data.tables import read_rows, write_csv
from exam.generation import rules
from exam.retrieval.retriever import Retrieval

log = logging.getLogger(__name__)

QUESTIONS = "questions.csv"
Rows = list[dict[str, str]]


def generate_if_used(data: Data, retrieval: Retrieval, generator: Generator) -> Stage | None:
    """Generate questions if the data name them."""
    return generate(retrieval, generator) if data.uses_generated_questions else None


def generate(retrieval: Retrieval, generator: Generator, resume: str = "auto") -> Stage:
    """Write `questions.csv`: Kaggle's columns and `article`.

    Raises:
        ExamError: fewer than `generator.num_questions` questions can be written.
    """
    by_llm = generator.kind is GeneratorKind.llm
    return (_generate_by_llm if by_llm else _generate_by_rules)(retrieval, generator, resume)


def _generate_by_rules(retrieval: Retrieval, generator: Generator, resume: str) -> Stage:
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
        "generator": {k: v for k, v in plain(generator).items() if k not in ("kind", "llm")},
        "left_out": sorted(excluded),
    }
    with _open(retrieval, generator, key, resume) as stage:
        if not stage.reused:
            drafts = rules.generate_questions(retrieval.article_index, generator, excluded)
            rows = list(track(drafts, "questions", generator.num_questions))
            if len(rows) < generator.num_questions:
                raise _too_few(
                    rows, generator, "a larger generator.num_neighbors, or a larger corpus"
                )
            longest, chance = _count_longest_correct(rows), len(rows) / generator.options
            if longest > chance + 3 * chance**0.5:
                raise ExamError(
                    f"The longest option is right in {longest} of {len(rows)} questions, which "
                    f"gives answers away: {chance:.0f} are expected.\nSet another generator.seed."
                )
            _finish(stage, rows)
    return stage


def _generate_by_llm(retrieval: Retrieval, generator: Generator, resume: str) -> Stage:
    from exam.generation import llm

    files = corpus_files(retrieval.corpus, retrieval.outputs)
    paths = _excluded_files(generator)
    exams = concatenate_datasets([empty_questions(), *map(read_exam_csv, paths)])
    excluded = set().union(*map(_articles, paths))
    settings = plain(generator)
    key = {
        "corpus": corpus_key(files),
        "generator": {k: settings[k] for k in ("kind", "num_questions", "options", "seed")},
        "writer": llm.llm_key(generator.llm),
        "exams": questions_digest(exams),
        "left_out": sorted(excluded),
        **splitter().key,
    }
    with _open(retrieval, generator, key, resume) as stage:
        if not stage.reused:
            rows, counts = llm.generate_questions(
                files, generator, excluded, exams, retrieval.outputs
            )
            if len(rows) < generator.num_questions:
                raise _too_few(
                    rows,
                    generator,
                    "more generator.llm.attempts, or a larger corpus; paid replies are kept",
                )
            log.info(
                "generate: the longest option is right in %.0f %% of %d, by chance in %.0f %%",
                100 * _count_longest_correct(rows) / len(rows),
                len(rows),
                100 / generator.options,
            )
            _finish(stage, rows, **counts)
    return stage


def _open(
    retrieval: Retrieval, generator: Generator, key: dict[str, Any], resume: str
) -> AbstractContextManager[Stage]:
    label = f"{generator.name}-{retrieval.corpus.name}"
    return open_stage(retrieval.outputs, "generate", label, key, resume)


def _finish(stage: Stage, rows: Rows, **counts: Any) -> None:
    header = list(rows[0])
    with write_atomically(stage.folder / QUESTIONS) as temporary:
        write_csv(temporary, header, [[row[name] for name in header] for row in rows])
    longest = _count_longest_correct(rows)
    stage.finish([QUESTIONS], questions=len(rows), longest_option_correct=longest, **counts)


def _too_few(rows: Rows, generator: Generator, alternatives: str) -> ExamError:
    return ExamError(
        f"The corpus gives {len(rows)} questions, and generator.num_questions is "
        f"{generator.num_questions}.\n"
        f"Set generator.num_questions={max(1, len(rows))}, {alternatives}."
    )


def _excluded_files(generator: Generator) -> list[Path]:
    return [DEMO if name == "demo" else Path(name) for name in names(generator.exclude)]


def _articles(path: Path) -> set[str]:
    """Return the ids or titles of the articles of a file's questions, if it names them."""
    column = {row["article"] for row in read_rows(path) if row.get("article")}
    return column | set(read_qrels(path.with_name(f"{path.stem}_qrels.csv")).values())


def _count_longest_correct(rows: Rows) -> int:
    """Count the questions whose longest option is correct."""
    return sum(
        max((c for c in LETTERS if c in row), key=lambda c: len(row[c])) == row["answer"]
        for row in rows
    )
