"""What `exam train` and `exam infer` have in common: answers are written, scored and shown."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from datasets import Dataset

from exam.config import Ensemble, EnsembleKind, Train
from exam.core.artifacts import Stage
from exam.core.files import read_json, write_json
from exam.core.logging import print_result
from exam.core.trainer import REPORT, RESULTS
from exam.evaluation.ensemble import combined
from exam.evaluation.predictions import Predictions, predictions_of, read_all, write_predictions
from exam.evaluation.results import BLIND, System, baselines, of_logits, results, table
from exam.metrics import Floats
from exam.retrieval.contexts import read_support

log = logging.getLogger(__name__)

PREDICTIONS = "predictions.parquet"


@dataclass(frozen=True)
class Run:
    """A finished run of a command; as a path, it is its folder.

    Attributes:
        stage: The run's folder, its key, and what it cost.
        stages: All stages that it depends on, and its own.
        systems: Baselines first, the reader last; empty where answers are unknown.
        selection_score: MAP@3 of the questions that chose the checkpoint, never of those reported.
    """

    stage: Stage
    stages: list[Stage]
    systems: list[System]
    selection_score: float | None = None

    @property
    def folder(self) -> Path:
        """The folder with the model, predictions, results and report."""
        return self.stage.folder

    def __fspath__(self) -> str:
        return str(self.folder)

    def __str__(self) -> str:
        return str(self.folder)


def write_answers(
    stage: Stage, config: Train, questions: Dataset, contexts: Stage, logits: Floats
) -> None:
    """Write predictions.parquet; logits of shape `(questions, options)`."""
    found = predictions_of(questions, logits, config.name, contexts.folder.name)
    write_predictions(stage.folder / PREDICTIONS, [found])


def answers(folder: Path) -> Predictions:
    """What a run answers: its predictions, or their mean probability over orders of the options."""
    found = read_all(folder / PREDICTIONS)
    mean = combined([one.logits for one in found], Ensemble("mean", EnsembleKind.mean))
    return replace(found[0], logits=mean) if len(found) > 1 else found[0]


def score_systems(stage: Stage, questions: Dataset, contexts: Stage) -> list[System]:
    """Score the baselines and, last, the reader whose predictions the stage holds."""
    reader = of_logits(stage.folder.name, answers(stage.folder).logits, questions["label"])
    return [*baselines(questions, read_support(contexts, questions["id"])), reader]


def score(stage: Stage, questions: Dataset, contexts: Stage, stages: list[Stage]) -> None:
    """Write results.json: the reader beside the baselines, paired with those that read."""
    *rows, reader = score_systems(stage, questions, contexts)
    stage.measure()
    found = results([*rows, reader], [(reader, row) for row in rows[BLIND:]], [*stages, stage])
    write_json(stage.folder / RESULTS, found)


def report(stage: Stage, questions: Dataset, contexts: Stage, stages: list[Stage]) -> Run:
    """Print the saved results."""
    places = [stage.folder / name for name in (RESULTS, REPORT)]
    print_result("\n".join([table(read_json(places[0])), *map(str, places)]))
    return Run(stage, [*stages, stage], score_systems(stage, questions, contexts))


def log_scores(stage: Stage, name: str) -> None:
    """Log how well contexts were found; for debugging, with intervals."""
    scores = stage.metadata["scores"]
    if scores:
        values = " · ".join(f"{metric} {figure['value']:.3f}" for metric, figure in scores.items())
        log.info("%s contexts: %s", name, values)
    for metric, figure in scores.items():
        low, high = figure["ci"]
        value = f"{figure['value']:.3f} [{low:.3f}, {high:.3f}]"
        log.debug("%s: %s %s (n = %d)", name, metric, value, figure["n"])
