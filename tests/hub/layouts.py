"""Repositories with the layouts of the published ones: the same files, formats and keys, but small.

`MODELS` maps the ids that `conf/` and the documents name to what makes their files.
"""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

from hub import bidirectional, decoders, sentences
from hub.server import Hub
from hub.weights import Files

SIZES = ("xsmall", "small", "base", "large")
MODELS: dict[str, Callable[[], Files]] = {
    **{f"microsoft/deberta-v3-{size}": partial(bidirectional.deberta, size) for size in SIZES},
    "google-bert/bert-base-cased": bidirectional.bert_base_cased,
    "allenai/longformer-base-4096": bidirectional.longformer_base,
    "potsawee/longformer-large-4096-answering-race": bidirectional.longformer_race,
    "answerdotai/ModernBERT-base": bidirectional.modernbert,
    "Qwen/Qwen2.5-7B-Instruct": decoders.qwen_7b,
    "mistralai/Mistral-7B-v0.1": decoders.mistral_7b,
    "garage-bAInd/Platypus2-70B-instruct": decoders.platypus2_70b,
    "sentence-transformers/all-MiniLM-L6-v2": sentences.minilm,
    "sentence-transformers/all-mpnet-base-v2": sentences.mpnet,
    "BAAI/bge-small-en-v1.5": sentences.bge_small,
    "thenlper/gte-base": sentences.gte_base,
    "intfloat/e5-base-v2": sentences.e5_base,
    "cross-encoder/ms-marco-MiniLM-L6-v2": sentences.ms_marco,
    "BAAI/bge-reranker-v2-m3": sentences.bge_reranker,
    "Qwen/Qwen3-Reranker-0.6B": decoders.qwen3_reranker,
    "Qwen/Qwen3-Embedding-0.6B": decoders.qwen3_embedding,
    "mixedbread-ai/mxbai-rerank-base-v2": decoders.mxbai_rerank,
}
RENAMED = {"cross-encoder/ms-marco-MiniLM-L-6-v2": "cross-encoder/ms-marco-MiniLM-L6-v2"}


@cache
def files_of_model(name: str) -> Files:
    """A published model's files, made once a process."""
    return MODELS[name]()


def publish_models(hub: Hub) -> None:
    """Add every model and the old names to a hub."""
    for name in MODELS:
        hub.add(name, files_of_model(name))
    for old, new in RENAMED.items():
        hub.rename(old, new)


def deberta_folder(folder: Path, size: str = "large") -> Path:
    """Write a copy of `microsoft/deberta-v3-<size>` into a folder."""
    return write(folder, bidirectional.deberta(size))


def write(folder: Path, files: Files) -> Path:
    """Write a repository's files into a folder."""
    for path, data in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return folder
