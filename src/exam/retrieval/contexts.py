"""The contexts file: every question's ranked passages, deeper than any reader needs."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from exam.artefacts import Stage, atomic, open_stage, read_json, write_json
from exam.config import (
    Corpus,
    Encoder,
    Index,
    Passages,
    Reranker,
    Retriever,
    RetrieverKind,
    Search,
    plain,
)
from exam.corpus import CorpusFile
from exam.errors import ExamError
from exam.questions import FEATURES, questions_digest
from exam.retrieval.embeddings import Embeddings
from exam.retrieval.encoder import SentenceEncoder
from exam.retrieval.evaluation import (
    Contexts,
    figures,
    inverse_document_frequency,
    option_support,
    question_scores,
    words,
)
from exam.retrieval.fusion import fuse
from exam.retrieval.index import (
    ArticleIndex,
    PassageIndex,
    build_index,
    build_passage_index,
)
from exam.retrieval.lexical import Hits, bm25_search, tfidf_search
from exam.retrieval.passages import PassageTable, build_passages
from exam.retrieval.queries import Parts, merged, query_parts
from exam.retrieval.rerank import PairScorer, rerank
from exam.retrieval.search import two_stage

log = logging.getLogger(__name__)

FILE = "contexts.parquet"
QUESTIONS = "questions.parquet"
SUPPORT = "support.json"
RARITY = "rarity.json"
EVALUATED = (QUESTIONS, SUPPORT, RARITY)
ROWS_AT_ONCE = 20_000
SPARE = 2  # passages looked up for each one kept: some have equal texts
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

    Index, passages and encoder are opened at their first use, and once.
    """

    corpus: Corpus
    encoder: Encoder
    passages: Passages
    retriever: Retriever
    index: Index
    outputs: Path
    reranker: Reranker = field(default_factory=Reranker)

    @cached_property
    def sentence_encoder(self) -> SentenceEncoder:
        """The encoder."""
        return SentenceEncoder(self.encoder)

    @cached_property
    def embeddings(self) -> Embeddings:
        """The encoder's store of vectors."""
        return Embeddings(self.sentence_encoder, self.outputs)

    @cached_property
    def pair_scorer(self) -> PairScorer:
        """The reranker."""
        return PairScorer(self.reranker)

    @cached_property
    def article_index(self) -> ArticleIndex:
        """The index over the corpus, built where it is missing."""
        return build_index(self.corpus, self.sentence_encoder, self.index, self.outputs)

    @cached_property
    def passage_table(self) -> PassageTable:
        """The corpus in passages, cut where they are missing."""
        return build_passages(self.corpus, self.passages, self.outputs)

    @cached_property
    def passage_index(self) -> PassageIndex:
        """The vectors of the passages, built where they are missing."""
        return build_passage_index(
            self.passage_table, self.sentence_encoder, self.index, self.outputs
        )

    def build(self, *, generates: bool) -> list[Stage]:
        """Build what the retriever, or the generator of questions, searches.

        Under `torchrun` all processes come here together.
        """
        kinds = {search.kind for search in (self.retriever, *self.retriever.members.values())}
        needed = {
            "article_index": generates or RetrieverKind.two_stage in kinds,
            "passage_index": RetrieverKind.passages in kinds,
        }
        return [getattr(self, name).stage for name, wanted in needed.items() if wanted]

    @property
    def stages(self) -> list[Stage]:
        """The stages that contexts or generated questions have needed so far."""
        opened = ("article_index", "passage_table", "passage_index")
        return [getattr(self, name).stage for name in opened if name in vars(self)]

    def contexts(self, questions: Dataset, name: str, resume: str = "auto") -> Stage:
        """The questions' contexts, as a stage's folder; reused where they are there."""
        first = self.first_contexts(questions, name, resume)
        if self.reranker.ckpt is None:
            return first
        scorer = self.pair_scorer
        key = {
            "questions": questions_digest(questions),
            "first": first.hash,
            "reranker": scorer.key,
        }
        label = f"{name}-{self.retriever.name}-{self.reranker.name}"
        with open_stage(self.outputs, "contexts", label, key, resume) as stage:
            if not stage.reused:
                _write(stage, rerank(questions, read_contexts(first), scorer, stage.folder))
                scores = score_contexts(stage, questions, read_rarity(first))
                stage.finish([FILE, *EVALUATED], questions=len(questions), scores=scores)
            for shard in stage.folder.glob("scores-*.npy"):
                shard.unlink()
        return stage

    def first_contexts(self, questions: Dataset, name: str, resume: str = "auto") -> Stage:
        """The questions' contexts as the retriever alone ranks them."""
        return self._contexts(questions, name, self.retriever, resume)

    def _contexts(self, questions: Dataset, name: str, search: Search, resume: str) -> Stage:
        members = self._members(questions, name, search)
        key = {"questions": questions_digest(questions), **self._key(search, members)}
        with open_stage(self.outputs, "contexts", f"{name}-{search.name}", key, resume) as stage:
            if not stage.reused:
                _write(stage, self._ranked(questions, search, members, stage.folder))
                scores = _evaluate(stage, questions, self._articles(search))
                stage.finish([FILE, *EVALUATED], questions=len(questions), scores=scores)
        return stage

    def _members(self, questions: Dataset, name: str, search: Search) -> dict[str, Stage]:
        """The contexts of every ranking that a hybrid fuses."""
        if search.kind is not RetrieverKind.hybrid:
            return {}
        return {
            member: self._contexts(questions, name, settings, "auto")
            for member, settings in self.retriever.members.items()
        }

    def _key(self, search: Search, members: dict[str, Stage]) -> dict[str, Any]:
        """What of the configuration determines a ranking."""
        kind = search.kind
        key: dict[str, Any] = {"kind": kind.value}
        if kind.searches:
            key["retriever"] = plain(search)
        if kind is RetrieverKind.two_stage:
            key["index"] = self.article_index.stage.hash
            key["encoder"] = self.sentence_encoder.key
        if kind in (RetrieverKind.bm25, RetrieverKind.tfidf):
            key["passages"] = self.passage_table.stage.hash
        if kind is RetrieverKind.passages:
            key["index"] = self.passage_index.stage.hash
        if members:
            key["members"] = {member: stage.hash for member, stage in members.items()}
        return key

    def _ranked(
        self, questions: Dataset, search: Search, members: dict[str, Stage], work: Path
    ) -> Iterator[list[dict[str, Any]]]:
        """Each question's passages, best first."""
        match search.kind:
            case RetrieverKind.two_stage:
                return two_stage(questions, self.article_index, search, self.embeddings, work)
            case RetrieverKind.bm25 | RetrieverKind.tfidf | RetrieverKind.passages:
                return self._passages(questions, search)
            case RetrieverKind.given:
                _check_given(questions)
                return map(_given, questions)
            case RetrieverKind.none:
                return iter(())
            case RetrieverKind.hybrid:
                return _fused(questions, self.retriever, members)

    def _passages(self, questions: Dataset, search: Search) -> Iterator[list[dict[str, Any]]]:
        """Rank all passages for each question's queries, merged; equal texts once."""
        table = self.passage_table
        queries = [query_parts(q, search.query) for q in questions]
        flat = list(chain.from_iterable(queries))
        k = SPARE * search.depth
        hits = self._hits(search, flat, k)
        for question, parts in zip(questions, queries, strict=True):
            rows, scores = merged(islice(hits, len(parts)))
            yield _distinct(question["id"], table.rows(rows.tolist()), scores, search.depth)

    def _hits(self, search: Search, queries: list[Parts], k: int) -> Iterator[Hits]:
        """Each query's best `k` rows of the passage table."""
        if search.kind is RetrieverKind.tfidf:
            return tfidf_search(self.passage_table, search, queries, k)
        texts = [" ".join(filter(None, parts)) for parts in queries]
        if search.kind is RetrieverKind.bm25:
            return bm25_search(self.passage_table, search, texts, k, self.outputs)
        scores, rows = self.passage_index.search(self.embeddings.queries(texts), k)
        return zip(rows, scores, strict=True)

    def _articles(self, search: Search) -> tuple[list[CorpusFile], int] | None:
        """The corpus's files and number of articles, where one is searched."""
        if not search.kind.searches:
            return None
        if "article_index" in vars(self):
            return self.article_index.files, len(self.article_index)
        return self.passage_table.files, self.passage_table.stage.facts["articles"]


def _fused(
    questions: Dataset, search: Retriever, members: dict[str, Stage]
) -> Iterator[list[dict[str, Any]]]:
    """The members' rankings of each question as one."""
    found = [read_contexts(stage) for stage in members.values()]
    weights = [search.weights.get(member, 1.0) for member in members]
    for key in questions["id"]:
        rankings = [contexts.get(key, []) for contexts in found]
        yield fuse(rankings, weights, search.fusion, search.rrf_k, search.depth)


def _distinct(
    question: str, passages: list[dict[str, Any]], scores: Any, depth: int
) -> list[dict[str, Any]]:
    """Rows of the contexts file for the best `depth` passages with distinct texts."""
    best: dict[str, tuple[dict[str, Any], float]] = {}
    for passage, score in zip(passages, scores.tolist(), strict=True):
        best.setdefault(passage["text"], (passage, score))
    return [
        {
            "question_id": question,
            "rank": rank,
            "score": score,
            "article_id": passage["article_id"],
            "passage_id": f"{passage['article_id']}:{passage['start']}-{passage['end']}",
            "title": passage["title"],
            "text": passage["text"],
            "source": passage["source"],
        }
        for rank, (passage, score) in enumerate(islice(best.values(), depth), 1)
    ]


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


def _evaluate(
    stage: Stage, questions: Dataset, articles: tuple[list[CorpusFile], int] | None
) -> dict[str, Any]:
    """Weigh the questions' words by their rarity in the corpus, equally without one; then score."""
    wanted = {w for q in questions for text in [q["prompt"], *q["options"]] for w in words(text)}
    if articles is None:
        return score_contexts(stage, questions, dict.fromkeys(sorted(wanted), 1.0))
    idf = inverse_document_frequency(*articles, wanted)
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
