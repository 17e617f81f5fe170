"""Describe the settings and options of a command, for `--help` and the reference pages."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, fields
from enum import Enum
from pathlib import Path
from textwrap import fill
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import MISSING

from exam.config import ROOTS
from exam.config.compose import complete_key, group_of, union_members, unknown_key
from exam.config.training_args import MANAGED, TrainerFields
from exam.config.values import conf_dir, describe_range
from exam.core.errors import ExamError, spell_command

PRESETS = ("task", "experiment", "debug")  # groups whose options set values of other groups
PUBLISHED = "published"  # folder of the options that reproduce one published system each
MAX_VALUES = 8  # of a default list that is written out
WIDTH = 100
TYPES: dict[Any, str] = {
    Any: "any",
    NoneType: "null",
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
}
YAML = {"None": "null", "True": "true", "False": "false"}
HELP = """\
{command}: {summary}

  {command} group=option group.key=value

Groups and their options:
{groups}

Settings:
{settings}

Keys and options of a group:  {command} --help {group}
Every value and its default:  {command} --cfg job
Several runs:                 {command} -m {sweep}
Completion by the shell:      eval "$(exam -sc install=bash)"

Options that reproduce one published system are named group=published/option."""
SWEEPS = {  # an example for each command
    "train": "context.num_passages=0,3,5",
    "retrieve": "retriever=bm25,two_stage",
    "infer": "ckpt=RUN run.context.num_passages=1,3,5",
    "stress": "ckpt=RUN_A,RUN_B",
    "generate": "generator.seed=0,1",
    "bundle": "ckpt=RUN out=bundle_a,bundle_b",
}


@dataclass(frozen=True)
class Setting:
    """A key of the configuration in words; `default` is empty where an option or you give it."""

    key: str
    type: str
    default: str
    help: str


def help_text(command: str, summary: str, topics: list[str]) -> str:
    """Return the help of a command, or of the groups and keys that `topics` names.

    Hydra's own help takes two seconds.

    Raises:
        ExamError: a topic is neither a group nor a key of the command.
    """
    if topics:
        return "\n\n".join(_topic_help(command, topic) for topic in topics)
    kinds = list_groups(command)
    groups = [
        _wrap(f"{name:<15}{', '.join(_option_names(name)) or 'keys only'}", hanging=17)
        for name in sorted(kinds)
    ]
    settings = [_describe(setting) for setting in list_settings(ROOTS[command], depth=0)]
    return HELP.format(
        command=spell_command(command),
        summary=summary,
        groups="\n".join(groups),
        settings="\n".join(settings),
        group="model" if "model" in kinds else "corpus",
        sweep=SWEEPS[command],
    )


def list_groups(command: str) -> dict[str, type | None]:
    """Return the groups of a command with their schemas; None for groups of presets."""
    hints = get_type_hints(ROOTS[command])
    kinds = {name: group_of(kind) for name, kind in hints.items()}
    presets = PRESETS if command == "train" else ()
    return {name: kind for name, kind in kinds.items() if kind} | dict.fromkeys(presets)


def list_settings(schema: Any, prefix: str = "", depth: int = 9) -> Iterator[Setting]:
    """Yield the settings of a dataclass, and those of its groups down to a depth."""
    hints = get_type_hints(schema)
    for field in fields(schema):
        key, kind = f"{prefix}{field.name}", hints[field.name]
        if (group := group_of(kind)) is not None:
            if depth:
                yield from list_settings(group, f"{key}.", depth - 1)
        elif not (prefix and field.name == "name") and key.removeprefix("trainer.") not in (
            MANAGED if schema is TrainerFields else ()
        ):
            text = field.metadata["help"]
            yield Setting(key, _type(kind, field.metadata), _default(field), text)


def option_paths(group: str) -> list[Path]:
    """List the files of a group's options; those of published systems come last."""
    folder = conf_dir() / group
    return [*sorted(folder.glob("*.yaml")), *sorted(folder.glob(f"{PUBLISHED}/*.yaml"))]


def option_comment(path: Path) -> list[str]:
    """Return the lines of the comment on top of an option's file."""
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" ").rstrip())
    return [line for line in lines if line and not line.startswith("@package")]


def option_name(path: Path) -> str:
    """Return an option's name on the command line: `bm25`, `published/stem_1k`."""
    return f"{PUBLISHED}/{path.stem}" if path.parent.name == PUBLISHED else path.stem


def _topic_help(command: str, topic: str) -> str:
    """Describe a group with its options and keys, or one key."""
    groups, key = list_groups(command), complete_key(topic, command)
    paths = option_paths(topic) if topic in groups else []
    options = [
        _wrap(f"{topic}={option_name(path)}  {' '.join(option_comment(path)[:1])}", hanging=6)
        for path in paths
    ]
    settings = [
        _describe(setting)
        for setting in list_settings(ROOTS[command])
        if setting.key == key or setting.key.startswith(f"{topic}.")
    ]
    if not options and not settings:
        raise ExamError(unknown_key(topic, command))
    schema = groups.get(topic)
    summary = [(schema.__doc__ or "").partition("\n")[0]] if schema else []
    parts = [*summary, "\n".join(options), "\n".join(settings)]
    return "\n\n".join(filter(None, parts))


def _option_names(group: str) -> list[str]:
    return [path.stem for path in option_paths(group) if path.parent.name != PUBLISHED]


def _describe(setting: Setting) -> str:
    """Return a setting's key, type, range and default on one line, and its help below."""
    default = f"; default {setting.default}" if setting.default else ""
    head = _wrap(f"{setting.key}: {setting.type}{default}", hanging=6)
    return f"{head}\n{_wrap(setting.help, hanging=6, first=6)}"


def _wrap(text: str, *, hanging: int, first: int = 2) -> str:
    return fill(text, WIDTH, initial_indent=" " * first, subsequent_indent=" " * hanging)


def _type(kind: Any, metadata: Mapping[str, Any]) -> str:
    """Return a setting's type and range in words, such as `integer or null, at least 1`."""
    limits = describe_range(metadata)
    if metadata.get("choices"):
        return limits
    kinds = [k for k in (kind, *union_members(kind)) if isinstance(k, type)]
    prefix = "one of " if any(issubclass(k, Enum) for k in kinds) else ""
    return prefix + ", ".join(filter(None, (_type_name(kind), limits)))


def _type_name(kind: Any) -> str:
    """Return a type in the words of YAML."""
    if members := union_members(kind):
        return " or ".join(map(_type_name, members))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(str(member.value) for member in kind)
    if get_origin(kind) is list:
        return f"list of {_type_name(get_args(kind)[0])}"
    if get_origin(kind) is dict:
        return f"mapping to {_type_name(get_args(kind)[1])}"
    return TYPES.get(kind, "mapping")


def _default(field: Field[Any]) -> str:
    """Return a setting's default as YAML; empty where an option or you must give it."""
    if "library_default" in field.metadata:  # of the trainer group: written in Python
        text = str(field.metadata["library_default"]).strip("'")
        return YAML.get(text, text)
    value = field.default if field.default_factory is NO_DEFAULT else field.default_factory()
    if value in (MISSING, NO_DEFAULT):
        return ""
    if isinstance(value, list) and len(value) > MAX_VALUES:
        return f"{len(value)} values"
    text = json.dumps(value, default=lambda item: item.value, ensure_ascii=False)
    return text.strip('"') or text
