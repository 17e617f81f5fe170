"""Training on another reader's probabilities."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import concatenate_datasets
from helpers import kaggle_rows, make_questions, refuses, write_csv
from tiny_encoders import as_questions, features_of, reader_in

from exam.config import Data
from exam.core.errors import ExamError
from exam.data.splits import Split, read_split
from exam.evaluation.predictions import Predictions, write_predictions
from exam.pipelines.train import add_soft_labels
from exam.readers.multiple_choice.features import TARGETS, shuffle_options


def split_of(questions, extra=None):
    empty = questions.select([])
    extra = empty if extra is None else extra
    return Split(concatenate_datasets([questions, extra]), questions, empty, empty, extra)


def write_soft_labels(path, ids, probabilities, reader="teacher"):
    logits = np.log(np.array(probabilities))
    write_predictions(path, [Predictions(list(ids), logits, [None] * len(ids), reader, "c")])
    return str(path)


def soften(questions, path, weight=0.5, extra=None):
    return add_soft_labels(
        split_of(questions, extra), Data(name="d", soft_labels=path, soft_weight=weight)
    )


def test_targets_mix_labels_and_probabilities(tmp_path):
    questions = as_questions(kaggle_rows(2))  # right: A, B
    path = write_soft_labels(tmp_path / "p.parquet", ["0"], [[0.2, 0.4, 0.1, 0.1, 0.2]])
    mixed = soften(questions, path, 0.25).train
    assert mixed[TARGETS][0] == pytest.approx([0.8, 0.1, 0.025, 0.025, 0.05])
    assert mixed[TARGETS][1] == [0, 1, 0, 0, 0]
    shuffled = shuffle_options(mixed, 3)
    for row, before in zip(shuffled, mixed, strict=True):
        by_text = dict(zip(row["options"], row[TARGETS], strict=True))
        assert [by_text[option] for option in before["options"]] == before[TARGETS]


def test_unlabelled_questions_have_soft_targets_only(tmp_path):
    rows = [{k: v for k, v in row.items() if k != "answer"} for row in kaggle_rows(1)]
    extra = as_questions([{**rows[0], "id": "extra:0"}])
    path = write_soft_labels(tmp_path / "p.parquet", ["0"], [[0.2, 0.4, 0.1, 0.1, 0.2]])
    mixed = soften(as_questions(kaggle_rows(2, start=4)), path, 0.5, extra).extra
    assert mixed[TARGETS][0] == pytest.approx([0.2, 0.4, 0.1, 0.1, 0.2])
    unpredicted = as_questions([{**rows[0], "id": "extra:7"}])
    with pytest.raises(ExamError, match="'extra:7' has no right option and no prediction"):
        soften(as_questions(kaggle_rows(2)), path, 0.5, unpredicted)


def test_mismatched_predictions_are_refused(tmp_path):
    questions = as_questions(kaggle_rows(2))
    path = write_soft_labels(tmp_path / "p.parquet", ["x"], [[0.2] * 5])
    with refuses(f"data.soft_labels={path}", "it has 'x' …, they have '0' …", "data.test=<file>"):
        soften(questions, path)
    path = write_soft_labels(tmp_path / "p.parquet", ["0"], [[0.25] * 4])
    with pytest.raises(ExamError, match=r"Question '0' has 5 options, and 4 in .*p.parquet"):
        soften(questions, path)


def test_duplicate_ids_are_refused(tmp_path):
    extra = as_questions([{**kaggle_rows(1)[0], "id": "extra:0"}])
    path = write_soft_labels(tmp_path / "p.parquet", ["0"], [[0.2] * 5])
    with pytest.raises(ExamError, match=r"answers question '0'.*\nRename the ids"):
        soften(as_questions(kaggle_rows(1)), path, 0.5, extra)


@pytest.mark.parametrize("fold", [0, None, "all"])
def test_duplicate_ids_are_refused_with_any_folds(tmp_path, fold):
    make_questions(tmp_path / "q")
    write_csv(tmp_path / "q" / "extra.csv", [{**kaggle_rows(1, start=70)[0], "id": "7"}])
    data = Data(name="d", dir=str(tmp_path / "q"), train="train.csv", valid="valid.csv")
    path = write_soft_labels(tmp_path / "p.parquet", ["7"], [[0.2] * 5])
    data = replace(data, extra_train="extra.csv", folds=4, fold=fold, soft_labels=path)
    with pytest.raises(ExamError, match="answers question '7'; data"):
        add_soft_labels(read_split(data, None), data)


def test_a_reader_learns_its_teachers_choices(tmp_path):
    questions = as_questions(kaggle_rows(8))
    targets = np.full((8, 5), 0.02)
    best = np.array([options.index(min(options)) for options in questions["options"]])
    targets[range(8), best] = 0.92
    path = write_soft_labels(tmp_path / "p.parquet", questions["id"], targets)
    training = soften(questions, path, 1.0).train
    reader = reader_in(tmp_path, questions, num_train_epochs=40)
    features = features_of(reader, questions).add_column(TARGETS, training[TARGETS][:])
    batch = reader.build_collator(5)(features.to_list()[:2])
    assert batch["targets"] == pytest.approx(torch.tensor(targets[:2]))
    reader.train(features, features.select([]))
    assert (reader.predict_logits(features).argmax(axis=1) == best).mean() > 0.8
    assert (best != np.array(questions["label"])).mean() > 0.5
