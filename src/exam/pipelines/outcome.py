"""What members make together: written, scored beside them, shown."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from exam.config import Infer
from exam.core import distributed
from exam.core.artifacts import shared_stage
from exam.core.files import read_json, write_json
from exam.core.logging import say
from exam.core.stage import Stage
from exam.core.trainer import REPORT, RESULTS, list_run_files
from exam.data.schema import LETTERS
from exam.evaluation.predictions import Predictions, write_predictions
from exam.evaluation.results import (
    PREDICTIONS,
    Run,
    ScoredSystem,
    build_results,
    format_table,
    non_reading_baselines,
    score_baselines,
    score_logits,
)
from exam.metrics import Floats, metric_name, metric_title
from exam.pipelines.infer import SUBMISSION, Answered, letters_of, submit
from exam.pipelines.members import Member, numbered_names
from exam.report.charts import Chart, line_chart, write_png
from exam.report.run import write_results
from exam.retrieval.contexts import read_support

CURVE = "cascade.png"


@dataclass(frozen=True)
class Outcome:
    """What members make together: logits, and what determines and explains them."""

    name: str
    members: list[Member]
    logits: Floats
    key: dict[str, Any]
    k: int  # of MAP@k
    beside: Floats | None = None  # what it is compared with besides the best member: their mean
    explained: dict[str, Any] | None = None  # how weights were fitted, or a cascade's curve

    @property
    def predictions(self) -> Predictions:
        """As one reader's."""
        return replace(
            self.members[0].found,
            logits=self.logits,
            reader=self.name,
            contexts="+".join(numbered_names(self.members)),
        )


def finish(infer: Infer, outcome: Outcome, asked: Answered | None) -> Run:
    """Write the answers, the submission and, where answers are known, the scores."""
    outputs, members = Path(infer.outputs), outcome.members
    name = f"{len(members)}-{outcome.name}"
    before = list({s.folder: s for m in members for s in m.stages}.values())
    systems = _systems(outcome, asked)
    with shared_stage(outputs, "ensemble", name, outcome.key, infer.resume.value) as stage:
        if not stage.reused and distributed.rank() == 0:
            write_predictions(stage.folder / PREDICTIONS, [outcome.predictions])
            letters = letters_of(asked.config.data) if asked else LETTERS
            submit(stage, outcome.predictions, outcome.k, letters)
            stage.measure()
            if systems:
                scored = _results(outcome, systems, [*before, stage])
                write_json(stage.folder / RESULTS, scored)
                write_results(stage.folder / REPORT, stage.folder.name, scored)
            if outcome.explained and "curve" in outcome.explained:
                write_png(
                    _cascade_charts(outcome.explained["curve"], outcome.k), stage.folder / CURVE
                )
            stage.finish(list_run_files(stage.folder), questions=len(outcome.logits))
    say(str(stage.folder / SUBMISSION))
    if systems:
        say(f"{_shown(read_json(stage.folder / RESULTS))}\n{stage.folder / RESULTS}")
        say(str(stage.folder / REPORT))
    return Run(stage, [*before, stage], systems)


def _cascade_charts(found: list[dict[str, Any]], k: int) -> list[Chart]:
    """MAP@k over the share of questions asked further, and what a question costs, where known."""
    score = [{"at": p["share"], "value": p[metric_name(k)], "ci": p["ci"]} for p in found]
    seconds = [(p["share"], p["seconds_a_question"]) for p in found]
    cost = [{"at": share, "value": value, "ci": [value, value]} for share, value in seconds]
    title = metric_title(metric_name(k))
    made = {title: score, "seconds a question": cost if any(s for _, s in seconds) else []}
    label = "share of questions asked further"
    return [
        line_chart(unit, "", label, unit, {unit: p}, log=False) for unit, p in made.items() if p
    ]


def _systems(outcome: Outcome, asked: Answered | None) -> list[ScoredSystem]:
    """Baselines, members, their mean, and last what they make together; none without answers."""
    labels, k = outcome.members[0].found.known, outcome.k
    if labels is None:
        return []
    if asked is None:
        options = np.isfinite(outcome.logits).sum(axis=1)
        rows = non_reading_baselines(options, labels, k)
    else:
        rows = score_baselines(
            asked.questions, read_support(asked.contexts, asked.questions["id"]), k
        )
    for name, member in zip(numbered_names(outcome.members), outcome.members, strict=True):
        rows.append(score_logits(name, member.found.logits, labels, k))
    if outcome.beside is not None:
        rows.append(score_logits("mean of probabilities", outcome.beside, labels, k))
    return [*rows, score_logits(outcome.name, outcome.logits, labels, k)]


def _results(outcome: Outcome, systems: list[ScoredSystem], stages: list[Stage]) -> dict[str, Any]:
    """results.json: what they make together against the best of them, and against their mean."""
    first = len(systems) - len(outcome.members) - 1 - (outcome.beside is not None)
    members = systems[first : first + len(outcome.members)]
    best = max(members, key=lambda system: float(system.scores.mean()))
    others = [best, *([systems[-2]] if outcome.beside is not None else [])]
    found = build_results(systems, [(systems[-1], other) for other in others], stages)
    return found | (outcome.explained or {})


def _shown(found: dict[str, Any]) -> str:
    """The table, and below it how weights were fitted."""
    lines = [format_table(found)]
    if "fitted" in found:
        weights = " · ".join(f"{n} {w:.2f}" for n, w in found["fitted"]["weights"].items())
        lines += [
            "",
            f"weights, fitted on held-out questions: {weights}",
            format_table(found["fitted"]),
        ]
    return "\n".join(lines)
