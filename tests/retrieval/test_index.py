"""Indexes of articles and passages: refusals, reuse, several processes."""

import json
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import jsonl_corpus, make_place, refuses, run_exam, run_script, setting

from exam.config import Chunking, Encoder, Index, IndexType
from exam.core import artifacts
from exam.core.artifacts import load_stage, open_stage
from exam.core.errors import ExamError
from exam.core.files import digest, read_json, write_json
from exam.data.corpus import list_articles
from exam.retrieval.chunking import build_passages
from exam.retrieval.encoder import SentenceEncoder
from exam.retrieval.index import build_index, build_passage_index


@pytest.fixture
def corpus(articles, tmp_path):
    return list_articles(jsonl_corpus(articles), tmp_path / "o")


@pytest.fixture
def sentences(encoder):
    return SentenceEncoder(Encoder(name="tiny", name_or_path=str(encoder)))


@pytest.mark.parametrize("index_type", [IndexType.exact, IndexType.low_memory, IndexType.auto])
def test_every_type_finds_an_article_by_its_words(corpus, sentences, tmp_path, index_type):
    index = build_index(corpus, sentences, Index(type=index_type, shard_size=4), tmp_path / "o")
    queries = sentences.passages([f"{a}. The {a.lower()} is an animal" for a in ["Heron", "Lynx"]])
    _, rows = index.search(queries, 3)
    assert index.table.take(rows[:, 0])["title"].to_pylist() == ["Heron", "Lynx"]
    _, (nearest,) = index.search(queries[:1], 4)
    assert index.find_neighbors(1, 3) == [r for r in nearest if r != 1][:3]
    assert index.stage.metadata["articles"] == 10


def test_passage_vectors_follow_the_rows_of_the_table(corpus, sentences, tmp_path):
    table = build_passages(corpus, Chunking(chunk_words=12, overlap_sentences=0), tmp_path / "o")
    index = build_passage_index(table, sentences, Index(shard_size=4), tmp_path / "o")
    texts = [text for block in table.texts() for text in block]
    assert len(texts) == index.stage.metadata["passages"] == len(table) > 10
    vectors = index.vectors.vectors_at(range(len(texts)))
    np.testing.assert_allclose(vectors, sentences.passages(texts), atol=1e-6)
    assert index.search(vectors[7:8], 1)[1].tolist() == [[texts.index(texts[7])]]


@pytest.mark.parametrize("name", ["vectors.npy", "index.faiss"])
def test_a_damaged_index_is_refused_by_name(corpus, sentences, tmp_path, name):
    index = Index(type=IndexType.low_memory)
    folder = build_index(corpus, sentences, index, tmp_path / "o").stage.folder
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ExamError, match=rf"{folder / name} .*\n.*Delete the folder {folder}"):
        build_index(corpus, sentences, index, tmp_path / "o")


def test_a_large_file_is_hashed_once_until_it_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts, "LARGE", 1000)
    with open_stage(tmp_path, "index", "x", {}) as stage:
        (stage.folder / "large").write_bytes(b"x" * 1000)
        (stage.folder / "small").write_bytes(b"x" * 999)
        stage.finish(["large", "small"])
    hashed = []
    real = artifacts.file_digest
    monkeypatch.setattr(artifacts, "file_digest", lambda p: hashed.append(p.name) or real(p))
    load_stage(stage.folder)
    assert hashed == ["small"]
    os.utime(stage.folder / "large")
    load_stage(stage.folder)
    load_stage(stage.folder)
    assert hashed == ["small", "large", "small", "small"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("encoder", "max_length", 64), "encoder.max_length (64 → 256)"),
        (("index", "type", "low_memory"), "index.type (low_memory → exact)"),
        (("corpus", None, []), "corpus ("),
    ],
)
def test_a_manifest_of_another_request_is_refused_by_name(
    corpus, sentences, tmp_path, change, named
):
    """Such as a folder that was copied under a wrong name."""
    folder = build_index(corpus, sentences, Index(), tmp_path / "o").stage.folder
    manifest = read_json(folder / "manifest.json")
    group, key, value = change
    if key:
        manifest["key"][group][key] = value
    else:
        manifest["key"][group] = value
    manifest["sha256"] = digest({k: v for k, v in manifest.items() if k != "sha256"})
    write_json(folder / "manifest.json", manifest)
    with refuses(f"{folder} holds another configuration's result ({named}"):
        build_index(corpus, sentences, Index(), tmp_path / "o")


def test_each_type_has_a_separate_folder(corpus, sentences, tmp_path):
    keys = [
        build_index(corpus, sentences, Index(type=index_type), tmp_path / "o").stage.hash
        for index_type in IndexType
    ]
    assert len(set(keys)) == 3


RETRIEVE = """
import json, sys
from pathlib import Path
from exam.core import distributed
from exam.config import Chunking, Corpus, CorpusFormat, Encoder, Index, IndexType
from exam.data.corpus import list_articles
from exam.retrieval.encoder import SentenceEncoder
from exam.retrieval.index import build_index, build_passage_index
from exam.retrieval.chunking import build_passages
encoded = []
real = SentenceEncoder.encode
SentenceEncoder.encode = lambda self, texts: encoded.append(len(texts)) or real(self, texts)
articles, encoder, outputs = map(Path, sys.argv[1:])
jsonl = CorpusFormat.jsonl
corpus = Corpus(name="a", format=jsonl, dir=str(articles.parent), files=articles.name)
corpus = list_articles(corpus, outputs)
sentences = SentenceEncoder(Encoder(name="tiny", name_or_path=str(encoder)))
index = build_index(corpus, sentences, Index(type=IndexType.low_memory, shard_size=2), outputs)
table = build_passages(corpus, Chunking(chunk_words=12, overlap_sentences=0), outputs)
build_passage_index(table, sentences, Index(shard_size=3), outputs)
assert len(index) == 10
import torch.distributed
joined = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
report = {"rank": distributed.rank(), "world": joined, "encoded": encoded, "passages": len(table)}
(outputs / f"report-{distributed.rank()}.json").write_text(json.dumps(report))
"""


@pytest.mark.slow
def test_two_processes_build_the_index_of_one(articles, encoder, tmp_path):
    (tmp_path / "run.py").write_text(RETRIEVE)
    for name, processes in (("one", 1), ("two", 2)):
        arguments = [str(articles), str(encoder), str(tmp_path / name)]
        done = run_script(tmp_path / "run.py", *arguments, cwd=tmp_path, processes=processes)
        assert done.returncode == 0, done.stderr
    report = [json.loads((tmp_path / "two" / f"report-{i}.json").read_text()) for i in (0, 1)]
    assert [(s["rank"], s["world"]) for s in report] == [(0, 2), (1, 2)]
    assert all(s["encoded"] for s in report)
    total = sum(sum(s["encoded"]) for s in report)
    assert total == 10 + report[0]["passages"]  # each text by one of them
    one, two = (
        sorted(p for p in (tmp_path / name / "index").glob("*/*") if p.is_file())
        for name in ("one", "two")
    )
    assert [p.parent.name + p.name for p in one] == [p.parent.name + p.name for p in two]
    for a, b in zip(one, two, strict=True):
        if a.suffix in (".npy", ".faiss", ".parquet"):
            assert a.read_bytes() == b.read_bytes(), a.name
    assert not list((tmp_path / "two").glob("index/*/shard-*"))


@pytest.mark.slow
def test_retrieve_under_torchrun_gives_the_contexts_of_one_process(encoder, tmp_path):
    more = f"encoder.name_or_path={encoder}", "retriever=two_stage", "index.shard_size=2"
    values = setting(make_place(tmp_path), *more)
    tables = []
    for name, processes in (("one", 1), ("two", 2)):
        outputs = tmp_path / name
        run_exam("retrieve", *values, f"outputs={outputs}", processes=processes)
        paths = sorted(outputs.glob("contexts/*/contexts.parquet"))
        tables.append([(p.parent.name, pq.read_table(p)) for p in paths])
    assert len(tables[0]) == 3
    assert [n for n, _ in tables[0]] == [n for n, _ in tables[1]]
    for (_, a), (_, b) in zip(*tables, strict=True):
        assert a.drop_columns("score").equals(b.drop_columns("score"))
