"""Check, before any work, everything that a command will load."""

from dataclasses import dataclass, replace
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from exam.config import Generate, Model, ReaderKind, Retrieving, Task, Train
from exam.core.checkpoints import max_input_tokens
from exam.generation.clients import check_llm
from exam.pipelines.room import check_room
from exam.pipelines.workload import uses_encoder, uses_writer
from exam.readers.base import inspect_checkpoint, resolve_model
from exam.readers.multiple_choice.features import check_lengths
from exam.retrieval.encoder import inspect_encoder
from exam.retrieval.reranker import inspect_reranker


@dataclass(frozen=True)
class ReaderLimits:
    """The longest input of a reader, in tokens of its tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    longest: int

    def check(self, questions: Dataset) -> None:
        """Refuse a question whose prompt and longest option do not fit.

        Raises:
            ExamError: the first such question.
        """
        check_lengths(questions, self.tokenizer, self.longest)


def check_models(config: Retrieving | Generate) -> None:
    """Check the encoder, the reranker and the language model that a command loads.

    Raises:
        ExamError: a checkpoint cannot be loaded as configured.
    """
    if uses_encoder(config):
        inspect_encoder(config.encoder)
    if isinstance(config, Retrieving) and config.reranker.ckpt is not None:
        trains = isinstance(config, Train) and config.task is Task.reranker
        inspect_reranker(config.reranker, trained=not trains)
    if uses_writer(config):
        check_llm(config.generator.llm)


def check_reader(model: Model) -> ReaderLimits | None:
    """Check that a reader loads as configured; return its limits, or None for a random one.

    Raises:
        ExamError: the checkpoint cannot be loaded, or its files do not agree.
    """
    if model.checkpoint is None:
        return None
    network, tokenizer = inspect_checkpoint(model)
    length = max(model.length(training=training) for training in (True, False))
    longest = max_input_tokens(network, length)
    return ReaderLimits(tokenizer, longest) if model.kind is ReaderKind.transformer else None


def check_saved_reader(config: Train, saved: Path) -> ReaderLimits | None:
    """Check the reader that a run answers with: the saved one, or else the configured one.

    Raises:
        ExamError: it cannot be loaded, or does not fit in memory.
    """
    if config.model.kind is ReaderKind.lexical:
        return None
    model = resolve_model(config, saved)
    limits = check_reader(model)
    check_room(replace(config, model=model), answers=True)
    return limits
