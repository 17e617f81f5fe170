"""The demo's questions, as they were written."""

from collections import Counter

import numpy as np

from exam.data.questions import DEMO, read_exam_csv
from exam.data.tables import read_rows
from exam.evaluation.results import LONGEST, score_baselines


def test_at_least_200_questions_with_their_articles_and_sentences():
    rows = list(read_rows(DEMO))
    assert len(rows) == 252
    assert len({r["article"] for r in rows}) == 252
    assert all(r["sentence"] for r in rows)
    assert Counter(r["answer"] for r in rows).most_common()[0][1] <= 51


def test_options_have_similar_lengths_and_the_longest_is_no_hint():
    questions = read_exam_csv(DEMO)
    for question in questions:
        lengths = [len(o) for o in question["options"]]
        assert max(lengths) <= 1.5 * min(lengths)
    longest = next(s for s in score_baselines(questions, None, 3) if s.name == LONGEST)
    assert np.mean(longest.scores) <= 0.45


def test_right_options_do_not_copy_their_sentence():
    for row in read_rows(DEMO):
        sentence = " ".join(row["sentence"].lower().split())
        words = row[row["answer"]].lower().split()
        runs = [" ".join(words[i : i + 4]) for i in range(len(words) - 3)]
        assert not any(run in sentence for run in runs), row["id"]
