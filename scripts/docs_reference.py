"""Generate the reference pages from the code: a hook of MkDocs, which mkdocs.yml names.

A page of `docs/` marks where a part goes with a comment such as `<!-- generated: commands -->`.
"""

import ast
import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import redirect_stdout, suppress
from enum import Enum
from io import StringIO
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from mkdocs.exceptions import PluginError
from omegaconf import MISSING

from exam import cli
from exam.config import ROOTS
from exam.config.compose import conf_dir
from exam.config.training_args import MANAGED, trainer_choices

MARK = re.compile(r"^<!-- generated: (\w+)(?: (\S+))? -->$", re.MULTILINE)
ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "exam"
LIMITS = {"minimum": "at least", "above": "above", "maximum": "at most", "below": "below"}
LONG = 8  # a default list with more values is not written out
OVERRIDING = ("experiment", "debug")  # groups whose options set values of other groups
TYPES: dict[Any, str] = {
    Any: "any",
    NoneType: "null",
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
}
NOT_SET = {f"trainer.{name}" for name in MANAGED}
TRAINER_CHOICES = {f"trainer.{name}": {"choices": c} for name, c in trainer_choices().items()}
YAML = {"None": "null", "True": "true", "False": "false"}
COMMAND_LINE = re.compile(r"(  |python |torchrun |exam )")  # how a comment gives one


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace every mark of a page; MkDocs calls this."""
    return MARK.sub(lambda mark: PARTS[mark[1]](*filter(None, [mark[2]])), markdown)


def commands() -> str:
    """Return the help of `exam` and of each command."""
    parts = [f"## exam {name}\n```\n{_help(name)}```" for name in cli.COMMANDS]
    return "\n\n".join([f"```\n{_help()}```", *parts])


def _help(*command: str) -> str:
    """Return the output of a command with `--help`."""
    output = StringIO()
    with redirect_stdout(output), suppress(SystemExit):
        cli.main([*command, "--help"])
    return output.getvalue()


def configuration() -> str:
    """Return the settings of every command and group, and the options of every group."""
    parts, groups = ["## Settings of the commands"], dict[str, type]()
    for name, schema in ROOTS.items():
        kinds = {field.name: _group(kind) for field, kind in _typed_fields(schema)}
        groups |= {key: kind for key, kind in kinds.items() if kind and key not in groups}
        rows = [row for key, *row in _settings(schema) if key.partition(".")[0] not in groups]
        parts += [f"### {name}", _settings_table(rows), _default_options(name)]
    parts.append("## Groups")
    for name, schema in groups.items():
        rows = [row for key, *row in _settings(schema, f"{name}.") if key != f"{name}.name"]
        summary = (schema.__doc__ or "").partition("\n")[0]
        parts += [f"### {name}", _escape(summary), _settings_table(rows), _options(name)]
    for name in OVERRIDING:
        parts += [f"### {name}", "Each option sets values of other groups.", _options(name)]
    return "\n\n".join(filter(None, parts))


def columns(reference: str) -> str:
    """Return the columns of the schema at `module:NAME`, each with the comment on its line."""
    module, _, name = reference.partition(":")
    path = SOURCE.parent / f"{module.replace('.', '/')}.py"
    source = path.read_text(encoding="utf-8") if path.is_file() else ""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            rows = _column_rows(node.value, source.splitlines())
            return _table(["column", "type", "content"], rows)
    raise PluginError(f"A page names {reference}, which does not exist.\nName the schema's module.")


def modules() -> str:
    """Return the first line of every module's docstring, package by package."""
    parts = []
    for package in sorted(path.parent for path in SOURCE.rglob("__init__.py")):
        docs = {path.name: _first_line(path) for path in sorted(package.glob("*.py"))}
        rows = [[f"`{name}`", _escape(line)] for name, line in docs.items() if line]
        name = ".".join(package.relative_to(SOURCE.parent).parts)
        parts += [f"### {name}", _table(["module", "content"], rows)]
    return "\n\n".join(parts)


def document(name: str) -> str:
    """Return a document of the repository; links to files outside `docs/` become plain text."""
    text = (ROOT / name).read_text(encoding="utf-8")
    text = re.sub(r"\]\(docs/", "](", text)
    return re.sub(r"\[([^\]]+)\]\((?!http|#)([^)]+)\)", _link_on_site, text)


def _link_on_site(link: re.Match[str]) -> str:
    return link[0] if (ROOT / "docs" / link[2].partition("#")[0]).is_file() else link[1]


PARTS: dict[str, Callable[..., str]] = {
    part.__name__: part for part in (commands, configuration, columns, document, modules)
}


def _typed_fields(schema: Any) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    """Yield a dataclass's fields with their types."""
    hints = get_type_hints(schema)
    yield from ((field, hints[field.name]) for field in dataclasses.fields(schema))


def _group(kind: Any) -> type | None:
    """Return the dataclass that a setting holds, optional or not."""
    kinds = [kind, *_members(kind)]
    return next((k for k in kinds if isinstance(k, type) and dataclasses.is_dataclass(k)), None)


def _members(kind: Any) -> tuple[Any, ...]:
    """Return the types of a union."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else ()


def _settings(schema: Any, prefix: str = "") -> Iterator[list[str]]:
    """Yield key, cell of the key, type, default and meaning of every setting below a dataclass."""
    for field, kind in _typed_fields(schema):
        key, group = f"{prefix}{field.name}", _group(kind)
        if group is not None:
            yield from _settings(group, f"{key}.")
        elif key not in NOT_SET:
            meaning = _escape(field.metadata.get("help", ""))
            metadata = {**field.metadata, **TRAINER_CHOICES.get(key, {})}
            yield [key, f"`{key}`", _type(kind, metadata), _default(field), meaning]


def _type(kind: Any, metadata: Mapping[str, Any]) -> str:
    """Return a setting's type and range in words."""
    choices = ", ".join(f"`{choice}`" for choice in metadata.get("choices", ()))
    limits = " and ".join(f"{word} {metadata[k]}" for k, word in LIMITS.items() if k in metadata)
    return "; ".join(filter(None, [_type_name(kind), choices, limits]))


def _type_name(kind: Any) -> str:
    """Return a type in the words of YAML."""
    if members := _members(kind):
        return " or ".join(map(_type_name, members))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(f"`{member.value}`" for member in kind)
    if get_origin(kind) is list:
        return f"list of {_type_name(get_args(kind)[0])}"
    if get_origin(kind) is dict:
        return f"mapping to {_type_name(get_args(kind)[1])}"
    return TYPES.get(kind, "mapping")


def _default(field: dataclasses.Field[Any]) -> str:
    """Return a setting's default as YAML; empty where an option or you must give it."""
    if "library_default" in field.metadata:  # of the trainer group: written in Python
        text = field.metadata["library_default"].strip("'")
        return f"`{YAML.get(text, text)}`" if text else ""
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value in (MISSING, dataclasses.MISSING):
        return ""
    if isinstance(value, list) and len(value) > LONG:
        return f"{len(value)} values"
    text = json.dumps(value, default=lambda item: item.value, ensure_ascii=False)
    return f"`{text.strip(chr(34)) or text}`"


def _default_options(command: str) -> str:
    """Return the option of each group that a command starts from."""
    defaults = yaml.safe_load((conf_dir() / f"{command}.yaml").read_text())["defaults"]
    chosen = [entry for entry in defaults if isinstance(entry, dict)]
    pairs = {key: value for entry in chosen for key, value in entry.items() if value}
    named = ", ".join(f"`{key}={value}`" for key, value in pairs.items() if key != "cli")
    return f"Default options: {named}." if named else ""


def _options(group: str) -> str:
    """Return a group's options: what each is for, and what it sets."""
    rows = []
    for path in sorted((conf_dir() / group).rglob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(conf_dir() / group).with_suffix("").as_posix()
        settings = yaml.safe_load(text) or {}
        settings |= settings.pop(group, {})  # an option with `@package _global_`
        values = "" if group in OVERRIDING else _values(settings)
        rows.append([f"`{group}={name}`", _comment(text), values])
    return _table(["option", "purpose", "sets"], rows)


def _comment(text: str) -> str:
    """Return the comment on top of an option's file; commands in it become code."""
    lines = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            break
        content = line.removeprefix("#").removeprefix(" ").rstrip()
        if COMMAND_LINE.match(content):
            lines.append(f"<br>`{content.strip()}`<br>")
        elif not content.startswith("@package"):
            lines.append(_escape(content))
    return " ".join(filter(None, lines)).replace("<br> <br>", "<br>").removesuffix("<br>")


def _values(settings: Any, prefix: str = "") -> str:
    """Return the values that an option sets as `key=value`."""
    parts = []
    for key, value in settings.items():
        if key == "defaults":
            parts += [f"`{entry}`," for entry in value if entry != "_self_"]
        elif isinstance(value, dict):
            parts.append(_values(value, f"{prefix}{key}."))
        elif key != "name" or prefix:
            parts.append(f"`{prefix}{key}={json.dumps(value, ensure_ascii=False)}`")
    return " ".join(filter(None, parts)).replace('="', "=").replace('"`', "`")


def _column_rows(schema: ast.expr, lines: list[str]) -> Iterator[list[str]]:
    """Yield name, type and comment of every column of a `pa.schema({…})`."""
    for node in ast.walk(schema):
        for key, kind in (
            zip(node.keys, node.values, strict=True) if isinstance(node, ast.Dict) else ()
        ):
            name = ast.unparse(key) if key else ""
            comment = lines[kind.lineno - 1].partition("  # ")[2]
            if not comment:
                raise PluginError(f"The column {name} has no comment.\nDescribe it on its line.")
            type_name = ast.unparse(kind).removeprefix("pa.").removesuffix("()")
            yield [f"`{name[1:-1]}`", type_name, _escape(comment)]


def _first_line(path: Path) -> str:
    """Return the first line of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


def _settings_table(rows: list[list[str]]) -> str:
    return _table(["key", "type", "default", "meaning"], rows)


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    """Return a Markdown table without its empty columns; empty without rows."""
    rows = list(rows)
    used = [i for i in range(len(head)) if any(row[i] for row in rows)]
    if not used:
        return ""
    lines = [[cell[i] for i in used] for cell in (head, ["---"] * len(head), *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escape(text: str) -> str:
    """Return text that Markdown shows as written, in a table too; backticks stay code."""
    parts = re.split(r"(`[^`]*`)", text)
    plain = re.compile(r"[<>|*_\[\]]")
    return "".join(p if p.startswith("`") else plain.sub(r"\\\g<0>", p) for p in parts)
