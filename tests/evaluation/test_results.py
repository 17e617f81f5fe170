"""The check of k against the questions' options."""

import pytest

from exam.core.errors import ExamError
from exam.evaluation.results import check_k


@pytest.mark.parametrize(("k", "options"), [(1, 2), (3, 5), (5, 5), (3, 2)])
def test_a_k_that_can_be_scored_passes_and_so_does_the_default(k, options):
    check_k(k, options)


@pytest.mark.parametrize(("k", "options"), [(4, 3), (26, 5)])
def test_a_k_above_every_question_is_refused(k, options):
    with pytest.raises(ExamError, match=rf"metric\.k={k}.*{options} options"):
        check_k(k, options)
