"""What repositories' config.json say, with the published sizes, and smaller ones in their place."""

from typing import Any

Config = dict[str, Any]
DEBERTA: Config = {
    "model_type": "deberta-v2",
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "layer_norm_eps": 1e-7,
    "max_relative_positions": -1,
    "position_biased_input": False,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "type_vocab_size": 0,
    "vocab_size": 128100,
}
LAYERS = {"xsmall": (384, 1536, 6, 12), "small": (768, 3072, 12, 6)}
LAYERS |= {"base": (768, 3072, 12, 12), "large": (1024, 4096, 16, 24)}
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
SMALL |= {"num_hidden_layers": 2}


def deberta(size: str) -> Config:
    """The config.json of `microsoft/deberta-v3-<size>`."""
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
    return DEBERTA | dict(zip(names, LAYERS[size], strict=True))


def small(config: Config, tokens: int, **changes: Any) -> Config:
    """The config with small dimensions, and so many rows of embeddings."""
    return config | SMALL | {"vocab_size": tokens} | changes
