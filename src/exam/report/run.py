"""The page of a run: scores, what they depend on, and a browser of questions."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from exam.config import Train
from exam.core.artifacts import Stage
from exam.core.files import read_object, write_json
from exam.core.trainer import REPORT, RESULTS, STATE, TRAINING
from exam.data.words import count_words
from exam.evaluation.calibration import summarize_predictions
from exam.evaluation.predictions import Predictions, to_probabilities
from exam.evaluation.results import load_answers
from exam.evaluation.retrieval import CURVES_UP_TO, RankedContexts
from exam.metrics import rank_options, summarize
from exam.readers.multiple_choice.features import TokenCounts
from exam.report import charts
from exam.report.charts import Chart, Point
from exam.report.page import Page, write_page
from exam.retrieval.contexts import (
    SUPPORT_THRESHOLD,
    Contexts,
    passage_support,
    read_contexts,
    read_idf,
    read_support,
)

STOPWORD_IDF = 2.0  # words below it stand in more than one text of eight
GROUPS = 4  # of questions by length
RANKS = ((1, 1), (2, 2), (3, 5), (6, 10))


def write_run(
    stage: Stage,
    config: Train,
    questions: Dataset,
    contexts: Stage,
    tokens: TokenCounts | None = None,
) -> None:
    """Write `report.html` beside the run's results."""
    predictions = load_answers(stage.folder)
    passages = read_contexts(contexts, config.context.passages(training=False))
    support = read_support(contexts, questions["id"])
    results = _read_if_present(stage.folder / RESULTS)
    frequencies = read_idf(contexts) if config.retriever.kind.searches else {}
    drawn = []
    if predictions.known is not None:
        drawn = _charts(stage, config, questions, contexts, predictions, results)
    page = Page(
        title=stage.folder.name,
        facts=_facts(stage.folder, config, contexts) + (tokens.facts() if tokens else []),
        results=results,
        charts=drawn,
        questions=question_rows(questions, predictions, passages, support),
        stopwords=_stopwords(frequencies),
    )
    write_page(stage.folder / REPORT, page)


def _stopwords(idf: dict[str, float]) -> list[str]:
    """Return the words of so many articles that marking them tells nothing.

    In a tiny corpus no word reaches STOPWORD_IDF: half of the largest weight takes its part.
    """
    threshold = min(STOPWORD_IDF, max(idf.values(), default=0.0) / 2)
    return [word for word, value in idf.items() if value < threshold]


def _read_if_present(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}


def write_results(folder: Path, results: dict[str, Any], row: int = -1) -> None:
    """Write results.json, and its page without questions; number `row` is the headline."""
    write_json(folder / RESULTS, results)
    drawn = [charts.score_chart(results["rows"])]
    write_page(folder / REPORT, Page(folder.name, [], results, drawn, highlight_row=row))


def _facts(folder: Path, config: Train, contexts: Stage) -> list[tuple[str, str]]:
    model = config.model
    facts = [
        ("reader", str(model.name_or_path or model.architecture or model.kind.value)),
        ("contexts", contexts.folder.name),
        ("passages read", str(config.context.passages(training=False))),
        ("seed", str(config.seed)),
    ]
    if counts := _read_if_present(folder / TRAINING).get("parameters"):
        facts.append(("trained parameters", f"{counts['trained']:,} of {counts['all']:,}"))
    return facts


def _charts(
    stage: Stage,
    config: Train,
    questions: Dataset,
    contexts: Stage,
    predictions: Predictions,
    results: dict[str, Any],
) -> list[Chart]:
    state = _read_if_present(stage.folder / STATE)
    statistics = summarize_predictions(predictions, config.metric.k)
    first = rank_options(predictions.logits)[:, 0]
    right = (first == np.array(predictions.known)).astype(np.float64)
    drawn = [
        charts.score_chart(results["rows"]),
        charts.learning_chart(state.get("log_history", []), config.metric.k),
        *_depths(contexts, questions, config.metric.k),
        charts.calibration_chart(statistics["reliability"], statistics["ece"]),
        charts.bar_by_group(
            "By the right option's letter",
            "How often the first choice is right.",
            "right option",
            [{"group": k, **v} for k, v in statistics["by_right_option"].items() if v],
        ),
        charts.bar_by_group(
            "By length", "Words of prompt and options.", "words", _score_by_length(questions, right)
        ),
        _support_chart(questions, contexts, config, right),
    ]
    return [chart for chart in drawn if chart is not None]


def _depths(contexts: Stage, questions: Dataset, k: int) -> list[Chart]:
    """Draw article recall and reader-free MAP@k over the number of passages."""
    system = RankedContexts(contexts, k, among=questions)
    if len(questions) > CURVES_UP_TO or not system.deepest:
        return []
    return charts.depth_charts({system.name: system.curves()})


def _score_by_length(questions: Dataset, right: Any) -> list[Point]:
    texts = [" ".join([q["prompt"], *q["options"]]) for q in questions.to_list()]
    lengths = np.array([count_words(text) for text in texts])
    ends = np.unique(np.quantile(lengths, np.linspace(0, 1, GROUPS + 1)).astype(int))
    points = []
    for low, high in pairwise(ends.tolist()):
        inside = (lengths >= low) & ((lengths < high) | (high == ends[-1]))
        points += _point(f"{low}–{high}", right[inside])
    return points


def _support_chart(questions: Dataset, contexts: Stage, config: Train, right: Any) -> Chart | None:
    """Draw accuracy by the rank of the first passage that supports the right option."""
    passages = read_contexts(contexts)
    if not passages:
        return None
    idf = read_idf(contexts)
    first = np.array([_supporting_rank(q, passages, idf) for q in questions.to_list()])
    points = []
    for low, high in RANKS:
        label = f"{low}" if low == high else f"{low}–{high}"
        points += _point(label, right[(first >= low) & (first <= high)])
    points += _point(f"{RANKS[-1][1] + 1}+", right[first > RANKS[-1][1]])
    points += _point("none", right[first == 0])
    depth = config.context.passages(training=False)
    note = f"Rank of the first passage with the right option's words; {depth} were read."
    return charts.bar_by_group("By the supporting passage", note, "rank", points)


def _supporting_rank(question: dict[str, Any], contexts: Contexts, idf: dict[str, float]) -> int:
    """Return the rank of the first passage that supports the right option; 0 without one."""
    ranks = (
        int(passage["rank"])
        for passage in contexts.get(question["id"], [])
        if passage_support(question, passage, idf) > SUPPORT_THRESHOLD
    )
    return next(ranks, 0)


def _point(group: str, values: Any) -> list[Point]:
    return [{"group": group, **summarize(values)}] if len(values) else []


def question_rows(
    questions: Dataset,
    predictions: Predictions,
    contexts: Contexts,
    support: list[list[float]] | None,
) -> list[dict[str, Any]]:
    """Return the data of every question for the page's browser."""
    logits = predictions.logits
    chances, first = to_probabilities(logits), rank_options(logits)[:, 0]
    rows = []
    for i, question in enumerate(questions.to_list()):
        number, label = len(question["options"]), question["label"]
        supported = None if support is None or label is None else round(support[i][label], 3)
        rows.append(
            {
                "id": question["id"],
                "prompt": question["prompt"],
                "options": question["options"],
                "chances": [round(float(p), 4) for p in chances[i, :number]],
                "label": label,
                "first": int(first[i]),
                "support": supported,
                "passages": [
                    {"rank": p["rank"], "title": p["title"], "text": p["text"]}
                    for p in contexts.get(question["id"], [])
                ],
            }
        )
    return rows
