"""The submission file and its validation."""

import numpy as np
import pytest
from helpers import refuses

from exam.core.errors import ExamError
from exam.evaluation.submission import validate_submission, write_submission

LOGITS = np.array([[0.1, 3.0, 2.0, 1.0, 0.0], [5.0, 1.0, 2.0, -np.inf, -np.inf]])


def test_best_three_labels_in_the_input_order(tmp_path):
    write_submission(tmp_path / "s.csv", ["7", "=cmd, x"], LOGITS, 3)
    assert (tmp_path / "s.csv").read_text() == 'id,prediction\n7,B C D\n"=cmd, x",A C B\n'


@pytest.mark.parametrize(
    ("k", "first", "second"), [(1, "B", "A"), (2, "B C", "A C"), (5, "B C D A E", "A C B")]
)
def test_best_k_labels_or_all_options(tmp_path, k, first, second):
    write_submission(tmp_path / "s.csv", ["1", "2"], LOGITS, k)
    assert (tmp_path / "s.csv").read_text() == f"id,prediction\n1,{first}\n2,{second}\n"
    with pytest.raises(ExamError, match=f"'{first}'; {6 - k} distinct labels of ABCDE"):
        validate_submission(tmp_path / "s.csv", ["1", "2"], [5, 3], 6 - k)


def test_an_id_with_a_carriage_return_comes_back(tmp_path):
    write_submission(tmp_path / "s.csv", ["7", "a\rb"], LOGITS, 3)
    lines = (tmp_path / "s.csv").read_bytes()
    assert lines == b'"id","prediction"\n"7","B C D"\n"a\rb","A C B"\n'


def test_a_question_with_two_options_gets_two_labels(tmp_path):
    write_submission(tmp_path / "s.csv", ["1"], np.array([[0.0, 1.0, -np.inf]]), 3)
    assert (tmp_path / "s.csv").read_text() == "id,prediction\n1,B A\n"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("1,A B C\n3,A B C\n", "holds 2 ids that are not the 2 questions in their order."),
        ("1,A B C\n", "holds 1 ids that are not the 2 questions in their order."),
        ("1,A A B\n2,A B C\n", "prediction 'A A B'; 3 distinct labels of ABCDE are required."),
        ("1,A B\n2,A B C\n", "prediction 'A B'; 3 distinct labels of ABCDE are required."),
        ("1,A B C\n2,A B E\n", "prediction 'A B E'; 3 distinct labels of ABC are required."),
    ],
)
def test_broken_submissions_are_refused(tmp_path, rows, message):
    (tmp_path / "s.csv").write_text(f"id,prediction\n{rows}")
    with refuses(message):
        validate_submission(tmp_path / "s.csv", ["1", "2"], [5, 3], 3)
