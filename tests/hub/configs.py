"""The config.json of published repositories, without their sizes, which `small` gives them."""

from typing import Any

Config = dict[str, Any]
DROPOUT = {"attention_probs_dropout_prob": 0.1, "hidden_act": "gelu", "hidden_dropout_prob": 0.1}
DEBERTA: Config = {
    "model_type": "deberta-v2", **DROPOUT, "initializer_range": 0.02,
    "max_position_embeddings": 512, "relative_attention": True, "position_buckets": 256,
    "norm_rel_ebd": "layer_norm", "share_att_key": True, "pos_att_type": "p2c|c2p",
    "layer_norm_eps": 1e-7, "max_relative_positions": -1, "position_biased_input": False,
    "type_vocab_size": 0,
}  # fmt: skip


def bert(architecture: str, **more: Any) -> Config:
    """A BERT's config.json."""
    return {
        "architectures": [architecture], **DROPOUT, "initializer_range": 0.02,
        "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert",
        "pad_token_id": 0, "position_embedding_type": "absolute", "type_vocab_size": 2,
        "use_cache": True, **more,
    }  # fmt: skip


BERT_BASE_CASED = bert("BertForMaskedLM", gradient_checkpointing=False)
MINILM = bert("BertModel", gradient_checkpointing=False)
BGE_SMALL = bert("BertModel", torch_dtype="float32")
BGE_SMALL |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
GTE_BASE = bert("BertModel", torch_dtype="float16")
E5_BASE = bert("BertModel", torch_dtype="float32")
MS_MARCO = bert("BertForSequenceClassification")
MS_MARCO |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
MS_MARCO |= {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}

LONGFORMER: Config = {
    "attention_mode": "longformer", "attention_probs_dropout_prob": 0.1,
    "attention_window": [512] * 12, "bos_token_id": 0, "eos_token_id": 2,
    "gradient_checkpointing": False, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
    "ignore_attention_mask": False, "initializer_range": 0.02, "layer_norm_eps": 1e-5,
    "max_position_embeddings": 4098, "model_type": "longformer", "pad_token_id": 1,
    "sep_token_id": 2, "type_vocab_size": 1,
}  # fmt: skip
LONGFORMER_RACE = {
    "architectures": ["LongformerForMultipleChoice"],
    **LONGFORMER,
    "torch_dtype": "float32",
}
MPNET: Config = {
    "architectures": ["MPNetForMaskedLM"], **DROPOUT, "bos_token_id": 0, "eos_token_id": 2,
    "gradient_checkpointing": False, "initializer_range": 0.02, "layer_norm_eps": 1e-5,
    "max_position_embeddings": 514, "model_type": "mpnet", "pad_token_id": 1,
    "relative_attention_num_buckets": 32,
}  # fmt: skip
MODERNBERT: Config = {
    "architectures": ["ModernBertForMaskedLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 50281, "classifier_activation": "gelu", "classifier_bias": False,
    "classifier_dropout": 0.0, "classifier_pooling": "mean", "cls_token_id": 50281,
    "decoder_bias": True, "deterministic_flash_attn": False, "embedding_dropout": 0.0,
    "eos_token_id": 50282, "global_attn_every_n_layers": 3, "global_rope_theta": 160000.0,
    "hidden_activation": "gelu", "initializer_range": 0.02, "layer_norm_eps": 1e-5,
    "local_attention": 128, "local_rope_theta": 10000.0, "max_position_embeddings": 8192,
    "mlp_bias": False, "mlp_dropout": 0.0, "model_type": "modernbert", "norm_bias": False,
    "norm_eps": 1e-5, "pad_token_id": 50283, "position_embedding_type": "absolute",
    "sep_token_id": 50282, "tie_word_embeddings": True, "torch_dtype": "float32",
}  # fmt: skip
XLM_ROBERTA: Config = {
    "architectures": ["XLMRobertaForSequenceClassification"], **DROPOUT, "bos_token_id": 0,
    "classifier_dropout": None, "eos_token_id": 2, "id2label": {"0": "LABEL_0"},
    "initializer_range": 0.02, "label2id": {"LABEL_0": 0}, "layer_norm_eps": 1e-5,
    "max_position_embeddings": 8194, "model_type": "xlm-roberta", "output_past": True,
    "pad_token_id": 1, "position_embedding_type": "absolute", "torch_dtype": "float32",
    "type_vocab_size": 1, "use_cache": True,
}  # fmt: skip


def decoder(kind: str) -> Config:
    """A causal language model's config.json."""
    return {
        "architectures": [f"{'Llama' if kind == 'llama' else kind.capitalize()}ForCausalLM"],
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "model_type": kind,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
        "use_cache": True,
    }


QWEN = decoder("qwen2")
QWEN |= {"attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645}
QWEN |= {"max_position_embeddings": 32768, "max_window_layers": 28, "rms_norm_eps": 1e-6}
QWEN |= {"rope_theta": 1000000.0, "sliding_window": 131072, "use_sliding_window": False}
QWEN |= {"torch_dtype": "bfloat16"}
MISTRAL = decoder("mistral")
MISTRAL |= {"bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 32768}
MISTRAL |= {"rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 4096}
MISTRAL |= {"torch_dtype": "bfloat16"}
PLATYPUS = decoder("llama")
PLATYPUS |= {"bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 4096}
PLATYPUS |= {"pad_token_id": 0, "pretraining_tp": 1, "rms_norm_eps": 1e-5, "rope_scaling": None}
PLATYPUS |= {"torch_dtype": "float16", "use_cache": False}
QWEN3 = decoder("qwen3")
QWEN3 |= {"attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643}
QWEN3 |= {"eos_token_id": 151645, "head_dim": 128, "max_position_embeddings": 40960}
QWEN3 |= {"max_window_layers": 28, "rms_norm_eps": 1e-6, "rope_scaling": None}
QWEN3 |= {"rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True}
QWEN3 |= {"torch_dtype": "bfloat16", "use_sliding_window": False}
MXBAI = decoder("qwen2")
MXBAI |= {"attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643}
MXBAI |= {"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0}
MXBAI |= {"tie_word_embeddings": True, "torch_dtype": "float16", "use_sliding_window": False}

SMALL = {"hidden_size": 32, "intermediate_size": 64}
SMALL |= {"num_attention_heads": 2, "num_hidden_layers": 2}
# Only where the published config has them: what follows from the sizes, and learned positions.
SMALLER = {"num_key_value_heads": 1, "head_dim": 16, "max_window_layers": 2}
SMALLER |= {"attention_window": [32, 32]}
LEARNED = {"longformer", "xlm-roberta"}


def small(config: Config, rows: int, **ids: int) -> Config:
    """The config with small sizes, so many rows of embeddings, and these tokens' ids."""
    sizes = SMALL | {name: value for name, value in SMALLER.items() if name in config}
    if config["model_type"] in LEARNED:
        sizes |= {"max_position_embeddings": 1026}
    return config | sizes | {"vocab_size": rows} | ids
