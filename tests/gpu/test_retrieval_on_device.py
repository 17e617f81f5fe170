"""Encoders, cross-encoders and exact search on a GPU: as on the CPU, in every number format."""

import numpy as np
import pytest
import torch
from accelerators import DEVICES, on_gpu
from helpers import ANIMALS, PLACES

from exam.config import Dtype, Encoder, Reranker
from exam.core.precision import resolve_dtype
from exam.retrieval.encoder import SentenceEncoder
from exam.retrieval.reranker import PairScorer
from exam.retrieval.vectors import exact_search, import_faiss

TEXTS = [f"the {animal} lives in the {place}" for animal in ANIMALS for place in PLACES]
TEXTS += [" ".join(ANIMALS * 9), "", "otter"]
PAIRS = [(f"where does the {a} live", f"it lives in the {p}") for a in ANIMALS for p in PLACES]
FORMATS = [Dtype.float32, Dtype.bfloat16, Dtype.float16]
PLACED = [("cpu", Dtype.float32), *(on_gpu("cuda", dtype) for dtype in FORMATS)]
NEAR = {Dtype.float32: 1e-4, Dtype.bfloat16: 5e-2, Dtype.float16: 1e-2}


@pytest.mark.parametrize(("device", "dtype"), PLACED)
def test_vectors_are_near_those_of_the_cpu(encoder, device, dtype):
    there, here = (
        SentenceEncoder(
            Encoder(name="t", name_or_path=str(encoder), dtype=d, max_tokens_per_batch=512)
        )
        for d in (dtype, Dtype.float32)
    )
    here.model.to("cpu")
    if device == "cpu":
        there.model.to("cpu")
    assert there.model.device.type == device  # the library's choice where there is a GPU
    assert str(there.model.dtype) == f"torch.{dtype.value}"
    vectors, exact = there.passages(TEXTS), here.passages(TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert np.linalg.norm(vectors - exact, axis=1).max() < NEAR[dtype]


@pytest.mark.parametrize(("device", "dtype"), PLACED)
def test_pairs_score_nearly_as_on_the_cpu(cross_encoder, device, dtype):
    there, here = (
        PairScorer(Reranker(name="t", ckpt=str(cross_encoder), dtype=d))
        for d in (dtype, Dtype.float32)
    )
    here.model.to("cpu")
    if device == "cpu":
        there.model.to("cpu")
    assert there.model.device.type == device
    scores, exact = there.scores(PAIRS), here.scores(PAIRS)
    assert np.linalg.norm(scores - exact) < 2 * NEAR[dtype] * np.linalg.norm(exact)


@pytest.mark.parametrize("device", DEVICES[1:])
def test_auto_is_bfloat16_on_a_gpu_that_computes_in_it(device):
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU does not compute in bfloat16")
    assert resolve_dtype(Dtype.auto, "encoder.dtype") is Dtype.bfloat16


@pytest.mark.parametrize("device", DEVICES)
def test_exact_search_is_brute_force(device):
    pytest.importorskip("faiss")
    if device == "cuda" and import_faiss().get_num_gpus() == 0:
        pytest.skip("this faiss is built without GPUs (faiss-cpu)")
    random = np.random.default_rng(0)
    vectors = random.standard_normal((5000, 64), dtype=np.float32)
    queries = random.standard_normal((50, 64), dtype=np.float32)
    blocks = (vectors[start : start + 1000] for start in range(0, 5000, 1000))
    scores, rows = exact_search(queries, blocks, 10)
    order = np.argsort(-(queries.astype(np.float64) @ vectors.T), axis=1)[:, :10]
    assert (rows == order).all()
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ vectors.T, rows, 1), rtol=1e-4)
