"""Packed readers where a GPU computes them: in one call, in 16 bits, and as the CPU does."""

import copy

import pytest
import torch
from accelerators import DEVICES, FORMATS, NEAR, distance
from helpers import kaggle_rows
from tiny_encoders import FAMILIES, TINY, as_questions, packed_heads, reader_of, rows_of
from transformers import AutoConfig, AutoModel

from exam.config import Packing
from exam.readers.multiple_choice import attention
from exam.readers.multiple_choice.attention import (
    Distances,
    attend,
    per_question_attention,
    sdpa_attention,
    use_disentangled_attention,
)

SHAPES = [*((family, Packing.options) for family in FAMILIES), ("bert", Packing.cross)]


@pytest.fixture(scope="module")
def questions():
    return as_questions(kaggle_rows(6))


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """On the CPU, too, all questions of a batch are computed in one call."""
    monkeypatch.setattr(attention, "per_question_attention", sdpa_attention)


def batch_of(reader, questions):
    """Six questions; one has no context, one two options, and the lengths differ."""
    rows = rows_of(reader, questions)
    rows[1]["windows"] = [[]]
    rows[2]["options"] = rows[2]["options"][:2]
    batch = reader.build_collator(5)(rows)
    batch.pop("labels")
    return batch, batch.pop("option_mask")


def scored(model, batch, mask, device, dtype, weights):
    """Logits of the options that exist, and the gradient of their weighted sum."""
    model = model.to(device)
    model.zero_grad()
    inputs = {name: value.to(device) for name, value in batch.items()}
    with torch.autocast(device, dtype, enabled=dtype is not torch.float32):
        logits = model(**inputs).logits
    logits = logits.masked_fill(~mask.to(device), 0)
    (logits * weights.to(device)).sum().backward()
    return logits, [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(("family", "packing"), SHAPES)
def test_logits_and_gradients_are_those_of_the_cpu_in_fp32(
    tmp_path, questions, monkeypatch, device, dtype, family, packing
):
    monkeypatch.setitem(FAMILIES[family], "initializer_range", 0.1)  # as trained weights are
    reader = reader_of(tmp_path, questions, family, packing)
    model = reader.model.eval()
    batch, mask = batch_of(reader, questions)
    weights = torch.linspace(-1, 1, mask.numel()).view_as(mask)
    exact, exact_grads = scored(copy.deepcopy(model), batch, mask, "cpu", torch.float32, weights)
    monkeypatch.setattr(attention, "per_question_attention", sdpa_attention)
    logits, grads = scored(model, batch, mask, device, FORMATS[dtype], weights)
    assert logits.dtype == torch.float32
    assert distance(logits, exact) < NEAR[dtype]
    whole, exact_whole = (
        torch.cat([g.float().flatten().cpu() for g in gs]) for gs in (grads, exact_grads)
    )
    assert distance(whole, exact_whole) < 2 * NEAR[dtype]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("related", [False, True])
def test_attention_and_its_gradient_are_those_of_one_question_at_a_time(
    tmp_path, questions, device, dtype, related, as_on_a_gpu
):
    inputs, index, allowed, real = packed_heads(tmp_path, questions, torch.float32)
    wanted = torch.randn_like(inputs[0].transpose(1, 2)) * real
    outcomes = []
    for compute, where, form in (
        (per_question_attention, "cpu", torch.float32),
        (lambda *x: attend(*x[:4], 1.0, *x[4:]), device, FORMATS[dtype]),
    ):
        query, key, value, *tables = (x.detach().to(where, form).requires_grad_() for x in inputs)
        used = [query, key, value, *(tables if related else [])]
        distances = Distances(*tables, index.to(where)) if related else None
        result = compute(query, key, value, allowed.to(where), 0.0, distances) * real.to(where)
        gradients = torch.autograd.grad((result * wanted.to(where, form)).sum(), used)
        outcomes.append([result, *gradients])
    for ours, exact in zip(outcomes[1], outcomes[0], strict=True):
        assert ours.device.type == device
        assert distance(ours, exact) < NEAR[dtype]


@pytest.mark.parametrize("device", DEVICES)
def test_what_padding_holds_changes_no_logit(tmp_path, questions, device, as_on_a_gpu):
    reader = reader_of(tmp_path, questions, "deberta")
    batch, _ = batch_of(reader, questions)
    model = reader.model.eval().to(device)
    inputs = {name: value.to(device) for name, value in batch.items()}
    with torch.no_grad():
        logits = model(**inputs).logits
        inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 7)
        again = model(**inputs).logits
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(again, logits, rtol=1e-5, atol=1e-5)


def flash_and_plain(dtype):
    torch.manual_seed(0)
    big = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 128}
    config = AutoConfig.for_model(**{**TINY, **big}, vocab_size=50, pad_token_id=0)
    plain = AutoModel.from_config(config).cuda().to(dtype).eval()
    flash = copy.deepcopy(plain)
    use_disentangled_attention(flash, flash=True)
    return flash, plain


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("device", DEVICES[1:])
def test_flash_attention_is_the_library_own(device, dtype):
    pytest.importorskip("flashdeberta")
    models = flash_and_plain(FORMATS[dtype])
    ids = torch.randint(1, 50, (3, 40), device=device)
    with torch.no_grad():
        ours, theirs = (model(ids).last_hidden_state for model in models)
    assert distance(ours, theirs) < NEAR[dtype]


@pytest.mark.parametrize("family", ["bert", "deberta"])
@pytest.mark.parametrize("device", DEVICES[1:])
def test_a_compiled_reader_gives_the_same_logits(tmp_path, questions, device, family):
    reader = reader_of(tmp_path, questions, family)
    batch, _ = batch_of(reader, questions)
    model = reader.model.eval().to(device)
    inputs = {name: value.to(device) for name, value in batch.items()}
    with torch.no_grad():
        logits = model(**inputs).logits
        compiled = torch.compile(model)(**inputs).logits
    assert distance(compiled, logits) < NEAR["fp32"]
