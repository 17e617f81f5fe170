"""Retrieve contexts: the kinds of retriever, and the indexes and models that they share.

`RETRIEVERS` maps each `retriever.kind` to its subclass of `Retriever`.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, ClassVar

from datasets import Dataset

from exam.config import (
    Chunking,
    Corpus,
    Encoder,
    Index,
    Reranker,
    RetrieverKind,
    Retrieving,
    Search,
    to_dict,
)
from exam.config import Retriever as RetrieverConfig
from exam.core.artifacts import Stage, open_stage
from exam.core.errors import ExamError
from exam.core.logging import track
from exam.data.corpus import Articles, list_articles
from exam.data.questions import check_articles, questions_digest
from exam.data.sentences import SENTENCES_VERSION
from exam.data.words import WORDS_VERSION
from exam.retrieval.chunking import PassageTable, build_passages
from exam.retrieval.contexts import (
    EVALUATION_FILES,
    FILE,
    Row,
    cached_contexts,
    context_rows,
    evaluate,
    read_contexts,
    write_contexts,
)
from exam.retrieval.encoder import Embeddings, SentenceEncoder
from exam.retrieval.hybrid import fuse
from exam.retrieval.idf import DocumentFrequencies, build_document_frequencies
from exam.retrieval.index import ArticleIndex, PassageIndex, build_index, build_passage_index
from exam.retrieval.queries import Hits, Parts, join_parts, merge_hits, query_parts
from exam.retrieval.reranker import SCORES, PairScorer, rerank
from exam.retrieval.sparse import bm25_search, build_bm25, tfidf_search
from exam.retrieval.two_stage import SENTENCES, rank_sentences

log = logging.getLogger(__name__)

MAX_IDS = 5  # of a log line
SPARE = 2  # passages to search for each one to return, since some have equal texts
Rankings = Iterator[list[Row]]  # rows of the contexts file, one list a question, best first


@dataclass(frozen=True)
class Retrieval:
    """The indexes and models of a configuration; each opens once, at its first use.

    Contexts are written below `contexts_outputs`, by default below `outputs` like the indexes.
    """

    corpus: Corpus
    encoder: Encoder
    chunking: Chunking
    retriever: RetrieverConfig
    index: Index
    outputs: Path
    reranker: Reranker = field(default_factory=Reranker)
    contexts_outputs: Path | None = None
    used: list[Stage] = field(default_factory=list, init=False)  # BM25 indexes and contexts

    @classmethod
    def from_config(cls, config: Retrieving) -> "Retrieval":
        """Return the retrieval of a command's configuration."""
        groups = ("corpus", "encoder", "chunking", "retriever", "index", "reranker")
        shared = {group: getattr(config, group) for group in groups}
        return cls(**shared, outputs=Path(config.outputs))

    @cached_property
    def sentence_encoder(self) -> SentenceEncoder:
        """The sentence encoder."""
        return SentenceEncoder(self.encoder)

    @cached_property
    def embeddings(self) -> Embeddings:
        """The cached vectors of the encoder."""
        return Embeddings(self.sentence_encoder, self.outputs)

    @cached_property
    def pair_scorer(self) -> PairScorer:
        """The reranker."""
        return PairScorer(self.reranker)

    @cached_property
    def articles(self) -> Articles:
        """The checked corpus."""
        return list_articles(self.corpus, self.outputs)

    @cached_property
    def article_index(self) -> ArticleIndex:
        """The index of the corpus's articles, built if missing."""
        return build_index(self.articles, self.sentence_encoder, self.index, self.outputs)

    @cached_property
    def passage_table(self) -> PassageTable:
        """The passages of the corpus, split if missing."""
        return build_passages(self.articles, self.chunking, self.outputs)

    @cached_property
    def passage_index(self) -> PassageIndex:
        """The index of the passages, built if missing."""
        return build_passage_index(
            self.passage_table, self.sentence_encoder, self.index, self.outputs
        )

    @cached_property
    def document_frequencies(self) -> DocumentFrequencies:
        """The document frequencies of the corpus's words, counted if missing."""
        source = self.article_index if "article_index" in vars(self) else self.passage_table
        return build_document_frequencies(
            source.stage, source.files, self.corpus.name, self.outputs
        )

    def build(self, *, generates: bool) -> None:
        """Build the indexes of the retriever and, with `generates`, of the question generator.

        All processes of `torchrun` call this together.
        """
        if generates:
            _ = self.article_index
        self.open_retriever(self.retriever).build()

    @property
    def stages(self) -> list[Stage]:
        """The stages of the indexes opened so far."""
        opened = (
            *("articles", "article_index", "passage_table", "passage_index"),
            "document_frequencies",
        )
        return [getattr(self, name).stage for name in opened if name in vars(self)]

    @property
    def opened_stages(self) -> list[Stage]:
        """`stages`, BM25 indexes and all contexts, also those of a hybrid's members."""
        return [*self.stages, *self.used]

    def open_retriever(self, config: Search) -> "Retriever":
        """Return the retriever of a configuration's kind."""
        return RETRIEVERS[config.kind](self, config)

    def contexts(self, questions: Dataset, name: str, resume: str = "auto") -> Stage:
        """Return the stage with the questions' contexts, reranked if so configured."""
        if self.reranker.ckpt is None:
            return self.first_contexts(questions, name, resume)
        return self.rank(questions, name, _Reranked(self, self.retriever), resume)

    def first_contexts(self, questions: Dataset, name: str, resume: str = "auto") -> Stage:
        """Return the stage with the questions' contexts before reranking."""
        return self.rank(questions, name, self.open_retriever(self.retriever), resume)

    def rank(self, questions: Dataset, name: str, retriever: "Retriever", resume: str) -> Stage:
        """Return the stage with the questions' contexts by one retriever; reuse a finished one."""
        searches = retriever.config.kind.searches
        if searches:
            check_articles(questions, self.articles, name)
        inputs = retriever.prepare(questions, name, resume)
        digest = questions_digest(questions)
        key = {"questions": digest, "words": WORDS_VERSION, **retriever.key(questions)}
        outputs, label = self.contexts_outputs or self.outputs, f"{name}-{retriever.name}"
        with open_stage(outputs, "contexts", label, key, resume) as stage:
            self.used.append(stage)
            # Open them for reused contexts too: a bundle includes every opened stage.
            frequencies = self.document_frequencies if searches else None
            if not stage.reused:
                ids = questions["id"][:]
                reuses = searches and resume != "never"
                cached = cached_contexts(stage, questions) if reuses else {}
                missing = questions.select([i for i, key in enumerate(ids) if key not in cached])
                new = retriever.rank(missing, inputs, stage.folder) if len(missing) else iter(())
                ranked = (cached[key] if key in cached else next(new) for key in ids)
                write_contexts(stage, track(ranked, "ranked", len(questions), "questions"))
                scores, without = evaluate(stage, questions, frequencies)
                stage.finish(
                    [FILE, *EVALUATION_FILES],
                    questions=len(questions),
                    scores=scores,
                    without_passages=without,
                )
            for pattern in (SCORES, SENTENCES):
                for path in stage.folder.glob(pattern.format("*")):
                    path.unlink(missing_ok=True)
        if retriever.config.kind is not RetrieverKind.none:
            _warn_of_missing(stage, retriever.name)
        return stage


def _warn_of_missing(stage: Stage, name: str) -> None:
    """Warn of questions without any passage."""
    if missing := stage.metadata["without_passages"]:
        log.warning(
            "contexts: %d of %d questions have no passage by retriever=%s (first: %s)",
            len(missing), stage.metadata["questions"], name, ", ".join(missing[:MAX_IDS]),
        )  # fmt: skip


@dataclass(frozen=True)
class Retriever:
    """Ranks passages for questions by one configuration."""

    shared: Retrieval
    config: Search

    indexes: ClassVar[tuple[str, ...]] = ()  # attributes of `shared`

    @property
    def name(self) -> str:
        """The name in the folder of the contexts."""
        return self.config.name

    def build(self) -> None:
        """Build the indexes; all processes of `torchrun` call this together."""
        for name in self.indexes:
            getattr(self.shared, name)

    def prepare(self, questions: Dataset, name: str, resume: str) -> list[Stage]:
        """Return the stages of the rankings that this one starts from."""
        return []

    def key(self, questions: Dataset) -> dict[str, Any]:
        """Return everything that determines a question's ranking, apart from the question.

        A member of a hybrid has the same key as the retriever outside the hybrid.
        """
        names = {f.name for f in fields(Search)} - {"name", "kind"}
        settings = {name: value for name, value in to_dict(self.config).items() if name in names}
        indexes = {name: getattr(self.shared, name).stage.hash for name in self.indexes}
        return {"kind": self.config.kind.value, "retriever": settings, **indexes}

    def rank(self, questions: Dataset, inputs: list[Stage], work: Path) -> Rankings:
        """Yield each question's passages, best first; `work` holds files to resume from.

        Raises:
            ExamError: the questions lack a column that the ranking needs.
        """
        raise NotImplementedError


class _NoRetriever(Retriever):
    """Returns no passages, for closed-book readers."""

    def key(self, questions: Dataset) -> dict[str, Any]:
        return {"kind": self.config.kind.value}

    def rank(self, questions: Dataset, inputs: list[Stage], work: Path) -> Rankings:
        return repeat([], len(questions))


class _Provided(_NoRetriever):
    """Returns the context that came with each question as its only passage."""

    def rank(self, questions: Dataset, inputs: list[Stage], work: Path) -> Rankings:
        missing = questions["context"][:].count(None)
        if missing == len(questions):
            raise ExamError(
                "retriever=provided reads the context of each question, but none has one.\n"
                "Map its column with data.columns.context=<name>, or choose another retriever."
            )
        return map(_provided_context, questions)


def _provided_context(question: Row) -> list[Row]:
    if question["context"] is None:
        return []
    ids = {"question_id": question["id"], "passage_id": question["id"]}
    article = next(iter(question["articles"] or []), None)
    passage = {"article_id": article, "title": "", "text": question["context"]}
    return [{**ids, **passage, "rank": 1, "score": 1.0, "source": "given"}]


class _TwoStage(Retriever):
    """Ranks the sentences of the articles nearest to a question."""

    indexes = ("article_index",)

    def key(self, questions: Dataset) -> dict[str, Any]:
        return {**super().key(questions), "sentences": SENTENCES_VERSION}

    def rank(self, questions: Dataset, inputs: list[Stage], work: Path) -> Rankings:
        shared = self.shared
        return rank_sentences(questions, shared.article_index, self.config, shared.embeddings, work)


class _PassageRetriever(Retriever):
    """Ranks all passages for each of a question's queries, and merges the results."""

    indexes = ("passage_table",)

    def search(self, queries: list[Parts], k: int) -> Iterator[Hits]:
        """Yield each query's best `k` rows of the passage table."""
        raise NotImplementedError

    def rank(self, questions: Dataset, inputs: list[Stage], work: Path) -> Rankings:
        rows, depth = questions.to_list(), self.config.top_k
        queries = [query_parts(question, self.config.query) for question in rows]
        hits = self.search(list(chain.from_iterable(queries)), SPARE * depth)
        for question, parts in zip(rows, queries, strict=True):
            numbers, scores = merge_hits(islice(hits, len(parts)))
            passages = self.shared.passage_table.rows(numbers.tolist())
            best: dict[str, tuple[float, Row]] = {}  # by text
            for score, passage in zip(scores.tolist(), passages, strict=True):
                best.setdefault(passage["text"], (score, passage))
            yield context_rows(question["id"], islice(best.values(), depth))


class _BM25(_PassageRetriever):
    def search(self, queries: list[Parts], k: int) -> Iterator[Hits]:
        stage = build_bm25(self.shared.passage_table, self.config, self.shared.outputs)
        self.shared.used.append(stage)
        return bm25_search(stage, list(map(join_parts, queries)), k)


class _TfIdf(_PassageRetriever):
    def key(self, questions: Dataset) -> dict[str, Any]:
        # The vocabulary depends on all questions.
        return {**super().key(questions), "vocabulary": questions_digest(questions)}

    def search(self, queries: list[Parts], k: int) -> Iterator[Hits]:
        return tfidf_search(self.shared.passage_table, self.config, queries, k)


class _Dense(_PassageRetriever):
    indexes = ("passage_index",)  # its key includes the passages

    def search(self, queries: list[Parts], k: int) -> Iterator[Hits]:
        vectors = self.shared.embeddings.queries(list(map(join_parts, queries)))
        scores, rows = self.shared.passage_index.search(vectors, k)
        return zip(rows, scores, strict=True)


class _Hybrid(Retriever):
    """Fuses the rankings of its members."""

    config: RetrieverConfig

    @property
    def _members(self) -> dict[str, Retriever]:
        members = self.config.members.items()
        return {name: self.shared.open_retriever(member) for name, member in members}

    def build(self) -> None:
        for member in self._members.values():
            member.build()

    def prepare(self, questions: Dataset, name: str, resume: str) -> list[Stage]:
        members = self._members.values()
        return [self.shared.rank(questions, name, member, "auto") for member in members]

    def key(self, questions: Dataset) -> dict[str, Any]:
        key, config = super().key(questions), self.config
        fusion = {"fusion": config.fusion.value, "rrf_k": config.rrf_k, "weights": config.weights}
        members = {name: member.key(questions) for name, member in self._members.items()}
        return {**key, "retriever": {**key["retriever"], **fusion}, "members": members}

    def rank(self, questions: Dataset, inputs: list[Stage], work: Path) -> Rankings:
        config = self.config
        contexts = [read_contexts(stage) for stage in inputs]
        weights = [config.weights.get(member, 1.0) for member in config.members]
        for key in questions["id"]:
            rankings = [ranking.get(key, []) for ranking in contexts]
            yield fuse(rankings, weights, config.fusion, config.rrf_k, config.top_k)


class _Reranked(Retriever):
    """Reorders the contexts of the configured retriever by a cross-encoder."""

    @property
    def name(self) -> str:
        return f"{self.config.name}-{self.shared.reranker.name}"

    def prepare(self, questions: Dataset, name: str, resume: str) -> list[Stage]:
        return [self.shared.first_contexts(questions, name, resume)]

    def key(self, questions: Dataset) -> dict[str, Any]:
        first = self.shared.open_retriever(self.config).key(questions)
        return {"first": first, "reranker": self.shared.pair_scorer.key}

    def rank(self, questions: Dataset, inputs: list[Stage], work: Path) -> Rankings:
        return rerank(questions, read_contexts(inputs[0]), self.shared.pair_scorer, work)


RETRIEVERS: dict[RetrieverKind, type[Retriever]] = {
    RetrieverKind.none: _NoRetriever,
    RetrieverKind.provided: _Provided,
    RetrieverKind.two_stage: _TwoStage,
    RetrieverKind.bm25: _BM25,
    RetrieverKind.tfidf: _TfIdf,
    RetrieverKind.passages: _Dense,
    RetrieverKind.hybrid: _Hybrid,
}
