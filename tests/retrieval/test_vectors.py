"""faiss recipes: against brute force; their spec, resumption, refusals and processes."""

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers import ROOT, run_script, streamed, unit

from exam.config import Index, IndexType
from exam.core.errors import ExamError
from exam.retrieval import vectors as vectors_module
from exam.retrieval.vectors import (
    VectorIndex,
    build_vectors,
    choose_index_spec,
    cleanup_partial_build,
    index_key,
)


def built(folder, vectors, index_type, **values):
    folder.mkdir(exist_ok=True)
    spec = choose_index_spec(Index(type=index_type, **values), *vectors.shape)
    files, facts = build_vectors(streamed(vectors), folder, spec)
    cleanup_partial_build(folder)
    return VectorIndex(folder, spec), files, facts


def brute_force(queries, vectors, k):
    return np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :k]


def test_exact_search_equals_brute_force_over_several_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(vectors_module, "BLOCK_BYTES", 4 * 24 * 128)  # 128 vectors
    vectors, queries = unit(1000, 24, 0), unit(30, 24, 1)
    index, files, facts = built(tmp_path / "i", vectors, IndexType.exact)
    scores, rows = index.search(queries, 7)
    assert (rows == brute_force(queries, vectors, 7)).all()
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ vectors.T, rows, 1), atol=1e-6)
    assert files == ["vectors.npy"]
    assert "recall" not in facts
    np.testing.assert_array_equal(index.vectors_at([3, 999, 0]), vectors[[3, 999, 0]])
    assert (tmp_path / "i" / "vectors.npy").stat().st_size == 128 + 4 * 24 * 1000


def test_low_memory_finds_nearly_what_brute_force_finds(tmp_path):
    vectors, queries = unit(6000, 32, 0), unit(100, 32, 1)
    index, files, facts = built(
        tmp_path / "i", vectors, IndexType.low_memory, nprobe=32, refine_k=100
    )
    scores, rows = index.search(queries, 3)
    exact = brute_force(queries, vectors, 3)
    shared = [len(set(a) & set(b)) / 3 for a, b in zip(rows, exact, strict=True)]
    assert np.mean(shared) >= 0.97
    assert (np.diff(scores) <= 0).all()
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ vectors.T, rows, 1), atol=2e-3)
    assert index.spec.lists == 64
    assert facts["recall"]["queries"] == 500
    assert facts["recall"]["recall_at_3"]["value"] >= 0.97
    assert sorted(files) == sorted(p.name for p in (tmp_path / "i").glob("[!.]*"))
    on_disk = sum((tmp_path / "i" / name).stat().st_size for name in files)
    assert abs(on_disk / index.spec.disk - 1) < 0.05  # what was predicted


def test_measured_recall_depends_on_the_parameters_of_the_index(tmp_path):
    """One list read and four candidates: the measurement must see the loss."""
    vectors = unit(6000, 32, 0)
    _, _, facts = built(tmp_path / "i", vectors, IndexType.low_memory, nprobe=1, refine_k=4)
    assert 0.05 < facts["recall"]["recall_at_3"]["value"] < 0.8


def test_lists_that_hold_too_few_are_all_read(tmp_path):
    vectors, queries = unit(300, 16, 0), unit(5, 16, 1)
    index, _, _ = built(tmp_path / "i", vectors, IndexType.low_memory, nprobe=1, refine_k=1)
    assert index.spec.lists == 4
    _, rows = index.search(queries, 290)
    assert all(len(set(row)) == 290 and row.min() >= 0 for row in rows)


@pytest.mark.parametrize("index_type", [IndexType.exact, IndexType.low_memory])
def test_k_may_exceed_the_number_of_vectors(tmp_path, index_type):
    vectors = unit(1, 16, 0)
    index, _, _ = built(tmp_path / "i", vectors, index_type)
    scores, rows = index.search(vectors, 5)
    assert rows.tolist() == [[0]]
    assert scores[0, 0] == pytest.approx(1, abs=1e-3)
    assert index.search(vectors[:0], 5)[1].shape == (0, 1)


def test_queries_of_another_dimension_are_refused(tmp_path):
    index, _, _ = built(tmp_path / "i", unit(10, 16, 0), IndexType.exact)
    with pytest.raises(ExamError, match=r" 16-d vectors, .* 24-d queries\.\n.*exam retrieve"):
        index.search(unit(2, 24, 0), 1)


def test_auto_takes_what_fits_the_budget():
    auto = Index(type=IndexType.auto, max_memory_gib=4.0)
    assert choose_index_spec(auto, 1_000_000, 384).lists == 0  # 1.43 GiB
    spec = choose_index_spec(auto, 6_286_775, 384)
    assert (spec.lists, spec.nprobe, spec.refine_k) == (4096, 256, 200)
    assert spec.memory == 6_286_775 * 64 + 4 * 384 * (4096 + 384)
    assert spec.disk == spec.memory + 2 * 384 * 6_286_775
    assert choose_index_spec(replace(auto, max_memory_gib=10.0), 6_286_775, 384).lists == 0


def test_auto_logs_its_prediction(caplog):
    with caplog.at_level("DEBUG", logger="exam"):
        choose_index_spec(Index(type=IndexType.auto, max_memory_gib=0.001), 100_000, 64)
    assert caplog.messages == [
        "index: even low_memory exceeds index.max_memory_gib=0.001",
        "index: IndexSpec(vectors=100000, dimension=64, lists=512, nprobe=256, refine_k=200) · "
        "2547456 bytes in memory, 15347456 on disk",
    ]


def test_auto_prefers_exact_on_a_gpu(monkeypatch):
    monkeypatch.setattr(vectors_module.import_faiss(), "get_num_gpus", lambda: 1)
    auto = Index(type=IndexType.auto, max_memory_gib=0.001)
    assert choose_index_spec(auto, 100_000, 64).lists == 0
    assert index_key(auto)["gpu"] is True
    assert index_key(Index()) == {"type": "exact"}


@pytest.mark.slow
def test_a_small_form_of_the_scale_benchmark(tmp_path):
    out = tmp_path / "scale.json"
    arguments = ["--small", "--work", str(tmp_path / "work"), "--out", str(out)]
    done = run_script(ROOT / "benchmarks" / "wikipedia_scale.py", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    assert figures["synthetic"]["build"]["spec"]["vectors"] == 20_000
    assert figures["synthetic"]["exact"]["recall_at_3"]["n"] == 200
    assert figures["synthetic"]["exact"]["recall_at_3"]["value"] >= 0.9
    assert set(figures["ratios"]) == {
        "build_peak_to_target",
        "search_peak_to_target",
        "recall_at_3_to_target",
        "warm_seconds_to_target",
        "disk_to_exact",
    }
