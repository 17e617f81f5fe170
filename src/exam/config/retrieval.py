"""Corpus, encoder, retriever, passages, index, reranker, pairs: how contexts are found."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from exam.config.values import Checkpoint, Dtype


class CorpusReader(Enum):
    """The form of a corpus."""

    demo = "demo"
    wikipedia = "wikipedia"
    jsonl = "jsonl"
    text = "text"  # a file is an article, titled by its name


class RetrieverKind(Enum):
    """How contexts are found."""

    none = "none"
    given = "given"
    two_stage = "two_stage"
    bm25 = "bm25"
    tfidf = "tfidf"
    passages = "passages"
    hybrid = "hybrid"

    @property
    def searches(self) -> bool:
        """Tell whether a corpus is searched."""
        return self not in (RetrieverKind.none, RetrieverKind.given)

    @property
    def encodes(self) -> bool:
        """Tell whether texts are encoded."""
        return self in (RetrieverKind.two_stage, RetrieverKind.passages)


class Query(Enum):
    """What of a question is searched for."""

    prompt = "prompt"
    prompt_options = "prompt_options"  # prompt and all options as one text
    per_option = "per_option"  # prompt + option, one search for each, merged


class Target(Enum):
    """What a passage should be given by the reranker that is trained."""

    support = "support"  # the share of the right option's new words that it holds
    binary = "binary"  # 1 for positives, 0 for negatives


class PairLoss(Enum):
    """What the reranker's training minimises."""

    bce = "bce"  # each passage by itself
    lambda_loss = "lambda_loss"  # the order of a question's passages


class Fusion(Enum):
    """How several rankings become one."""

    rrf = "rrf"
    weighted = "weighted"


@dataclass
class CorpusSource:
    """One corpus: its form, its place, its column names."""

    reader: CorpusReader = MISSING
    dir: str | None = None
    files: Any = None  # names or patterns below dir; default: by reader
    columns: dict[str, str] = field(
        default_factory=lambda: {"id": "id", "title": "title", "text": "text"}
    )


@dataclass
class Corpus(CorpusSource):
    """The corpus that is searched; `also` lists further ones searched together with it."""

    name: str = MISSING
    also: list[CorpusSource] = field(default_factory=list)


@dataclass
class Encoder:
    """A sentence encoder: hub id or folder."""

    name: str = MISSING
    name_or_path: str = MISSING
    revision: str | None = None  # of a hub id: branch, tag or commit; null: main
    max_length: int = 256
    batch_tokens: int = 2048  # texts of like length, padding counted; sets memory, not the ranking
    dtype: Dtype = Dtype.auto
    query_prefix: str = ""
    passage_prefix: str = ""
    dropout: float | None = None  # in task=encoder; null: the checkpoint's own
    trust_remote_code: bool = False

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
    """One way to rank passages. `depth` is how many ranked passages a contexts file holds."""

    name: str = MISSING
    kind: RetrieverKind = MISSING
    depth: int = 20
    query: Query = Query.prompt_options
    articles: int = 3  # two_stage
    article_query: Query = Query.prompt  # two_stage: what its articles are searched by
    encode_at_most: int | None = None  # two_stage: sentences a question; null ranks all exactly
    min_sentence_chars: int = 4  # two_stage
    k1: float = 1.2  # bm25: how soon repeated words stop counting
    b: float = 0.75  # bm25: how much long passages are held back
    ngrams: int = 2  # tfidf: the longest run of words that counts as a term
    prompt_weight: float = 3.0  # tfidf: the prompt's share against all options' share of one


@dataclass
class Retriever(Search):
    """How contexts are found; `members` are the rankings that `hybrid` fuses."""

    members: dict[str, Search] = field(default_factory=dict)
    fusion: Fusion = Fusion.rrf
    rrf_k: int = 60  # weakens the first ranks' lead (Cormack and others, 2009)
    weights: dict[str, float] = field(default_factory=dict)  # of members; 1 where not given

    @property
    def encodes(self) -> bool:
        """Tell whether texts are encoded, by a member of a hybrid too."""
        return any(search.kind.encodes for search in (self, *self.members.values()))


@dataclass
class Passages:
    """How a corpus is cut into passages: windows of whole sentences."""

    words: int = 90
    overlap: int = 1  # sentences that a window shares with the one before
    min_sentence_chars: int = 4


class Recipe(Enum):
    """How vectors are stored and searched."""

    exact = "exact"
    low_ram = "low_ram"
    auto = "auto"


@dataclass
class Reranker:
    """A cross-encoder over the first passages of a ranking; without `ckpt` there is none."""

    name: str = "none"
    ckpt: str | None = None  # hub id, folder, or a run of exam train task=reranker
    revision: str | None = None  # of a hub id: branch, tag or commit; null: main
    depth: int = 20  # how many first passages are scored and kept
    query: Query = Query.prompt_options
    weight: float = 1.0  # of its standardised score; the rest is the first ranking's own
    max_length: int = 256
    batch_size: int = 32
    dtype: Dtype = Dtype.auto  # in bfloat16 near ties may swap
    dropout: float | None = None  # in task=reranker; null: the checkpoint's own
    trust_remote_code: bool = False

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint to load; None without a reranker."""
        if self.ckpt is None:
            return None
        return Checkpoint(
            "reranker", "reranker.ckpt", self.ckpt, self.revision, self.trust_remote_code
        )


READER = "reader"  # of pairs.positives: passages that raise the probability of the right option


@dataclass
class Pairs:
    """Which (question, passage) pairs train a reranker or an encoder."""

    target: Target = Target.support
    loss: PairLoss = PairLoss.bce
    positives: str | None = None  # a file, or reader; null: best passages of the known article
    reader: str | None = None  # a trained reader's run, with positives=reader
    per_question: int = 2  # positives
    negatives: int = 4
    first: int = 1  # ranks that candidates come from
    last: int = 20
    max_support: float = 0.3  # of the right option, by a negative


@dataclass
class Index:
    """How vectors are stored and searched."""

    recipe: Recipe = Recipe.exact
    shard_size: int = 4096  # texts encoded between two points to resume at
    memory_gib: float = 4.0  # auto: what exact vectors may take
    probe: int = 256  # low_ram: lists read for each query
    refine: int = 200  # low_ram: nearest codes ranked again by their vectors
