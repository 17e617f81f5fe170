"""The typed schema of every configuration group: the project's only configuration vocabulary.

Hydra composes `conf/` onto these classes, so a wrong name or type is refused before anything
heavy is imported. Below the command line, functions take these classes, never a `DictConfig`.
A module holds the groups of one stage; all of their names are read from here.
"""

from exam.config.commands import (
    DEFAULT_K,
    ROOTS,
    Bundle,
    Command,
    Generate,
    Hub,
    Infer,
    Restore,
    Retrieve,
    Retrieving,
    Stress,
    Task,
    Tracker,
    TrackerMode,
    Train,
    reader_values,
)
from exam.config.data import AnswerForm, Data, Source
from exam.config.ensemble import Cascade, Ensemble, EnsembleKind, Scale
from exam.config.generation import Generator, GeneratorKind, LanguageModel, QuestionKind
from exam.config.reader import (
    FLASH,
    BatchBy,
    ChunkPooling,
    Context,
    Layout,
    Loss,
    Model,
    Order,
    Packing,
    ReaderKind,
    Scoring,
    Tuning,
    WeightsLocation,
)
from exam.config.retrieval import (
    READER,
    Chunking,
    Corpus,
    CorpusFormat,
    CorpusSource,
    Encoder,
    Fusion,
    Index,
    IndexType,
    PairLoss,
    Query,
    Reranker,
    Retriever,
    RetrieverKind,
    Search,
    Target,
    TrainingPairs,
)
from exam.config.training_args import (
    SHARDING,
    answering_values,
    is_trained,
    trainer_values,
)
from exam.config.values import as_list, to_dict
from exam.core.checkpoints import Checkpoint
from exam.core.precision import Dtype
