"""Retrieval: every way to find contexts, dispatched by `retriever.kind`."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import Any

from datasets import Dataset

from exam.artefacts import open_stage
from exam.config import (
    Corpus,
    Encoder,
    Index,
    Passages,
    Reranker,
    Retriever,
    RetrieverKind,
    Retrieving,
    Search,
    plain,
)
from exam.questions import questions_digest
from exam.retrieval.contexts import (
    EVALUATED,
    FILE,
    continued,
    evaluate,
    known_contexts,
    read_contexts,
    read_rarity,
    score_contexts,
    write_contexts,
)
from exam.retrieval.embeddings import Embeddings
from exam.retrieval.encoder import SentenceEncoder
from exam.retrieval.fusion import fused
from exam.retrieval.given import given_contexts
from exam.retrieval.index import ArticleIndex, PassageIndex, build_index, build_passage_index
from exam.retrieval.lexical import Hits, bm25_search, build_bm25, tfidf_search
from exam.retrieval.passages import PassageTable, build_passages
from exam.retrieval.queries import Parts
from exam.retrieval.ranking import ranked_passages
from exam.retrieval.rarity import Rarity, build_rarity
from exam.retrieval.rerank import PairScorer, rerank
from exam.retrieval.search import two_stage
from exam.runtime import watched
from exam.stage import Stage


@dataclass(frozen=True)
class Retrieval:
    """One way to find contexts, for any number of sets of questions.

    Index, passages and encoder are opened at their first use, and once. Contexts lie in
    `contexts_outputs`, by default with the indexes in `outputs`.
    """

    corpus: Corpus
    encoder: Encoder
    passages: Passages
    retriever: Retriever
    index: Index
    outputs: Path
    reranker: Reranker = field(default_factory=Reranker)
    contexts_outputs: Path | None = None
    _opened: list[Stage] = field(default_factory=list, init=False)  # BM25 indexes and contexts

    @classmethod
    def of(cls, config: Retrieving) -> "Retrieval":
        """The configured one."""
        return cls(
            config.corpus,
            config.encoder,
            config.passages,
            config.retriever,
            config.index,
            Path(config.outputs),
            config.reranker,
        )

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

    @cached_property
    def rarity(self) -> Rarity:
        """The rarity of the corpus's words, counted where it is missing."""
        opened = self.article_index if "article_index" in vars(self) else self.passage_table
        return build_rarity(opened.stage, opened.files, self.corpus.name, self.outputs)

    def build(self, *, generates: bool) -> None:
        """Build what the retriever, or the generator of questions, searches.

        Under `torchrun` all processes come here together.
        """
        kinds = {search.kind for search in (self.retriever, *self.retriever.members.values())}
        if generates or RetrieverKind.two_stage in kinds:
            _ = self.article_index
        if RetrieverKind.passages in kinds:
            _ = self.passage_index

    @property
    def stages(self) -> list[Stage]:
        """The stages that contexts or generated questions have needed so far."""
        opened = ("article_index", "passage_table", "passage_index", "rarity")
        return [getattr(self, name).stage for name in opened if name in vars(self)]

    @property
    def opened(self) -> list[Stage]:
        """`stages`, BM25 indexes, and every stage of contexts, a hybrid's members too."""
        return [*self.stages, *self._opened]

    def _open_contexts(
        self, name: str, key: dict[str, Any], resume: str
    ) -> AbstractContextManager[Stage]:
        return open_stage(self.contexts_outputs or self.outputs, "contexts", name, key, resume)

    def contexts(self, questions: Dataset, name: str, resume: str = "auto") -> Stage:
        """The questions' contexts, as a stage's folder; reused where they are there."""
        first = self.first_contexts(questions, name, resume)
        if self.reranker.ckpt is None:
            return first
        scorer = self.pair_scorer
        label = f"{name}-{self.retriever.name}-{self.reranker.name}"
        key = {
            "questions": questions_digest(questions),
            "first": self._key(self.retriever, questions),
            "reranker": scorer.key,
        }
        with self._open_contexts(label, key, resume) as stage:
            self._opened.append(stage)
            if not stage.reused:
                passages = read_contexts(first)
                known = known_contexts(stage, questions) if resume != "never" else {}
                ranked = continued(
                    questions, known, lambda new: rerank(new, passages, scorer, stage.folder)
                )
                write_contexts(stage, ranked)
                scores = score_contexts(stage, questions, read_rarity(first))
                stage.finish([FILE, *EVALUATED], questions=len(questions), scores=scores)
            for shard in stage.folder.glob("scores-*.npy"):
                shard.unlink(missing_ok=True)
        return stage

    def first_contexts(self, questions: Dataset, name: str, resume: str = "auto") -> Stage:
        """The questions' contexts as the retriever alone ranks them."""
        return self._contexts(questions, name, self.retriever, resume)

    def _contexts(self, questions: Dataset, name: str, search: Search, resume: str) -> Stage:
        members = self._members(questions, name, search)
        key = {"questions": questions_digest(questions), **self._key(search, questions)}
        with self._open_contexts(f"{name}-{search.name}", key, resume) as stage:
            self._opened.append(stage)
            # Opened where contexts are reused too: a bundle carries what was opened.
            rarity = self.rarity if search.kind.searches else None
            if not stage.reused:
                reuses = search.kind.searches and resume != "never"
                known = known_contexts(stage, questions) if reuses else {}
                ranked = continued(
                    questions, known, lambda new: self._ranked(new, search, members, stage.folder)
                )
                write_contexts(stage, watched(ranked, "ranked", len(questions), "questions"))
                scores = evaluate(stage, questions, rarity)
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

    def _key(self, search: Search, questions: Dataset) -> dict[str, Any]:
        """What determines each question's ranking, apart from the question."""
        kind = search.kind
        key: dict[str, Any] = {"kind": kind.value}
        if kind.searches:  # the same alone and as a hybrid's member
            own = {f.name for f in fields(Retriever if kind is RetrieverKind.hybrid else Search)}
            settings = plain(search).items()
            key["retriever"] = {k: v for k, v in settings if k in own - {"name", "kind", "members"}}
        if kind is RetrieverKind.two_stage:
            key["index"] = self.article_index.stage.hash
            key["encoder"] = self.sentence_encoder.key
        if kind in (RetrieverKind.bm25, RetrieverKind.tfidf):
            key["passages"] = self.passage_table.stage.hash
        if kind is RetrieverKind.tfidf:  # its vocabulary is that of all questions
            key["vocabulary"] = questions_digest(questions)
        if kind is RetrieverKind.passages:
            key["index"] = self.passage_index.stage.hash
        if kind is RetrieverKind.hybrid:
            members = self.retriever.members.items()
            key["members"] = {name: self._key(member, questions) for name, member in members}
        return key

    def _ranked(
        self, questions: Dataset, search: Search, members: dict[str, Stage], work: Path
    ) -> Iterator[list[dict[str, Any]]]:
        """Each question's passages, best first."""
        match search.kind:
            case RetrieverKind.two_stage:
                return two_stage(questions, self.article_index, search, self.embeddings, work)
            case RetrieverKind.bm25 | RetrieverKind.tfidf | RetrieverKind.passages:
                return ranked_passages(questions, search, self.passage_table, self._hits)
            case RetrieverKind.given:
                return given_contexts(questions)
            case RetrieverKind.none:
                return repeat([], len(questions))
            case RetrieverKind.hybrid:
                return fused(questions, self.retriever, members)

    def _hits(self, search: Search, queries: list[Parts], k: int) -> Iterator[Hits]:
        """Each query's best `k` rows of the passage table."""
        if search.kind is RetrieverKind.tfidf:
            return tfidf_search(self.passage_table, search, queries, k)
        texts = [" ".join(filter(None, parts)) for parts in queries]
        if search.kind is RetrieverKind.bm25:
            stage = build_bm25(self.passage_table, search, self.outputs)
            self._opened.append(stage)
            return bm25_search(stage, texts, k)
        scores, rows = self.passage_index.search(self.embeddings.queries(texts), k)
        return zip(rows, scores, strict=True)
