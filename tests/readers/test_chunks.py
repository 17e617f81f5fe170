"""Several windows of passages for each question."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import kaggle_rows, refuses
from scipy.special import log_softmax, logsumexp, softmax
from tiny_encoders import as_questions, reader_of, rows_of

from exam.config import ChunkPooling, Loss, Order, Packing
from exam.config.compose import compose_config
from exam.readers.multiple_choice.collator import PackedCollator
from exam.readers.multiple_choice.features import DRAWN, TruncationStats, fill_windows
from exam.readers.trainer import pool_windows


def fill(passages, room, number, order=Order.best_first):
    cut = TruncationStats()
    return fill_windows(passages, room, number, order, cut), (cut.passages, cut.tokens)


def test_whole_passages_fill_the_windows_in_order():
    passages = [[1, 1, 1], [2, 2], [3, 3, 3], [4], [5, 5]]
    assert fill(passages, 5, 1) == ([[1, 1, 1, 2, 2]], (3, 6))
    assert fill(passages, 5, 2) == ([[1, 1, 1, 2, 2], [3, 3, 3, 4, 5]], (0, 1))
    assert fill(passages, 5, 3) == ([[1, 1, 1, 2, 2], [3, 3, 3, 4], [5, 5]], (0, 0))
    assert fill(passages, 5, 9) == fill(passages, 5, 3)
    assert fill(passages, 5, 2, Order.best_last)[0] == [[2, 2, 1, 1, 1], [5, 4, 3, 3, 3]]
    assert fill([[1] * 7, [2]], 5, 2) == ([[1] * 5, [2]], (0, 2))
    assert fill([], 5, 3) == ([[]], (0, 0))
    assert fill(passages, 0, 2)[0] == [[], []]


def test_pooled_probabilities_sum_over_windows_of_one_softmax():
    scores = torch.tensor([[1.0, 2.0], [0.0, -1.0], [3.0, 0.5]])
    owner = torch.tensor([0, 0, 1])
    pooled = pool_windows(scores, owner, 2, ChunkPooling.sum).numpy()
    joint = softmax(scores[:2].numpy().ravel()).reshape(2, 2).sum(axis=0)
    assert softmax(pooled[0]) == pytest.approx(joint)
    assert pooled[1] == pytest.approx([3.0, 0.5])
    assert pool_windows(scores, owner, 2, ChunkPooling.max).tolist() == [[1.0, 2.0], [3.0, 0.5]]
    assert pool_windows(scores, owner, 2, ChunkPooling.mean).tolist() == [[0.5, 0.5], [3.0, 0.5]]
    large = pool_windows(scores * 1e4, owner, 2, ChunkPooling.sum)
    assert large.isfinite().all()


COMBINE = {
    ChunkPooling.sum: lambda scores: logsumexp(scores, axis=0),
    ChunkPooling.max: lambda scores: scores.max(axis=0),
    ChunkPooling.mean: lambda scores: scores.mean(axis=0),
}


@pytest.mark.parametrize("pooling", ChunkPooling)
@pytest.mark.parametrize("packing", [Packing.options, Packing.none])
def test_logits_are_those_of_the_windows_read_apart(tmp_path, packing, pooling):
    questions = as_questions(kaggle_rows(6))
    model = {"loss": Loss.binary, "cross_option_bias": True} if pooling is ChunkPooling.mean else {}
    reader = reader_of(tmp_path, questions, packing=packing, model=model)
    reader.arguments.chunk_pooling = pooling
    if model:
        torch.nn.init.constant_(reader.model.others.weight, 0.5)
    rows = rows_of(reader, questions)
    for i, row in enumerate(rows):
        (window,) = row["windows"]
        row["windows"] = [window, window[::-1], window[2:]][: 1 + i % 3]
    rows[4]["options"] = rows[4]["options"][:3]
    several = Dataset.from_list(rows)
    expected = []
    for row in rows:
        apart = Dataset.from_list([{**row, "windows": [window]} for window in row["windows"]])
        combined = COMBINE[pooling](reader.predict_logits(apart))
        expected.append(np.pad(combined, (0, 5 - len(combined)), constant_values=-np.inf))
    assert reader.predict_logits(several) == pytest.approx(np.array(expected), abs=1e-5)


def test_the_loss_weighs_questions_not_windows(tmp_path):
    questions = as_questions(kaggle_rows(4))
    reader = reader_of(tmp_path, questions, per_device_eval_batch_size=4)
    rows = rows_of(reader, questions)
    rows[1]["windows"] *= 3
    features = Dataset.from_list(rows)
    trainer = reader.build_trainer(None, features, 5)
    output = trainer.predict(trainer.eval_dataset)
    logits = reader.predict_logits(features)
    chances = log_softmax(logits, axis=1)[np.arange(4), questions["label"]]
    assert output.metrics["test_loss"] == pytest.approx(-chances.mean(), abs=1e-5)


def test_an_epoch_draws_windows_by_seed_and_epoch(tmp_path):
    questions = as_questions(kaggle_rows(8))
    reader = reader_of(tmp_path, questions)
    rows = rows_of(reader, questions)
    for row in rows:
        row |= {"windows": [[n] for n in range(20, 26)], DRAWN: 2}

    def draw(seed: int, epoch: int) -> list[int]:
        batch = PackedCollator(reader.tokenizer, 5, seed=seed, epoch=epoch)(rows)
        assert batch["owner"].tolist() == [i for i in range(8) for _ in range(2)]
        return batch["input_ids"][:, 1].tolist()

    assert draw(0, 0) == draw(0, 0)
    assert draw(0, 1) != draw(0, 0) != draw(1, 0)
    assert set(draw(0, 0) + draw(0, 1) + draw(0, 2)) == set(range(20, 26))
    pairs = np.array(draw(0, 0)).reshape(8, 2)
    assert (pairs[:, 0] < pairs[:, 1]).all()


def test_each_epoch_of_training_has_its_number(tmp_path, monkeypatch):
    questions = as_questions(kaggle_rows(8))
    reader = reader_of(tmp_path, questions, num_train_epochs=3, save_strategy="no")
    rows = [{**row, "windows": [[20], [21], [22]], DRAWN: 1} for row in rows_of(reader, questions)]
    epochs = set()
    build = PackedCollator._draw_windows

    def record(self, row):
        epochs.add(self.epoch)
        return build(self, row)

    features = Dataset.from_list(rows)
    trainer = reader.build_trainer(features, None, 5)
    monkeypatch.setattr(PackedCollator, "_draw_windows", record)
    trainer.train()
    assert epochs == {0, 1, 2}


def test_more_drawn_windows_than_there_are_are_refused():
    with refuses("context.train_chunks=3", "context.chunks=1", "context.chunks=3"):
        compose_config("train", "context.train_chunks=3")


def test_other_readers_have_no_windows():
    with refuses("context.chunks", "model.kind=lexical"):
        compose_config("train", "context.chunks=2", "model=lexical")
