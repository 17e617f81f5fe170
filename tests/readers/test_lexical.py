"""The lexical reader: its features by hand, its fit against scikit-learn's, its file."""

import json
from math import inf, log

import numpy as np
import pytest
from datasets import Dataset
from helpers import refuses
from hypothesis import given
from hypothesis import strategies as st

from exam.data.schema import FEATURES as QUESTION
from exam.readers.lexical import (
    FEATURES,
    WORD_FEATURES,
    compute_features,
    compute_logits,
    compute_option_features,
    cross_fit,
    fit_weights,
    load_weights,
    save_weights,
)

IDF = {"is": 1.0, "cat": 2.0, "red": 1.0, "mat": 3.0, "a": 0.5, "blue": 2.0, "the": -0.1}


def test_features_by_hand():
    rows = compute_option_features(
        ["where", "is", "the", "cat"],
        [["the", "red", "mat"], ["a", "cat"], ["blue", "mat"]],
        [["a", "red", "mat", "is", "here"]],
        IDF,
    )
    # The one window holds "is" of the prompt's "is" and "cat": a third of their rarity.
    expected = [
        {"window": 1 / 3, "coverage": 1, "bigrams": 4, "missing": 0, "missing_own": 0,
         "words": 3, "characters": log(10), "prompt": 0, "centrality": 1 / 8},
        {"window": 1 / 3, "coverage": 1, "bigrams": 0, "missing": 0, "missing_own": 0,
         "words": 2, "characters": log(5), "prompt": 0.8, "centrality": 0},
        {"window": 0.2, "coverage": 0.6, "bigrams": 0, "missing": 1, "missing_own": 2,
         "words": 2, "characters": log(8), "prompt": 0, "centrality": 1 / 8},
    ]  # fmt: skip
    for row, values in zip(rows, expected, strict=True):
        assert dict(zip(WORD_FEATURES, row, strict=True)) == pytest.approx(values)


def test_a_window_spans_about_one_sentence():
    """Words 40 apart never stand in one window; words of two passages neither."""
    far = ["cat", *["x"] * 40, "mat"]
    for passages in ([far], [["cat"], ["mat"]]):
        (row, _) = compute_option_features(["cat"], [["mat"], ["red"]], passages, IDF)
        assert row[:2] == [0.0, 1.0]


def test_without_passages_only_options_count():
    (row, _) = compute_option_features(["cat"], [["mat"], ["red"]], [], IDF)
    assert dict(zip(WORD_FEATURES, row, strict=True)) == pytest.approx(
        {"window": 0, "coverage": 0, "bigrams": 0, "missing": 1, "missing_own": 3,
         "words": 1, "characters": log(4), "prompt": 0, "centrality": 0}
    )  # fmt: skip


texts = st.lists(st.sampled_from(sorted(IDF)), max_size=8)


@given(texts, st.lists(texts, min_size=2, max_size=5), st.lists(texts, max_size=4), st.randoms())
def test_permuted_options_permute_features(prompt, options, passages, random):
    order = random.sample(range(len(options)), len(options))
    rows = compute_option_features(prompt, options, passages, IDF)
    again = compute_option_features(prompt, [options[i] for i in order], passages, IDF)
    assert again == [rows[i] for i in order]


def make_questions(n, options=2):
    rows = [
        {"id": str(i), "prompt": f"p{i} q{i}", "options": [f"o{i}{j}" for j in range(options)],
         "label": i % options, "context": None, "articles": []}
        for i in range(n)
    ]  # fmt: skip
    return Dataset.from_list(rows, features=QUESTION)


def test_budget_and_fewer_options():
    rows = [*make_questions(1, 3), *make_questions(1, 2)]
    rows[1]["id"] = "1"
    questions = Dataset.from_list(rows, features=QUESTION)
    contexts = {"0": [{"text": "p0 q0 x"}, {"text": "o00"}]}
    features = compute_features(questions, contexts, {"o00": 1.0}, 3)
    assert features.shape == (2, 3, len(FEATURES))
    assert np.isnan(features[1, 2]).all()
    assert not np.isnan(features[0]).any()
    missing = FEATURES.index("missing")
    assert features[0, 0, missing] == 1
    assert compute_features(questions, contexts, {"o00": 1.0})[0, 0, missing] == 0
    logits = compute_logits(features, np.ones(len(FEATURES)))
    assert logits[1, 2] == -inf
    assert np.isfinite(logits[:, :2]).all()


def test_fit_is_the_conditional_logit():
    """With two options it is a logistic regression of their difference, without intercept."""
    from sklearn.linear_model import LogisticRegression

    random = np.random.default_rng(0)
    features = random.normal(size=(60, 2, 3)) * [1, 10, 0.1]
    labels = (features[:, 1, 0] + random.normal(size=60) > features[:, 0, 0]).astype(np.int64)
    difference = features[:, 1] - features[:, 0]
    spread = np.sqrt((difference**2).mean(axis=0)) / 2
    model = LogisticRegression(C=1, fit_intercept=False, tol=1e-8).fit(difference / spread, labels)
    assert fit_weights(features, labels) == pytest.approx(model.coef_[0] / spread, rel=1e-3)


def test_a_constant_feature_and_a_missing_option_have_no_effect():
    features = np.random.default_rng(0).normal(size=(20, 3, 2))
    features[:, :, 1] = 7.0
    labels = np.zeros(20, dtype=np.int64)
    weights = fit_weights(features, labels)
    assert weights[1] == 0
    wider = np.concatenate([features, np.full((20, 1, 2), np.nan)], axis=1)
    assert fit_weights(wider, labels) == pytest.approx(weights)


def test_cross_fit_leaves_the_question_out():
    questions, features = make_questions(20), np.random.default_rng(0).normal(size=(20, 2, 3))
    before = cross_fit(questions, features)
    rows = questions.to_list()
    rows[3]["label"] = 1 - rows[3]["label"]
    after = cross_fit(Dataset.from_list(rows, features=QUESTION), features)
    assert (after[3] == before[3]).all()
    assert (after != before).any()  # the other folds' readers saw it
    assert cross_fit(questions.select([0]), features[:1]) is None


def test_weights_round_trip(tmp_path):
    weights = np.random.default_rng(0).normal(size=len(FEATURES)) / 3
    save_weights(weights, tmp_path / "lexical.json")
    assert (load_weights(tmp_path / "lexical.json") == weights).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coverage": None}, "holds a weight that is not finite.\nTrain again."),
        ({"other": 1.0}, "does not have the features of this version (affirms, denies, window, "),
    ],
)
def test_invalid_weights_are_refused(tmp_path, change, message):
    path = tmp_path / "lexical.json"
    save_weights(np.zeros(len(FEATURES)), path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with refuses(f"{path} {message}"):
        load_weights(path)
