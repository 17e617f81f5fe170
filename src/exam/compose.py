"""Compose a configuration from `conf/`, and make a dataclass of it."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import Container, DictConfig, OmegaConf

from exam.checks import check
from exam.config import ROOTS
from exam.config.trainer import TrainerFields
from exam.errors import ExamError

log = logging.getLogger(__name__)

GROUPS = ("data", "corpus", "retriever", "context", "reranker")  # that may replace a run's own


def register() -> None:
    """Make the schemas known to Hydra under the names that `conf/*.yaml` start from."""
    store = ConfigStore.instance()
    for name, schema in ROOTS.items():
        store.store(name=f"{name}_schema", node=schema)


def conf_dir() -> Path:
    """The folder of YAML files: inside the installed package, or beside `src` in a clone."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "conf"


def typed(config: DictConfig) -> Any:
    """The dataclass of a composed configuration, checked.

    Raises:
        ExamError: a mandatory value is missing, or two values contradict each other.
    """
    missing = sorted(k for k in OmegaConf.missing_keys(config) if not k.startswith("trainer."))
    if missing:
        raise ExamError(
            f"{missing[0]} has no value.\nGive it on the command line: {missing[0]}=<value>"
        )
    values = {
        str(name): OmegaConf.to_object(node) if isinstance(node, Container) else node
        for name, node in config.items()
        if name != "trainer"
    }
    if "trainer" in config:
        trainer: Any = OmegaConf.to_container(config.trainer)
        values["trainer"] = TrainerFields(**trainer)
    schema: Any = OmegaConf.get_type(config)
    known = {field.name for field in fields(schema)}
    value = schema(**{name: own for name, own in values.items() if name in known})
    for name in [*(values.keys() - known), *_unknown(value)]:
        raise ExamError(f"{name} is not a value of the configuration.\nLeave +{name} out.")
    check(value)
    return value


def _unknown(value: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of what was added (+<key>=…) to a group that has no such value."""
    if is_dataclass(value):
        known = {field.name for field in fields(value)}
        yield from (f"{prefix}{name}" for name in vars(value).keys() - known)
    own = vars(value) if is_dataclass(value) else value
    for name, inner in own.items() if isinstance(own, dict) else ():
        yield from _unknown(inner, f"{prefix}{name}.")


def composed(verb: str, *overrides: str) -> Any:
    """A verb's configuration as its command line would compose it."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    register()
    check_groups(verb, overrides)
    if GlobalHydra.instance().is_initialized():  # inside a verb
        return typed(compose(verb, list(overrides)))
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return typed(compose(verb, list(overrides)))


def check_groups(verb: str, overrides: Sequence[str]) -> None:
    """Refuse a value of a group that a command leaves to the run, and that is not chosen.

    Raises:
        ExamError: the first such value.
    """
    groups = {path.name for path in conf_dir().iterdir() if path.is_dir()}
    given = [override.partition("=")[0].lstrip("+~") for override in overrides]
    optional = {field.name for field in fields(ROOTS[verb]) if field.default is None}
    for key, override in zip(given, overrides, strict=True):
        group, dot, _ = key.partition(".")
        if not group:
            raise ExamError(f"{override[:50]!r} names no value.\nWrite <group>.<key>=<value>.")
        if not dot and group in groups:
            _check_option(group, override)
        if dot and group in optional and group not in given:
            of_run = group in GROUPS and group != "data"
            also = f", or change the run's: run.{key}=<value>" if of_run else ""
            raise ExamError(
                f"{key} is given, and no {group}.\n"
                f"Choose the option too, {group}=<option> {key}=<value>{also}."
            )


def _check_option(group: str, override: str) -> None:
    """Refuse a number where an option's name is to stand, which Hydra takes for a bug."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        return  # Hydra says where
    named = str | None if override.startswith("~") else str | list
    if not parsed.is_sweep_override() and not isinstance(parsed.value(), named):
        raise ExamError(
            f"{override.lstrip('+')} is no option of {group}.\n"
            "Give its name; a value of it is given as <group>.<key>=<value>."
        )


def with_prefix(override: str) -> str:
    """An override as Hydra reads it, with new keys of the values that are dictionaries."""
    new = ("run.", "data.columns.", "retriever.weights.")
    return f"++{override}" if override.startswith(new) else override
