"""Save a run's configuration in its folder, and restore it for later commands."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import AliasEvent, CollectionEndEvent, CollectionStartEvent, YAMLError, parse

from exam.config import ReaderKind, Restore, Task, Train
from exam.config.compose import GROUPS, to_dataclass
from exam.config.renamed import new_name
from exam.core.errors import ExamError
from exam.core.files import write_atomically

log = logging.getLogger(__name__)

CONFIG = "config.yaml"
TRAINED = (
    *("model.kind", "model.name_or_path", "model.architecture", "model.config"),
    *("model.overlap_features", "model.cross_option_bias"),
)
# Groups whose checkpoints may bring code, and the key that names the checkpoint.
CHECKPOINTS = {"model": "name_or_path", "encoder": "name_or_path", "reranker": "ckpt"}
LARGEST, DEEPEST = 1_000_000, 50  # characters and levels; a run has thousands, and five


def save_run(config: Train, path: Path) -> None:
    """Write a run's configuration, which later commands restore."""
    with write_atomically(path) as temporary:
        OmegaConf.save(OmegaConf.structured(config), temporary)


def load_run(path: Path, command: Restore, *, log_changes: bool = True) -> Train:
    """Load a run's configuration, and apply a command's settings and `run.<key>=…`.

    Log each change, unless `log_changes` is false.

    Raises:
        ExamError: an override is not a setting of the run, or has another type.
    """
    try:
        saved: Any = OmegaConf.merge(OmegaConf.structured(Train), _read(path))
        if log_changes and command.context and command.context.layout is not saved.context.layout:
            log.warning(
                "context.layout=%s differs from %s, with which the run was trained",
                command.context.layout.value,
                saved.context.layout.value,
            )
        split = {key: saved.data[key] for key in ("fold", "folds", "cross_validate")}
        for name in GROUPS:
            if getattr(command, name) is not None:
                saved[name] = getattr(command, name)
        config: Any = OmegaConf.merge(saved, command.run)
        for group, key in CHECKPOINTS.items():  # a commit belongs to one repository
            if key in command.run.get(group, {}) and "revision" not in command.run[group]:
                config[group].revision = None
    except (OmegaConfBaseException, YAMLError) as error:
        raise _explain(error, path) from None
    _check_code(path, saved, command)
    for key in _dotted_keys(command.run):
        _check_restored(key, saved)
        if log_changes:
            before, after = OmegaConf.select(saved, key), OmegaConf.select(config, key)
            log.info("run.%s: %s → %s", key, before, after)
    config.outputs, config.log_level, config.resume = command.outputs, command.log_level, "auto"
    config.offline = command.offline
    config.data.update(split)
    config.metric.k = command.metric.k or config.metric.k
    restored: Train = to_dataclass(config)
    if restored.task is not Task.reader:
        task = restored.task.value
        raise ExamError(
            f"{path.parent} is a run of task={task}, which does not answer questions.\n"
            f"Use it to retrieve ({task}.{CHECKPOINTS[task]}=<folder>), and set the run of a "
            "reader here."
        )
    return restored


def _explain(error: Exception, path: Path) -> ExamError:
    """Explain that a run has a setting's old name, or that an override is not a setting of it."""
    key = getattr(error, "full_key", None) or ""
    if (name := new_name(key)) is not None:
        return ExamError(f"{path} sets {key}, which was renamed to {name}.\nTrain the run again.")
    return ExamError(
        f"run: {str(error).splitlines()[0]}\nOverride a setting of {path}: run.<key>=<value>"
    )


def _read(path: Path) -> Any:
    """Read a file that `save_run` wrote; refuse interpolations and aliases."""
    try:
        text = path.read_text(encoding="utf-8")
        if (reason := _find_fault(text)) is None:
            config = OmegaConf.create(text)
            texts = json.dumps(OmegaConf.to_container(config), ensure_ascii=False)
            texts.encode()  # no halves of surrogate pairs
            if "${" not in texts:  # in any of YAML's spellings
                return config
            reason = "it holds an interpolation, ${…}"
    except (ValueError, TypeError, AttributeError, RecursionError, YAMLError) as error:
        reason = str(error).splitlines()[0]
    raise ExamError(
        f"{path} is not a configuration that exam wrote: {reason}\n"
        "Use another run, or train it again."
    )


def _find_fault(text: str) -> str | None:
    """Describe how YAML differs from a saved configuration: hostile YAML takes long to read."""
    if len(text) > LARGEST:
        return f"it has {len(text):,} characters"
    depth = 0
    for event in parse(text):
        if isinstance(event, AliasEvent):
            return "it refers to itself by an alias"
        depth += isinstance(event, CollectionStartEvent)
        depth -= isinstance(event, CollectionEndEvent)
        if depth > DEEPEST:
            return f"it is nested more than {DEEPEST} deep"
    return None


def _check_code(path: Path, saved: Any, command: Restore) -> None:
    """Refuse a checkpoint's code that only the run's folder allows: you must allow it again."""
    for group in CHECKPOINTS:
        override = command.run.get(group)
        is_allowed = isinstance(override, dict) and override.get("trust_remote_code") is True
        is_saved = getattr(command, group, None) is None and saved[group].trust_remote_code
        if is_saved and not is_allowed:
            raise ExamError(
                f"{path} runs code that comes with its checkpoint "
                f"({group}.trust_remote_code=true).\nRead that code. If you trust it, set "
                f"run.{group}.trust_remote_code=true\n"
                f"Beside training_pairs.reader, set {group}.trust_remote_code=true"
            )


def _check_restored(key: str, saved: Train) -> None:
    """Refuse overrides of settings that the weights fix, or that belong to the command."""
    commands = ("data", "outputs", "log_level", "resume", "offline", "launch", "name", "metric")
    if key.split(".", maxsplit=1)[0] in commands:
        raise ExamError(f"run.{key} belongs to the command.\nSet {key}=<value>, without run.")
    # An untrained language model may lie in another folder now; its fingerprint is checked.
    is_untrained = saved.model.kind is ReaderKind.causal_lm and saved.trainer.num_train_epochs == 0
    if key in TRAINED and not (is_untrained and key == "model.name_or_path"):
        raise ExamError(f"run.{key} is fixed by training.\nChoose another run: ckpt=<folder>")


def _dotted_keys(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of the leaves of nested dictionaries."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _dotted_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
