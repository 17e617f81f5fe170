"""Check, before any work, everything that a command will load; pin hub ids to their commits."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from exam import ranks
from exam.answering import inspect, saved_model
from exam.checkpoints import hub_repository
from exam.config import (
    Checkpoint,
    Data,
    Generate,
    GeneratorKind,
    Model,
    ReaderKind,
    RetrieverKind,
    Retrieving,
    Source,
    Task,
    Train,
)
from exam.generation.questions import is_asked_for
from exam.generation.writers import check_writer
from exam.hub import Repository, resolve_commit
from exam.loading import longest_input
from exam.reader.features import check_lengths
from exam.retrieval.encoder import inspect_encoder
from exam.retrieval.rerank import inspect_reranker

log = logging.getLogger(__name__)

Command = TypeVar("Command", bound=Retrieving | Generate)


@dataclass(frozen=True)
class ReaderLimits:
    """The longest input of a reader, in tokens of its tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    longest: int

    def check(self, questions: Dataset) -> None:
        """Refuse a question of which prompt and one option alone are longer.

        Raises:
            ExamError: the first such question.
        """
        check_lengths(questions, self.tokenizer, self.longest)


def prepare(config: Command) -> Command:
    """Return a configuration with its hub ids pinned to commits; encoder and reranker can load.

    Raises:
        ExamError: a checkpoint or data set cannot be loaded as configured.
    """
    pinned = pin_revisions(config)
    if uses_encoder(pinned):
        inspect_encoder(pinned.encoder)
    if isinstance(pinned, Retrieving) and pinned.reranker.ckpt is not None:
        trains = isinstance(pinned, Train) and pinned.task is Task.reranker
        inspect_reranker(pinned.reranker, trained=not trains)
    if _writes(pinned):
        check_writer(pinned.generator.writer)
    return pinned


def check_reader(model: Model) -> ReaderLimits | None:
    """Return the limits of a reader that can load as configured; None for a random one.

    Raises:
        ExamError: the checkpoint cannot be loaded, or its files do not agree.
    """
    if model.checkpoint is None:
        return None
    network, tokenizer = inspect(model)
    length = max(model.length(training=training) for training in (True, False))
    longest = longest_input(network, length)
    return ReaderLimits(tokenizer, longest) if model.kind is ReaderKind.transformer else None


def check_saved_reader(config: Train, saved: Path) -> ReaderLimits | None:
    """`check_reader` of the reader that a run saved in a folder, or that it answers with.

    Raises:
        ExamError: it cannot be loaded.
    """
    if config.model.kind is ReaderKind.lexical:
        return None
    return check_reader(saved_model(config, saved))


def uses_encoder(config: Retrieving | Generate) -> bool:
    """Tell whether a command encodes texts."""
    if isinstance(config, Generate):
        return config.generator.kind is GeneratorKind.rules
    searches = (config.retriever, *config.retriever.members.values())
    encodes = {search.kind for search in searches} & {
        RetrieverKind.two_stage,
        RetrieverKind.passages,
    }
    generates = is_asked_for(config.data) and config.generator.kind is GeneratorKind.rules
    trains = isinstance(config, Train) and config.task is Task.encoder
    return bool(encodes) or generates or trains


def _writes(config: Retrieving | Generate) -> bool:
    """Tell whether a command has a language model write questions."""
    asks = isinstance(config, Generate) or is_asked_for(config.data)
    return asks and config.generator.kind is GeneratorKind.llm


def pin_revisions(config: Command) -> Command:
    """Return a configuration whose hub ids carry the commit that their revision names now.

    All processes pin the commits that rank 0 resolved.
    """
    groups = _repositories(config)
    commits: dict[str, str] = {}
    if ranks.rank() == 0:
        commits = {group: resolve_commit(repository) for group, repository in groups.items()}
        for group, commit in commits.items():
            log.info("%s: %s at commit %s", group, groups[group].name, commit)
    commits = ranks.told(commits)
    pinned: dict[str, Any] = {
        group: replace(getattr(config, group), revision=commit)
        for group, commit in commits.items()
        if group != "generator.writer"
    }
    if "generator.writer" in commits:
        writer = replace(config.generator.writer, revision=commits["generator.writer"])
        pinned["generator"] = replace(config.generator, writer=writer)
    return replace(config, **pinned)


def _repositories(config: Retrieving | Generate) -> dict[str, Repository]:
    """Return the repositories that a command reads, by configuration group."""
    checkpoints: list[Checkpoint | None] = []
    if isinstance(config, Train) and config.task is Task.reader:
        checkpoints.append(config.model.checkpoint)
    if uses_encoder(config):
        checkpoints.append(config.encoder.checkpoint)
    if isinstance(config, Retrieving):
        checkpoints.append(config.reranker.checkpoint)
    if _writes(config):
        checkpoints.append(config.generator.writer.checkpoint)
    repositories = {c.group: hub_repository(c) for c in checkpoints if c is not None}
    if isinstance(config, Retrieving):
        repositories["data"] = _data_repository(config.data)
    return {group: one for group, one in repositories.items() if one is not None}


def _data_repository(data: Data) -> Repository | None:
    if data.source is not Source.hub or data.hub is None or Path(data.hub).exists():
        return None
    return Repository(data.hub, data.revision, "data.hub", "dataset")
