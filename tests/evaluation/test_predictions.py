"""The prediction store: round trips, and files that are refused by name."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import refuses

from exam.core.errors import ExamError
from exam.evaluation.predictions import (
    SCHEMA,
    Predictions,
    align,
    read_all_predictions,
    read_predictions,
    write_predictions,
)

OURS = Predictions(
    ["q1", "q2", "q3"],
    np.array([[1.0, 2.0, 3.0], [0.5, -1.0, -np.inf], [0.0, 0.0, 4.0]]),
    [2, 0, None],
    "minilm",
    "bm25",
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "predictions.parquet"


def test_what_is_written_is_read(path):
    turned = replace(OURS, logits=OURS.logits[:, ::-1][[0, 0, 2]], order="rotated by 1")
    other = replace(OURS, contexts="two_stage", labels=[2, 0, None])
    write_predictions(path, [OURS, replace(turned, logits=OURS.logits + 1), other])
    predictions = read_all_predictions(path)
    assert [(p.reader, p.contexts, p.order) for p in predictions] == [
        ("minilm", "bm25", "given"),
        ("minilm", "bm25", "rotated by 1"),
        ("minilm", "two_stage", "given"),
    ]
    for one in predictions:
        assert (one.ids, one.labels) == (OURS.ids, OURS.labels)
    assert np.array_equal(predictions[0].logits, OURS.logits)
    assert np.array_equal(predictions[1].logits, OURS.logits + 1)
    assert predictions[1].name == "minilm · bm25 · rotated by 1"
    with pytest.raises(ExamError, match=r"holds rows of minilm · bm25, minilm · bm25 · rotated"):
        read_predictions(path)


def rows_of(path):
    write_predictions(path, [OURS])
    return pq.read_table(path).to_pylist()


def edited(path, change):
    rows = rows_of(path)
    rows = change(rows) or rows
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)


WRONG = {
    "a missing option": (lambda rows: rows[:1] + rows[2:], "question 'q1' has no row for option B"),
    "a duplicate row": (lambda rows: [*rows, rows[4]], "question 'q2' has two rows for option B"),
    "NaN": (
        lambda rows: rows[3].update(logit=float("nan")),
        "question 'q2' has an infinite logit or NaN at option A",
    ),
    "an infinite logit": (
        lambda rows: rows[0].update(logit=float("inf")),
        "question 'q1' has an infinite logit or NaN at option A",
    ),
    "two answers": (lambda rows: rows[1].update(label=0), "question 'q1' has two answers"),
    "an answer beyond the options": (
        lambda rows: [r.update(label=2) for r in rows[3:5]] and None,
        "question 'q2' has an unknown answer",
    ),
    "an option below A": (lambda rows: rows[3].update(option=-1), "question 'q2' has option -1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_rows_are_refused_by_name(path, name):
    change, said = WRONG[name]
    edited(path, change)
    with refuses(f"{path}: {said}.\nEvery option of a question needs one row"):
        read_all_predictions(path)


def test_a_truncated_file_is_refused(path):
    write_predictions(path, [OURS])
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ExamError, match=r"is not a predictions file: .*\nPredict again\."):
        read_all_predictions(path)


def test_texts_in_no_encoding_are_refused(path):
    write_predictions(path, [OURS])
    table = pq.read_table(path)
    broken = pa.array([b"\xff"] * len(table), pa.binary()).cast(pa.string(), safe=False)
    place = table.schema.names.index("question_id")
    pq.write_table(table.set_column(place, "question_id", broken), path)
    with pytest.raises(ExamError, match=f"{path} is not a predictions file: .*UTF8"):
        read_all_predictions(path)


def test_empty_cells_and_empty_files_are_refused(path):
    edited(path, lambda rows: rows[2].update(logit=None))
    with pytest.raises(ExamError, match=r"has empty cells in logit\.\nPredict again\."):
        read_all_predictions(path)
    pq.write_table(SCHEMA.empty_table(), path)
    with pytest.raises(ExamError, match=r"has no rows\.\nPredict again\."):
        read_all_predictions(path)


def test_members_are_put_in_the_first_ones_order():
    order = [2, 0, 1]
    other = replace(
        OURS,
        ids=[OURS.ids[i] for i in order],
        logits=OURS.logits[order],
        labels=[OURS.labels[i] for i in order],
    )
    first, second = align([OURS, other], ["a", "b"])
    assert first is not second
    assert second.ids == OURS.ids
    assert second.labels == OURS.labels
    assert np.array_equal(second.logits, OURS.logits)


def test_members_of_other_questions_options_or_answers_are_refused():
    cases = {
        "b answers question 'q9', which a does not": {"ids": ["q1", "q2", "q9"]},
        "a answers question 'q3', which b does not": {
            "ids": ["q1", "q2"], "logits": OURS.logits[:2], "labels": [2, 0],
        },
        "Question 'q2' has 2 options in a and 3 in b": {"logits": np.zeros((3, 3))},
        "The right option of question 'q1' is C in a and B in b": {"labels": [1, 0, None]},
    }  # fmt: skip
    for said, changes in cases.items():
        with refuses(said, "of the same questions" if "right" not in said else "from one file"):
            align([OURS, replace(OURS, **changes)], ["a", "b"])
