"""The contexts file: every question's ranked passages, deeper than any reader needs."""

import logging
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from exam.artefacts import Stage, atomic, open_stage, read_json, write_json
from exam.config import Corpus, Encoder, Index, Retriever, RetrieverKind
from exam.questions import questions_digest
from exam.retrieval.encoder import Vectors, encode, encoder_key, load_encoder
from exam.retrieval.evaluation import (
    Contexts,
    inverse_document_frequency,
    option_support,
    score_contexts,
    words,
)
from exam.retrieval.index import ArticleIndex, Encode, build_index
from exam.retrieval.search import two_stage

log = logging.getLogger(__name__)

FILE = "contexts.parquet"
SUPPORT = "support.json"
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


def lazy_encode(config: Encoder) -> Encode:
    """An encoding function that loads the encoder at its first use, for stages that may be reused."""
    load = cache(lambda: load_encoder(config))

    def call(texts: list[str]) -> Vectors:
        return encode(load(), texts, config)

    return call


def retrieve(
    questions: Dataset,
    name: str,
    corpus: Corpus,
    encoder: Encoder,
    retriever: Retriever,
    index: Index,
    outputs: Path,
    resume: str = "auto",
) -> tuple[Stage, list[Stage]]:
    """Contexts of the questions, as a stage's folder, and the stages it stands on."""
    key: dict[str, Any] = {
        "questions": questions_digest(questions),
        "retriever": {**asdict(retriever), "kind": retriever.kind.value},
    }
    encoding = lazy_encode(encoder)
    articles = None
    if retriever.kind is RetrieverKind.two_stage:
        articles = build_index(corpus, encoder, index, outputs, encoding)
        key |= {"index": articles.stage.hash, "encoder": encoder_key(encoder)}
    label = f"{name}-{retriever.kind.value}"
    with open_stage(outputs, "contexts", label, key, resume) as stage:
        if not stage.reused:
            _write(stage, _search(questions, articles, retriever, encoder, encoding, stage.folder))
            scores = _evaluate(stage, questions, articles)
            for shard in stage.folder.glob("sentences-*.arrow"):
                shard.unlink()
            facts = {"questions": len(questions), "scores": scores}
            stage.finish([FILE, SUPPORT], **facts)
    return stage, [articles.stage] if articles else []


def _search(
    questions: Dataset,
    articles: ArticleIndex | None,
    retriever: Retriever,
    encoder: Encoder,
    encoding: Encode,
    work: Path,
) -> Iterator[list[dict[str, Any]]]:
    if articles is not None:
        yield from two_stage(questions, articles, retriever, encoder, encoding, work)
    elif retriever.kind is RetrieverKind.given:
        yield from map(_given, questions)


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
        block: list[dict[str, Any]] = []
        for rows in ranked:
            block += rows
            if len(block) >= 20_000:
                writer.write_table(pa.Table.from_pylist(block, schema=SCHEMA))
                block = []
        writer.write_table(pa.Table.from_pylist(block, schema=SCHEMA))


def read_contexts(stage: Stage, top_k: int) -> Contexts:
    """The `top_k` best passages of each question, best first."""
    rows = pq.read_table(stage.folder / FILE, filters=[("rank", "<=", top_k)]).to_pylist()
    contexts: Contexts = {}
    for row in rows:
        contexts.setdefault(row["question_id"], []).append(row)
    return contexts


def read_support(stage: Stage, ids: list[str]) -> list[list[float]] | None:
    """Support of every option by its question's best passages; None without passages."""
    found = read_json(stage.folder / SUPPORT)
    return [found[key] for key in ids] if found else None


def _evaluate(stage: Stage, questions: Dataset, articles: ArticleIndex | None) -> dict[str, Any]:
    """Write each option's support, and score the retrieval where answers or articles are known."""
    contexts = read_contexts(stage, top_k=1_000)
    if not contexts:
        write_json(stage.folder / SUPPORT, {})
        return {}
    wanted = {w for q in questions for option in q["options"] for w in words(option)}
    if articles is None:
        idf = dict.fromkeys(wanted, 1.0)
    else:
        idf = inverse_document_frequency(articles.files, len(articles.articles), wanted)
    support = option_support(questions, contexts, idf)
    write_json(stage.folder / SUPPORT, dict(zip(questions["id"], support, strict=True)))
    return score_contexts(questions, contexts, support)
