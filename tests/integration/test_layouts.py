"""The small repositories have the layouts of the published ones: keys, formats, splits."""

from functools import cache

import pytest
import torch
import yaml
from helpers import ROOT
from hub.layouts import MODELS, files_of_model
from hub.question_sets import DATA_SETS
from hub.weights import state_in
from safetensors.torch import load

# Where they differ from what the library writes now: the stored format, keys that are there, and
# beginnings that no key has.
FLOAT, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16
WEIGHTS = {
    "microsoft/deberta-v3-base": (
        HALF,
        "deberta.embeddings.position_embeddings.weight mask_predictions.classifier.bias",
        "pooler classifier",
    ),
    "google-bert/bert-base-cased": (
        FLOAT,
        "bert.embeddings.LayerNorm.gamma bert.embeddings.LayerNorm.beta cls.predictions.bias",
        "classifier bert.embeddings.LayerNorm.weight",
    ),
    "allenai/longformer-base-4096": (FLOAT, "longformer.embeddings.position_ids", "classifier"),
    "answerdotai/ModernBERT-base": (FLOAT, "head.dense.weight", "classifier decoder.weight"),
    "mistralai/Mistral-7B-v0.1": (BRAIN, "model.norm.weight lm_head.weight", "score"),
    "garage-bAInd/Platypus2-70B-instruct": (HALF, "model.norm.weight lm_head.weight", "score"),
    "sentence-transformers/all-MiniLM-L6-v2": (FLOAT, "embeddings.position_ids", "bert. model."),
    "sentence-transformers/all-mpnet-base-v2": (FLOAT, "pooler.dense.weight", "mpnet."),
    "thenlper/gte-base": (HALF, "embeddings.word_embeddings.weight", "bert."),
    "Qwen/Qwen3-Reranker-0.6B": (BRAIN, "model.norm.weight", "lm_head score"),
    "Qwen/Qwen3-Embedding-0.6B": (BRAIN, "norm.weight embed_tokens.weight", "model."),
    "mixedbread-ai/mxbai-rerank-base-v2": (HALF, "model.norm.weight", "lm_head score"),
}


@cache
def weights_of(name: str) -> dict[str, torch.Tensor]:
    """Every weight of a model: of safetensors where there are some, else of the pickle."""
    files = files_of_model(name)
    whole = [load(data) for path, data in files.items() if path.endswith(".safetensors")]
    whole = whole or [state_in(files["pytorch_model.bin"])]
    return {key: value for part in whole for key, value in part.items()}


def test_every_id_of_the_configuration_is_published():
    named = set()
    for path in (ROOT / "conf").rglob("*.yaml"):
        values = yaml.safe_load(path.read_text()) or {}
        values |= values.get("data", {}) if isinstance(values.get("data"), dict) else {}
        named |= {values.get(key) for key in ("name_or_path", "ckpt", "hub")}
    named = {name for name in named if name and "/" in name and "$" not in name}
    assert named - MODELS.keys() == DATA_SETS.keys()


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_have_the_published_format_and_keys(name):
    dtype, present, absent = WEIGHTS[name]
    weights = weights_of(name)
    formats = {v.dtype for k, v in weights.items() if v.is_floating_point() and "inv_freq" not in k}
    assert formats == {dtype}
    assert set(present.split()) <= weights.keys()
    assert not [key for key in weights if key.startswith(tuple(absent.split()))]
