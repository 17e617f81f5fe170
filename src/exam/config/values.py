"""Values that every group shares: fields with help and range, number formats, checkpoints."""

import operator
import os
import re
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from exam.core.errors import ExamError

LIMITS = {
    "minimum": ("at least", operator.ge),
    "above": ("above", operator.gt),
    "maximum": ("at most", operator.le),
    "below": ("below", operator.lt),
}


def conf_dir() -> Path:
    """Return the folder of YAML files: in the installed package, or beside `src` in a clone."""
    inside = Path(__file__).parents[1] / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[3] / "conf"


def setting(default: Any, text: str, *, choices: tuple[str, ...] = (), **limits: float) -> Any:
    """Declare a field: its default (or the function that makes it), its help, its range.

    Limits are inclusive (`minimum`, `maximum`) or exclusive (`above`, `below`). They hold for every
    item of a list; null is always allowed where the type allows it.
    """
    metadata = {"help": text, "choices": choices, "limits": limits}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def describe_range(metadata: Mapping[str, Any]) -> str:
    """Return a field's range or choices in words, such as `at least 1`; empty without any."""
    if metadata.get("choices"):
        return f"one of {', '.join(metadata['choices'])}"
    limits = metadata.get("limits", {})
    if {"minimum", "maximum"} <= limits.keys():
        return f"between {limits['minimum']} and {limits['maximum']}"
    return " and ".join(f"{LIMITS[name][0]} {limit}" for name, limit in limits.items())


def check_values(config: Any) -> None:
    """Check every field of nested dataclasses against its range, and call their `validate()`.

    Raises:
        ExamError: the first value out of range, or the first contradiction within a group.
    """
    for prefix, group in iter_groups(config):
        for spec in fields(group):
            value = getattr(group, spec.name)
            for item in value if isinstance(value, list) else [] if value is None else [value]:
                if not _is_allowed(item, spec.metadata):
                    limits = describe_range(spec.metadata)
                    raise ExamError(f"{prefix}{spec.name} must be {limits} (got {item}).")
        if hasattr(group, "validate"):
            group.validate()


def _is_allowed(value: Any, metadata: Mapping[str, Any]) -> bool:
    """Return whether a value is one of a field's choices and within its range."""
    limits = metadata.get("limits")
    if value == MISSING or not (limits or metadata.get("choices")):
        return True
    if not limits:
        return value in metadata["choices"]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and all(LIMITS[name][1](value, limit) for name, limit in limits.items())


def iter_groups(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every dataclass in nested values, with the prefix of its keys, from the outside in."""
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from iter_groups(item, f"{prefix.removesuffix('.')}[{i}].")
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from iter_groups(item, f"{prefix}{name}.")
    elif is_dataclass(value):
        yield prefix, value
        yield from iter_groups(vars(value), prefix)


def expand_home(value: Any) -> Any:
    """Return nested values in which `~` at the start of a text is the home folder."""
    if isinstance(value, str):
        return os.path.expanduser(value)  # noqa: PTH111 - Path would drop a trailing slash
    if isinstance(value, list):
        return [expand_home(item) for item in value]
    if isinstance(value, dict):
        return {name: expand_home(item) for name, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        expanded = copy(value)
        vars(expanded).update(expand_home(vars(value)))
        return expanded
    return value


def check_folder_name(key: str, name: str) -> None:
    """Refuse a name that no folder can have."""
    if not re.fullmatch(r"[\w.-]+", name):
        raise ExamError(
            f"{key} must be the name of a folder (got {name}).\n"
            "Use letters, digits, dots, dashes and underscores."
        )


def as_list(value: Any) -> list[str]:
    """One name, a list of names or nothing, as a list."""
    if value is None:
        return []
    return [str(v) for v in value] if isinstance(value, list) else [str(value)]


def to_dict(settings: Any) -> Any:
    """A dataclass's values as JSON can hold them, for keys."""
    if isinstance(settings, Enum):
        return settings.value
    if is_dataclass(settings):
        return {f.name: to_dict(getattr(settings, f.name)) for f in fields(settings)}
    if isinstance(settings, dict):
        return {name: to_dict(value) for name, value in settings.items()}
    if isinstance(settings, list):
        return [to_dict(value) for value in settings]
    return settings
