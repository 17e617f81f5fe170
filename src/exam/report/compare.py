"""`exam compare A B …`: compare runs, or contexts, in pairs on the same questions."""

from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from exam.config import DEFAULT_K
from exam.core.artifacts import Stage, load_stage
from exam.core.errors import ExamError, spell_command
from exam.core.files import digest, write_json
from exam.evaluation.calibration import count_questions_needed, summarize_predictions
from exam.evaluation.predictions import Predictions, align
from exam.evaluation.results import (
    NON_READING,
    Evaluation,
    Run,
    build_results,
    check_k,
    choose_k,
    format_table,
    load_answers,
    non_reading_baselines,
    read_k,
    score_logits,
)
from exam.evaluation.retrieval import (
    compare_contexts,
    format_retrieval_table,
    rank_contexts,
    trace_depth,
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
    return compare_runs(folders, target or _default_target(folders, k), k)


def _default_target(folders: list[Path], k: int | None) -> Path:
    """Return the file that keeps a comparison of these runs."""
    paths = [folder.resolve() for folder in folders]
    return (
        paths[0].parents[1]
        / "compare"
        / digest([*(p.name for p in paths), *([k] if k else [])])[:8]
        / "results.json"
    )


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
    first, *rest = (score_logits(name, p.logits, labels, k) for name, p in named)
    options = np.isfinite(predictions[0].logits).sum(axis=1)
    check_k(k, options.max())
    rows = [system for system in runs[0].systems[:-1] if system.k == k]
    rows = rows or non_reading_baselines(options, labels, k)
    pairs = [(first, other) for other in (*rest, *rows[NON_READING:])]
    return Evaluation([*rows, first, *rest], pairs, predictions)


def compare_runs(folders: list[Path], target: Path, k: int | None = None) -> str:
    """Compare the first run with each of the others, and return the printed table.

    Raises:
        ExamError: the runs answered different questions, or the answers are not known.
    """
    stages = [load_stage(folder) for folder in folders]
    evaluation = evaluate_runs([Run(stage, [], []) for stage in stages], k)
    figures = build_results(evaluation.systems, evaluation.pairs, stages)
    readers = zip(evaluation.systems[NON_READING:], evaluation.predictions, strict=True)
    figures["statistics"] = {
        system.name: summarize_predictions(p, system.k) for system, p in readers
    }
    for pair, (first, other) in zip(figures["paired"], evaluation.pairs, strict=True):
        pair["questions_needed"] = count_questions_needed(first.scores, other.scores)
    write_json(target, figures)
    write_png([compare_calibration(figures["statistics"])], target.with_suffix(".png"))
    write_run_comparison(target.with_suffix(".html"), figures, evaluation.predictions)
    lines = [format_table(figures)]
    for name, figure in figures["statistics"].items():
        low, high = figure["accuracy"]["ci"]
        accuracy = f"accuracy {figure['accuracy']['value']:.3f} [{low:.3f}, {high:.3f}]"
        lines.append(f"{name}: {accuracy} · calibration error {figure['ece']:.3f}")
    return "\n".join([*lines, str(target), str(target.with_suffix(".html"))])


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
        figures["curves"] = trace_depth(systems)
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


def write_run_comparison(
    path: Path, figures: dict[str, Any], predictions: list[Predictions]
) -> None:
    """Write a page with the scores and the calibration of several runs."""
    drawn = [charts.score_chart(figures["rows"])]
    for name, run in figures["statistics"].items():
        drawn.append(charts.calibration_chart(run["reliability"], run["ece"]) | {"title": name})
    facts = [("runs", str(len(predictions))), ("questions", str(len(predictions[0].ids)))]
    write_page(path, Page("comparison of runs", facts, figures, drawn, highlight_row=NON_READING))


def write_retrieval_report(path: Path, figures: dict[str, Any], title: str) -> None:
    """Write a page with recall and reader-free MAP@k over depth, of contexts or several."""
    scored = [row for row in figures["rows"] if find_metric(row)]
    drawn = [charts.score_chart(scored)] if scored else []
    drawn += charts.depth_charts(figures.get("curves", {}))
    results = {**figures, "rows": scored, "paired": []}
    facts = [("contexts", str(len(figures["rows"])))]
    write_page(path, Page(title, facts, results, drawn, highlight_row=0))
