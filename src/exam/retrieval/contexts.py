"""The contexts file: every question's ranked passages, deeper than any reader needs."""

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from exam.artefacts import Stage, atomic, open_stage, read_json, write_json
from exam.config import Corpus, Encoder, Index, Retriever, RetrieverKind
from exam.errors import ExamError
from exam.questions import FEATURES, questions_digest
from exam.retrieval.encoder import SentenceEncoder
from exam.retrieval.evaluation import (
    Contexts,
    figures,
    inverse_document_frequency,
    option_support,
    question_scores,
    words,
)
from exam.retrieval.index import ArticleIndex, build_index
from exam.retrieval.search import two_stage

log = logging.getLogger(__name__)

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


@dataclass(frozen=True)
class Retrieval:
    """One way to find contexts, for any number of sets of questions.

    Index and encoder are opened at their first use, and once.
    """

    corpus: Corpus
    encoder: Encoder
    retriever: Retriever
    index: Index
    outputs: Path

    @cached_property
    def sentence_encoder(self) -> SentenceEncoder:
        """The encoder."""
        return SentenceEncoder(self.encoder)

    @cached_property
    def article_index(self) -> ArticleIndex:
        """The index over the corpus, built where it is missing."""
        return build_index(self.corpus, self.sentence_encoder, self.index, self.outputs)

    @property
    def stages(self) -> list[Stage]:
        """The index, once contexts or generated questions have needed it."""
        return [self.article_index.stage] if "article_index" in vars(self) else []

    @property
    def searches(self) -> bool:
        """Whether a corpus is searched at all."""
        return self.retriever.kind is RetrieverKind.two_stage

    def contexts(self, questions: Dataset, name: str, resume: str = "auto") -> Stage:
        """The questions' contexts, as a stage's folder; reused where they are there."""
        key: dict[str, Any] = {
            "questions": questions_digest(questions),
            "kind": self.retriever.kind.value,
        }
        if self.searches:
            key |= {
                "retriever": {**asdict(self.retriever), "kind": self.retriever.kind.value},
                "index": self.article_index.stage.hash,
                "encoder": self.sentence_encoder.key,
            }
        label = f"{name}-{self.retriever.name}"
        with open_stage(self.outputs, "contexts", label, key, resume) as stage:
            if not stage.reused:
                _write(stage, self._ranked(questions, stage.folder))
                scores = _evaluate(stage, questions, self.article_index if self.searches else None)
                stage.finish([FILE, *EVALUATED], questions=len(questions), scores=scores)
            for shard in stage.folder.glob("sentences-*.arrow"):
                shard.unlink()
        return stage

    def _ranked(self, questions: Dataset, work: Path) -> Iterator[list[dict[str, Any]]]:
        """Each question's passages, best first."""
        if self.searches:
            return two_stage(
                questions, self.article_index, self.retriever, self.sentence_encoder, work
            )
        if self.retriever.kind is RetrieverKind.given:
            _check_given(questions)
            return map(_given, questions)
        return iter(())


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


def _write(stage: Stage, ranked: Iterator[list[dict[str, Any]]]) -> None:
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


def _evaluate(stage: Stage, questions: Dataset, articles: ArticleIndex | None) -> dict[str, Any]:
    """Weigh the questions' words by their rarity in the corpus, equally without one; then score."""
    wanted = {w for q in questions for text in [q["prompt"], *q["options"]] for w in words(text)}
    if articles is None:
        return score_contexts(stage, questions, dict.fromkeys(sorted(wanted), 1.0))
    idf = inverse_document_frequency(articles.files, len(articles), wanted)
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
