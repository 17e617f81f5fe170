"""The readers that are compared: real weights, or random ones of a shape."""

from pathlib import Path
from typing import Any

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
SHAPES: dict[str, dict[str, Any]] = {
    "mpnet": {"model_type": "mpnet", "vocab_size": 30527},
    "deberta": {
        "model_type": "deberta-v2",
        "vocab_size": 128100,
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "intermediate_size": 1536,
        "max_position_embeddings": 512,
        "max_relative_positions": -1,
        "pooler_hidden_size": 384,
        "position_biased_input": False,
        "type_vocab_size": 0,
        "relative_attention": True,
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "layer_norm_eps": 1e-7,
        "pad_token_id": 0,
    },
}
CONFIGURED = {"minilm": "minilm", "mpnet": "mpnet", "deberta": "deberta_xsmall"}
RATE = 1e-4


def checkpoint(model: str, work: Path) -> str:
    """The folder of a model's weights; random ones are made once."""
    import torch
    from transformers import MODEL_MAPPING, AutoConfig, AutoTokenizer

    from exam.core.packages import find_packaged_folder

    if model == "minilm":
        return str(find_packaged_folder(MINILM))
    folder = work / model
    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        AutoTokenizer.from_pretrained(find_packaged_folder(MINILM)).save_pretrained(folder)
        config = AutoConfig.for_model(**SHAPES[model])
        architecture: Any = MODEL_MAPPING[type(config)]
        architecture(config).save_pretrained(folder)
    return str(folder)


def read_in(model: Any) -> None:
    """Read every weight once: they are mapped from their file, and count as loaded from then on."""
    for weight in model.parameters():
        weight.detach().sum()
