"""The typed schema of every configuration group: the project's only configuration vocabulary.

Hydra composes `conf/` onto these classes, so a wrong name or type is refused before anything
heavy is imported. Below the command line, functions take these classes, never a `DictConfig`.
"""

from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from typing import Any

from omegaconf import MISSING

from exam.trainer_fields import TrainerFields


class Source(Enum):
    """Where questions come from."""

    files = "files"
    hub = "hub"


class Task(Enum):
    """What `train.py` trains."""

    reader = "reader"
    reranker = "reranker"
    encoder = "encoder"


class Resume(Enum):
    """What to do with an earlier run of the same configuration."""

    auto = "auto"
    never = "never"


class CorpusReader(Enum):
    """The form of a corpus."""

    demo = "demo"
    wikipedia = "wikipedia"
    jsonl = "jsonl"


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
        """Whether a corpus is searched at all."""
        return self not in (RetrieverKind.none, RetrieverKind.given)


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


class ReaderKind(Enum):
    """What answers the questions."""

    transformer = "transformer"
    lexical = "lexical"
    causal_lm = "causal_lm"


class Scoring(Enum):
    """How a causal language model scores options."""

    letters = "letters"  # the logit of each option's letter
    yes_no = "yes_no"  # yes less no, behind each option
    likelihood = "likelihood"  # the mean log-probability of each option's tokens


class Execution(Enum):
    """Where a causal language model's weights are while it runs."""

    memory = "memory"  # on the device
    offload = "offload"  # on the devices, in memory and on disk, as accelerate lays them out
    layerwise = "layerwise"  # on disk; each layer is read once for all questions


class Packing(Enum):
    """How a question is laid out for a transformer."""

    none = "none"  # one sequence for each option
    options = "options"  # all options behind one shared context
    cross = "cross"  # the same, and the options are compared before they are scored


class Order(Enum):
    """How a question's passages follow each other; the least relevant is cut first, always."""

    best_first = "best_first"
    best_last = "best_last"  # next to the question


class Layout(Enum):
    """What a reader reads first."""

    context_first = "context_first"
    question_first = "question_first"  # prompt and option, and the context fills the rest


class Loss(Enum):
    """What a transformer's training minimises."""

    softmax = "softmax"  # which of a question's options is right
    binary = "binary"  # of each option by itself, whether it is right


class BatchBy(Enum):
    """What is equal from batch to batch; `per_device_*_batch_size` counts questions."""

    questions = "questions"
    tokens = "tokens"  # of questions of like length; the batch size is their number on average


class EnsembleKind(Enum):
    """How several readers' answers become one."""

    mean = "mean"
    rank = "rank"  # the mean place
    vote = "vote"  # points for a reader's first choices
    max_over_contexts = (
        "max_over_contexts"  # the greatest probability, of one reader's context sets
    )
    fitted = "fitted"  # the mean by weights that raise MAP@3 on held-out questions most


class Scale(Enum):
    """What of a reader is averaged."""

    probability = "probability"
    logit = "logit"


class Dtype(Enum):
    """A number format. `auto`: bfloat16 where the device computes in it."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"  # of a causal language model on a GPU


ALL_FOLDS = "all"


@dataclass
class Data:
    """Questions: which files (or hub splits), which columns, how they are split.

    With `fold=all` every fold in turn is left out and predicted by what the others trained.
    `train`, `valid` and `test` are one name or a list of names: files below `dir`, splits of the
    hub data set, or the words `generated` (the `generator` group's questions) and `demo` (the
    questions shipped with the package).
    """

    name: str = MISSING
    source: Source = Source.files
    dir: str | None = None
    hub: str | None = None
    hub_config: str | None = None
    competition: str | None = None  # on Kaggle, whose files serve where `dir` lacks them
    train: Any = None
    valid: Any = None
    test: Any = None
    extra: Any = None  # further questions to train on, in no fold: they are never held out
    options: str | None = "ABCDE"  # option columns; null when columns.options names a list column
    columns: dict[str, str | None] = field(
        default_factory=lambda: {"id": "id", "prompt": "prompt", "answer": "answer"}
    )  # and context, correct, options, or an option's letter where its column has another name
    shuffle_options: bool = False  # for data sets that list the right option first
    folds: int = 10
    fold: Any = 0  # which of the training questions choose the checkpoint; null: none; or `all`
    valid_share: float = 0.0  # held out of train when there is no valid file
    split_seed: int = 0
    soft_labels: str | None = None  # predictions whose probabilities train the reader, at
    soft_weight: float = 0.5  # this share where the answer is known, alone where it is not (extra)
    drop_leaks: bool = False  # leave training questions out that valid or test nearly repeats
    strict: bool = False
    limit: int | None = None


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
    max_length: int = 256
    batch_tokens: int = 2048  # texts of like length, padding counted; sets memory, not the ranking
    dtype: Dtype = Dtype.auto
    query_prefix: str = ""
    passage_prefix: str = ""
    dropout: float | None = None  # in task=encoder; null: the checkpoint's own
    trust_remote_code: bool = False


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
    ckpt: str | None = None  # hub id, folder, or a run of train.py task=reranker
    depth: int = 20  # how many first passages are scored and kept
    query: Query = Query.prompt_options
    weight: float = 1.0  # of its standardised score; the rest is the first ranking's own
    max_length: int = 256
    batch_size: int = 32
    dtype: Dtype = Dtype.auto  # in bfloat16 near ties may swap
    dropout: float | None = None  # in task=reranker; null: the checkpoint's own
    trust_remote_code: bool = False


@dataclass
class Pairs:
    """Which (question, passage) pairs train a reranker or an encoder."""

    target: Target = Target.support
    loss: PairLoss = PairLoss.bce
    positives: str | None = None  # a file of them; null: the own article's best passages
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


@dataclass
class Context:
    """What the reader sees of the ranked passages."""

    top_k: int = 5
    train_top_k: int | None = None  # in training, where it is another; null: top_k
    eval_top_k: int | None = None  # in evaluation and inference; null: top_k
    order: Order = Order.best_first
    layout: Layout = Layout.context_first

    def passages(self, *, training: bool) -> int:
        """How many of the ranked passages the reader reads."""
        own = self.train_top_k if training else self.eval_top_k
        return self.top_k if own is None else own


@dataclass
class Model:
    """A reader: hub id or folder, or small random weights; `lexical` needs neither."""

    name: str = MISSING
    kind: ReaderKind = ReaderKind.transformer
    name_or_path: str | None = None
    packing: Packing = Packing.none
    max_length: int = 256  # tokens of one option's sequence; words for the lexical reader
    eval_max_length: int | None = None  # in evaluation and inference; null: max_length
    batch_by: BatchBy = BatchBy.tokens
    loss: Loss = Loss.softmax  # trainer.label_smoothing_factor smooths either
    others: bool = False  # loss=binary: the mean of the other options' logits joins an option's own
    evidence: bool = False  # measures of each option against its passages join its score
    flash: bool = False  # DeBERTa with packing=none on a GPU: the package flashdeberta's attention
    dropout: float | None = None  # null: the checkpoint's own
    architecture: str | None = None  # without name_or_path: small random weights of this kind
    config: dict[str, Any] | None = None  # of them, where they are to be others
    scoring: Scoring = Scoring.letters  # causal_lm: how options are scored,
    chat: bool | None = None  # whether its chat template frames the prompt; null: where it has one
    template: str | None = None  # the prompt, with {context}, {prompt}, {options} or {option},
    execution: Execution = Execution.memory  # where its weights are,
    memory_gib: float = 4.0  # what layerwise keeps in memory of hidden states, offload of weights,
    dtype: Dtype = Dtype.auto  # in which number format; auto, trained or not causal: float32
    load_in_4bit: bool = False  # a decoder's, on a GPU: bitsandbytes' NF4, trained by adapters
    gguf: str | None = None  # and the checkpoint's file, where it is a GGUF
    trust_remote_code: bool = False

    def length(self, *, training: bool) -> int:
        """How many tokens (of the lexical reader: words) are read at most."""
        return self.max_length if training else self.eval_max_length or self.max_length


@dataclass
class Tuning:
    """Which weights of a transformer are trained, and how fast."""

    name: str = "full"
    freeze_embeddings: bool = False
    freeze_layers: float = 0.0  # the lowest ones; below 1 a share of all, as with warmup_steps
    layer_decay: float = 1.0  # a layer's learning rate in units of the next higher one's
    head_learning_rate: float | None = None  # null: trainer.learning_rate
    lora_rank: int | None = None  # null: the weights themselves are trained
    lora_alpha: float = 32.0
    lora_dropout: float = 0.05
    lora_targets: Any = None  # names of linear modules in the layers; null: all of them
    rslora: bool = False  # scaled by the rank's root, so that a high rank learns as fast
    dora: bool = False  # magnitude and direction apart


@dataclass
class Adversary:
    """A second pass of every training step, with weights shifted to where the loss is higher."""

    name: str = "none"
    adv_lr: float | None = None  # length of the shift in units of the weights' own; null: none
    adv_eps: float | None = 1e-4  # no weight moves by a larger share of itself; null: no such limit
    start_epoch: float = 0.5


class TrackerMode(Enum):
    """Whether figures are sent as they come, or kept to be sent."""

    online = "online"
    offline = "offline"


@dataclass
class Tracker:
    """Who follows a run besides its log: Weights & Biases, or nobody."""

    name: str = "none"
    mode: TrackerMode | None = None  # null: nobody
    project: str = "exam"
    entity: str | None = None  # null: your default


class QuestionKind(Enum):
    """What a generated question asks.

    Which statement holds of an article; what something is; which part a sentence lacks; which of
    several sentences, different in one part, is right.
    """

    statement = "statement"
    definition = "definition"
    detail = "detail"
    variant = "variant"


class GeneratorKind(Enum):
    """What writes questions."""

    rules = "rules"
    llm = "llm"


@dataclass
class Writer:
    """The language model that writes questions: at an OpenAI-compatible endpoint, or here.

    The endpoint's key is read from the environment variable OPENAI_API_KEY, and from nowhere else.
    """

    model: str = "gpt-4o-mini"  # the endpoint's name for it; with local: hub id or folder
    base_url: str | None = None  # null: OpenAI's own
    local: bool = False  # run the model on this machine
    gguf: str | None = None  # with local: the checkpoint's file, where it is a GGUF
    per_article: int = 1  # questions
    sentences: int = 7  # of an article's beginning
    min_sentences: int = 3  # shorter articles are left alone
    temperature: float = 0.8
    max_tokens: int = 1000  # of a reply
    attempts: int = 3  # replies to an article, until one is a question
    parallel: int = 4  # requests at a time
    timeout: float = 120.0  # seconds for one of them
    retries: int = 5  # of one that failed on the way, or was put off (429, 5xx)
    json_schema: bool = True  # have the endpoint hold to the form; not every model can
    price_in: float = 0.0  # of a million tokens, to say what it cost
    price_out: float = 0.0


@dataclass
class Generator:
    """What writes questions from articles: rules, or a language model."""

    name: str = MISSING
    kind: GeneratorKind = GeneratorKind.rules
    n: int = 1000
    kinds: list[QuestionKind] = field(default_factory=lambda: list(QuestionKind))  # rules: in turn
    options: int = 5
    seed: int = 0
    neighbours: int = 20  # rules: how many articles near in meaning lend their facts
    exclude: Any = None  # questions (files or `demo`) whose articles are left alone
    writer: Writer = field(default_factory=Writer)  # llm


@dataclass
class Hub:
    """Where a finished run is uploaded; the token is the hub's own (`hf auth login`, HF_TOKEN)."""

    push: bool = False
    repo: str | None = None  # owner/name
    private: bool = True


@dataclass
class Train:
    """`train.py`."""

    data: Data = MISSING
    corpus: Corpus = MISSING
    encoder: Encoder = MISSING
    passages: Passages = MISSING
    retriever: Retriever = MISSING
    index: Index = MISSING
    context: Context = MISSING
    model: Model = MISSING
    trainer: TrainerFields = MISSING
    generator: Generator = MISSING
    tuning: Tuning = field(default_factory=Tuning)
    adversary: Adversary = field(default_factory=Adversary)
    tracker: Tracker = field(default_factory=Tracker)
    reranker: Reranker = field(default_factory=Reranker)
    pairs: Pairs = field(default_factory=Pairs)
    hub: Hub = field(default_factory=Hub)
    task: Task = Task.reader
    name: str = MISSING
    seed: Any = 42  # or a list: the whole is done with each
    resume: str = "auto"  # never, or a run folder to go on with
    outputs: str = "outputs"
    log_level: str = "info"
    offline: bool = False  # fetch nothing, send nothing


@dataclass
class Retrieve:
    """`retrieve.py`."""

    data: Data = MISSING
    corpus: Corpus = MISSING
    encoder: Encoder = MISSING
    passages: Passages = MISSING
    retriever: Retriever = MISSING
    index: Index = MISSING
    generator: Generator = MISSING
    evaluate: bool = True
    reranker: Reranker = field(default_factory=Reranker)
    resume: Resume = Resume.auto
    outputs: str = "outputs"
    log_level: str = "info"
    offline: bool = False  # fetch nothing, send nothing


@dataclass
class Ensemble:
    """How several readers' predictions become one answer."""

    name: str = MISSING
    kind: EnsembleKind = MISSING
    of: Scale = Scale.probability
    weights: list[float] | None = None  # one a member; null: equal ones
    points: list[float] | None = None  # of a voter's choices, best first; null: 3, 2, 1
    fit_on: Any = None  # predictions with answers, one a member and in their order: `fitted` alone
    seed: int = 0


@dataclass
class Cascade:
    """Every further reader answers only what those before it are least sure of."""

    share: Any = None  # of all questions, for each further reader; or
    threshold: float | None = None  # asked further where the best option has less probability


@dataclass
class Restore:
    """What restores a run: these keys are the command's own, the run's are `run.<key>=…`."""

    ckpt: Any = MISSING
    data: Data | None = None
    corpus: Corpus | None = None
    retriever: Retriever | None = None
    context: Context | None = None
    reranker: Reranker | None = None
    run: dict[str, Any] = field(default_factory=dict)
    resume: Resume = Resume.auto
    outputs: str = "outputs"
    log_level: str = "info"
    offline: bool = False  # fetch nothing, send nothing


@dataclass
class Infer(Restore):
    """`infer.py`: one run or several (`ckpt`), or what they have predicted before."""

    ckpt: Any = None
    predictions: Any = None  # files instead of runs: nothing is read, retrieved or run again
    ensemble: Ensemble | None = None
    cascade: Cascade = field(default_factory=Cascade)
    passes: list[str] = field(default_factory=list)  # ways to read, each some of these overrides
    rotations: int = 1  # orders of the options, whose answers are averaged
    merge: bool = False  # save a LoRA run's adapters and the weights they change as one model


@dataclass
class Evidence(Restore):
    """`evidence.py`: what each passage alone adds to a reader's belief in the right option."""

    contexts: str | None = None  # a folder of outputs/contexts; null: the run's own retrieval
    depth: int = 10


@dataclass
class Stress(Restore):
    """`stress.py`: how a reader answers when contexts or options are not as they should be."""

    seed: int = 0


@dataclass
class Bundle(Restore):
    """`python -m exam.bundle`: all that a machine without a network needs to answer an exam."""

    out: str = MISSING
    ensemble: Ensemble | None = None
    cascade: Cascade = field(default_factory=Cascade)
    image: str | None = None  # a constraints file (pip freeze) of what the machine already has
    python: str = "3.11"  # the machine's
    platforms: list[str] = field(
        default_factory=lambda: (
            [f"manylinux_2_{v}_x86_64" for v in (34, 31, 28, 27, 24, 17)]
            + ["manylinux2014_x86_64", "linux_x86_64"]
        )
    )
    with_corpus: bool = True
    limit_gib: float = 200.0  # of a Kaggle data set
    hours: float = 9.0  # of a Kaggle notebook
    questions: int = 4000  # about as many as the competition's hidden test set has
    gpus: int = 2
    rehearse: bool = False


@dataclass
class Generate:
    """`generate.py`."""

    corpus: Corpus = MISSING
    encoder: Encoder = MISSING
    index: Index = MISSING
    generator: Generator = MISSING
    n: int = 1000
    resume: Resume = Resume.auto
    outputs: str = "outputs"
    log_level: str = "info"
    offline: bool = False  # fetch nothing, send nothing


ROOTS: dict[str, type] = {
    "train": Train,
    "retrieve": Retrieve,
    "infer": Infer,
    "evidence": Evidence,
    "stress": Stress,
    "bundle": Bundle,
    "generate": Generate,
}


SHARDING = ("deepspeed", "fsdp", "fsdp_config")


def trainer_values(fields: TrainerFields) -> dict[str, Any]:
    """The TrainingArguments a configuration sets, without those left to the library."""
    return {name: value for name, value in vars(fields).items() if value != MISSING}


def is_trained(fields: TrainerFields) -> bool:
    """Whether a reader learns anything, or its checkpoint answers as it is."""
    return bool(trainer_values(fields).get("num_train_epochs") != 0)


def answering_values(fields: TrainerFields) -> dict[str, Any]:
    """The same without what shards a model: to answer, one is loaded whole."""
    values = trainer_values(fields)
    return {name: value for name, value in values.items() if name not in SHARDING}


def names(value: Any) -> list[str]:
    """One name, a list of names or nothing, as a list."""
    if value is None:
        return []
    return [str(v) for v in value] if isinstance(value, list) else [str(value)]


def plain(settings: Any) -> Any:
    """A dataclass's values as JSON can hold them, for keys."""
    if isinstance(settings, Enum):
        return settings.value
    if is_dataclass(settings):
        return {f.name: plain(getattr(settings, f.name)) for f in fields(settings)}
    if isinstance(settings, dict):
        return {name: plain(value) for name, value in settings.items()}
    if isinstance(settings, list):
        return [plain(value) for value in settings]
    return settings
