"""Encode texts as unit vectors, and cache the vectors by the content of the texts.

All retrieval with one encoder shares a cache: no text is encoded twice. A shard of the cache is
written atomically under a hash of its keys, so two processes that encode the same texts write the
same file.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from itertools import chain
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import regex
from numpy.typing import NDArray

from exam.config import Checkpoint, Dtype, Encoder
from exam.core.artifacts import FORMAT, KEY
from exam.core.checkpoints import (
    check_new_weights,
    checkpoint_fingerprint,
    dropout_fields,
    fetch_checkpoint,
    max_input_tokens,
    resolve_checkpoint,
    translate_load_errors,
)
from exam.core.errors import ExamError
from exam.core.files import (
    checksum_matches,
    digest,
    has_checksum,
    read_object,
    write_json,
    write_with_checksum,
)
from exam.core.logging import log_progress, progress_bar
from exam.core.precision import resolve_dtype
from exam.retrieval.queries import first_positions
from exam.retrieval.vectors import Rows, Vectors

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

log = logging.getLogger(__name__)

PROMPTS = "config_sentence_transformers.json"
QUERY_PROMPTS = ("query",)  # sentence-transformers' names, the first that a checkpoint has
PASSAGE_PROMPTS = ("document", "passage", "corpus")
UNKNOWN_SHARE = 0.01  # of the tokens: a larger share is a warning
LETTER_SHARE = 0.5  # of the tokens: vocabularies of a language hold its words
# A piece of one letter, in a script whose words have several.
LETTER = regex.compile(
    r"(?V1)(?:##|▁)?[\p{L}--[\p{Latin}\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}"
    r"\p{Myanmar}]]"
)
SAMPLE = 64  # texts of a shard whose tokens are looked at
WIDTH = 16  # tokens
TEXTS_PER_SHARD = 2048
Keys = NDArray[np.int64]  # hashes of texts: among ten million, two are equal once in 400,000 times


@dataclass
class EncodedTexts:
    """Counts of the texts that were encoded since they were last logged."""

    texts: int = 0
    tokens: int = 0
    unknown: int = 0  # tokens
    sampled: int = 0  # tokens
    letters: int = 0  # sampled tokens of one letter
    truncated: int = 0  # texts
    unread: int = 0  # tokens of truncated texts


@dataclass(frozen=True)
class SentenceEncoder:
    """An encoder that loads at its first use, on the device that sentence-transformers chooses."""

    config: Encoder
    counts: EncodedTexts = field(default_factory=EncodedTexts, compare=False)

    @cached_property
    def dtype(self) -> Dtype:
        """The number format of weights and activations on this machine."""
        return resolve_dtype(self.config.dtype, "encoder.dtype")

    @cached_property
    def model(self) -> "SentenceTransformer":
        """The loaded model."""
        return _load(self.config, {"dtype": self.dtype.value})

    @property
    def key(self) -> dict[str, Any]:
        """Everything that determines the vectors."""
        config = self.config
        return {
            "checkpoint": checkpoint_fingerprint(config.checkpoint),
            "max_length": config.max_length,
            "query_prefix": self.query_prefix,
            "passage_prefix": self.passage_prefix,
            "dtype": self.dtype.value,
        }

    @cached_property
    def query_prefix(self) -> str:
        """The text before each query: the configured one, else the checkpoint's prompt."""
        return self._prefix("query", self.config.query_prefix, QUERY_PROMPTS)

    @cached_property
    def passage_prefix(self) -> str:
        """The text before each passage: the configured one, else the checkpoint's prompt."""
        return self._prefix("passage", self.config.passage_prefix, PASSAGE_PROMPTS)

    def _prefix(self, kind: str, configured: str | None, names: tuple[str, ...]) -> str:
        if configured is not None:
            return configured
        prompts = _read_prompts(self.config.checkpoint)
        prefix = next((prompts[name] for name in names if name in prompts), "")
        if prefix:
            log.info(
                "encoder: each %s begins with %r, a prompt of the checkpoint (encoder.%s_prefix)",
                kind, prefix, kind,
            )  # fmt: skip
        elif other_kinds := [
            name
            for name, text in prompts.items()
            if text and name not in (*QUERY_PROMPTS, *PASSAGE_PROMPTS)
        ]:
            log.info(
                "encoder: each %s begins with no prompt; the checkpoint has some for other uses "
                "(%s). To set one: encoder.%s_prefix=<text>",
                kind, ", ".join(other_kinds), kind,
            )  # fmt: skip
        return prefix

    def queries(self, texts: Sequence[str]) -> Vectors:
        """Return unit vectors of queries, shape `(texts, dimension)`."""
        return self.encode([self.query_prefix + text for text in texts])

    def passages(self, texts: Sequence[str]) -> Vectors:
        """Return unit vectors of passages, shape `(texts, dimension)`."""
        return self.encode([self.passage_prefix + text for text in texts])

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return unit vectors of texts without a prefix; each distinct text is encoded once."""
        distinct = list(dict.fromkeys(texts))
        row = {text: i for i, text in enumerate(distinct)}
        vectors = np.zeros((len(distinct), self.model.get_embedding_dimension() or 0), np.float32)
        multiple = width_multiple(self.config.max_length)
        lengths = -(-self._count(self._token_ids(distinct)) // multiple) * multiple
        with progress_bar("encoded", len(distinct), "texts") as bar:
            for batch in batch_by_length(lengths, self.config.max_tokens_per_batch):
                vectors[batch] = self.model.encode(
                    [distinct[i] for i in batch],
                    prompt="",  # a checkpoint's default prompt would stand before passages, too
                    batch_size=len(batch),
                    show_progress_bar=False,
                    processing_kwargs={"text": {"pad_to_multiple_of": multiple}},
                )
                bar.update(len(batch))
        # Here and not in the model: bfloat16 would round the lengths.
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        repeated: Vectors = vectors[[row[text] for text in texts]]
        return repeated

    def count_tokens(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Count the tokens of each text, special ones included, before truncation."""
        return np.array(list(map(len, self._token_ids(texts))), np.int64)

    def _token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        tokenizer: Any = self.model.tokenizer
        ids: list[list[int]] = tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        return ids

    def _count(self, ids: list[list[int]]) -> NDArray[np.int64]:
        """Add texts to the counts; return the tokens of each that the model reads."""
        from exam.core.tokenization import unknown_id

        unknown, limit = unknown_id(self.model.tokenizer), self.config.max_length
        lengths = np.array(list(map(len, ids)), np.int64)
        self.counts.texts += len(ids)
        self.counts.tokens += int(lengths.sum())
        if unknown is not None:
            self.counts.unknown += sum(row.count(unknown) for row in ids)
        self.counts.sampled += int(lengths[:SAMPLE].sum())
        self.counts.letters += sum(map(self._letters.__contains__, chain(*ids[:SAMPLE])))
        self.counts.truncated += int((lengths > limit).sum())
        self.counts.unread += int(np.maximum(lengths - limit, 0).sum())
        return np.minimum(lengths, limit)

    @cached_property
    def _letters(self) -> frozenset[int]:
        """The ids of tokens that are one letter of a word."""
        vocabulary: dict[str, int] = self.model.tokenizer.get_vocab()
        return frozenset(id_ for piece, id_ in vocabulary.items() if LETTER.fullmatch(piece))

    def log_counts(self, stage: str) -> None:
        """Log how much of the texts encoded since the last time is unread or unknown."""
        counts = replace(self.counts)
        vars(self.counts).update(vars(EncodedTexts()))
        if counts.truncated:
            log.info(
                "%s: %d of %d texts are longer than encoder.max_length=%d; %d of %d tokens unread",
                stage, counts.truncated, counts.texts, self.config.max_length,
                counts.unread, counts.tokens,
            )  # fmt: skip
        if counts.unknown > UNKNOWN_SHARE * counts.tokens:
            self._warn(stage, counts.unknown / counts.tokens, "unknown to the encoder's tokenizer")
        elif counts.letters > LETTER_SHARE * counts.sampled:
            share = counts.letters / counts.sampled
            self._warn(stage, share, "single letters: the encoder's vocabulary lacks the words")

    def _warn(self, stage: str, share: float, fault: str) -> None:
        """Say that the encoder does not know the language of the texts."""
        log.warning(
            "%s: %.1f %% of the tokens are %s. Choose a checkpoint trained on such texts "
            "(encoder.name_or_path=<id or folder>), or retriever=bm25.",
            stage, 100 * share, fault,
        )  # fmt: skip


def _read_prompts(checkpoint: Checkpoint) -> dict[str, str]:
    """Return a checkpoint's prompts by name; empty if it has none."""
    path = fetch_checkpoint(checkpoint) / PROMPTS
    prompts = read_object(path).get("prompts") if path.is_file() else None
    return {k: v or "" for k, v in prompts.items()} if isinstance(prompts, dict) else {}


def inspect_encoder(config: Encoder) -> None:
    """Refuse an encoder that cannot be loaded as configured.

    Raises:
        ExamError: its files cannot be read or do not agree, or it reads fewer tokens.
    """
    resolve_dtype(config.dtype, "encoder.dtype")
    model = _load(config, {"device_map": "meta"})
    inspect_network(config.checkpoint, model, config.max_length, of_head=True)


def _load(config: Encoder, weights: dict[str, Any]) -> "SentenceTransformer":
    from sentence_transformers import SentenceTransformer

    model: SentenceTransformer = load_model(
        SentenceTransformer, config.checkpoint, config.dropout, weights
    )
    model.max_seq_length = config.max_length
    return model


def load_model(
    model_class: Any,
    checkpoint: Checkpoint,
    dropout: float | None,
    weights: dict[str, Any],
    **options: Any,
) -> Any:
    """Load a model of sentence-transformers with its published tokenizer.

    `weights` says how to load them: their `dtype`, or `device_map="meta"` for none.

    Raises:
        ExamError: the checkpoint cannot be read.
    """
    from exam.core.tokenization import adopt_tokenizer

    folder = resolve_checkpoint(checkpoint)
    with translate_load_errors(checkpoint):
        model = model_class(
            str(folder),
            trust_remote_code=checkpoint.trust_remote_code,
            model_kwargs={"use_safetensors": True, **weights},
            config_kwargs=dropout_fields(dropout),
            **options,
        )
        adopt_tokenizer(model)
    return model


def inspect_network(checkpoint: Checkpoint, model: Any, max_length: int, *, of_head: bool) -> None:
    """Refuse a model of sentence-transformers whose files do not agree.

    Raises:
        ExamError: weights or the vocabulary are missing, the vocabulary is larger than the
            embeddings, or the model reads fewer than `max_length` tokens.
    """
    from exam.core.tokenization import check_complete, check_vocabulary

    network = getattr(model[0], "auto_model", None)
    if network is None:  # another kind of module, such as static embeddings
        return
    folder = resolve_checkpoint(checkpoint)
    root = next((p for p in folder.glob("0_*") if (p / "config.json").is_file()), folder)
    check_complete(model.tokenizer, root)
    check_vocabulary(model.tokenizer, network)
    with translate_load_errors(checkpoint):
        _, info = type(network).from_pretrained(
            root, config=network.config, device_map="meta", output_loading_info=True
        )
    check_new_weights(checkpoint, network, info, of_head=of_head)
    max_input_tokens(network, max_length, f"{checkpoint.group}.max_length")


def width_multiple(max_length: int) -> int:
    """Return the number that sequences are padded to a multiple of, never beyond `max_length`.

    A CPU spends time and memory on every new shape.
    """
    return gcd(WIDTH, max_length)


def batch_by_length(lengths: NDArray[np.int64], tokens: int) -> Iterator[NDArray[np.int64]]:
    """Yield positions of texts of similar length, longest first, in batches of at most `tokens`.

    Padding counts. A longer text is the only one of its batch.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, tokens // max(1, int(lengths[order[start]])))
        yield order[start : start + size]
        start += size


def fingerprint_texts(texts: Sequence[str]) -> Keys:
    """Return the cache keys of texts, which include their prefix."""
    digests = [blake2b(text.encode(), digest_size=8).digest() for text in texts]
    return np.frombuffer(b"".join(digests), np.int64)


@dataclass
class _Shard:
    """Memory-mapped vectors of the cache."""

    path: Path
    unverified: Vectors

    @cached_property
    def vectors(self) -> Vectors:
        """The vectors; the first use verifies the file."""
        if not checksum_matches(self.path):
            raise _damaged_shard_error(self.path, "it is not the file that was written")
        return self.unverified


class Embeddings:
    """The cache of an encoder, in `outputs/embeddings/<encoder>-<hash8>`; vectors stay on disk."""

    def __init__(self, encoder: SentenceEncoder, outputs: Path) -> None:
        """Open the cache with all its shards."""
        self.encoder = encoder
        key = {"format": FORMAT, **encoder.key}
        self.folder = outputs / "embeddings" / f"{encoder.config.name}-{digest(key)[:8]}"
        if not (self.folder / KEY).is_file():
            write_json(self.folder / KEY, key)
        self._shards: list[_Shard] = []
        self._keys = np.empty(0, np.int64)  # ascending
        self._rows = np.empty((0, 2), np.int64)  # for each key: its shard, and the row there
        # A copy of the folder may lack the checksums: those texts are encoded again.
        self._include(filter(has_checksum, sorted(self.folder.glob("*.arrow"))))

    def queries(self, texts: Sequence[str]) -> Vectors:
        """Return unit vectors of queries, shape `(texts, dimension)`; encode missing ones."""
        prefixed = [self.encoder.query_prefix + text for text in texts]
        keys = fingerprint_texts(prefixed)
        self.encode_missing(keys, lambda positions: [prefixed[i] for i in positions])
        return self.vectors(keys)

    def encode_missing(self, keys: Keys, texts: Callable[[Rows], list[str]]) -> None:
        """Encode the texts without a vector, a shard at a time.

        `texts` returns the texts, with their prefix, of some positions of `keys`.
        """
        first = first_positions(keys)
        missing = first[~np.isin(keys[first], self._keys)]
        for start in range(0, len(missing), TEXTS_PER_SHARD):
            block = missing[start : start + TEXTS_PER_SHARD]
            self._add(texts(block))
            done = start + len(block)
            log_progress(log, "contexts: encoded %d of %d new texts", done, len(missing))
        self.encoder.log_counts("contexts")

    def vectors(self, keys: Keys) -> Vectors:
        """Return the vectors of cached keys, shape `(keys, dimension)`."""
        shards, rows = self._rows[np.searchsorted(self._keys, keys)].T
        dimension = self._shards[0].unverified.shape[1] if self._shards else 0
        vectors = np.empty((len(keys), dimension), np.float32)
        for number in np.unique(shards).tolist():
            mask = shards == number
            vectors[mask] = self._shards[number].vectors[rows[mask]]
        return vectors

    def _add(self, texts: Sequence[str]) -> None:
        """Encode texts, which include their prefix, and store the vectors as one shard."""
        keys, vectors = fingerprint_texts(texts), self.encoder.encode(texts)
        column = pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])
        table = pa.table({"key": keys, "vector": column})
        path = self.folder / f"{_name(keys)}.arrow"
        with (
            write_with_checksum(path) as temporary,
            pa.ipc.new_file(str(temporary), table.schema) as writer,
        ):
            writer.write_table(table)
        self._include([path])

    def _include(self, paths: Iterable[Path]) -> None:
        """Add shards to the cache; of equal keys the first vector stays."""
        keys, rows = [self._keys], [self._rows]
        for path in paths:
            new, shard = _read(path)
            number = np.full(len(new), len(self._shards))
            keys.append(new)
            rows.append(np.column_stack([number, np.arange(len(new))]))
            self._shards.append(shard)
        self._keys, first = np.unique(np.concatenate(keys), return_index=True)
        self._rows = np.concatenate(rows)[first]


def _name(keys: Keys) -> str:
    return digest(keys.tobytes().hex())[:16]


def _read(path: Path) -> tuple[Keys, _Shard]:
    """Map a shard into memory; return its keys and the shard."""
    try:
        with pa.memory_map(str(path)) as source:
            table: Any = pa.ipc.open_file(source).read_all().combine_chunks()
        vectors: Vectors = table["vector"].chunk(0).values.to_numpy().reshape(len(table), -1)
        keys: Keys = table["key"].chunk(0).to_numpy()
    except (
        pa.ArrowException,
        OSError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
    ) as error:
        raise _damaged_shard_error(path, str(error)) from None
    if _name(keys) != path.stem:
        raise _damaged_shard_error(path, "its keys are not those that were written")
    return keys, _Shard(path, vectors)


def _damaged_shard_error(path: Path, reason: str) -> ExamError:
    return ExamError(
        f"{path} is a damaged shard of embeddings: {reason.splitlines()[0]}\n"
        "Delete that file: its texts are encoded again."
    )
