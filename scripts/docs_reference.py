"""Generate the reference pages from the code: a hook of MkDocs, which mkdocs.yml names.

A page of `docs/` marks where a part goes with a comment such as `<!-- generated: commands -->`.
"""

import ast
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from mkdocs.exceptions import PluginError

from exam import cli
from exam.config import ROOTS
from exam.config.help import (
    PRESETS,
    Setting,
    list_groups,
    list_settings,
    option_comment,
    option_name,
    option_paths,
)
from exam.config.renamed import RENAMED
from exam.config.values import conf_dir

MARK = re.compile(r"^<!-- generated: (\w+)(?: (\S+))? -->$", re.MULTILINE)
ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "exam"
PRESET = "Each option sets values of other groups."
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
    parts, groups = ["## Settings of the commands"], dict[str, type | None]()
    for name, schema in ROOTS.items():
        groups |= {key: kind for key, kind in list_groups(name).items() if key not in groups}
        rows = list(map(_row, list_settings(schema, depth=0)))
        parts += [f"### {name}", _settings_table(rows), _default_options(name)]
    parts.append("## Groups")
    for name, group in groups.items():
        rows = list(map(_row, list_settings(group, f"{name}."))) if group else []
        summary = (group.__doc__ or "").partition("\n")[0] if group else PRESET
        parts += [f"### {name}", _escape(summary), _settings_table(rows), _options(name)]
    return "\n\n".join(filter(None, parts))


def renamed() -> str:
    """Return the old and new names of settings and options."""
    rows = [[f"`{old}`", f"`{new}`"] for old, new in sorted(RENAMED.items())]
    return _table(["old name", "new name"], rows)


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
    part.__name__: part for part in (commands, configuration, renamed, columns, document, modules)
}


def _row(setting: Setting) -> list[str]:
    default = f"`{setting.default}`" if setting.default else ""
    return [f"`{setting.key}`", setting.type, default, _escape(setting.help)]


def _default_options(command: str) -> str:
    """Return the option of each group that a command starts from."""
    defaults = yaml.safe_load((conf_dir() / f"{command}.yaml").read_text())["defaults"]
    chosen = [entry for entry in defaults if isinstance(entry, dict)]
    pairs = {key: value for entry in chosen for key, value in entry.items() if value}
    named = ", ".join(f"`{key}={value}`" for key, value in pairs.items() if key != "hydra")
    return f"Default options: {named}." if named else ""


def _options(group: str) -> str:
    """Return a group's options: what each is for, and what it sets."""
    rows = []
    for path in option_paths(group):
        settings = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if group not in PRESETS:
            settings |= settings.pop(group, {})  # of an option with `@package _global_`
        values = "" if group in PRESETS else _values(settings)
        rows.append([f"`{group}={option_name(path)}`", _comment(option_comment(path)), values])
    return _table(["option", "purpose", "sets"], rows)


def _comment(lines: list[str]) -> str:
    """Return the comment on top of an option's file; commands in it become code."""
    is_command = COMMAND_LINE.match
    parts = [f"<br>`{line.strip()}`<br>" if is_command(line) else _escape(line) for line in lines]
    return " ".join(parts).replace("<br> <br>", "<br>").removesuffix("<br>")


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
    return _table(["key", "type and range", "default", "meaning"], rows)


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
