"""The groups of retrieval: corpus, encoder, retriever, chunking, index, reranker, pairs."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from omegaconf import MISSING

from exam.config.values import setting
from exam.core.checkpoints import Checkpoint, require_checkpoint
from exam.core.errors import ExamError
from exam.core.precision import Dtype


class CorpusFormat(Enum):
    """The form of a corpus."""

    demo = "demo"
    wikipedia = "wikipedia"
    jsonl = "jsonl"  # tables: JSON lines, JSON, CSV, Parquet
    text = "text"  # a file is an article, titled by its name


class RetrieverKind(Enum):
    """The kinds of retrieval."""

    none = "none"
    provided = "provided"
    two_stage = "two_stage"
    bm25 = "bm25"
    tfidf = "tfidf"
    passages = "passages"
    hybrid = "hybrid"

    @property
    def searches(self) -> bool:
        """Tell whether a corpus is searched."""
        return self not in (RetrieverKind.none, RetrieverKind.provided)

    @property
    def encodes(self) -> bool:
        """Tell whether texts are encoded."""
        return self in (RetrieverKind.two_stage, RetrieverKind.passages)


class Query(Enum):
    """Which text of a question is the query."""

    prompt = "prompt"
    prompt_options = "prompt_options"  # prompt and all options as one text
    per_option = "per_option"  # prompt + option, one search for each, merged


class Target(Enum):
    """The score that a reranker learns for a passage."""

    support = "support"  # share of the right option's words, beyond the prompt's, in the passage
    binary = "binary"  # 1 for positives, 0 for negatives


class PairLoss(Enum):
    """The loss of a reranker's training."""

    bce = "bce"  # pointwise: binary cross-entropy of each passage
    lambda_loss = "lambda_loss"  # listwise: the order of a question's passages


class Fusion(Enum):
    """The way to fuse several rankings."""

    rrf = "rrf"
    weighted = "weighted"


COLUMNS: dict[str, str | None] = {"id": "id", "title": "title", "text": "text"}


@dataclass
class CorpusSource:
    """One corpus: its form, folder, files and columns."""

    format: CorpusFormat = setting(MISSING, "Form of the files.")
    dir: str | None = setting(None, "Folder of the files, or one file.")
    files: Any = setting(None, "File names or patterns below dir; null: by form.")
    columns: dict[str, str | None] = setting(
        COLUMNS.copy,
        "Columns of id, title and text. title=null: none; id=null: numbers; title and text of one "
        "name: its first line is the title.",
    )

    def __post_init__(self) -> None:
        """Complete the columns: one that was removed is null, also after a run is restored."""
        self.columns = {**dict.fromkeys(COLUMNS), **self.columns}

    def validate(self) -> None:
        """Refuse columns that an article does not have, and articles without a text."""
        if unknown := self.columns.keys() - COLUMNS.keys():
            raise ExamError(
                f"corpus.columns.{min(unknown)} is not a column of an article.\n"
                f"Set corpus.columns.id, corpus.columns.title or corpus.columns.text."
            )
        if not self.columns["text"]:
            raise ExamError(
                "corpus.columns.text has no value, but an article has a text.\n"
                "Name its column: corpus.columns.text=<name>"
            )


@dataclass
class Corpus(CorpusSource):
    """The corpus to search."""

    name: str = setting(MISSING, "Name in messages and reports.")
    extra_corpora: list[CorpusSource] = setting(
        list, "Further corpora, searched together with this one."
    )


@dataclass
class Encoder:
    """A sentence encoder."""

    name: str = setting(MISSING, "Name in messages and reports.")
    name_or_path: str = setting(MISSING, "Hub id or folder of the checkpoint.")
    revision: str | None = setting(None, "Branch, tag or commit of a hub id; null: main.")
    max_length: int = setting(256, "Tokens of a text, at most.", minimum=1)
    max_tokens_per_batch: int = setting(2048, "Tokens of a batch, padding included.", minimum=1)
    dtype: Dtype = setting(Dtype.auto, "Number format.")
    query_prefix: str | None = setting(
        None, "Text before each query; null: the checkpoint's query prompt."
    )
    passage_prefix: str | None = setting(
        None, "Text before each passage; null: the checkpoint's document prompt."
    )
    dropout: float | None = setting(None, "task=encoder: dropout; null: the checkpoint's.")
    trust_remote_code: bool = setting(False, "Run code that comes with the checkpoint.")

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint to load."""
        return Checkpoint(
            "encoder",
            "encoder.name_or_path",
            self.name_or_path,
            self.revision,
            self.trust_remote_code,
        )


@dataclass
class Search:
    """One way to rank passages."""

    name: str = setting(MISSING, "Name in folders and reports.")
    kind: RetrieverKind = setting(MISSING, "How passages are ranked.")
    top_k: int = setting(20, "Ranked passages to keep for each question.", minimum=1)
    query: Query = setting(Query.prompt_options, "Text of a question to search for.")
    articles: int = setting(3, "two_stage: articles to read for each question.", minimum=1)
    article_query: Query = setting(Query.prompt, "two_stage: text to search articles for.")
    prefilter_k: int | None = setting(
        None, "two_stage: sentences to encode for each question; null: all.", minimum=1
    )
    min_sentence_chars: int = setting(4, "two_stage: skip shorter sentences.", minimum=1)
    k1: float = setting(1.2, "bm25: how slowly repeated words saturate.")
    b: float = setting(0.75, "bm25: how strongly long passages are penalised.")
    ngrams: int = setting(2, "tfidf: words of the longest term.", minimum=1)
    prompt_weight: float = setting(3.0, "tfidf: weight of the prompt; all options together: 1.")


@dataclass
class Retriever(Search):
    """The retrieval of contexts."""

    members: dict[str, Search] = setting(dict, "hybrid: the rankings to fuse.")
    fusion: Fusion = setting(Fusion.rrf, "hybrid: how rankings are fused.")
    # Cormack and others, 2009
    rrf_k: int = setting(60, "hybrid: a larger value weakens the lead of the first ranks.")
    weights: dict[str, float] = setting(dict, "hybrid: weight of each member; 1 by default.")

    def validate(self) -> None:
        """Refuse a hybrid of fewer than two rankings that search, and weights of no member."""
        if self.kind is not RetrieverKind.hybrid:
            return
        members = self.members
        if len(members) < 2 or not all(
            m.kind.searches and m.kind is not self.kind for m in members.values()
        ):
            raise ExamError(
                "retriever=hybrid needs two or more members of two_stage, bm25, tfidf, passages "
                f"(got {', '.join(members) or 'none'}).\n"
                "Add one: +retriever@retriever.members.tfidf=tfidf"
            )
        if unknown := [name for name in self.weights if name not in members]:
            raise ExamError(
                f"retriever.weights.{unknown[0]} names no member of retriever=hybrid.\n"
                f"Leave it out; the members are {', '.join(members)}."
            )

    @property
    def encodes(self) -> bool:
        """Tell whether texts are encoded, by a member of a hybrid too."""
        return any(search.kind.encodes for search in (self, *self.members.values()))


@dataclass
class Chunking:
    """The split of a corpus into passages: windows of whole sentences."""

    chunk_words: int = setting(90, "Words of a passage, at most.", minimum=1)
    overlap_sentences: int = setting(1, "Sentences that consecutive passages share.")
    min_sentence_chars: int = setting(4, "Skip shorter sentences.", minimum=1)


class IndexType(Enum):
    """The kinds of vector indexes."""

    exact = "exact"
    low_memory = "low_memory"
    auto = "auto"


@dataclass
class Reranker:
    """A cross-encoder that reorders the first passages of a ranking."""

    name: str = setting("none", "Name in folders and reports.")
    ckpt: str | None = setting(None, "Hub id, folder, or run of task=reranker; null: no reranker.")
    revision: str | None = setting(None, "Branch, tag or commit of a hub id; null: main.")
    top_k: int = setting(20, "Passages to score and keep.", minimum=1)
    query: Query = setting(Query.prompt_options, "Text of a question to score passages for.")
    weight: float = setting(
        1.0, "Weight of its score; the retriever's score has the rest.", above=0, maximum=1
    )
    max_length: int = setting(256, "Tokens of question and passage, at most.", minimum=1)
    batch_size: int = setting(32, "Passages of a batch.", minimum=1)
    dtype: Dtype = setting(Dtype.auto, "Number format; in bfloat16 near ties may swap.")
    dropout: float | None = setting(None, "task=reranker: dropout; null: the checkpoint's.")
    trust_remote_code: bool = setting(False, "Run code that comes with the checkpoint.")

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint to load; None without a reranker."""
        if self.ckpt is None:
            return None
        return Checkpoint(
            "reranker", "reranker.ckpt", self.ckpt, self.revision, self.trust_remote_code
        )

    @property
    def required_checkpoint(self) -> Checkpoint:
        """The checkpoint; refuse a configuration that names none."""
        return require_checkpoint(self.checkpoint, "reranker.ckpt")


READER = "reader"  # positives are passages that raise the probability of the right option


@dataclass
class TrainingPairs:
    """The (question, passage) pairs that train a reranker or an encoder."""

    target: Target = setting(Target.support, "Score that the reranker learns for a passage.")
    loss: PairLoss = setting(PairLoss.bce, "Loss of the reranker.")
    positives: str | None = setting(
        None, "File of positives, or reader; null: best passages of the question's article."
    )
    reader: str | None = setting(None, "positives=reader: the run of a trained reader.")
    num_positives: int = setting(2, "Positives for each question.", minimum=1)
    num_negatives: int = setting(4, "Negatives for each question.", minimum=1)
    min_rank: int = setting(1, "First rank to take candidates from.")
    max_rank: int = setting(20, "Last rank to take candidates from.")
    max_support: float = setting(0.3, "Support of the right option by a negative, at most.")


@dataclass
class Index:
    """Storage and search of vectors."""

    type: IndexType = setting(IndexType.exact, "Exact search, compressed vectors, or auto.")
    shard_size: int = setting(4096, "Texts to encode between two checkpoints.", minimum=1)
    max_memory_gib: float = setting(4.0, "auto: GiB that exact vectors may take.", above=0)
    nprobe: int = setting(256, "low_memory: lists to read for each query.", minimum=1)
    refine_k: int = setting(200, "low_memory: nearest codes to rank again by vectors.", minimum=1)
