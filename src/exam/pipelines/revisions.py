"""Pin a command's hub ids to commits, and fetch the checkpoints, without heavy imports."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from exam.config import (
    Checkpoint,
    Generate,
    GeneratorKind,
    Retrieving,
    Source,
    Task,
    Train,
)
from exam.core import distributed
from exam.core.checkpoints import fetch_checkpoint, hub_repository
from exam.core.hub import Repository, record_commit, resolve_commit

log = logging.getLogger(__name__)

Command = TypeVar("Command", bound=Retrieving | Generate)


def pin_revisions(config: Command) -> Command:
    """Pin each hub id of a configuration to its current commit.

    Rank 0 resolves the commits for all processes, and fetches the checkpoints' files.

    Raises:
        ExamError: a checkpoint or data set does not exist, lacks a file, or cannot be fetched.
    """
    commits: dict[str, str] = {}
    if distributed.rank() == 0:
        with distributed.release_on_failure():
            commits = _resolve_commits(config)
    commits = distributed.broadcast_from_rank0(commits)
    pinned: dict[str, Any] = {
        group: replace(getattr(config, group), revision=commit)
        for group, commit in commits.items()
        if group != "generator.llm"
    }
    if "generator.llm" in commits:
        writer = replace(config.generator.llm, revision=commits["generator.llm"])
        pinned["generator"] = replace(config.generator, llm=writer)
    return replace(config, **pinned)


def _resolve_commits(config: Retrieving | Generate) -> dict[str, str]:
    """Fetch the checkpoints; return the commit of each repository by its group."""
    checkpoints, commits = _checkpoints(config), dict[str, str]()
    for checkpoint in checkpoints:
        fetch_checkpoint(checkpoint)
    for group, repository in _repositories(config, checkpoints).items():
        commits[group] = resolve_commit(repository)
        if repository.kind == "dataset":
            record_commit(repository, commits[group])
        if repository.revision != commits[group]:
            log.info("%s: %s at commit %s", group, repository.name, commits[group])
    return commits


def uses_encoder(config: Retrieving | Generate) -> bool:
    """Tell whether a command encodes texts."""
    if isinstance(config, Generate):
        return config.generator.kind is GeneratorKind.rules
    data, generator = config.data, config.generator
    generates = data.uses_generated_questions and generator.kind is GeneratorKind.rules
    trains = isinstance(config, Train) and config.task is Task.encoder
    return config.retriever.encodes or generates or trains


def uses_writer(config: Retrieving | Generate) -> bool:
    """Tell whether a command has a language model write questions."""
    generates = isinstance(config, Generate) or config.data.uses_generated_questions
    return generates and config.generator.kind is GeneratorKind.llm


def _checkpoints(config: Retrieving | Generate) -> list[Checkpoint]:
    """List the checkpoints that a command loads."""
    checkpoints: list[Checkpoint | None] = []
    if isinstance(config, Train) and config.task is Task.reader:
        checkpoints.append(config.model.checkpoint)
    if uses_encoder(config):
        checkpoints.append(config.encoder.checkpoint)
    if isinstance(config, Retrieving):
        checkpoints.append(config.reranker.checkpoint)
    if uses_writer(config):
        checkpoints.append(config.generator.llm.checkpoint)
    return [checkpoint for checkpoint in checkpoints if checkpoint is not None]


def _repositories(
    config: Retrieving | Generate, checkpoints: list[Checkpoint]
) -> dict[str, Repository]:
    """Map configuration groups to the repositories that a command reads."""
    repositories = {checkpoint.group: hub_repository(checkpoint) for checkpoint in checkpoints}
    if isinstance(config, Retrieving) and config.data.source is Source.hub:
        name = config.data.hub
        if name is not None and not Path(name).exists():
            repositories["data"] = Repository(name, config.data.revision, "data.hub", "dataset")
    return {group: repo for group, repo in repositories.items() if repo is not None}
