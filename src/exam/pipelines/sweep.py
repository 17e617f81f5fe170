"""Compare the jobs of a sweep (`-m`) in one table and one plot."""

from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from exam.config import DEFAULT_K
from exam.core.errors import ExamError, spell_command
from exam.core.files import digest, read_json, write_json
from exam.core.trainer import REPORT, RESULTS, TRAINING
from exam.evaluation.predictions import Predictions, align
from exam.evaluation.results import (
    PREDICTIONS,
    ScoredSystem,
    format_table,
    load_answers,
    pair_systems,
)
from exam.metrics import average_precision, find_metric, metric_name, metric_title, rank_options
from exam.report.charts import Chart, line_chart, score_chart, write_png
from exam.report.page import Page, write_page


def compare_jobs(jobs: list[dict[str, Any]]) -> str:
    """Write results.json, a report and a plot of the jobs; return the table.

    A job is the record of its settings (`values`) and of the folder of its results. Plot the scores
    over the setting that changes, if it is one number.
    """
    settings = [job["values"] for job in jobs]
    changing = [key for key in settings[0] if len({values.get(key) for values in settings}) > 1]
    rows = []
    for values, job in zip(settings, jobs, strict=True):
        results = Path(job["folder"]) / RESULTS
        reader = read_json(results)["rows"][-1]
        name = " ".join(f"{key}={values[key]}" for key in changing) or reader["system"]
        rows.append({**reader, "system": name, "results": str(results), "values": values})
    metrics = {str(find_metric(row)) for row in rows}
    if len(metrics) > 1:
        raise ExamError(
            f"The jobs are scored by {' and '.join(sorted(map(metric_title, metrics)))}.\n"
            f"Compare their runs by one: {spell_command('compare')} RUN_A RUN_B --k {DEFAULT_K}"
        )
    (metric,) = metrics
    rows = _sort_by_fold(rows)
    plot = f"{metric}.png"
    folder = Path(jobs[0]["folder"]).parents[1] / "sweeps" / digest(settings)[:8]
    figures = {"rows": rows, "paired": _pair_first(rows, metric)}
    if warnings := [text for row in rows for text in _read(row).get("warnings", [])]:
        figures["warnings"] = warnings
    write_json(folder / RESULTS, figures)
    plots = _plot(rows, changing, metric)
    write_png(plots[-1:], folder / plot)
    facts = [("jobs", str(len(rows))), ("changing", ", ".join(changing) or "nothing")]
    write_page(
        folder / REPORT, Page(f"sweep {folder.name}", facts, figures, plots, highlight_row=None)
    )
    return "\n".join(
        [format_table(figures), *(str(folder / name) for name in (RESULTS, plot, REPORT))]
    )


def _sort_by_fold(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add each job's score on the fold that chose its checkpoint, and sort by it, best first.

    The reported questions must not choose a setting. Jobs without such a fold come last.
    """
    scored = []
    for row in rows:
        results = Path(row["results"])
        training = results.with_name(TRAINING)
        best = read_json(training).get("best") if training.is_file() else None
        score = read_json(results).get("selection_score", best)
        scored.append(row if score is None else {**row, "selection_score": score})
    return sorted(scored, key=lambda row: -row.get("selection_score", -inf))


def _pair_first(rows: list[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """Return the paired differences of the first job from the others that have its questions."""
    answers = [_load_answers(row) for row in rows]
    k = 1 if metric == metric_name(1) else int(metric.rpartition("_")[2])
    results = _read(rows[0])
    groups = results.get("seeds", results).get("groups")
    pairs = []
    for row, other in zip(rows[1:], answers[1:], strict=True):
        numbers = {len(answers[0]), len(other)}
        if 0 in numbers or (len(numbers) > 1 and 1 not in numbers):
            continue  # of an earlier version, or of other seeds
        sources = [rows[0]["results"]] * len(answers[0]) + [row["results"]] * len(other)
        try:
            aligned = align([*answers[0], *other], sources)
        except ExamError:  # other questions
            continue
        if aligned[0].known is None:
            continue
        labels = np.array(aligned[0].known)
        precision = [average_precision(rank_options(p.logits), labels, k) for p in aligned]
        first, second = precision[: len(answers[0])], precision[len(answers[0]) :]
        clusters = None if groups is None else np.array(groups)
        pairs.append(
            pair_systems(
                ScoredSystem(rows[0]["system"], np.squeeze(first), k, clusters),
                ScoredSystem(row["system"], np.squeeze(second), k),
            )
        )
    return pairs


def _load_answers(row: dict[str, Any]) -> list[Predictions]:
    """Return the answers of a job's training, or of its training with each seed."""
    folder = Path(row["results"]).parent
    if (folder / PREDICTIONS).is_file():
        return [load_answers(folder)]
    runs = _read(row).get("seeds", {}).get("runs", [])
    return [load_answers(folder.parents[1] / run) for run in runs]


def _read(row: dict[str, Any]) -> dict[str, Any]:
    """Return a job's results."""
    results: dict[str, Any] = read_json(Path(row["results"]))
    return results


def _plot(rows: list[dict[str, Any]], changing: list[str], metric: str) -> list[Chart]:
    """Plot the metric of every job, and over the setting that changes, if it is one number."""
    plots = [score_chart(rows)]
    if len(changing) != 1:
        return plots
    (label,) = changing
    try:
        values = [float(row["values"][label]) for row in rows]
    except ValueError:
        return plots
    points = [
        {"at": value, "value": row[metric], "ci": row["ci"]}
        for value, row in sorted(zip(values, rows, strict=True), key=lambda pair: pair[0])
    ]
    title = metric_title(metric)
    line = line_chart(f"Over {label}", "", label, title, {title: points}, log=False)
    return [*plots, line]
