"""Repositories with the layouts of the published ones: the same files, formats and keys, but small.

`LAYOUTS` maps each id that `conf/` names to what makes its files.
"""

from pathlib import Path

import torch

from hub.configs import deberta, small
from hub.vocabularies import deberta_spm, pieces_of, text
from hub.weights import JUNK, Files, State, bin_of, cast, random_state

LICENCE = b"Apache License\n"
CARD = b"---\nlicense: mit\n---\n# A model\n"
COMMON = {".gitattributes": b"*.bin filter=lfs\n", "README.md": CARD}


def deberta_files(size: str) -> Files:
    """`microsoft/deberta-v3-<size>`: no safetensors, no tokenizer.json, no dtype, heads of MLM."""
    spm = deberta_spm()
    config = small(deberta(size), len(pieces_of(spm)) + 100)
    state = cast(deberta_state(config), torch.float16)
    generator = {f"deberta.{n}": v for n, v in state.items() if n.startswith("lm_predictions")}
    return {
        **COMMON,
        "config.json": text(config, indent=2),
        "spm.model": spm,
        "tokenizer_config.json": text({"do_lower_case": False, "vocab_type": "spm"}, 2, "\n"),
        "pytorch_model.bin": bin_of(state),
        "pytorch_model.generator.bin": bin_of(generator),
        "tf_model.h5": JUNK,
        **({"rust_model.ot": JUNK} if size == "base" else {}),
    }


def deberta_state(config: dict[str, object]) -> State:
    """The model's weights, those of its two heads, and positions that it does not read."""
    state = {f"deberta.{n}": v for n, v in random_state("DebertaV2Model", config).items()}
    width, rows = int(str(config["hidden_size"])), int(str(config["vocab_size"]))
    positions = torch.randn(int(str(config["max_position_embeddings"])), width)
    state["deberta.embeddings.position_embeddings.weight"] = positions
    for head, vocabulary in (("lm_predictions.lm_head.", rows), ("mask_predictions.", 0)):
        state |= {
            f"{head}dense.weight": torch.randn(width, width),
            f"{head}dense.bias": torch.randn(width),
            f"{head}LayerNorm.weight": torch.ones(width),
            f"{head}LayerNorm.bias": torch.zeros(width),
        }
        if vocabulary:
            state[f"{head}bias"] = torch.zeros(vocabulary)
    state["mask_predictions.classifier.weight"] = torch.randn(1, width)
    state["mask_predictions.classifier.bias"] = torch.zeros(1)
    return state


def deberta_folder(folder: Path, size: str = "large") -> Path:
    """Write a copy of `microsoft/deberta-v3-<size>` into a folder."""
    return write(folder, deberta_files(size))


def write(folder: Path, files: Files) -> Path:
    """Write a repository's files into a folder."""
    for path, data in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return folder
