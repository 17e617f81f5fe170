"""The small repositories have the layouts of the published ones: keys, formats, splits."""

import json
from functools import cache

import pytest
import torch
import yaml
from helpers import ROOT
from hub.layouts import MODELS, deberta_folder, files_of_model
from hub.question_sets import DATA_SETS, files_of_data_set
from hub.weights import state_in
from safetensors.torch import load

# The stored format, keys that are there, and beginnings that no key has.
WEIGHTS = {
    "microsoft/deberta-v3-base": (
        torch.float16,
        "deberta.embeddings.position_embeddings.weight lm_predictions.lm_head.bias "
        "mask_predictions.classifier.bias",
        "pooler classifier",
    ),
    "google-bert/bert-base-cased": (
        torch.float32,
        "bert.embeddings.LayerNorm.gamma bert.embeddings.LayerNorm.beta cls.predictions.bias "
        "cls.seq_relationship.weight",
        "classifier bert.embeddings.LayerNorm.weight",
    ),
    "allenai/longformer-base-4096": (
        torch.float32,
        "longformer.embeddings.position_ids lm_head.bias",
        "classifier",
    ),
    "potsawee/longformer-large-4096-answering-race": (
        torch.float32,
        "longformer.pooler.dense.weight classifier.weight",
        "lm_head",
    ),
    "answerdotai/ModernBERT-base": (
        torch.float32,
        "model.embeddings.tok_embeddings.weight head.dense.weight decoder.bias",
        "classifier decoder.weight",
    ),
    "Qwen/Qwen2.5-7B-Instruct": (torch.bfloat16, "model.norm.weight lm_head.weight", "score"),
    "mistralai/Mistral-7B-v0.1": (torch.bfloat16, "model.norm.weight lm_head.weight", "score"),
    "garage-bAInd/Platypus2-70B-instruct": (
        torch.float16,
        "model.norm.weight lm_head.weight",
        "score",
    ),
    "sentence-transformers/all-MiniLM-L6-v2": (
        torch.float32,
        "embeddings.position_ids pooler.dense.weight encoder.layer.0.output.dense.weight",
        "bert. model.",
    ),
    "sentence-transformers/all-mpnet-base-v2": (
        torch.float32,
        "embeddings.word_embeddings.weight pooler.dense.weight",
        "mpnet.",
    ),
    "BAAI/bge-small-en-v1.5": (torch.float32, "embeddings.word_embeddings.weight", "bert."),
    "thenlper/gte-base": (torch.float16, "embeddings.word_embeddings.weight", "bert."),
    "intfloat/e5-base-v2": (torch.float32, "embeddings.word_embeddings.weight", "bert."),
    "cross-encoder/ms-marco-MiniLM-L6-v2": (
        torch.float32,
        "bert.pooler.dense.weight classifier.weight",
        "score",
    ),
    "BAAI/bge-reranker-v2-m3": (
        torch.float32,
        "roberta.embeddings.word_embeddings.weight classifier.out_proj.weight",
        "score",
    ),
    "Qwen/Qwen3-Reranker-0.6B": (torch.bfloat16, "model.norm.weight", "lm_head score"),
    "Qwen/Qwen3-Embedding-0.6B": (torch.bfloat16, "norm.weight embed_tokens.weight", "model."),
    "mixedbread-ai/mxbai-rerank-base-v2": (torch.float16, "model.norm.weight", "lm_head score"),
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


def test_repositories_are_small():
    assert all(sum(map(len, files_of_model(name).values())) < 1_000_000 for name in MODELS)


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_have_the_published_format_and_keys(name):
    dtype, present, absent = WEIGHTS[name]
    weights = weights_of(name)
    formats = {v.dtype for k, v in weights.items() if v.is_floating_point() and "inv_freq" not in k}
    assert formats == {dtype}
    assert set(present.split()) <= weights.keys()
    assert not [key for key in weights if key.startswith(tuple(absent.split()))]


def test_deberta_has_as_many_tensors_as_the_published_one():
    # 16 a layer: the published base has 210 with its 12 layers.
    assert len(weights_of("microsoft/deberta-v3-base")) == 210 - 16 * 10


def test_both_forms_of_weights_are_equal():
    files = files_of_model("mistralai/Mistral-7B-v0.1")
    parts = [files[f"pytorch_model-0000{i}-of-00002.bin"] for i in (1, 2)]
    pickled = state_in(parts[0]) | state_in(parts[1])
    weights = weights_of("mistralai/Mistral-7B-v0.1")
    assert pickled.keys() == weights.keys()
    assert all(torch.equal(pickled[key], weights[key]) for key in weights)
    index = json.loads(files["model.safetensors.index.json"])
    assert set(index["weight_map"].values()) <= files.keys()
    assert index["weight_map"].keys() == weights.keys()


def test_debertas_tokenizer_is_sentencepieces(tmp_path):
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(str(deberta_folder(tmp_path) / "spm.model"))
    ids = [model.piece_to_id(piece) for piece in ("[PAD]", "[CLS]", "[SEP]", "[UNK]")]
    assert ids == [0, 1, 2, 3]
    pieces = model.encode("10² m, H₂O, ½, ﬁeld, Ａ", out_type=str)
    assert "".join(pieces) == "▁102▁m,▁H2O,▁1⁄2,▁field,▁A"
    assert 3 not in model.encode("10² m, H₂O, ½, ﬁeld, Ａ")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["vocab_size"] == model.get_piece_size() + 100


@pytest.mark.parametrize("name", DATA_SETS)
def test_a_card_describes_its_files(name):
    files = files_of_data_set(name)
    card = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    globs = {d["path"] for config in card["configs"] for d in config["data_files"]}
    folders = {path.rsplit("-", 3)[0] + "-*" for path in files if path.endswith(".parquet")}
    assert globs <= folders
    assert folders - globs <= {"auxiliary_train/train-*"}  # MMLU's, which nests everything
