"""A page in one file that fetches nothing: charts, scores and questions."""

import base64
import gzip
import hashlib
import json
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from exam.core.files import write_atomically
from exam.metrics import find_metric, metric_title
from exam.report.charts import Chart


@dataclass(frozen=True)
class Page:
    """The content of a page. Every text is untrusted, and escaped."""

    title: str
    facts: list[tuple[str, str]]  # name and value, in a line each
    results: dict[str, Any]  # as in results.json: rows, paired, seconds, peak_mib, reused
    charts: list[Chart] = field(default_factory=list)
    questions: list[dict[str, Any]] = field(default_factory=list)  # see `run.question_rows`
    stopwords: list[str] = field(default_factory=list)  # words that are not marked in passages
    highlight_row: int | None = -1  # the headline; None: none


def write_page(path: Path, page: Page) -> None:
    """Write a page that opens from disk.

    The browser inflates the compressed data. A content policy allows only the scripts of the page,
    by their hashes, and no connection.
    """
    scripts = [*([_charts_script()] if page.charts else []), _text("report.js")]
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    rows = page.results.get("rows")
    metric = str(find_metric(rows[0])) if rows else ""
    html = load_template("report.html.jinja", escapes=True).render(
        page=page,
        scripts=scripts,
        style=_text("report.css"),
        policy=(
            f"default-src 'none'; script-src {hashes} 'unsafe-eval'; "  # Vega compiles expressions
            "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
        ),
        specs=_pack([chart["spec"] for chart in page.charts]),
        questions=_pack({"questions": page.questions, "stopwords": page.stopwords}),
        metric=metric,
        metric_title=metric_title(metric),
    )
    with write_atomically(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def _pack(value: Any) -> str:
    """Return compressed JSON in base64, which HTML cannot misread."""
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return base64.b64encode(gzip.compress(data, mtime=0)).decode()


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@cache
def _charts_script() -> str:
    """Return Vega, Vega-Lite and Vega-Embed in one script."""
    from vl_convert import javascript_bundle

    bundle: Any = javascript_bundle  # its stub requires an argument that the function does not
    script: str = bundle()
    return script.replace("</script", "<\\/script")


def _text(name: str) -> str:
    return files("exam.report").joinpath(name).read_text(encoding="utf-8")


@cache
def load_template(name: str, *, escapes: bool) -> Any:
    """Load a template of this package; `escapes` protects HTML from untrusted text."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=escapes,  # noqa: S701 - Markdown has none
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.from_string(_text(name))
