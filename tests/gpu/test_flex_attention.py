"""FlexAttention gives what SDPA with a dense mask gives."""

import sys

import pytest
import torch
from accelerators import DEVICES, FORMATS, NEAR, distance
from helpers import ROOT, kaggle_rows
from tiny_encoders import as_questions, packed_heads, reader_of, rows_of

from exam.readers.multiple_choice import attention
from exam.readers.multiple_choice.attention import Distances, sdpa_attention

sys.path.insert(0, str(ROOT / "benchmarks"))
from flex import flex, flex_at_once


@pytest.fixture(scope="module")
def questions():
    return as_questions(kaggle_rows(6))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("related", [False, True])
def test_flex_attention_is_that_of_the_dense_mask(tmp_path, questions, device, dtype, related):
    inputs, index, allowed, real = packed_heads(tmp_path, questions, FORMATS[dtype])
    big = torch.nn.functional.pad  # kernels want heads of 16 or more
    query, key, value = (big(x.detach(), (0, 8)).to(device) for x in inputs[:3])
    tables = [big(x.detach(), (0, 0, 0, 8)).to(device) for x in inputs[3:]]
    distances = Distances(*tables, index.to(device)) if related else None
    with torch.no_grad():
        ours, theirs = (
            compute(query, key, value, allowed.to(device), 0.0, distances) * real.to(device)
            for compute in (flex_at_once, sdpa_attention)
        )
    assert distance(ours, theirs) < NEAR[dtype]


@pytest.mark.parametrize("device", DEVICES[1:])
@pytest.mark.parametrize("related", [False, True])
def test_the_gradient_of_flex_attention_is_that_of_the_dense_mask(
    tmp_path, questions, device, related
):
    inputs, index, allowed, real = packed_heads(tmp_path, questions, torch.float32)
    used = [torch.nn.functional.pad(x.detach(), (0, 8)) for x in inputs[:3]]
    used += [torch.nn.functional.pad(x.detach(), (0, 0, 0, 8)) for x in inputs[3:]]
    used = [x.to(device).requires_grad_() for x in used]
    distances = Distances(*used[3:], index.to(device)) if related else None
    outcomes = []
    for compute in (flex_at_once, sdpa_attention):
        result = compute(*used[:3], allowed.to(device), 0.0, distances) * real.to(device)
        outcomes.append(torch.autograd.grad(result.square().sum(), used if related else used[:3]))
    for ours, theirs in zip(*outcomes, strict=True):
        assert distance(ours, theirs) < NEAR["fp32"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", ["bert", "roberta", "deberta"])
def test_readers_answer_alike(tmp_path, questions, device, family):
    reader = reader_of(tmp_path, questions, family)
    batch = reader.build_collator(5)(rows_of(reader, questions))
    inputs = {n: v.to(device) for n, v in batch.items() if n not in ("labels", "option_mask")}
    model = reader.model.eval().to(device)
    with torch.no_grad():
        dense = model(**inputs).logits
        with flex():
            block = model(**inputs).logits
    assert attention.sdpa_attention is sdpa_attention
    torch.testing.assert_close(block, dense, rtol=1e-4, atol=1e-4)


def test_dropout_is_refused():
    x = torch.zeros(1, 1, 16, 16)
    with pytest.raises(ValueError, match="FlexAttention has no dropout"):
        flex_at_once(x, x, x, torch.ones(1, 1, 16, 16).bool(), 0.1, None)
