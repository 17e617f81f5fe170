"""The questions that a run learned from, and which questions repeat them."""

from pathlib import Path

import pyarrow.parquet as pq
from datasets import Dataset, concatenate_datasets

from exam.config import Train, is_trained
from exam.core.artifacts import Stage
from exam.core.files import write_atomically
from exam.data.questions import MAX_IDS
from exam.data.schema import FEATURES
from exam.data.splits import Split, mark_repetitions
from exam.data.tables import translate_parquet_errors

LEARNED = "learned.parquet"  # in a run's folder: training questions, and those of the dev fold


def write_learned(folder: Path, config: Train, split: Split) -> None:
    """Write the questions that the run trains on, or chooses its checkpoint with."""
    learns = is_trained(config.trainer) or not config.model.kind.is_neural
    parts = [part.select_columns(list(FEATURES)) for part in (split.train, split.dev)]
    questions = concatenate_datasets(parts)
    rows = questions if learns else questions.select([])
    with write_atomically(folder / LEARNED) as temporary:
        rows.to_parquet(temporary)


def find_learned(run: Stage, questions: Dataset) -> list[str]:
    """Return the ids of questions that equal or nearly repeat one that the run learned from."""
    path = run.folder / LEARNED
    if LEARNED not in run.files:  # runs of earlier versions
        return []
    with translate_parquet_errors(path):
        learned = Dataset.from_dict(
            pq.read_table(path, schema=FEATURES.arrow_schema).to_pydict(), features=FEATURES
        )
    is_learned = mark_repetitions(questions, learned)
    return [key for key, mark in zip(questions["id"], is_learned, strict=True) if mark]


def describe_learned(name: str, ids: list[str], total: int) -> str:
    """Return the warning that a run's answers include questions that it learned from."""
    listed = ", ".join(ids[:MAX_IDS]) + (" …" if len(ids) > MAX_IDS else "")
    return (
        f"{len(ids)} of {total} questions repeat, exactly or nearly, questions that {name} learned "
        f"from: {listed}. Their scores say nothing about new questions"
    )
