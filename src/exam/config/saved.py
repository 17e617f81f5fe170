"""A run's configuration: saved in its folder, and restored for what is done with the run."""

import json
import logging
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    SafeLoader,
    YAMLError,
    parse,
)

from exam.config import ReaderKind, Restore, Task, Train
from exam.config.compose import GROUPS, typed
from exam.config.renamed import new_name
from exam.core.errors import ExamError
from exam.core.files import write_atomically

log = logging.getLogger(__name__)


CONFIG = "config.yaml"
TRAINED = (
    *("model.kind", "model.name_or_path", "model.architecture", "model.config"),
    *("model.overlap_features", "model.cross_option_bias"),
)
CODE = ("model", "encoder", "reranker")  # whose checkpoints may bring code of their own
NAMED = {"model": "name_or_path", "encoder": "name_or_path", "reranker": "ckpt"}
LARGEST, DEEPEST = 1_000_000, 50  # characters and levels; a run has thousands, and five
USES = {"reranker": "reranker.ckpt", "encoder": "encoder.name_or_path"}


def save_run(config: Train, path: Path) -> None:
    """Write a run's configuration: what `exam infer` restores."""
    with write_atomically(path) as temporary:
        OmegaConf.save(OmegaConf.structured(config), temporary)


def load_run(path: Path, own: Restore, *, log_changes: bool = True) -> Train:
    """A run's configuration with a command's own keys and `run.<key>=…` laid over it.

    Each change is logged, unless `log_changes` is false.

    Raises:
        ExamError: an override names no value of the run, or one of another type.
    """
    try:
        saved: Any = OmegaConf.merge(OmegaConf.structured(Train), _loaded(path))
        layout = saved.context.layout
        split = {key: saved.data[key] for key in ("fold", "folds", "cross_validate")}
        for name in GROUPS:
            if getattr(own, name) is not None:
                saved[name] = getattr(own, name)
        context = own.context if log_changes else None
        if context is not None and context.layout is not layout:
            log.warning(
                "context.layout=%s is given, and the run was trained with %s",
                context.layout.value,
                layout.value,
            )
        config: Any = OmegaConf.merge(saved, own.run)
        for group, key in NAMED.items():  # a commit is of the repository that was named with it
            if key in own.run.get(group, {}) and "revision" not in own.run[group]:
                config[group].revision = None
    except (OmegaConfBaseException, YAMLError) as error:
        raise _explain(error, path) from None
    _check_code(path, saved, own)
    for key in _dotted(own.run):
        _check_restored(key, saved)
        if log_changes:
            before, after = OmegaConf.select(saved, key), OmegaConf.select(config, key)
            log.info("run.%s: %s → %s", key, before, after)
    config.outputs, config.log_level, config.resume = own.outputs, own.log_level, "auto"
    config.offline = own.offline
    config.data.update(split)
    config.metric.k = own.metric.k or config.metric.k
    restored: Train = typed(config)
    if restored.task is not Task.reader:
        task = restored.task.value
        raise ExamError(
            f"{path.parent} is a run of task={task}: it answers no questions.\n"
            f"Use it to retrieve ({USES[task]}=<folder>), and give the run of a reader here."
        )
    return restored


def _explain(error: Exception, path: Path) -> ExamError:
    """Tell whether a run has a setting's old name, or an override names no value of the run."""
    key = getattr(error, "full_key", None) or ""
    if (name := new_name(key)) is not None:
        return ExamError(f"{path} sets {key}, which was renamed to {name}.\nTrain the run again.")
    return ExamError(
        f"run: {str(error).splitlines()[0]}\n"
        f"Override a value that {path} has, as run.<key>=<value>."
    )


def _loaded(path: Path) -> Any:
    """What `save_run` wrote, which refers to nothing: not to the environment, nor to itself.

    Raises:
        ExamError: it is no such file.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if (reason := _unlike(text)) is None:
            found = OmegaConf.create(text)
            texts = json.dumps(OmegaConf.to_container(found), ensure_ascii=False)
            texts.encode()  # no halves of surrogate pairs
            if "${" not in texts:  # however YAML has spelled it
                return found
            reason = "it holds an interpolation, ${…}"
    except (ValueError, TypeError, AttributeError, RecursionError, YAMLError) as error:
        reason = str(error).splitlines()[0]
    raise ExamError(
        f"{path} is not the configuration that was written: {reason}\n"
        "Give another run, or train it again."
    )


def _unlike(text: str) -> str | None:
    """How YAML differs from what is saved: reading it in full could take for ever."""
    if len(text) > LARGEST:
        return f"it has {len(text):,} characters"
    depth = 0
    for event in parse(text, SafeLoader):
        if isinstance(event, AliasEvent):
            return "it refers to itself by an alias"
        depth += isinstance(event, CollectionStartEvent)
        depth -= isinstance(event, CollectionEndEvent)
        if depth > DEEPEST:
            return f"it is nested more than {DEEPEST} deep"
    return None


def _check_code(path: Path, saved: Any, own: Restore) -> None:
    """Refuse to run a checkpoint's code because a run's folder says so: a person has to."""
    for group in CODE:
        given = own.run.get(group)
        said = isinstance(given, dict) and given.get("trust_remote_code") is True
        if getattr(own, group, None) is None and saved[group].trust_remote_code and not said:
            raise ExamError(
                f"{path} wants its checkpoint's own code to be run "
                f"({group}.trust_remote_code=true).\nWhere you have read it, and trust it, say "
                f"so: run.{group}.trust_remote_code=true\n"
                f"Beside training_pairs.reader, set {group}.trust_remote_code=true."
            )


def _check_restored(key: str, saved: Train) -> None:
    """Refuse overrides that a run's own weights or infer's own keys decide.

    A language model that answers as it is may lie elsewhere now; that it is the same is checked.
    """
    own = ("data", "outputs", "log_level", "resume", "offline", "launch", "name", "metric")
    if key.split(".", maxsplit=1)[0] in own:
        raise ExamError(f"run.{key} is the command's own.\nGive it as {key}=<value>, without run.")
    as_it_is = saved.model.kind is ReaderKind.causal_lm and saved.trainer.num_train_epochs == 0
    if key in TRAINED and not (as_it_is and key == "model.name_or_path"):
        raise ExamError(f"run.{key} is what the run trained.\nGive another run: ckpt=<folder>")


def _dotted(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the leaves of nested dictionaries."""
    return [
        name
        for key, value in values.items()
        for name in (
            _dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
        )
    ]
