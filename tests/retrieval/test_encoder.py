"""Encoding: batches by tokens, the number format, and the cache of vectors by content."""

import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pytest
from helpers import refuses

from exam.config import Dtype, Encoder
from exam.core.errors import ExamError
from exam.core.files import CHECKSUMS
from exam.core.precision import resolve_dtype
from exam.retrieval import encoder as encoder_module
from exam.retrieval.encoder import (
    PROMPTS,
    Embeddings,
    SentenceEncoder,
    batch_by_length,
    fingerprint_texts,
    inspect_encoder,
)

TEXTS = ["the otter", "the heron lives in the marsh", "it is an animal", "the otter", ""]


def settings(folder, **changes):
    return Encoder(name="tiny", name_or_path=str(folder), dtype=Dtype.float32, **changes)


@pytest.fixture
def tiny(encoder):
    return SentenceEncoder(settings(encoder, query_prefix="query: "))


@pytest.fixture
def encoded(monkeypatch):
    """The texts of each call of an encoder."""
    calls = []
    real = SentenceEncoder.encode
    monkeypatch.setattr(
        SentenceEncoder, "encode", lambda self, texts: calls.append([*texts]) or real(self, texts)
    )
    return calls


def test_batches_hold_texts_of_like_length_within_the_budget():
    batches = [batch.tolist() for batch in batch_by_length(np.array([3, 9, 4, 9, 20]), 18)]
    assert batches == [[4], [1, 3], [2, 0]]


def test_batches_of_nothing_and_of_empty_texts():
    assert list(batch_by_length(np.empty(0, np.int64), 8)) == []
    assert [b.tolist() for b in batch_by_length(np.zeros(3, np.int64), 2)] == [[0, 1], [2]]


@pytest.mark.parametrize("tokens", [1, 12, 4096])
def test_vectors_do_not_depend_on_the_batches(encoder, tokens):
    small = SentenceEncoder(settings(encoder, max_tokens_per_batch=tokens))
    unbatched = np.concatenate([small.model.encode([text]) for text in TEXTS])
    unbatched /= np.linalg.norm(unbatched, axis=1, keepdims=True)
    np.testing.assert_allclose(small.encode(TEXTS), unbatched, atol=1e-6)


@pytest.mark.parametrize(("max_length", "widths"), [(64, {16, 32, 48, 64}), (24, {8, 16, 24})])
def test_sequences_have_few_widths(encoder, max_length, widths, monkeypatch):
    few = SentenceEncoder(settings(encoder, max_length=max_length, max_tokens_per_batch=64))
    seen = set()
    real = type(few.model[0]).forward

    def spy(self, features, **kwargs):
        seen.add(features["input_ids"].shape[1])
        return real(self, features, **kwargs)

    monkeypatch.setattr(type(few.model[0]), "forward", spy)
    few.encode(["otter " * n for n in range(80)])
    assert seen == widths


def test_long_texts_are_truncated(encoder):
    short = SentenceEncoder(settings(encoder, max_length=4))
    first, second = short.encode(["the otter lives in the marsh", "the otter is an animal"])
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_bfloat16_vectors_are_float32_and_of_unit_length(encoder, monkeypatch):
    monkeypatch.setattr("exam.retrieval.encoder.resolve_dtype", lambda dtype, key: Dtype.bfloat16)
    half = SentenceEncoder(settings(encoder))
    vectors = half.encode(TEXTS)
    assert str(half.model.dtype) == "torch.bfloat16"
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert half.key["dtype"] == "bfloat16"


@pytest.mark.parametrize("native", [True, False])
def test_auto_is_bfloat16_only_where_it_is_native(native, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: native)
    assert resolve_dtype(Dtype.auto, "encoder.dtype") is (
        Dtype.bfloat16 if native else Dtype.float32
    )
    assert resolve_dtype(Dtype.float32, "encoder.dtype") is Dtype.float32


def test_emulated_bfloat16_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: False)
    with refuses("encoder.dtype=bfloat16", "encoder.dtype=auto"):
        resolve_dtype(Dtype.bfloat16, "encoder.dtype")


def test_the_cache_encodes_a_text_once(tiny, tmp_path, encoded):
    store = Embeddings(tiny, tmp_path)
    first = store.queries(TEXTS)
    assert encoded == [["query: " + text for text in [*TEXTS[:3], ""]]]
    again = Embeddings(tiny, tmp_path).queries(TEXTS[::-1])
    assert len(encoded) == 1
    np.testing.assert_array_equal(again, first[::-1])
    Embeddings(tiny, tmp_path).queries(["the otter", "the mole"])
    assert encoded[1:] == [["query: the mole"]]


def test_a_copy_without_checksums_is_encoded_again(tiny, tmp_path, encoded):
    store = Embeddings(tiny, tmp_path)
    vectors = store.queries(TEXTS)
    (store.folder / CHECKSUMS).unlink()
    np.testing.assert_array_equal(Embeddings(tiny, tmp_path).queries(TEXTS), vectors)
    assert len(encoded) == 2


def test_shards_are_searched_together(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder_module, "TEXTS_PER_SHARD", 2)
    store = Embeddings(tiny, tmp_path)
    vectors = store.queries(TEXTS)
    assert len(list(store.folder.glob("*.arrow"))) == 2
    np.testing.assert_allclose(vectors, tiny.queries(TEXTS), atol=1e-6)
    reopened = Embeddings(tiny, tmp_path)
    np.testing.assert_array_equal(reopened.queries(TEXTS), vectors)


def test_another_encoder_has_another_store(encoder, tmp_path):
    folders = {
        Embeddings(SentenceEncoder(settings(encoder, max_length=n)), tmp_path).folder
        for n in (8, 16)
    }
    assert len(folders) == 2


def test_two_processes_may_encode_the_same(tiny, tmp_path):
    one, two = Embeddings(tiny, tmp_path), Embeddings(tiny, tmp_path)
    np.testing.assert_array_equal(one.queries(TEXTS), two.queries(TEXTS))
    assert len(list(one.folder.glob("*.arrow"))) == 1
    two.queries(["the mole", *TEXTS])
    keys = fingerprint_texts(["query: the otter"])
    np.testing.assert_array_equal(
        Embeddings(tiny, tmp_path).vectors(keys), one.queries(["the otter"])
    )


def test_a_shard_of_another_form_is_refused_by_name(tiny, tmp_path):
    store = Embeddings(tiny, tmp_path)
    store.queries(["the otter"])
    (shard,) = store.folder.glob("*.arrow")
    table = pa.table({"key": [b"x"]})
    with pa.OSFile(str(shard), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ExamError, match=r"is a damaged shard of embeddings: .*vector"):
        Embeddings(tiny, tmp_path).queries(["the otter"])


def test_vectors_under_other_keys_are_refused_by_name(tiny, tmp_path):
    store = Embeddings(tiny, tmp_path)
    store.queries(["the otter", "the heron"])
    (shard,) = store.folder.glob("*.arrow")
    one, other = (
        key.tobytes() for key in fingerprint_texts(["query: the otter", "query: the heron"])
    )
    data = shard.read_bytes()
    assert one + other in data
    shard.write_bytes(data.replace(one + other, other + one))
    with pytest.raises(ExamError, match=rf"^{shard} is a damaged .*\n.*Delete that file"):
        Embeddings(tiny, tmp_path).queries(["the otter"])


@pytest.fixture
def prompted(encoder, tmp_path):
    """A copy of the encoder whose checkpoint names prompts."""

    def copy(**content):
        folder = tmp_path / f"prompted-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(encoder, folder)
        (folder / PROMPTS).write_text(json.dumps(content))
        return folder

    return copy


def test_queries_and_passages_begin_with_the_checkpoints_prompts(encoder, prompted, caplog):
    prompts = {"query": "where lives ", "document": ""}
    folder = prompted(prompts=prompts, default_prompt_name="query")
    plain, own = SentenceEncoder(settings(encoder)), SentenceEncoder(settings(folder))
    with caplog.at_level("INFO", "exam"):
        np.testing.assert_allclose(own.passages(TEXTS), plain.passages(TEXTS), atol=1e-6)
        expected = plain.encode(["where lives " + text for text in TEXTS])
        np.testing.assert_allclose(own.queries(TEXTS), expected, atol=1e-6)
    assert own.key["query_prefix"] == "where lives "
    (line,) = [m for m in caplog.messages if "'where lives '" in m]
    assert "encoder.query_prefix" in line
    without = SentenceEncoder(settings(folder, query_prefix=""))
    np.testing.assert_allclose(without.queries(TEXTS), plain.queries(TEXTS), atol=1e-6)
    assert without.key["query_prefix"] == plain.key["query_prefix"] == ""


def test_a_default_prompt_of_another_use_stands_before_nothing(encoder, prompted, caplog):
    folder = prompted(prompts={"clustering": "the animal "}, default_prompt_name="clustering")
    plain, own = SentenceEncoder(settings(encoder)), SentenceEncoder(settings(folder))
    with caplog.at_level("INFO", "exam"):
        np.testing.assert_allclose(own.passages(TEXTS), plain.passages(TEXTS), atol=1e-6)
        np.testing.assert_allclose(own.queries(TEXTS), plain.queries(TEXTS), atol=1e-6)
    lines = [r.message for r in caplog.records if r.name == encoder_module.__name__]
    assert ["clustering" in line for line in lines] == [True, True]


def test_a_passage_prompt_has_any_name_of_the_library(prompted):
    for name in ("document", "passage", "corpus"):
        own = SentenceEncoder(settings(prompted(prompts={name: "the marsh "})))
        assert (own.passage_prefix, own.query_prefix) == ("the marsh ", "")


def test_truncated_and_unknown_tokens_are_counted_and_logged(encoder, caplog):
    short = SentenceEncoder(settings(encoder, max_length=6))
    with caplog.at_level("INFO", "exam"):
        short.encode(["the otter lives in the marsh", "the otter", "zzz"])
        short.log_counts("index")
        short.log_counts("index")
    first, second = caplog.messages
    lengths = short.count_tokens(["the otter lives in the marsh"])
    assert f"1 of 3 texts are longer than encoder.max_length=6; {lengths[0] - 6} of" in first
    assert "unknown to the encoder's tokenizer" in second


def test_a_length_beyond_the_positions_is_refused_with_one_that_works(encoder):
    with refuses("encoder.max_length=9999", "encoder.max_length=") as caught:
        inspect_encoder(settings(encoder, max_length=9999))
    limit = int(re.findall(r"Set encoder.max_length=(\d+)", str(caught.value))[0])
    inspect_encoder(settings(encoder, max_length=limit))
    words = " ".join(["otter"] * 2 * limit)
    assert SentenceEncoder(settings(encoder, max_length=limit)).encode([words]).shape[0] == 1
