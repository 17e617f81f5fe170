"""The protocol that all readers follow, and the class of each kind."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, Self

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from exam.config import Model, ReaderKind, Train, is_trained
from exam.core.artifacts import Stage
from exam.core.checkpoints import MODEL
from exam.core.errors import ExamError
from exam.data.splits import Split
from exam.metrics import Floats
from exam.readers.causal_lm.load import inspect_decoder
from exam.readers.causal_lm.reader import LetterReader, ZeroShotReader
from exam.readers.lexical import LexicalReader
from exam.readers.multiple_choice.features import TokenCounts
from exam.readers.multiple_choice.model import inspect_model
from exam.readers.multiple_choice.reader import MultipleChoiceReader
from exam.readers.tuning import ADAPTER, merge_adapters


class Reader(Protocol):
    """Scores the options of questions with their passages."""

    @classmethod
    def fit(cls, config: Train, folder: Path, split: Split, pool: Stage) -> Self:
        """Train with the contexts of `pool`, and save the reader in `folder`."""

    @classmethod
    def load(cls, config: Train, saved: Path, work: Path) -> Self:
        """Load the reader saved in `saved`; temporary files go to `work`."""

    def predict(self, questions: Dataset, contexts: Stage) -> tuple[Floats, TokenCounts | None]:
        """Return logits `(questions, options)`, and counts of the tokens if any are encoded."""


def reader_class(config: Train) -> type[Reader]:
    """Return the class of the configured reader."""
    classes: dict[ReaderKind, type[Reader]] = {
        ReaderKind.lexical: LexicalReader,
        ReaderKind.transformer: MultipleChoiceReader,
        ReaderKind.causal_lm: LetterReader if is_trained(config.trainer) else ZeroShotReader,
    }
    return classes[config.model.kind]


def load_reader(config: Train, saved: Path, work: Path, *, merge: bool = False) -> Reader:
    """Load a run's reader; `merge` merges its adapters and saves the whole model in `work`.

    Raises:
        ExamError: there are no adapters to merge.
    """
    if merge and not (saved / ADAPTER).is_file():
        raise ExamError(
            f"merge_adapters=true needs a run of tuning=lora, and {saved.parent} has no adapters.\n"
            "Leave merge_adapters out: the run's model is whole."
        )
    config = replace(config, model=resolve_model(config, saved))
    reader = reader_class(config).load(config, saved, work)
    if merge and isinstance(reader, MultipleChoiceReader):
        reader = replace(reader, model=merge_adapters(reader.model))
        reader.save(work / MODEL)
    return reader


def resolve_model(config: Train, saved: Path) -> Model:
    """Return the model that a run predicts with: the one in its folder, if it holds one."""
    holds_model = any((saved / name).is_file() for name in ("config.json", ADAPTER))
    return config.model.at(saved) if holds_model else config.model


def inspect_checkpoint(model: Model) -> tuple[Any, PreTrainedTokenizerBase]:
    """Return a checkpoint's model without memory for its weights, and its tokenizer.

    Raises:
        ExamError: it cannot be loaded as configured.
    """
    causal = model.kind is ReaderKind.causal_lm
    return (inspect_decoder if causal else inspect_model)(model)
