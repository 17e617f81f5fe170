"""The whole of a verb's configuration, and the groups that belong to no single stage."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from exam.config.answers import Cascade, Ensemble
from exam.config.generation import Generator
from exam.config.questions import Data
from exam.config.reader import Adversary, Context, Model, Tuning
from exam.config.retrieval import Corpus, Encoder, Index, Pairs, Passages, Reranker, Retriever
from exam.config.trainer import TrainerFields


class Task(Enum):
    """What `exam train` trains."""

    reader = "reader"
    reranker = "reranker"
    encoder = "encoder"


class Resume(Enum):
    """What to do with an earlier run of the same configuration."""

    auto = "auto"
    never = "never"


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


@dataclass
class Hub:
    """Where a finished run is uploaded; the token is the hub's own (`hf auth login`, HF_TOKEN)."""

    push: bool = False
    repo: str | None = None  # owner/name
    private: bool = True


@dataclass
class Command:
    """What every command has."""

    outputs: str = "outputs"
    log_level: str = "info"
    offline: bool = False  # fetch nothing, send nothing


@dataclass
class Retrieving(Command):
    """What finds passages for questions."""

    data: Data = MISSING
    corpus: Corpus = MISSING
    encoder: Encoder = MISSING
    passages: Passages = MISSING
    retriever: Retriever = MISSING
    index: Index = MISSING
    generator: Generator = MISSING
    reranker: Reranker = field(default_factory=Reranker)


@dataclass
class Train(Retrieving):
    """`exam train`."""

    context: Context = MISSING
    model: Model = MISSING
    trainer: TrainerFields = MISSING
    tuning: Tuning = field(default_factory=Tuning)
    adversary: Adversary = field(default_factory=Adversary)
    tracker: Tracker = field(default_factory=Tracker)
    pairs: Pairs = field(default_factory=Pairs)
    hub: Hub = field(default_factory=Hub)
    task: Task = Task.reader
    name: str = MISSING
    seed: Any = 42  # or a list: the whole is done with each
    resume: str = "auto"  # never, or a run folder to go on with
    launch: Any = "auto"  # a process for each GPU; single: one; or a number


@dataclass
class Retrieve(Retrieving):
    """`exam retrieve`."""

    evaluate: bool = True
    resume: Resume = Resume.auto


@dataclass
class Restore(Command):
    """What restores a run: these keys are the command's own, the run's are `run.<key>=…`."""

    ckpt: Any = MISSING
    data: Data | None = None
    corpus: Corpus | None = None
    retriever: Retriever | None = None
    context: Context | None = None
    reranker: Reranker | None = None
    run: dict[str, Any] = field(default_factory=dict)
    resume: Resume = Resume.auto


@dataclass
class Infer(Restore):
    """`exam infer`: one run or several (`ckpt`), or what they have predicted before."""

    ckpt: Any = None
    predictions: Any = None  # files instead of runs: nothing is read, retrieved or run again
    ensemble: Ensemble | None = None
    cascade: Cascade = field(default_factory=Cascade)
    passes: list[str] = field(default_factory=list)  # ways to read, each some of these overrides
    rotations: int = 1  # orders of the options, whose answers are averaged
    launch: Any = "auto"  # a process for each GPU; single: one; or a number
    merge: bool = False  # save a LoRA run's adapters and the weights they change as one model


@dataclass
class Stress(Restore):
    """`exam stress`: how a reader answers when contexts or options are not as they should be."""

    seed: int = 0


@dataclass
class Bundle(Restore):
    """`exam bundle`: all that a machine without a network needs to answer an exam."""

    out: str = MISSING
    ensemble: Ensemble | None = None
    cascade: Cascade = field(default_factory=Cascade)
    image: str | None = None  # (python -VV; pip freeze) of the target machine
    python: str | None = None  # the target's; null takes the image's, else Kaggle's
    platforms: list[str] = field(
        default_factory=lambda: (
            [f"manylinux_2_{v}_x86_64" for v in range(34, 4, -1)]
            + [f"manylinux{v}_x86_64" for v in (2014, 2010, 1)]
            + ["linux_x86_64"]
        )
    )
    with_corpus: bool = True
    limit_gib: float = 200.0  # of a Kaggle data set
    hours: float = 9.0  # of a Kaggle notebook
    questions: int = 4000  # about as many as the competition's hidden test set has
    rehearse: bool = False


@dataclass
class Generate(Command):
    """`exam generate`."""

    corpus: Corpus = MISSING
    encoder: Encoder = MISSING
    index: Index = MISSING
    generator: Generator = MISSING
    n: int = 1000
    resume: Resume = Resume.auto


ROOTS: dict[str, type] = {
    "train": Train,
    "retrieve": Retrieve,
    "infer": Infer,
    "stress": Stress,
    "bundle": Bundle,
    "generate": Generate,
}
