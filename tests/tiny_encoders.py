"""Tiny random encoders that read multiple-choice questions, and what they read."""

import copy

import torch
from datasets import Dataset

from exam.config import BatchBy, Model, Packing
from exam.data.schema import FEATURES, LETTERS
from exam.readers.multiple_choice.collator import PackedCollator
from exam.readers.multiple_choice.features import build_features
from exam.readers.multiple_choice.packing import attention_mask_for
from exam.readers.multiple_choice.reader import MultipleChoiceReader

TINY = {
    "model_type": "deberta-v2", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "pooler_hidden_size": 32, "relative_attention": True,
    "position_buckets": 16, "norm_rel_ebd": "layer_norm", "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "type_vocab_size": 0,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pooler_dropout": 0.0,
}  # fmt: skip
CPU = {
    "use_cpu": True,
    "bf16": False,
    "dataloader_pin_memory": False,
    "learning_rate": 1e-3,
    "logging_steps": 1,
}


def as_questions(rows) -> Dataset:
    return Dataset.from_list(
        [
            {
                "id": r["id"],
                "prompt": r["prompt"],
                "options": [r[c] for c in "ABCDE"],
                "label": LETTERS.index(r["answer"]) if "answer" in r else None,
                "context": None,
                "articles": [],
            }
            for r in rows
        ],
        features=FEATURES,
    )


def contexts_of(asked, passages=("It lives in the river.", "The log is a place.")):
    return {q["id"]: [{"text": t} for t in passages] for q in asked}


def texts(asked):
    return [t for q in asked for t in [q["prompt"], *q["options"], "it lives the is a place"]]


def reader_in(tmp_path, asked, seed=0, config=None, model=None, **values) -> MultipleChoiceReader:
    model = Model(
        name="t",
        config=config or dict(TINY),
        **{"batch_by": BatchBy.questions, **(model or {})},
    )
    return MultipleChoiceReader.build(model, {**CPU, **values}, tmp_path / "c", seed, texts(asked))


def features_of(reader, asked, contexts=None, max_length=48):
    found = contexts_of(asked) if contexts is None else contexts
    return build_features(asked, found, reader.tokenizer, max_length, 512)[0]


SMALL = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.5,
}  # fmt: skip
FAMILIES = {
    "bert": {"model_type": "bert", **SMALL},
    "roberta": {"model_type": "roberta", **SMALL, "pad_token_id": 0, "type_vocab_size": 2},
    "mpnet": {"model_type": "mpnet", **SMALL},
    "modernbert": {
        "model_type": "modernbert",
        **{k: SMALL[k] for k in list(SMALL)[:4]},
        "initializer_range": 0.5,
        "local_attention": 16,
        "pad_token_id": 0,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
    },
    "deberta": {**TINY, "initializer_range": 0.5},
}


def model_of(family, packing=Packing.options, **values):
    return Model(name="t", config=copy.deepcopy(FAMILIES[family]), packing=packing, **values)


def reader_of(
    tmp_path, asked, family="bert", packing=Packing.options, seed=0, model=None, **values
):
    config = model_of(family, packing, **(model or {}))
    return MultipleChoiceReader.build(config, {**CPU, **values}, tmp_path / "c", seed, texts(asked))


def rows_of(reader, asked, max_length=60):
    long = ("It lives in the river. The log is a place.", "It is a log in the river. " * 3)
    features, _ = build_features(asked, contexts_of(asked, long), reader.tokenizer, max_length, 512)
    return features.to_list()


def packed_heads(tmp_path, asked, dtype):
    """Random queries, keys, values and relative positions of packed questions of many lengths."""
    reader = reader_of(tmp_path, asked)
    rows = rows_of(reader, asked)[:3]
    rows[1]["windows"] = [[]]
    rows[2]["options"] = rows[2]["options"][:2]
    batch = PackedCollator(reader.tokenizer, 5)(rows)
    allowed = attention_mask_for(batch["attention_mask"], batch["option_tokens"])[:, None]
    torch.manual_seed(0)
    size = (3, 2, allowed.shape[-1], 8)
    inputs = [torch.randn(size, dtype=dtype) for _ in range(3)]
    inputs += [torch.randn(2, 8, 9, dtype=dtype) for _ in range(2)]
    places = batch["position_ids"]
    index = (places[:, :, None] - places[:, None]).clamp(-4, 4) + 4
    real = batch["attention_mask"][..., None, None]
    return [x.requires_grad_() for x in inputs], index, allowed, real
