"""The pages of a comparison: of runs, or of contexts."""

from pathlib import Path
from typing import Any

from exam.evaluation.predictions import Predictions
from exam.evaluation.results import BLIND
from exam.evaluation.retrieval import MAP
from exam.report import charts
from exam.report.charts import Chart
from exam.report.page import Page, write_page


def write_compared(path: Path, figures: dict[str, Any], found: list[Predictions]) -> None:
    """Runs beside each other: scores, calibration, accuracy by letter."""
    made = [charts.systems(figures["rows"])]
    for name, own in figures["statistics"].items():
        made.append(charts.calibration(own["reliability"], own["ece"]) | {"title": name})
    facts = [("runs", str(len(found))), ("questions", str(len(found[0].ids)))]
    write_page(path, Page("comparison of runs", facts, figures, made, own=BLIND))


def write_contexts(path: Path, figures: dict[str, Any], title: str) -> None:
    """Contexts, alone or beside each other: recall and reader-free MAP@3 over depth."""
    scored = [row for row in figures["rows"] if MAP in row]
    made = [charts.systems(scored)] if scored else []
    made += over_depth(figures.get("curves", {}))
    results = {**figures, "rows": scored, "paired": []}
    facts = [("contexts", str(len(figures["rows"])))]
    write_page(path, Page(title, facts, results, made, own=0))


def over_depth(found: dict[str, Any]) -> list[Chart]:
    """Recall and reader-free MAP@3 over the number of passages, a line for each contexts."""
    made = []
    for metric, name, note, unit in (
        ("recall", "Recall over depth", "Whether the question's own article is there.", "recall"),
        (MAP, "Reader-free MAP@3 over depth", "By the words that options share.", "MAP@3"),
    ):
        lines = {
            system: [{"at": p["depth"], **p} for p in own[metric]]
            for system, own in found.items()
            if own[metric]
        }
        if lines:
            made.append(charts.over(name, note, "passages", unit, lines, log=True))
    return made
