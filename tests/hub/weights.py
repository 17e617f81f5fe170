"""Small random weights, as the files that repositories hold."""

import io
import json
from typing import Any

import torch

from hub.vocabularies import Vocabulary, text

State = dict[str, torch.Tensor]
Files = dict[str, bytes]
JUNK = b"not read by this project\n" * 8  # weights of other frameworks
TENSORFLOW = {"tf_model.h5": JUNK}
FLAX = {"flax_model.msgpack": JUNK}
RUST = {"rust_model.ot": JUNK}
ONNX = {"onnx/model.onnx": JUNK, "onnx/model_quint8_avx2.onnx": JUNK}
OPENVINO = {"openvino/openvino_model.bin": JUNK, "openvino/openvino_model.xml": JUNK}
COMMON = {".gitattributes": b"*.bin filter=lfs\n", "README.md": b"---\nlicense: mit\n---\n# M\n"}


def settings_files(
    config: dict[str, Any],
    vocabulary: Vocabulary,
    tokenizer: dict[str, Any] | None = None,
    special: dict[str, Any] | None = None,
) -> Files:
    """A repository's files but the weights."""
    named = {"config": config, "tokenizer_config": tokenizer, "special_tokens_map": special}
    texts = {f"{name}.json": text(value, 2, "\n") for name, value in named.items() if value}
    return {**COMMON, **vocabulary.files, **texts}


def random_state(class_name: str, config: dict[str, Any]) -> State:
    """The weights of a random model of a transformers class, in float32, none shared."""
    import transformers

    settings = transformers.AutoConfig.for_model(**config)
    torch.manual_seed(0)
    model = getattr(transformers, class_name)(settings)
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def cast(state: State, dtype: torch.dtype) -> State:
    """The weights in another format; integers stay."""
    return {n: v.to(dtype) if v.is_floating_point() else v for n, v in state.items()}


def safetensors_of(state: State) -> bytes:
    from safetensors.torch import save

    return save(state, metadata={"format": "pt"})


def bin_of(state: State) -> bytes:
    """The weights as `torch.save` writes them."""
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def shards_of(state: State, count: int, stem: str, suffix: str) -> Files:
    """The weights in so many files, and the index that says where each lies."""
    write = safetensors_of if suffix == "safetensors" else bin_of
    names = [f"{stem}-{i + 1:05d}-of-{count:05d}.{suffix}" for i in range(count)]
    where = {key: names[i * count // len(state)] for i, key in enumerate(state)}
    total = sum(value.nbytes for value in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    files = {
        name: write({key: state[key] for key in state if where[key] == name}) for name in names
    }
    return {**files, f"{stem}.{suffix}.index.json": json.dumps(index, indent=2).encode()}


def with_prefix(state: State, prefix: str) -> State:
    return {f"{prefix}{key}": value for key, value in state.items()}


def with_gamma_and_beta(state: State) -> State:
    """The weights with the oldest names of a LayerNorm's."""
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for new, old in names.items():
        state = {key.replace(new, old): value for key, value in state.items()}
    return state


def with_positions(state: State, prefix: str, config: dict[str, Any]) -> State:
    """The weights with the numbers of the positions, which old versions of the library saved."""
    numbers = torch.arange(config["max_position_embeddings"]).unsqueeze(0)
    return {f"{prefix}embeddings.position_ids": numbers, **state}


def state_in(data: bytes) -> State:
    """The weights of a file that `torch.save` wrote."""
    state: State = torch.load(io.BytesIO(data), weights_only=True)
    return state
