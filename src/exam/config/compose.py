"""Compose a configuration from `conf/` into a dataclass, and explain mistakes in it."""

import difflib
import logging
import re
import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields, is_dataclass, replace
from itertools import pairwise
from os import PathLike
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from exam.config import ROOTS
from exam.config.overrides import (
    complete_smoke,
    parses,
    prepare_override,
    spell_text,
    unquote_items,
)
from exam.config.renamed import check_renamed
from exam.config.training_args import TrainerFields
from exam.config.validate import validate
from exam.config.values import conf_dir, expand_home, iter_groups
from exam.core.errors import ExamError, spell_command

if TYPE_CHECKING:
    from hydra.errors import OverrideParseException

log = logging.getLogger(__name__)

GROUPS = ("data", "corpus", "retriever", "context", "reranker")  # they may replace the run's
FLAGS = {  # of Hydra
    *("--hydra-help", "--cfg", "-c", "--resolve", "--package", "-p", "--run", "-r"),
    *("--multirun", "-m", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"),
    *("--experimental-rerun", "--info", "-i", "-sc", "--shell-completion"),
}


def register() -> None:
    """Register the schemas with Hydra, under the names that `conf/*.yaml` start from.

    `${package:<folder>}` in a YAML file is a folder of this package.
    """
    from hydra.core.config_store import ConfigStore

    package = Path(__file__).parents[1]
    OmegaConf.register_new_resolver("package", lambda name: str(package / name), replace=True)

    store = ConfigStore.instance()
    for name, schema in ROOTS.items():
        store.store(name=f"{name}_schema", node=schema)


def to_dataclass(config: DictConfig) -> Any:
    """Convert a composed configuration to its dataclass, and validate it.

    Raises:
        ExamError: a mandatory setting has no value, or two settings contradict each other.
    """
    missing = sorted(k for k in OmegaConf.missing_keys(config) if not k.startswith("trainer."))
    if missing:
        raise ExamError(
            f"{missing[0]} has no value.\nSet it on the command line: {missing[0]}=<value>"
        )
    schema: Any = OmegaConf.get_type(config)
    settings = schema()
    for name, node in config.items():
        value: Any = node
        if name == "trainer":  # its fields may lack values
            value = TrainerFields()
            vars(value).update(OmegaConf.to_container(node))
        elif isinstance(node, Container):
            value = OmegaConf.to_object(node)
        setattr(settings, str(name), value)
    for prefix, group in iter_groups(settings):
        for name in vars(group).keys() - {field.name for field in fields(group)}:  # +<key>=…
            raise ExamError(f"{prefix}{name} is not a setting.\nLeave +{prefix}{name} out.")
    settings = expand_home(settings)
    validate(settings)
    return settings


def compose_config(command: str, *overrides: str) -> Any:
    """Compose a command's configuration as its command line does, with the same messages.

    Raises:
        ExamError: an override is not a setting of the command, or two contradict each other.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    register()
    words, folder = complete_smoke([*map(prepare_override, overrides)]), str(conf_dir())
    is_outside = not GlobalHydra.instance().is_initialized()  # of a command
    try:
        check_groups(command, words)
        with initialize_config_dir(folder, version_base="1.3") if is_outside else nullcontext():
            return to_dataclass(compose(command, words))
    except (HydraException, OmegaConfBaseException) as error:
        raise ExamError(explain(error, command)) from None


def compose_infer(
    run: str | PathLike[str], outputs: str | PathLike[str] | None, *overrides: str
) -> Any:
    """Compose `exam infer` for a run; `outputs` is by default the folder that holds the run.

    Raises:
        ExamError: an override is not a setting of `exam infer`.
    """
    folder = Path(run).expanduser().resolve()
    config = compose_config("infer", "ckpt=run", *overrides)
    outputs = folder.parents[1] if outputs is None else Path(outputs).expanduser()
    return replace(config, ckpt=str(folder), outputs=str(outputs))


def check_groups(command: str, overrides: Sequence[str]) -> None:
    """Refuse a setting of a group that comes from the run unless the override chooses an option.

    Raises:
        ExamError: the first such setting.
    """
    groups = {path.name for path in conf_dir().iterdir() if path.is_dir()}
    keys = [override.partition("=")[0].lstrip("+~") for override in overrides]
    optional = {field.name for field in fields(ROOTS[command]) if field.default is None}
    for key, override in zip(keys, overrides, strict=True):
        check_renamed(override)
        group, dot, _ = key.partition(".")
        if not group:
            raise ExamError(f"{override[:50]!r} has no key.\nWrite <group>.<key>=<value>")
        if not dot and group in groups:
            _check_option(group, override)
        if dot and group in optional and group not in keys:
            is_of_run = group in GROUPS and group != "data"
            alternative = f", or change the run's: run.{key}=<value>" if is_of_run else ""
            raise ExamError(
                f"{key} needs an option of {group}.\n"
                f"Choose one, {group}=<option> {key}=<value>{alternative}"
            )


def check_flags(command: str, arguments: list[str]) -> None:
    """Refuse a flag that Hydra does not know, such as `--model mpnet`.

    Raises:
        ExamError: the first such flag.
    """
    for word, follower in pairwise([*arguments, ""]):
        flag, equals, value = word.partition("=")
        if not word.startswith("-") or flag in FLAGS:
            continue
        is_switch = not equals and (not follower or follower.startswith("-") or "=" in follower)
        key = complete_key(flag.lstrip("-").replace("-", "_"), command)
        raise ExamError(
            f"{flag} is not an option of {spell_command(command)}.\n"
            f"Write settings without dashes: {key}={'true' if is_switch else value or follower}"
        )


def _check_option(group: str, override: str) -> None:
    """Refuse a number as the name of an option: Hydra reports it as a bug."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        return  # Hydra reports the position
    kinds = str | None if override.startswith("~") else str | list
    if not parsed.is_sweep_override() and not isinstance(parsed.value(), kinds):
        raise ExamError(
            f"{override.lstrip('+')} does not name an option of {group}.\n"
            f"Write {group}=<option>, or set a key: {group}.<key>=<value>"
        )


def mark_required(text: str, command: str) -> str:
    """Return a printed configuration that shows mandatory settings as required.

    Leave out the fields of the trainer that keep the defaults of transformers.
    """
    required = {f"{field.name}: ???" for field in fields(ROOTS[command])}
    lines = [line for line in text.splitlines() if line in required or not line.endswith(": ???")]
    return "\n".join(line.replace(": ???", ": null  # required") for line in lines).rstrip()


def explain(error: Exception, command: str) -> str:
    """Return one message for a configuration that Hydra refuses, with a remedy."""
    from hydra.errors import MissingConfigException, OverrideParseException

    text = str(error)
    cause = error.__cause__ or error.__context__
    detail = str(cause) if isinstance(cause, OmegaConfBaseException) else text
    if isinstance(error, OverrideParseException):
        return _explain_key(error, command)
    if several := re.match(r"Ambiguous value for argument '(.*?)=(.*)'\n1\.", text, re.DOTALL):
        return _explain_several(several[1].lstrip("+"), several[2])
    if isinstance(error, MissingConfigException):
        return _explain_option(text)
    unknown = re.search(r"Key '[^']+' (?:is )?not in .*?full_key: (\S+)", detail, re.DOTALL)
    if unknown := unknown or re.search(r"Could not override '([^']+)'", text):
        return unknown_key(unknown[1], command)
    if mistyped := re.search(r"^(.*)\n\s+full_key: (\S+)", detail):
        listing = f"{spell_command(command)} --cfg job"
        text = f"{mistyped[2]}: {mistyped[1]}\nSee its type and default with: {listing}"
    return text


def _explain_key(error: "OverrideParseException", command: str) -> str:
    """Explain an override whose key Hydra cannot read; `prepare_override` quotes its value."""
    key, equals, _ = error.override.partition("=")
    if equals and parses(f"{key}="):
        return (
            f"{error.override} cannot be read: the sweeper leaves quotes out.\n"
            "Use a name without special characters, or sweep without hydra/sweeper."
        )
    if equals:
        return unknown_key(key.lstrip("+~"), command)
    return f"{str(error).splitlines()[0]}\nWrite overrides as group=option or group.key=value"


def _explain_several(key: str, value: str) -> str:
    """Explain that only a sweep takes several values for an option or a setting."""
    if (conf_dir() / key).is_dir():
        return f"{key}={value} chooses several options.\nChoose one, or add -m to run with each."
    return (
        f"{key}={value} gives several values.\n"
        f"For a list, write {shlex.quote(f'{key}=[{value}]')}; for one text, "
        f"{spell_text(key, unquote_items(value))}; to run once with each, add -m."
    )


def _explain_option(text: str) -> str:
    """Name the options of a group that lacks one, and the nearest."""
    missing = re.search(r"Could not find '([^']+)/([^'/]+)'", text)
    options = re.findall(r"^\t(\S+)$", text, re.MULTILINE)
    if not missing or not options:
        return text
    group, name = missing[1], missing[2]
    near = difflib.get_close_matches(name, options, n=1)
    hint = f"Did you mean {group}={near[0]}? " if near else ""
    return (
        f"Unknown option {group}={name}.\n"
        f"{hint}Options: {', '.join(options)}. For other values, choose one and set "
        f"{group}.<key>=<value>"
    )


def unknown_key(key: str, command: str) -> str:
    """Name the setting that is nearest to an unknown one."""
    group, dot, last = key.rpartition(".")
    names = [name.rpartition(".") for name in known_keys(ROOTS[command])]
    siblings = sorted(name for parent, _, name in names if parent == group)
    near = [f"{group}{dot}{name}" for name in difflib.get_close_matches(last, siblings, n=1)]
    complete = complete_key(key, command)
    nearest = complete if complete != key else next(iter(near), None)
    hint = f"Did you mean {nearest}? " if nearest else ""
    program = spell_command(command)
    return f"{key} is not a setting of {program}.\n{hint}List all settings: {program} --cfg job"


def complete_key(name: str, command: str) -> str:
    """Put the group before a setting's name if a single group has it: `trainer.max_steps`."""
    keys = known_keys(ROOTS[command])
    complete = [key for key in keys if key.endswith(f".{name}") and key.count(".") == 1]
    return complete[0] if name not in keys and len(complete) == 1 else name


def known_keys(schema: Any, prefix: str = "") -> list[str]:
    """List the dotted names of every value of a schema, groups included."""
    hints = get_type_hints(schema)
    keys = []
    for field in fields(schema):
        name = f"{prefix}{field.name}"
        keys.append(name)
        if (group := group_of(hints[field.name])) is not None:
            keys += known_keys(group, f"{name}.")
    return keys


def group_of(kind: Any) -> type | None:
    """Return the dataclass that a setting of this type holds, optional or not."""
    kinds = [kind, *union_members(kind)]
    return next((k for k in kinds if isinstance(k, type) and is_dataclass(k)), None)


def union_members(kind: Any) -> tuple[Any, ...]:
    """Return the types of a union; of any other type none."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else ()
