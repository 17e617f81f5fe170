"""What repositories' config.json say, with the published sizes; `small` makes them small."""

from typing import Any

Config = dict[str, Any]
DROPOUT = {"attention_probs_dropout_prob": 0.1, "hidden_act": "gelu", "hidden_dropout_prob": 0.1}


def deberta(size: str) -> Config:
    """The config.json of `microsoft/deberta-v3-<size>`."""
    width, inner, heads, layers = {
        "xsmall": (384, 1536, 6, 12),
        "small": (768, 3072, 12, 6),
        "base": (768, 3072, 12, 12),
        "large": (1024, 4096, 16, 24),
    }[size]
    return {
        "model_type": "deberta-v2",
        **DROPOUT,
        "hidden_size": width,
        "initializer_range": 0.02,
        "intermediate_size": inner,
        "max_position_embeddings": 512,
        "relative_attention": True,
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": "p2c|c2p",
        "layer_norm_eps": 1e-7,
        "max_relative_positions": -1,
        "position_biased_input": False,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "type_vocab_size": 0,
        "vocab_size": 128100,
    }


def bert(architecture: str, width: int, layers: int, vocabulary: int, **more: Any) -> Config:
    """A BERT's config.json."""
    fields = {
        "architectures": [architecture],
        **DROPOUT,
        "hidden_size": width,
        "initializer_range": 0.02,
        "intermediate_size": 4 * width,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "model_type": "bert",
        "num_attention_heads": 12,
        "num_hidden_layers": layers,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "type_vocab_size": 2,
        "use_cache": True,
        "vocab_size": vocabulary,
        **more,
    }
    return dict(sorted(fields.items()))


OLD = {"gradient_checkpointing": False, "transformers_version": "4.6.0.dev0"}
BERT_BASE_CASED = bert("BertForMaskedLM", 768, 12, 28996, **OLD)
MINILM = bert("BertModel", 384, 6, 30522, gradient_checkpointing=False)
MINILM |= {"_name_or_path": "nreimers/MiniLM-L6-H384-uncased", "transformers_version": "4.8.2"}
BGE_SMALL = bert("BertModel", 384, 12, 30522, torch_dtype="float32")
BGE_SMALL |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
GTE_BASE = bert("BertModel", 768, 12, 30522, torch_dtype="float16")
E5_BASE = bert("BertModel", 768, 12, 30522, torch_dtype="float32")
MS_MARCO = bert("BertForSequenceClassification", 384, 6, 30522)
MS_MARCO |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
MS_MARCO |= {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}

LONGFORMER: Config = {
    "attention_mode": "longformer",
    "attention_probs_dropout_prob": 0.1,
    "attention_window": [512] * 12,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "gradient_checkpointing": False,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "ignore_attention_mask": False,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 4098,
    "model_type": "longformer",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "sep_token_id": 2,
    "type_vocab_size": 1,
    "vocab_size": 50265,
}
LONGFORMER_RACE = {
    "_name_or_path": "allenai/longformer-large-4096",
    "architectures": ["LongformerForMultipleChoice"],
    **LONGFORMER,
    "attention_window": [512] * 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "torch_dtype": "float32",
}
MPNET: Config = {
    "_name_or_path": "microsoft/mpnet-base",
    "architectures": ["MPNetForMaskedLM"],
    **DROPOUT,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "gradient_checkpointing": False,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 514,
    "model_type": "mpnet",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "relative_attention_num_buckets": 32,
    "transformers_version": "4.8.2",
    "vocab_size": 30527,
}
MODERNBERT: Config = {
    "architectures": ["ModernBertForMaskedLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 50281,
    "classifier_activation": "gelu",
    "classifier_bias": False,
    "classifier_dropout": 0.0,
    "classifier_pooling": "mean",
    "cls_token_id": 50281,
    "decoder_bias": True,
    "deterministic_flash_attn": False,
    "embedding_dropout": 0.0,
    "eos_token_id": 50282,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "hidden_activation": "gelu",
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 1152,
    "layer_norm_eps": 1e-5,
    "local_attention": 128,
    "local_rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "mlp_dropout": 0.0,
    "model_type": "modernbert",
    "norm_bias": False,
    "norm_eps": 1e-5,
    "num_attention_heads": 12,
    "num_hidden_layers": 22,
    "pad_token_id": 50283,
    "position_embedding_type": "absolute",
    "sep_token_id": 50282,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "transformers_version": "4.47.0.dev0",
    "vocab_size": 50368,
}
XLM_ROBERTA: Config = {
    "_name_or_path": "BAAI/bge-m3",
    "architectures": ["XLMRobertaForSequenceClassification"],
    **DROPOUT,
    "bos_token_id": 0,
    "classifier_dropout": None,
    "eos_token_id": 2,
    "hidden_size": 1024,
    "id2label": {"0": "LABEL_0"},
    "initializer_range": 0.02,
    "intermediate_size": 4096,
    "label2id": {"LABEL_0": 0},
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 8194,
    "model_type": "xlm-roberta",
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "output_past": True,
    "pad_token_id": 1,
    "position_embedding_type": "absolute",
    "torch_dtype": "float32",
    "type_vocab_size": 1,
    "use_cache": True,
    "vocab_size": 250002,
}


def decoder(kind: str, width: int, layers: int, heads: tuple[int, int], **more: Any) -> Config:
    """A causal language model's config.json; `heads` are those of queries and of keys."""
    return {
        "architectures": [f"{'Llama' if kind == 'llama' else kind.capitalize()}ForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": width,
        "initializer_range": 0.02,
        "model_type": kind,
        "num_attention_heads": heads[0],
        "num_hidden_layers": layers,
        "num_key_value_heads": heads[1],
        "tie_word_embeddings": False,
        "use_cache": True,
        **more,
    }


QWEN = decoder("qwen2", 3584, 28, (28, 4), intermediate_size=18944, vocab_size=152064)
QWEN |= {"attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645}
QWEN |= {"max_position_embeddings": 32768, "max_window_layers": 28, "rms_norm_eps": 1e-6}
QWEN |= {"rope_theta": 1000000.0, "sliding_window": 131072, "use_sliding_window": False}
QWEN |= {"torch_dtype": "bfloat16", "transformers_version": "4.43.1"}
MISTRAL = decoder("mistral", 4096, 32, (32, 8), intermediate_size=14336, vocab_size=32000)
MISTRAL |= {"bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 32768}
MISTRAL |= {"rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 4096}
MISTRAL |= {"torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0"}
PLATYPUS = decoder("llama", 8192, 80, (64, 8), intermediate_size=28672, vocab_size=32000)
PLATYPUS |= {"bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 4096}
PLATYPUS |= {"pad_token_id": 0, "pretraining_tp": 1, "rms_norm_eps": 1e-5, "rope_scaling": None}
PLATYPUS |= {"torch_dtype": "float16", "transformers_version": "4.31.0", "use_cache": False}
QWEN3 = decoder("qwen3", 1024, 28, (16, 8), intermediate_size=3072, vocab_size=151669)
QWEN3 |= {"attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643}
QWEN3 |= {"eos_token_id": 151645, "head_dim": 128, "max_position_embeddings": 40960}
QWEN3 |= {"max_window_layers": 28, "rms_norm_eps": 1e-6, "rope_scaling": None}
QWEN3 |= {"rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True}
QWEN3 |= {"torch_dtype": "bfloat16", "use_sliding_window": False}
MXBAI = decoder("qwen2", 896, 24, (14, 2), intermediate_size=4864, vocab_size=151936)
MXBAI |= {"attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643}
MXBAI |= {"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0}
MXBAI |= {"tie_word_embeddings": True, "torch_dtype": "float16", "use_sliding_window": False}

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
SMALL |= {"num_hidden_layers": 2}
# Only where the published config has them: what follows from the sizes, and learned positions.
SMALLER = {"num_key_value_heads": 1, "head_dim": 16, "max_window_layers": 2}
SMALLER |= {"attention_window": [32, 32]}
LEARNED = {"longformer", "xlm-roberta"}


def small(config: Config, rows: int, **ids: int) -> Config:
    """The config with small dimensions, so many rows of embeddings, and these tokens' ids."""
    sizes = SMALL | {name: value for name, value in SMALLER.items() if name in config}
    if config["model_type"] in LEARNED:
        sizes |= {"max_position_embeddings": 1026}
    return config | sizes | {"vocab_size": rows} | ids
