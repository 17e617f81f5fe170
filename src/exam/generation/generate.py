"""The stage that writes generated questions, and what makes it refuse them."""

import logging
from pathlib import Path

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
from exam.generation.rules import questions
from exam.retrieval.retriever import Retrieval

log = logging.getLogger(__name__)

QUESTIONS = "questions.csv"


def generate_if_used(data: Data, retrieval: Retrieval, generator: Generator) -> Stage | None:
    """The generated questions, where the data name them."""
    return generate(retrieval, generator) if data.uses_generated_questions else None


def generate(retrieval: Retrieval, generator: Generator, resume: str = "auto") -> Stage:
    """Write `questions.csv`: Kaggle's columns and `article`.

    Raises:
        ExamError: fewer than `generator.num_questions` questions could be made.
    """
    by_llm = generator.kind is GeneratorKind.llm
    return (_by_llm if by_llm else _by_rules)(retrieval, generator, resume)


def _by_rules(retrieval: Retrieval, generator: Generator, resume: str) -> Stage:
    left_out = _left_out(generator)
    key = {
        "index": retrieval.article_index.stage.hash,
        "generator": {k: v for k, v in plain(generator).items() if k not in ("kind", "llm")},
        "left_out": sorted(left_out),
    }
    label = f"{generator.name}-{retrieval.corpus.name}"
    with open_stage(retrieval.outputs, "generate", label, key, resume) as stage:
        if not stage.reused:
            asked = questions(retrieval.article_index, generator, left_out)
            made = list(track(asked, "questions", generator.num_questions))
            _check(made, generator)
            _write(stage.folder / QUESTIONS, made)
            longest = sum(map(_longest_is_right, made))
            stage.finish([QUESTIONS], questions=len(made), longest_is_right=longest)
    return stage


def _by_llm(retrieval: Retrieval, generator: Generator, resume: str) -> Stage:
    from exam.generation import llm

    files = corpus_files(retrieval.corpus, retrieval.outputs)
    places = _excluded(generator)
    known = concatenate_datasets([empty_questions(), *map(read_exam_csv, places)])
    left_out = set().union(*map(_articles, places))
    settings = plain(generator)
    key = {
        "corpus": corpus_key(files),
        "generator": {k: settings[k] for k in ("kind", "num_questions", "options", "seed")},
        "writer": llm.llm_key(generator.llm),
        "exams": questions_digest(known),
        "left_out": sorted(left_out),
        **splitter().key,
    }
    label = f"{generator.name}-{retrieval.corpus.name}"
    with open_stage(retrieval.outputs, "generate", label, key, resume) as stage:
        if not stage.reused:
            made, facts = llm.questions(files, generator, left_out, known, retrieval.outputs)
            if len(made) < generator.num_questions:
                raise ExamError(
                    f"{len(made)} questions were written; "
                    f"generator.num_questions={generator.num_questions} are asked "
                    f"for.\nSet generator.num_questions={max(1, len(made))}, more "
                    "generator.llm.attempts, "
                    "or a larger corpus; what is written is kept, and not paid for again."
                )
            _write(stage.folder / QUESTIONS, made)
            longest = sum(map(_longest_is_right, made))
            log.info(
                "generate: the longest option is right in %.0f %% of %d, by chance in %.0f %%",
                100 * longest / len(made),
                len(made),
                100 / generator.options,
            )
            stage.finish([QUESTIONS], questions=len(made), longest_is_right=longest, **facts)
    return stage


def _excluded(generator: Generator) -> list[Path]:
    return [DEMO if name == "demo" else Path(name) for name in names(generator.exclude)]


def _left_out(generator: Generator) -> set[str]:
    """Ids and titles of the articles that the excluded questions rest on.

    Raises:
        ExamError: a file names no articles, so that nothing could be left out.
    """
    left_out: set[str] = set()
    for name, path in zip(names(generator.exclude), _excluded(generator), strict=True):
        articles = _articles(path)
        if not articles:
            raise ExamError(
                f"generator.exclude={name} names no articles.\nIt needs a column `article`, or "
                f"{path.stem}_qrels.csv (question,article) beside it."
            )
        left_out |= articles
    return left_out


def _articles(path: Path) -> set[str]:
    """Ids or titles of the articles that a file's questions rest on, where it names them."""
    named = {row["article"] for row in read_rows(path) if row.get("article")}
    return named | set(read_qrels(path.with_name(f"{path.stem}_qrels.csv")).values())


def _longest_is_right(question: dict[str, str]) -> bool:
    options = {c: question[c] for c in LETTERS if c in question}
    return max(options, key=lambda c: len(options[c])) == question["answer"]


def _check(questions: list[dict[str, str]], generator: Generator) -> None:
    """Refuse a set that is too small or that gives its answers away by their length."""
    if len(questions) < generator.num_questions:
        raise ExamError(
            f"The corpus states facts for {len(questions)} questions; "
            f"generator.num_questions={generator.num_questions} "
            f"are asked for.\nSet generator.num_questions={max(1, len(questions))}, a larger "
            "generator.num_neighbors, or a larger corpus."
        )
    longest = sum(map(_longest_is_right, questions))
    chance = len(questions) / generator.options
    if longest > chance + 3 * chance**0.5:
        raise ExamError(
            f"The longest option is right in {longest} of {len(questions)} questions, which gives "
            f"answers away: {chance:.0f} are expected.\nSet another generator.seed."
        )


def _write(path: Path, questions: list[dict[str, str]]) -> None:
    header = list(questions[0])
    with write_atomically(path) as temporary:
        write_csv(temporary, header, [[row[name] for name in header] for row in questions])
