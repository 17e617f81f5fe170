"""Packed questions: the logits that one sequence per option gives, and what may influence them."""

import copy
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import kaggle_rows, refuses
from tiny_encoders import (
    CPU,
    FAMILIES,
    TINY,
    as_questions,
    contexts_of,
    packed_heads,
    reader_of,
    rows_of,
    texts,
)
from transformers import AutoConfig, AutoModel
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention

from exam.config import BatchBy, Model, Packing
from exam.core.errors import ExamError
from exam.readers.multiple_choice.attention import (
    Distances,
    per_question_attention,
    sdpa_attention,
    use_disentangled_attention,
)
from exam.readers.multiple_choice.collator import MultipleChoiceCollator, PackedCollator
from exam.readers.multiple_choice.features import SpecialTokens, build_features
from exam.readers.multiple_choice.model import tiny_tokenizer
from exam.readers.multiple_choice.reader import MultipleChoiceReader
from exam.readers.trainer import TokenBatches


@pytest.fixture(scope="module")
def questions():
    return as_questions(kaggle_rows(8))


def compute_logits(reader, rows):
    batch = PackedCollator(reader.tokenizer, max(len(r["options"]) for r in rows))(rows)
    batch.pop("option_mask"), batch.pop("labels", None)
    reader.model.eval()
    with torch.no_grad():
        return reader.model(**batch).logits.numpy()


def alone(reader, row):
    """One sequence per option through the library's own modules; the shared part sees itself."""
    model = reader.model
    config = copy.deepcopy(model.config)
    backbone = AutoModel.from_config(config, attn_implementation="eager").eval()
    backbone.load_state_dict(model.base_model.state_dict(), strict=False)
    template = SpecialTokens.from_tokenizer(reader.tokenizer, pair=bool(row["windows"][0]))
    shared = len(template.build(row["windows"][0], row["prompt"])["input_ids"]) - len(
        template.suffix
    )
    logits = []
    for option in row["options"]:
        sequence = template.build(row["windows"][0], [*row["prompt"], *option])
        ids = torch.tensor([sequence["input_ids"]])
        n = ids.shape[1]
        allowed = torch.ones(n, n, dtype=torch.bool)
        allowed[:shared, shared:] = False
        if config.model_type == "deberta-v2":
            hidden = backbone.encoder(backbone.embeddings(ids), allowed[None, None])
        else:
            mask = torch.zeros(n, n).masked_fill(~allowed, -torch.inf)
            near = (torch.arange(n)[:, None] - torch.arange(n)).abs() <= 8
            masks = {
                "full_attention": mask[None, None],
                "sliding_attention": mask.masked_fill(~near, -torch.inf)[None, None],
            }
            mask = masks if config.model_type == "modernbert" else mask[None, None]
            also = {}
            if config.model_type == "mpnet":  # whose padding is always 1
                also = {"position_ids": torch.arange(2, n + 2)[None]}
            elif config.model_type != "modernbert":
                also = {"token_type_ids": torch.tensor([sequence["token_type_ids"]])}
            hidden = backbone(ids, attention_mask=mask, **also)
        with torch.no_grad():
            pooled = hidden.last_hidden_state[0, shared:].mean(dim=0)
            logits.append(model.classifier(pooled).item())
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_logits_equal_those_of_separate_options(tmp_path, questions, family):
    reader = reader_of(tmp_path, questions, family)
    rows = rows_of(reader, questions)[:3]
    rows[1]["windows"] = [[]]
    rows[2]["options"] = rows[2]["options"][:3]
    packed = compute_logits(reader, rows)
    assert np.ptp(packed[0]) > 0.01
    for row, logits in zip(rows, packed, strict=True):
        assert logits[: len(row["options"])] == pytest.approx(alone(reader, row), abs=2e-4)


def test_a_packed_question_may_be_longer_than_the_positions(tmp_path, questions, monkeypatch):
    monkeypatch.setitem(FAMILIES["bert"], "max_position_embeddings", 60)
    reader = reader_of(tmp_path, questions)
    row = rows_of(reader, questions, max_length=60)[0]
    assert PackedCollator(reader.tokenizer, 5).count_tokens(row) > 60
    assert compute_logits(reader, [row])[0] == pytest.approx(alone(reader, row), abs=2e-4)


@pytest.mark.parametrize(
    ("family", "packing"),
    [*((family, Packing.options) for family in FAMILIES), ("deberta", Packing.cross)],
)
def test_permuted_options_permute_logits(tmp_path, questions, family, packing):
    reader = reader_of(tmp_path, questions, family, packing)
    rows = rows_of(reader, questions)
    before = compute_logits(reader, rows)
    order = [3, 0, 4, 1, 2]
    for row in rows:
        row["options"] = [row["options"][i] for i in order]
    assert compute_logits(reader, rows) == pytest.approx(before[:, order], abs=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_another_option_changes_only_its_own_logit(tmp_path, questions, family):
    reader = reader_of(tmp_path, questions, family)
    rows = rows_of(reader, questions)
    before = compute_logits(reader, rows)
    for row in rows:
        row["options"][1] = [*row["options"][1][::-1], *row["prompt"]]
    after = compute_logits(reader, rows)
    unchanged = [0, 2, 3, 4]
    assert after[:, unchanged] == pytest.approx(before[:, unchanged], abs=2e-4)
    assert (np.abs(after[:, 1] - before[:, 1]) > 1e-3).all()


def test_cross_options_attend_to_each_other_but_not_to_missing_ones(tmp_path, questions):
    reader = reader_of(tmp_path, questions, packing=Packing.cross)
    rows = rows_of(reader, questions)[:2]
    before = compute_logits(reader, rows)
    rows[0]["options"] = rows[0]["options"][:4]
    fewer = compute_logits(reader, rows[:1])
    assert (np.abs(fewer - before[0, :4]) > 1e-5).all()
    assert compute_logits(reader, rows)[0, :4] == pytest.approx(fewer[0], abs=2e-4)


def test_packed_collator_lays_out_literal_tensors():
    tokenizer = tiny_tokenizer(["a b c d e f g"])
    a, b, c, d, e, f = (tokenizer.convert_tokens_to_ids(x) for x in "abcdef")
    rows = [
        {"windows": [[a, b]], "prompt": [c], "options": [[d], [e, f]], "labels": 1},
        {"windows": [[]], "prompt": [c], "options": [[d], [e]], "labels": 0},
    ]
    collator = PackedCollator(tokenizer, options=3)
    batch = collator(rows)
    assert batch["input_ids"].tolist() == [
        [2, a, b, 3, c, d, 3, e, f, 3, *[0] * 6],
        [2, c, d, 3, e, 3, *[0] * 10],
    ]
    assert batch["position_ids"].tolist() == [
        [0, 1, 2, 3, 4, 5, 6, 5, 6, 7, *[0] * 6],
        [0, 1, 2, 3, 2, 3, *[0] * 10],
    ]
    assert batch["attention_mask"].tolist() == [[1] * 10 + [0] * 6, [1] * 6 + [0] * 10]
    assert batch["token_type_ids"].tolist() == [[0] * 4 + [1] * 6 + [0] * 6, [0] * 16]
    assert batch["option_tokens"].int().tolist()[0] == [
        [0, 0, 0, 0, 0, 1, 1, *[0] * 9],
        [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, *[0] * 6],
        [0] * 16,
    ]
    assert batch["option_mask"].tolist() == [[True, True, False]] * 2
    assert batch["labels"].tolist() == [1, 0]
    assert [collator.count_tokens(row) for row in rows] == [16, 16]
    assert [MultipleChoiceCollator(tokenizer, 3).count_tokens(row) for row in rows] == [24, 12]


def test_architectures_that_cannot_be_packed_are_refused(tmp_path, questions):
    config = Model(name="x", config={"model_type": "xlnet", "d_model": 16}, packing=Packing.options)
    with pytest.raises(ExamError, match=r"xlnet model\.\nSet model\.packing=none"):
        MultipleChoiceReader.build(config, CPU, tmp_path, 0, texts(questions))


def test_a_packed_checkpoint_needs_its_packing(tmp_path, questions):
    reader = reader_of(tmp_path, questions)
    reader.model.save_pretrained(tmp_path / "m")
    reader.tokenizer.save_pretrained(tmp_path / "m")
    other = replace(reader.config, name_or_path=str(tmp_path / "m"), packing=Packing.none)
    with refuses(f"{tmp_path / 'm'} was trained with", "Set model.packing=options"):
        MultipleChoiceReader.build(other, CPU, tmp_path, 0)


def test_flash_attention_is_refused_for_other_models(tmp_path, questions):
    values = {"attn_implementation": "flashdeberta"}
    with pytest.raises(ExamError, match=r"attn_implementation=flashdeberta is for DeBERTa.*bert"):
        reader_of(tmp_path, questions, "bert", Packing.none, model=values)
    if find_spec("flashdeberta") is None:
        with pytest.raises(ExamError, match="pip install flashdeberta"):
            reader_of(tmp_path, questions, "deberta", Packing.none, model=values)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"share_att_key": False},
        {"pos_att_type": ["c2p"]},
        {"pos_att_type": ["p2c"], "share_att_key": False},
        {"position_buckets": -1, "max_relative_positions": 12},
        {"relative_attention": False, "pos_att_type": None},
    ],
    ids=str,
)
def test_disentangled_attention_equals_the_library(changed):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        **{**TINY, "initializer_range": 0.3, **changed}, vocab_size=50, pad_token_id=0
    )
    theirs = AutoModel.from_config(config)
    ours = copy.deepcopy(theirs)
    use_disentangled_attention(ours)
    ids = torch.randint(1, 50, (3, 40))
    mask = torch.ones_like(ids)
    mask[1, 25:] = 0
    target = torch.randn(3, 40, 32) * mask[..., None]
    outputs = []
    for model in (theirs, ours):
        hidden = model(ids, attention_mask=mask).last_hidden_state * mask[..., None]
        (hidden * target).sum().backward()
        outputs.append(hidden)
    assert not any(type(m) is DisentangledSelfAttention for m in ours.modules())
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)
    for (name, a), b in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=2e-3, msg=name)


@pytest.mark.parametrize("related", [False, True])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-10), (torch.bfloat16, 0.06)])
def test_per_question_and_sdpa_attention_agree_with_their_gradients(
    tmp_path, questions, related, dtype, near
):
    inputs, index, allowed, real = packed_heads(tmp_path, questions, dtype)
    target = torch.randn(3, allowed.shape[-1], 2, 8, dtype=dtype) * real
    outputs, gradients = [], []
    for compute in (per_question_attention, sdpa_attention):
        query, key, value, *tables = inputs
        distances = Distances(*tables, index) if related else None
        states = compute(query, key, value, allowed, 0.0, distances) * real
        used = inputs if related else inputs[:3]
        gradients.append(torch.autograd.grad((states * target).sum(), used))
        outputs.append(states)
    for ours, theirs in zip([outputs[0], *gradients[0]], [outputs[1], *gradients[1]], strict=True):
        assert (ours - theirs).norm() <= near * theirs.norm()


def test_attention_with_dropout_is_right_on_average(tmp_path, questions):
    (query, key, value, *_), _, allowed, real = packed_heads(tmp_path, questions, torch.float64)
    exact = per_question_attention(query, key, value, allowed, 0.0, None) * real
    draws = [
        per_question_attention(query, key, value, allowed, 0.3, None) * real for _ in range(400)
    ]
    mean = torch.stack(draws).mean(dim=0)
    assert (draws[0] - exact).norm() > 0.1 * exact.norm()
    assert (mean - exact).norm() < 0.05 * exact.norm()
    slope, exact_slope = (
        torch.autograd.grad(x.sum(), value, retain_graph=True)[0] for x in (mean, exact)
    )
    assert (slope - exact_slope).norm() < 0.05 * exact_slope.norm()


@pytest.mark.parametrize(
    ("family", "packing"),
    [*((family, Packing.options) for family in FAMILIES), ("bert", Packing.cross)],
)
def test_training_moves_every_parameter_and_reloads(tmp_path, questions, family, packing):
    reader = reader_of(tmp_path, questions, family, packing, num_train_epochs=1)
    before = {n: p.detach().clone() for n, p in reader.model.named_parameters()}
    features, _ = build_features(questions, contexts_of(questions), reader.tokenizer, 60, 512)
    reader.train(features, features.select([]))
    still = [n for n, p in reader.model.named_parameters() if torch.equal(before[n], p)]
    assert set(still) <= {"classifier.bias"}  # a softmax does not feel it
    logits = reader.predict_logits(features)
    reader.model.save_pretrained(tmp_path / "m")
    reader.tokenizer.save_pretrained(tmp_path / "m")
    saved = replace(reader.config, name_or_path=str(tmp_path / "m"), config=None)
    again = MultipleChoiceReader.build(saved, CPU, tmp_path / "again", seed=9)
    assert np.array_equal(again.predict_logits(features), logits)


@pytest.mark.parametrize("family", ["bert", "modernbert", "mpnet", "deberta"])
def test_checkpointed_gradients_are_the_same(tmp_path, questions, family):
    losses = []
    for checkpointing in (False, True):
        reader = reader_of(
            tmp_path / str(checkpointing),
            questions,
            family,
            max_steps=3,
            activation_checkpointing=checkpointing,
            logging_steps=1,
        )
        features, _ = build_features(questions, contexts_of(questions), reader.tokenizer, 60, 512)
        trainer = reader.build_trainer(features, None, 5)
        trainer.train()
        losses.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_bfloat16_stays_near_fp32_and_its_logits_are_fp32(tmp_path, questions, monkeypatch):
    monkeypatch.setitem(FAMILIES["bert"], "initializer_range", 0.1)
    reader = reader_of(tmp_path, questions)
    rows = rows_of(reader, questions)
    exact = compute_logits(reader, rows)
    with torch.autocast("cpu", torch.bfloat16):
        near = compute_logits(reader, rows)
    assert near.dtype == np.float32
    assert np.corrcoef(near.ravel(), exact.ravel())[0, 1] > 0.99


def test_prediction_by_tokens_keeps_the_order(tmp_path, questions):
    by = {
        how: reader_of(tmp_path, questions, model={"batch_by": how}, per_device_eval_batch_size=3)
        for how in BatchBy
    }
    features, _ = build_features(
        questions, contexts_of(questions), by[BatchBy.tokens].tokenizer, 60, 512
    )
    rows = features.to_list()
    for i, row in enumerate(rows):
        row["windows"] = [row["windows"][0] * (i % 4 + 1)]
    varied = Dataset.from_list(rows, features=features.features)
    one, other = (reader.predict_logits(varied) for reader in by.values())
    assert one == pytest.approx(other, abs=1e-5)


def test_batches_hold_each_row_once_within_the_budget():
    lengths = [int(n) for n in np.random.default_rng(0).integers(50, 400, 500)]
    sampler = TokenBatches(lengths, 8, seed=1, shuffle=True)
    batches = list(sampler)
    assert sorted(row for batch in batches for row in batch) == list(range(500))
    padded = [len(batch) * max(lengths[row] for row in batch) for batch in batches]
    assert len(batches) == 63  # as many as with 8 in each
    assert max(padded) <= 1.1 * 8 * np.mean(lengths)
    assert sum(padded) < 1.02 * sum(lengths)
    sampler.set_epoch(1)
    again = list(sampler)
    assert again != batches
    assert sorted(again) == sorted(batches)
    assert list(TokenBatches(lengths, 8, seed=1, shuffle=True)) == batches


def test_a_question_above_the_budget_gets_a_separate_batch():
    assert TokenBatches([1000, 10, 10, 10], 1).batches[0] == [0]
    assert list(TokenBatches([], 8)) == []


def test_processes_share_the_batches_in_equal_numbers():
    lengths = list(range(1, 60))
    whole = TokenBatches(lengths, 4, seed=3)
    parts = [list(TokenBatches(lengths, 4, seed=3, rank=r, world_size=2)) for r in (0, 1)]
    assert len(parts[0]) == len(parts[1]) == len(TokenBatches(lengths, 4, world_size=2))
    mixed = [batch for pair in zip(*parts, strict=True) for batch in pair]
    assert mixed[: len(whole.batches)] == whole.batches
    few = [list(TokenBatches([1, 1], 2, rank=r, world_size=4)) for r in range(4)]
    assert [len(batches) for batches in few] == [1, 1, 1, 1]
