"""Benchmark encoding, decoders and search on a GPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from shutil import rmtree
from time import perf_counter
from typing import Any

import numpy as np
import torch
from gpu_cases import Case, Facts, UnavailableError, Work, moved
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from exam.config import Dtype, Encoder, Model, ReaderKind, Scoring, WeightsLocation
from exam.readers.causal_lm.load import load_runner
from exam.readers.causal_lm.prompts import Prompt
from exam.readers.causal_lm.scoring import score_options
from exam.readers.multiple_choice.model import tiny_tokenizer
from exam.retrieval.encoder import SentenceEncoder
from exam.retrieval.vectors import exact_search, import_faiss

MINILM = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "vocab_size": 30522,
}
LLAMA = {  # of 1.1 billion parameters
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "vocab_size": 32000,
}
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"intermediate_size": 128, "vocab_size": 3000}
SENTENCES = {"full": 20_000, "tiny": 60}
QUESTIONS = {"full": (40, 1000), "tiny": (2, 30)}  # and tokens that the options share
VECTORS = {"full": (1_000_000, 384, 1000), "tiny": (2000, 16, 10)}  # dimension, queries
NEAREST, BLOCK = 20, 1 << 16
FORMATS = {Dtype.float32: "fp32", Dtype.bfloat16: "bf16", Dtype.float16: "fp16"}


def encoding(size: str, device: str, work: Path) -> list[Case]:
    """Encode sentences of 8 to 40 words with MiniLM's shape, in three number formats."""
    texts = sentences(SENTENCES[size])
    return [
        Case(
            f"MiniLM's shape, {tokens:,} tokens a batch",
            {
                name: partial(encoded, work, size, dtype, tokens, texts, device)
                for dtype, name in FORMATS.items()
            },
            len(texts),
            "sentences",
        )
        for tokens in (Encoder.max_tokens_per_batch, 1 << 16)
    ]


@cache
def sentences(number: int) -> list[str]:
    """Return distinct random sentences."""
    random = np.random.default_rng(0)
    lengths = random.integers(8, 41, number)
    return [" ".join(f"w{n}" for n in random.integers(0, 1000, length)) for length in lengths]


@cache
def encoder_folder(work: Path, size: str) -> Path:
    """Write a sentence encoder of random weights once; return its folder."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    folder = work / f"encoder-{size}"
    if not (folder / "modules.json").is_file():
        torch.manual_seed(0)
        shape = MINILM | (SMALL if size == "tiny" else {})
        config: Any = BertConfig.from_dict(shape)
        tiny_tokenizer(f"w{n}" for n in range(1000)).save_pretrained(folder / "plain")
        BertModel(config).save_pretrained(folder / "plain")
        module = Transformer(str(folder / "plain"))
        SentenceTransformer(modules=[module, Pooling(shape["hidden_size"])]).save(str(folder))
    return folder


@contextmanager
def encoded(
    work: Path, size: str, dtype: Dtype, tokens: int, texts: list[str], device: str
) -> Iterator[Work]:
    """Encode all sentences."""
    folder = str(encoder_folder(work, size))
    encoder = SentenceEncoder(
        Encoder(name="bench", name_or_path=folder, dtype=dtype, max_tokens_per_batch=tokens)
    )

    def run() -> None:
        encoder.encode(texts)

    with moved(encoder.model, device):
        yield run


def decoders(size: str, device: str, work: Path) -> list[Case]:
    """Score five options by yes or no: in memory, layer by layer, in 4 bits."""
    number, shared = QUESTIONS[size]
    ways: dict[str, dict[str, Any]] = {
        "in memory": {},
        "layer by layer": {"weights_location": WeightsLocation.layerwise},
        "in 4 bits": {"load_in_4bit": True},
    }
    return [
        Case(
            f"{number} questions, Llama's shape, from the files to the scores",
            {
                way: partial(answered, work, size, number, shared, device, values)
                for way, values in ways.items()
            },
            number,
            "questions",
        )
    ]


@cache
def decoder_folder(work: Path, size: str, device: str) -> Path:
    """Write a random Llama in 16 bits once; return its folder."""
    folder = work / f"decoder-{size}"
    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        shape = LLAMA | (SMALL | {"num_key_value_heads": 2} if size == "tiny" else {})
        config: Any = LlamaConfig.from_dict(shape)
        tiny_tokenizer(["yes no"] * 3).save_pretrained(folder)
        torch.set_default_dtype(torch.bfloat16)
        with torch.device(device):
            model = LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
        model.save_pretrained(folder, max_shard_size="200MB")
    return folder


@contextmanager
def answered(
    work: Path, size: str, number: int, shared: int, device: str, values: dict[str, Any]
) -> Iterator[Work]:
    """Load the weights from their files, and score all options."""
    folder = decoder_folder(work, size, device)
    config = Model(
        name="bench",
        kind=ReaderKind.causal_lm,
        name_or_path=str(folder),
        scoring=Scoring.yes_no,
        use_chat_template=False,
        max_length=4096,
        **values,
    )
    random = np.random.default_rng(0)
    most = (SMALL if size == "tiny" else LLAMA)["vocab_size"]
    questions = [
        Prompt(
            random.integers(10, most, shared).tolist(),
            [random.integers(10, most, 20).tolist() for _ in range(5)],
            5,
        )
        for _ in range(number)
    ]

    def run() -> Facts:
        start = perf_counter()
        runner, prompter, _ = load_runner(config, work / "running")
        loaded = perf_counter() - start
        scores = score_options(runner, prompter, questions, 4)
        return {"load_seconds": loaded, "mean_score": float(scores.mean())}

    yield run
    rmtree(
        work / "running", ignore_errors=True
    )  # otherwise the next run would resume after the last layer


def search(size: str, device: str, _work: Path) -> list[Case]:
    """Find the nearest vectors exactly, with faiss and with torch, on CPU and GPU."""
    number, dimension, queries = VECTORS[size]
    ways: dict[str, Callable[..., Any]] = {
        "faiss on the CPU": faiss_on_cpu,
        "faiss on the GPU": faiss_on_gpu,
        "torch, vectors in memory": partial(by_torch, torch.float32, False),
        "torch, vectors on the GPU": partial(by_torch, torch.float32, True),
        "torch, on the GPU in bf16": partial(by_torch, torch.bfloat16, True),
    }
    name = f"{NEAREST} nearest of {number:,} × {dimension}"
    return [
        Case(
            name,
            {way: partial(searched, size, how, device) for way, how in ways.items()},
            queries,
            "queries",
        )
    ]


@cache
def vectors_of(size: str) -> tuple[Any, Any]:
    """Return random vectors, and queries near some of them."""
    number, dimension, queries = VECTORS[size]
    random = np.random.default_rng(0)
    vectors = random.standard_normal((number, dimension), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    noise = 0.02 * random.standard_normal((queries, dimension), dtype=np.float32)
    return vectors, vectors[:queries] + noise


@contextmanager
def searched(size: str, how: Callable[..., Any], device: str) -> Iterator[Work]:
    """Search in one way, and return the share of first neighbours that are right."""
    vectors, queries = vectors_of(size)
    search_for = how(vectors, device)

    def run() -> Facts:
        rows = search_for(queries)
        return {"first_is_right": float((rows[:, 0] == np.arange(len(rows))).mean())}

    yield run


def faiss_on_cpu(vectors: Any, _device: str) -> Callable[[Any], Any]:
    """Return a search in faiss's flat index of all vectors."""
    index = import_faiss().IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return lambda queries: index.search(queries, NEAREST)[1]


def faiss_on_gpu(vectors: Any, _device: str) -> Callable[[Any], Any]:
    """Return a search a block at a time, as the project searches."""
    if import_faiss().get_num_gpus() == 0:
        raise UnavailableError("this faiss is built without GPUs")
    blocks = [vectors[start : start + BLOCK] for start in range(0, len(vectors), BLOCK)]
    return lambda queries: exact_search(queries, blocks, NEAREST)[1]


def by_torch(dtype: torch.dtype, resident: bool, vectors: Any, device: str) -> Callable[[Any], Any]:
    """Return a search by a product and its highest values, a block at a time."""
    stored = torch.from_numpy(vectors)
    if resident:
        stored = stored.to(device, dtype)

    def run(queries: Any) -> Any:
        sought = torch.from_numpy(queries).to(device, dtype)
        best = torch.empty(len(sought), 0, device=device, dtype=dtype)
        rows = torch.empty(len(sought), 0, device=device, dtype=torch.long)
        for start in range(0, len(stored), BLOCK):
            scores = sought @ stored[start : start + BLOCK].to(device).T
            values, columns = scores.topk(min(NEAREST, scores.shape[1]))
            best = torch.cat([best, values], 1)
            rows = torch.cat([rows, columns + start], 1)
            best, columns = best.topk(min(NEAREST, best.shape[1]))
            rows = rows.gather(1, columns)
        return rows.cpu().numpy()

    return run
