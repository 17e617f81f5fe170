"""Cache embeddings by the content of their texts: an encoder never encodes a text twice.

Every retrieval with an encoder shares one store. A shard is written atomically under a hash of
its content, so two processes that encode the same texts write the same file.
"""

from collections.abc import Sequence
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from exam.core.artifacts import FORMAT, KEY
from exam.core.errors import ExamError
from exam.core.files import digest, write_atomically, write_json
from exam.retrieval.encoder import SentenceEncoder
from exam.retrieval.vectors import Vectors

TEXTS_PER_SHARD = 2048
KEY_BYTES = 16
SUM = b"sha256"  # of a shard's vectors: compared when they are first asked for
Keys = NDArray[np.bytes_]  # one fingerprint a text


def fingerprints(texts: Sequence[str]) -> Keys:
    """Return the keys of texts, which include their prefix."""
    digests = [blake2b(text.encode(), digest_size=KEY_BYTES).digest() for text in texts]
    return np.frombuffer(b"".join(digests), f"S{KEY_BYTES}")


def key_column(keys: Keys) -> pa.FixedSizeBinaryArray:
    """Return keys as an Arrow column."""
    buffers = [None, pa.py_buffer(keys.tobytes())]
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(KEY_BYTES), len(keys), buffers)


def keys_of(column: pa.FixedSizeBinaryArray) -> Keys:
    """Return the keys of an Arrow column, without a copy."""
    start = column.offset * KEY_BYTES
    return np.frombuffer(column.buffers()[1], f"S{KEY_BYTES}", len(column), start)


class Embeddings:
    """The store of an encoder, in `outputs/embeddings/<encoder>-<hash8>`; vectors stay on disk."""

    def __init__(self, encoder: SentenceEncoder, outputs: Path) -> None:
        """Open the store with all its shards."""
        self.encoder = encoder
        key = {"format": FORMAT, **encoder.key}
        self.folder = outputs / "embeddings" / f"{encoder.config.name}-{digest(key)[:8]}"
        if not (self.folder / KEY).is_file():
            write_json(self.folder / KEY, key)
        self._vectors: list[Vectors] = []
        self._paths: list[Path] = []
        self._unverified: dict[int, str] = {}  # expected hashes of shards that are not verified yet
        self._starts = np.zeros(1, np.int64)  # the first row of each shard, then of the next one
        self._keys = np.empty(0, f"S{KEY_BYTES}")  # ascending
        self._rows = np.empty(0, np.int64)  # of `_keys`
        self._include(sorted(self.folder.glob("*.arrow")))

    def queries(self, texts: Sequence[str]) -> Vectors:
        """Return unit vectors of queries, shape `(texts, dimension)`."""
        prefixed = [self.encoder.config.query_prefix + text for text in texts]
        keys = fingerprints(prefixed)
        new = self.missing(keys)
        for start in range(0, len(new), TEXTS_PER_SHARD):
            self.add([prefixed[i] for i in new[start : start + TEXTS_PER_SHARD]])
        return self.vectors(keys)

    def missing(self, keys: Keys) -> NDArray[np.int64]:
        """Return the positions of keys without a vector; of equal keys the first."""
        _, first = np.unique(keys, return_index=True)
        first.sort()
        return first[~np.isin(keys[first], self._keys)]

    def add(self, texts: Sequence[str]) -> None:
        """Encode texts, which include their prefix, and store the vectors as one shard."""
        keys = fingerprints(texts)
        vectors = np.ascontiguousarray(self.encoder.encode(texts))
        columns = {
            "key": key_column(keys),
            "vector": pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1]),
        }
        path = self.folder / f"{_name(keys)}.arrow"
        table = pa.table(columns, metadata={SUM: sha256(vectors.data).hexdigest()})
        with (
            write_atomically(path) as temporary,
            pa.ipc.new_file(str(temporary), table.schema) as writer,
        ):
            writer.write_table(table)
        self._include([path])

    def vectors(self, keys: Keys) -> Vectors:
        """Return the vectors of stored keys, shape `(keys, dimension)`."""
        rows = self._rows[np.searchsorted(self._keys, keys)]
        shard = np.searchsorted(self._starts, rows, side="right") - 1
        dimension = self._vectors[0].shape[1] if self._vectors else 0
        vectors = np.empty((len(keys), dimension), np.float32)
        for number in np.unique(shard).tolist():
            expected = self._unverified.pop(number, None)
            if expected not in (None, sha256(self._vectors[number].data).hexdigest()):
                raise _broken(self._paths[number], "its vectors are not those that were written")
            mask = shard == number
            vectors[mask] = self._vectors[number][rows[mask] - self._starts[number]]
        return vectors

    def _include(self, paths: list[Path]) -> None:
        """Add shards to the store; of equal keys the first vector stays."""
        added = []
        for path in paths:
            new, vectors, self._unverified[len(self._vectors)] = _read(path)
            added.append(new)
            self._paths.append(path)
            self._vectors.append(vectors)
            self._starts = np.append(self._starts, self._starts[-1] + len(vectors))
        keys = np.concatenate([self._keys, *added])
        count = len(keys) - len(self._keys)
        rows = np.concatenate([self._rows, np.arange(self._starts[-1] - count, self._starts[-1])])
        self._keys, first = np.unique(keys, return_index=True)
        self._rows = rows[first]


def _name(keys: Keys) -> str:
    return digest(keys.tobytes().hex())[:16]


def _read(path: Path) -> tuple[Keys, Vectors, str]:
    """Read a shard: its keys, its mapped vectors, and their expected hash."""
    try:
        with pa.memory_map(str(path)) as source:
            table: Any = pa.ipc.open_file(source).read_all().combine_chunks()
        key_chunk, vector_chunk = (table[name].chunk(0) for name in ("key", "vector"))
        vectors: Vectors = vector_chunk.values.to_numpy().reshape(len(table), -1)
        keys, expected = keys_of(key_chunk), table.schema.metadata[SUM].decode()
    except (
        pa.ArrowException,
        OSError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
    ) as error:
        raise _broken(path, str(error)) from None
    if _name(keys) != path.stem:
        raise _broken(path, "its keys are not those that were written")
    return keys, vectors, expected


def _broken(path: Path, reason: str) -> ExamError:
    return ExamError(
        f"{path} is not a whole shard of embeddings: {reason.splitlines()[0]}\n"
        "Delete that file: its texts are encoded again."
    )
