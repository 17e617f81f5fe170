"""What several jobs of one command (`-m`) found: one table and one plot."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exam.config import DEFAULT_K
from exam.core.errors import ExamError, spell_command
from exam.core.files import digest, read_json, write_json
from exam.core.trainer import REPORT, RESULTS
from exam.evaluation.results import format_table
from exam.metrics import find_metric, metric_title
from exam.report import charts
from exam.report.charts import Chart, write_png
from exam.report.page import Page, write_page


@dataclass(frozen=True)
class Job:
    """A finished job: the values it was started with, and its results.json."""

    values: dict[str, str]
    results: Path


def compare_jobs(jobs: list[Job]) -> str:
    """Write `results.json` and a plot of the jobs, and return the table.

    A plot over the one value that changes where it is a number, else one point for each job.
    """
    changing = [key for key in jobs[0].values if len({job.values.get(key) for job in jobs}) > 1]
    rows = []
    for job in jobs:
        reader = read_json(job.results)["rows"][-1]
        name = " ".join(f"{key}={job.values[key]}" for key in changing) or reader["system"]
        rows.append({**reader, "system": name, "results": str(job.results), "values": job.values})
    metrics = {str(find_metric(row)) for row in rows}
    if len(metrics) > 1:
        raise ExamError(
            f"The jobs are scored by {' and '.join(sorted(map(metric_title, metrics)))}.\n"
            f"Compare their runs by one: {spell_command('compare')} RUN_A RUN_B --k {DEFAULT_K}"
        )
    (metric,) = metrics
    plot = f"{metric}.png"
    folder = jobs[0].results.parents[2] / "sweeps" / digest([job.values for job in jobs])[:8]
    found = {"rows": rows, "paired": []}
    write_json(folder / RESULTS, found)
    made = _charts(rows, changing, metric)
    write_png(made[-1:], folder / plot)
    facts = [("jobs", str(len(rows))), ("changing", ", ".join(changing) or "nothing")]
    write_page(
        folder / REPORT, Page(f"sweep {folder.name}", facts, found, made, highlight_row=None)
    )
    files = (RESULTS, plot, REPORT)
    return "\n".join([format_table(found), *(str(folder / name) for name in files)])


def _charts(rows: list[dict[str, Any]], changing: list[str], metric: str) -> list[Chart]:
    """The metric of every job, and over the value that changes, where it is one number."""
    places, label = _places(rows, changing)
    made = [charts.score_chart(rows)]
    if label is not None:
        points = [
            {"at": place, "value": row[metric], "ci": row["ci"]}
            for place, row in sorted(zip(places, rows, strict=True), key=lambda pair: pair[0])
        ]
        title = metric_title(metric)
        made.append(
            charts.line_chart(f"Over {label}", "", label, title, {title: points}, log=False)
        )
    return made


def _places(rows: list[dict[str, Any]], changing: list[str]) -> tuple[list[float], str | None]:
    """Where each row stands: at the value that changes, where it is one number, else in order."""
    if len(changing) == 1:
        try:
            return [float(row["values"][changing[0]]) for row in rows], changing[0]
        except ValueError:
            pass
    return [float(place) for place in range(len(rows))], None
