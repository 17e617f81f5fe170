"""`exam compare A B …`: compare runs, or contexts, in pairs on the same questions."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from exam.config import DEFAULT_K
from exam.core.artifacts import Stage, load_stage
from exam.core.errors import ExamError, spell_command
from exam.core.files import digest, write_json
from exam.evaluation.calibration import count_questions_needed, summarize_predictions
from exam.evaluation.predictions import align
from exam.evaluation.results import (
    NON_READING,
    Evaluation,
    Run,
    build_results,
    check_k,
    choose_k,
    format_table,
    list_warnings,
    load_answers,
    non_reading_baselines,
    read_groups,
    read_k,
    score_logits,
)
from exam.evaluation.retrieval import (
    compare_contexts,
    format_retrieval_table,
    rank_contexts,
)
from exam.metrics import find_metric
from exam.report import charts
from exam.report.charts import compare_calibration, write_png
from exam.report.page import Page, write_page
from exam.retrieval.contexts import FILE, QUESTIONS


def compare_folders(
    folders: list[Path], fit_on: list[Path], target: Path | None, k: int | None = None
) -> str:
    """Compare runs, or contexts, and return the printed table.

    Raises:
        ExamError: a folder is unfinished, or the folders hold different questions.
    """
    if fit_on or (folders[0] / FILE).is_file():
        return compare_context_folders(folders, fit_on, target, k or DEFAULT_K)
    paths = [folder.resolve() for folder in folders]
    name = digest([*(path.name for path in paths), *([k] if k else [])])[:8]
    default = paths[0].parents[1] / "compare" / name / "results.json"
    return compare_runs(folders, target or default, k)


def _names(folders: list[Path]) -> list[str]:
    """Return the folders' names, or their paths where names are equal."""
    counts = Counter(folder.name for folder in folders)
    return [folder.name if counts[folder.name] == 1 else str(folder) for folder in folders]


def evaluate_runs(runs: Sequence[Run], k: int | None = None) -> Evaluation:
    """Score runs on the same questions, and pair the first with the others and with baselines.

    They are scored by MAP@k, by default with the k that all of them remember.

    Raises:
        ExamError: the runs answered different questions or remember different k, or the answers
            are not known.
    """
    folders = [run.folder for run in runs]
    remembered = {str(run.folder): read_k(run.stage) for run in runs}
    k = choose_k(k, remembered, f"k={DEFAULT_K} (exam compare: --k {DEFAULT_K})")
    predictions = align([load_answers(folder) for folder in folders], [str(f) for f in folders])
    labels = predictions[0].known
    if labels is None:
        raise ExamError(
            f"{folders[0]} answers questions whose right options are unknown.\n"
            "Give a run of answered questions."
        )
    named = zip(_names(folders), predictions, strict=True)
    groups = read_groups(folders[0])
    first, *rest = (
        replace(score_logits(name, p.logits, labels, k), groups=groups) for name, p in named
    )
    options = np.isfinite(predictions[0].logits).sum(axis=1)
    check_k(k, options.max())
    rows = [system for system in runs[0].systems[:-1] if system.k == k]
    rows = rows or non_reading_baselines(options, labels, k)
    pairs = [(first, other) for other in (*rest, *rows[NON_READING:])]
    warnings = list_warnings([run.stage for run in runs])
    return Evaluation([*rows, first, *rest], pairs, predictions, warnings)


def compare_runs(folders: list[Path], target: Path, k: int | None = None) -> str:
    """Compare the first run with each of the others, and return the printed table.

    Raises:
        ExamError: the runs answered different questions, or the answers are not known.
    """
    runs = [Run(load_stage(folder), [], []) for folder in folders]
    evaluation = evaluate_runs(runs, k)
    stages, warnings = [run.stage for run in runs], evaluation.warnings
    figures = build_results(evaluation.systems, evaluation.pairs, stages, warnings)
    readers = zip(evaluation.systems[NON_READING:], evaluation.predictions, strict=True)
    figures["statistics"] = {
        system.name: summarize_predictions(p, system.k) for system, p in readers
    }
    for pair, (first, other) in zip(figures["paired"], evaluation.pairs, strict=True):
        pair["questions_needed"] = count_questions_needed(first.scores, other.scores)
    write_json(target, figures)
    write_png([compare_calibration(figures["statistics"])], target.with_suffix(".png"))
    drawn, lines = [charts.score_chart(figures["rows"])], [format_table(figures)]
    for name, figure in figures["statistics"].items():
        drawn.append(
            charts.calibration_chart(figure["reliability"], figure["ece"]) | {"title": name}
        )
        low, high = figure["accuracy"]["ci"]
        accuracy = f"accuracy {figure['accuracy']['value']:.3f} [{low:.3f}, {high:.3f}]"
        lines.append(f"{name}: {accuracy} · calibration error {figure['ece']:.3f}")
    page = target.with_suffix(".html")
    facts = [("runs", str(len(runs))), ("questions", str(len(evaluation.predictions[0].ids)))]
    write_page(page, Page("comparison of runs", facts, figures, drawn, highlight_row=NON_READING))
    return "\n".join([*lines, str(target), str(page)])


def compare_context_folders(
    folders: list[Path], fit_on: list[Path], target: Path | None, k: int = DEFAULT_K
) -> str:
    """Compare the first contexts with each other by recall, support and reader-free MAP@k.

    Raises:
        ExamError: a folder holds no contexts, or contexts of different questions.
    """
    if fit_on and len(fit_on) != len(folders):
        raise ExamError(
            f"--fit-on names {len(fit_on)} folders for {len(folders)} contexts.\n"
            "Give one for each, in their order."
        )
    stages, fits = ([load_stage(folder) for folder in group] for group in (folders, fit_on))
    _check_contexts(stages, fits)
    systems = [rank_contexts(stage, k, fit) for stage, fit in zip_longest(stages, fits)]
    check_k(k, max(map(len, systems[0].questions["options"])))
    figures = compare_contexts(systems)
    if target is not None:
        figures["curves"] = {system.name: system.curves() for system in systems}
        write_json(target, figures)
        if drawn := charts.depth_charts(figures["curves"]):
            write_png(drawn, target.with_suffix(".png"))
        write_retrieval_report(target.with_suffix(".html"), figures, "comparison of contexts")
    return format_retrieval_table(figures)


def _check_contexts(stages: list[Stage], fits: list[Stage]) -> None:
    """Refuse folders without contexts, or with contexts of different questions."""
    for stage in [*stages, *fits]:
        if QUESTIONS not in stage.files:
            raise ExamError(
                f"{stage.folder} holds no contexts with their questions.\n"
                "Give folders of outputs/contexts; write older ones again with "
                f"{spell_command('retrieve')}."
            )
    for group in (stages, fits):
        questions = [stage.key["questions"] for stage in group]
        differing = [s.folder for s, q in zip(group, questions, strict=True) if q != questions[0]]
        if differing:
            raise ExamError(
                f"{group[0].folder} and {differing[0]} hold contexts of different questions.\n"
                "Compare contexts of the same data."
            )
    if fits and fits[0].key["questions"] == stages[0].key["questions"]:
        raise ExamError(
            f"{fits[0].folder} holds the questions that you compare.\n"
            "Fit on other questions, or leave out --fit-on to cross-fit the reader."
        )


def write_retrieval_report(path: Path, figures: dict[str, Any], title: str) -> None:
    """Write a page with recall and reader-free MAP@k over depth, of contexts or several."""
    scored = [row for row in figures["rows"] if find_metric(row)]
    drawn = [charts.score_chart(scored)] if scored else []
    drawn += charts.depth_charts(figures.get("curves", {}))
    results = {**figures, "rows": scored, "paired": []}
    facts = [("contexts", str(len(figures["rows"])))]
    write_page(path, Page(title, facts, results, drawn, highlight_row=0))
