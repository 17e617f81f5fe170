"""The configuration of each command, and the groups that belong to no single stage."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from omegaconf import MISSING

from exam.config.data import Data
from exam.config.ensemble import Cascade, Ensemble
from exam.config.generation import Generator
from exam.config.reader import Context, Model, Tuning
from exam.config.retrieval import (
    Chunking,
    Corpus,
    Encoder,
    Index,
    Reranker,
    Retriever,
    TrainingPairs,
)
from exam.config.training_args import TrainerFields, trainer_values
from exam.config.values import setting
from exam.core.precision import choose_formats

DEFAULT_K = 3  # of MAP@k
LOG_LEVELS = ("debug", "info", "warning", "error")


class Task(Enum):
    """The model that `exam train` trains."""

    reader = "reader"
    reranker = "reranker"
    encoder = "encoder"


class Resume(Enum):
    """The reuse of an earlier run of the same configuration."""

    auto = "auto"
    never = "never"


class TrackerMode(Enum):
    """When metrics are sent: at once, or later from files."""

    online = "online"
    offline = "offline"


@dataclass
class Tracker:
    """Experiment tracking with Weights & Biases."""

    name: str = setting("none", "Name in messages.")
    mode: TrackerMode | None = setting(None, "Send at once or later; null: no tracking.")
    project: str | None = setting(None, "Project of the runs; null: WANDB_PROJECT, or exam.")
    entity: str | None = setting(None, "User or team; null: WANDB_ENTITY, or your default.")


@dataclass
class Metric:
    """MAP@k, which chooses checkpoints and which every table reports."""

    k: int = setting(DEFAULT_K, "Ranks that score; 1 is accuracy.", minimum=1, maximum=26)


@dataclass
class RestoredMetric:
    """The metric of commands that load a run."""

    k: int | None = setting(
        None, "Ranks that score; 1 is accuracy, null: the run's.", minimum=1, maximum=26
    )


@dataclass
class Hub:
    """Upload of a finished run; the token is the hub's (`hf auth login`, HF_TOKEN)."""

    push: bool = setting(False, "Upload the finished run.")
    repo: str | None = setting(None, "Repository, as owner/name.")
    private: bool = setting(True, "Create the repository as private.")


@dataclass
class Command:
    """The settings of every command."""

    outputs: str = setting("outputs", "Folder of all results and caches.")
    log_level: str = setting("info", "Least severe messages to log.", choices=LOG_LEVELS)
    offline: bool = setting(False, "Fetch nothing, send nothing.")


@dataclass
class Retrieving(Command):
    """The groups of every command that retrieves passages."""

    data: Data = setting(MISSING, "Questions.")
    corpus: Corpus = setting(MISSING, "Corpus to search.")
    encoder: Encoder = setting(MISSING, "Sentence encoder.")
    chunking: Chunking = setting(MISSING, "How the corpus is split.")
    retriever: Retriever = setting(MISSING, "How passages are ranked.")
    index: Index = setting(MISSING, "How vectors are searched.")
    generator: Generator = setting(MISSING, "How questions are written for data.train=generated.")
    reranker: Reranker = setting(Reranker, "Cross-encoder over the ranking.")
    metric: Metric = setting(Metric, "MAP@k of the results.")


@dataclass
class Train(Retrieving):
    """`exam train`."""

    context: Context = setting(MISSING, "Passages that the reader sees.")
    model: Model = setting(MISSING, "Reader.")
    trainer: TrainerFields = setting(MISSING, "Arguments of transformers.Trainer.")
    tuning: Tuning = setting(Tuning, "Weights to train.")
    tracker: Tracker = setting(Tracker, "Experiment tracking.")
    training_pairs: TrainingPairs = setting(
        TrainingPairs, "Training pairs of task=reranker and task=encoder."
    )
    hub: Hub = setting(Hub, "Upload of the finished run.")
    task: Task = setting(Task.reader, "Model to train.")
    name: str = setting(MISSING, "Name of the run's folder.")
    seed: Any = setting(42, "Seed, or a list: one run for each.")
    resume: str = setting(
        "auto", "auto reuses finished work, never starts over, a run's folder resumes it."
    )
    launch: Any = setting("auto", "Processes: auto (one on each GPU), single, or a number.")


@dataclass
class Retrieve(Retrieving):
    """`exam retrieve`."""

    evaluate: bool = setting(True, "Score the retrieved passages.")
    resume: Resume = setting(Resume.auto, "Reuse finished work (auto), or start over (never).")


@dataclass
class Restore(Command):
    """The settings of commands that load a run: `run.<key>=…` changes a value of the run."""

    ckpt: Any = setting(MISSING, "Folder of a run, or a list of them.")
    data: Data | None = setting(None, "Questions; null: the run's.")
    corpus: Corpus | None = setting(None, "Corpus to search; null: the run's.")
    retriever: Retriever | None = setting(None, "How passages are ranked; null: the run's.")
    context: Context | None = setting(None, "Passages that the reader sees; null: the run's.")
    reranker: Reranker | None = setting(None, "Cross-encoder over the ranking; null: the run's.")
    metric: RestoredMetric = setting(RestoredMetric, "MAP@k of the results.")
    run: dict[str, Any] = setting(dict, "Values of the run to change.")
    resume: Resume = setting(Resume.auto, "Reuse finished work (auto), or start over (never).")


@dataclass
class Infer(Restore):
    """`exam infer`: answer questions with runs (`ckpt`), or combine saved predictions."""

    ckpt: Any = setting(None, "Folder of a run, or a list of them.")
    predictions: Any = setting(None, "Prediction files to combine instead of runs.")
    ensemble: Ensemble | None = setting(None, "How the answers of several readers are combined.")
    cascade: Cascade = setting(Cascade, "Which questions further readers answer.")
    variants: list[str] = setting(list, "Overrides of the run; it answers once with each.")
    option_rotations: int = setting(1, "Rotations of the options to average over.", minimum=1)
    launch: Any = setting("auto", "Processes: auto (one on each GPU), single, or a number.")
    merge_adapters: bool = setting(
        False, "Merge a LoRA run's adapters into its weights and save them."
    )


@dataclass
class Stress(Restore):
    """`exam stress`: answer questions with perturbed contexts or options."""

    seed: int = setting(0, "Seed of the perturbations.")


@dataclass
class Bundle(Restore):
    """`exam bundle`: pack everything that a machine without a network needs."""

    out: str = setting(MISSING, "Folder to write.")
    ensemble: Ensemble | None = setting(None, "How the answers of several readers are combined.")
    cascade: Cascade = setting(Cascade, "Which questions further readers answer.")
    constraints: str | None = setting(
        None, "File of (python -VV; pip freeze) on the target machine."
    )
    python: str | None = setting(
        None, "Python of the target; null: that of constraints, else Kaggle's."
    )
    platforms: list[str] = setting(
        lambda: (
            [f"manylinux_2_{v}_x86_64" for v in range(34, 4, -1)]
            + [f"manylinux{v}_x86_64" for v in (2014, 2010, 1)]
            + ["linux_x86_64"]
        ),
        "Platform tags of the target, best first.",
    )
    with_corpus: bool = setting(True, "Include the corpus and its index.")
    limit_gib: float = setting(200.0, "GiB of the bundle, at most.")
    hours: float = setting(9.0, "Hours that the target allows.")
    questions: int = setting(4000, "Questions of the estimate: about Kaggle's hidden test set.")
    rehearse: bool = setting(False, "Run the notebook offline and check its submission.")


@dataclass
class Generate(Command):
    """`exam generate`."""

    corpus: Corpus = setting(MISSING, "Corpus to write questions from.")
    encoder: Encoder = setting(MISSING, "Sentence encoder that finds similar articles.")
    index: Index = setting(MISSING, "How vectors are searched.")
    generator: Generator = setting(MISSING, "How questions are written.")
    num_questions: int = setting(1000, "Questions to write.", minimum=1)
    resume: Resume = setting(Resume.auto, "Reuse finished work (auto), or start over (never).")


ROOTS: dict[str, type] = {
    "train": Train,
    "retrieve": Retrieve,
    "infer": Infer,
    "stress": Stress,
    "bundle": Bundle,
    "generate": Generate,
}


def reader_values(config: Train) -> dict[str, Any]:
    """Return the Trainer's values of a configuration, in the formats this machine computes in.

    They are part of the key of a run and of its answers. A lexical reader keeps its values.
    """
    values = trainer_values(config.trainer)
    return choose_formats(values, choose=True) if config.model.kind.is_neural else values
