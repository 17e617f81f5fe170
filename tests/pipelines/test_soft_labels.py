"""Learning from another reader's probabilities."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import concatenate_datasets
from helpers import kaggle_rows, make_questions, write_csv
from tiny_encoders import as_questions, features_of, reader_in

from exam.config import Data
from exam.core.errors import ExamError
from exam.data.splits import Split, read_split
from exam.evaluation.predictions import Predictions, write_predictions
from exam.pipelines.soft_labels import with_soft_labels
from exam.readers.multiple_choice.features import TARGETS, shuffle_options


def split_of(questions, extra=None):
    none = questions.select([])
    apart = none if extra is None else extra
    return Split(concatenate_datasets([questions, apart]), questions, none, none, apart)


def written(path, ids, chances, reader="teacher"):
    logits = np.log(np.array(chances))
    found = Predictions(list(ids), logits, [None] * len(ids), reader, "c")
    write_predictions(path, [found])
    return str(path)


def softened(questions, path, weight=0.5, extra=None):
    return with_soft_labels(
        split_of(questions, extra), Data(name="d", soft_labels=path, soft_weight=weight)
    )


def test_answers_and_probabilities_are_mixed_by_the_weight(tmp_path):
    asked = as_questions(kaggle_rows(2))  # right: A, B
    path = written(tmp_path / "p.parquet", ["0"], [[0.2, 0.4, 0.1, 0.1, 0.2]])
    found = softened(asked, path, 0.25).train
    assert found[TARGETS][0] == pytest.approx([0.8, 0.1, 0.025, 0.025, 0.05])
    assert found[TARGETS][1] == [0, 1, 0, 0, 0]
    shuffled = shuffle_options(found, 3)
    for row, before in zip(shuffled, found, strict=True):
        by_text = dict(zip(row["options"], row[TARGETS], strict=True))
        assert [by_text[option] for option in before["options"]] == before[TARGETS]


def test_unlabelled_extra_questions_learn_from_probabilities_alone(tmp_path):
    rows = [{k: v for k, v in row.items() if k != "answer"} for row in kaggle_rows(1)]
    extra = as_questions([{**rows[0], "id": "extra:0"}])
    path = written(tmp_path / "p.parquet", ["0"], [[0.2, 0.4, 0.1, 0.1, 0.2]])
    found = softened(as_questions(kaggle_rows(2, start=4)), path, 0.5, extra).extra
    assert found[TARGETS][0] == pytest.approx([0.2, 0.4, 0.1, 0.1, 0.2])
    lacking = as_questions([{**rows[0], "id": "extra:7"}])
    with pytest.raises(ExamError) as caught:
        softened(as_questions(kaggle_rows(2)), path, 0.5, lacking)
    assert str(caught.value) == (
        f"Question 'extra:7' has no answer, and {path} has none either.\n"
        "Predict it too, or leave it out."
    )


def test_predictions_of_other_questions_are_refused(tmp_path):
    asked = as_questions(kaggle_rows(2))
    path = written(tmp_path / "p.parquet", ["x"], [[0.2] * 5])
    with pytest.raises(ExamError) as caught:
        softened(asked, path)
    assert str(caught.value) == (
        f"data.soft_labels={path} answers none of the training questions "
        "(it has 'x' …, they have '0' …).\n"
        "Predict the same files: exam infer ckpt=<run> data.test=<file>"
    )
    path = written(tmp_path / "p.parquet", ["0"], [[0.25] * 4])
    with pytest.raises(ExamError, match=r"Question '0' has 5 options, and 4 in .*p.parquet"):
        softened(asked, path)


def test_an_id_of_two_questions_is_refused(tmp_path):
    extra = as_questions([{**kaggle_rows(1)[0], "id": "extra:0"}])
    path = written(tmp_path / "p.parquet", ["0"], [[0.2] * 5])
    with pytest.raises(ExamError) as caught:
        softened(as_questions(kaggle_rows(1)), path, 0.5, extra)
    assert str(caught.value) == (
        f"{path} answers question '0', and data.train and data.extra_train both have one of that "
        "id.\n"
        "Give the questions of one file other ids, and predict them again."
    )


@pytest.mark.parametrize("fold", [0, None, "all"])
def test_an_id_of_two_questions_is_refused_whatever_the_folds(tmp_path, fold):
    make_questions(tmp_path / "q")
    write_csv(tmp_path / "q" / "extra.csv", [{**kaggle_rows(1, start=70)[0], "id": "7"}])
    data = Data(name="d", dir=str(tmp_path / "q"), train="train.csv", valid="valid.csv")
    path = written(tmp_path / "p.parquet", ["7"], [[0.2] * 5])
    data = replace(data, extra_train="extra.csv", folds=4, fold=fold, soft_labels=path)
    with pytest.raises(ExamError, match="answers question '7', and data"):
        with_soft_labels(read_split(data, None), data)


def test_a_reader_learns_what_its_teacher_believes(tmp_path):
    asked = as_questions(kaggle_rows(8))
    belief = np.full((8, 5), 0.02)
    believed = np.array([options.index(min(options)) for options in asked["options"]])
    belief[range(8), believed] = 0.92
    path = written(tmp_path / "p.parquet", asked["id"], belief)
    taught = softened(asked, path, 1.0).train
    reader = reader_in(tmp_path, asked, num_train_epochs=40)
    features = features_of(reader, asked).add_column(TARGETS, taught[TARGETS][:])
    batch = reader.build_collator(5)(features.to_list()[:2])
    assert batch["targets"] == pytest.approx(torch.tensor(belief[:2]))
    reader.train(features, features.select([]))
    assert (reader.predict_logits(features).argmax(axis=1) == believed).mean() > 0.8
    assert (believed != np.array(asked["label"])).mean() > 0.5
