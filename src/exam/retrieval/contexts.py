"""The contexts file: every question's ranked passages, deeper than any reader needs."""

from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from exam.artefacts import Stage, atomic, read_json, write_json
from exam.questions import FEATURES
from exam.retrieval.evaluation import (
    Contexts,
    figures,
    option_support,
    question_scores,
    words,
)
from exam.retrieval.rarity import Rarity

FILE = "contexts.parquet"
QUESTIONS = "questions.parquet"
SUPPORT = "support.json"
RARITY = "rarity.json"
EVALUATED = (QUESTIONS, SUPPORT, RARITY)
ROWS_AT_ONCE = 20_000
SCHEMA = pa.schema(
    {
        "question_id": pa.string(),
        "rank": pa.int32(),
        "score": pa.float32(),
        "article_id": pa.string(),
        "passage_id": pa.string(),
        "title": pa.string(),
        "text": pa.large_string(),
        "source": pa.string(),
    }
)


def write_contexts(stage: Stage, ranked: Iterator[list[dict[str, Any]]]) -> None:
    """Write ranked passages, a block of rows at a time."""
    with (
        atomic(stage.folder / FILE) as temporary,
        pq.ParquetWriter(temporary, SCHEMA) as writer,
    ):
        rows = chain.from_iterable(ranked)
        while block := list(islice(rows, ROWS_AT_ONCE)):
            writer.write_table(pa.Table.from_pylist(block, schema=SCHEMA))


def read_contexts(stage: Stage, top_k: int | None = None) -> Contexts:
    """The `top_k` best passages of each question (all without one), best first."""
    filters = None if top_k is None else [("rank", "<=", top_k)]
    rows = pq.read_table(stage.folder / FILE, filters=filters).to_pylist()
    contexts: Contexts = {}
    for row in rows:
        contexts.setdefault(row["question_id"], []).append(row)
    return contexts


def read_support(stage: Stage, ids: list[str]) -> list[list[float]] | None:
    """Support of every option by its question's best passages; None without passages."""
    found = read_json(stage.folder / SUPPORT)
    return [found[key] for key in ids] if found else None


def read_rarity(stage: Stage) -> dict[str, float]:
    """Inverse document frequency in the corpus of every word of the questions."""
    found: dict[str, float] = read_json(stage.folder / RARITY)
    return found


def read_questions(stage: Stage) -> Dataset:
    """The questions that the contexts were found for."""
    rows = pq.read_table(stage.folder / QUESTIONS).to_pylist()
    return Dataset.from_list(rows, features=FEATURES)


def evaluate(stage: Stage, questions: Dataset, rarity: Rarity | None) -> dict[str, Any]:
    """Weigh the questions' words by their rarity in the corpus, equally without one; then score."""
    wanted = {w for q in questions for text in [q["prompt"], *q["options"]] for w in words(text)}
    idf = dict.fromkeys(sorted(wanted), 1.0) if rarity is None else rarity.of(wanted)
    return score_contexts(stage, questions, idf)


def score_contexts(stage: Stage, questions: Dataset, idf: dict[str, float]) -> dict[str, Any]:
    """Write what evaluation reads (EVALUATED); score where answers or articles are known."""
    with atomic(stage.folder / QUESTIONS) as temporary:
        pq.write_table(pa.Table.from_pylist(questions.to_list()), temporary)
    write_json(stage.folder / RARITY, idf)
    contexts = read_contexts(stage)
    support = option_support(questions, contexts, idf) if contexts else []
    by_question = dict(zip(questions["id"], support, strict=bool(contexts)))
    write_json(stage.folder / SUPPORT, by_question)
    if not contexts:
        return {}
    scores = question_scores(questions, contexts, support)
    return {name: figures(values) for name, values in scores.items()}
