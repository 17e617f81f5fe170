"""Write src/exam/trainer_fields.py from the installed transformers."""

import dataclasses
import types
import typing
from enum import Enum
from pathlib import Path

TARGET = Path(__file__).parents[1] / "src" / "exam" / "trainer_fields.py"
SIMPLE = {int: "int", float: "float", bool: "bool", str: "str"}


def field_type(annotation: object) -> tuple[str, tuple[str, ...]]:
    """The schema's type and the allowed values of one TrainingArguments annotation."""
    members = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    optional = type(None) in members
    members = tuple(m for m in members if m is not type(None))
    enums = [m for m in members if isinstance(m, type) and issubclass(m, Enum)]
    if enums and all(m is str or m in enums for m in members):
        return "str", tuple(str(item.value) for item in enums[0])
    if len(members) == 1 and members[0] in SIMPLE:
        name = SIMPLE[members[0]]
        return (f"{name} | None" if optional else name), ()
    return "Any", ()


def _is_union(annotation: object) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def render() -> str:
    """The module's whole text."""
    from transformers import TrainingArguments

    hints = typing.get_type_hints(TrainingArguments)
    fields, choices = [], []
    for field in dataclasses.fields(TrainingArguments):
        if not field.init:
            continue
        kind, allowed = field_type(hints[field.name])
        fields.append(f"    {field.name}: {kind} = MISSING")
        if allowed:
            values = "".join(f'        "{value}",\n' for value in allowed)
            choices.append(f'    "{field.name}": (\n{values}    ),')
    return TEMPLATE.format(fields="\n".join(fields), choices="\n".join(choices))


TEMPLATE = '''"""All fields of transformers.TrainingArguments; written by scripts/trainer_fields.py.

A configuration is checked against this table before torch and transformers are imported.
Fields left at MISSING are not passed on, so the library's own defaults apply.
"""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING


@dataclass
class TrainerFields:
    """The `trainer` group: transformers.TrainingArguments' own names and types."""

{fields}


CHOICES: dict[str, tuple[str, ...]] = {{
{choices}
}}
'''


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
