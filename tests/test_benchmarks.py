"""The benchmarks themselves, at the smallest size that runs every part of them."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import ANIMALS, PLACES, ROOT, kaggle_rows, write_csv

ON_CPU = ["--size", "tiny", "--device", "cpu"]
STATES = ["", "-again", "-changed"]


@pytest.fixture
def data(tmp_path):
    """Questions and articles in the layout of the notebooks' data sets."""
    exam, wikipedia = tmp_path / "exam", tmp_path / "wikipedia"
    exam.mkdir()
    wikipedia.mkdir()
    for name, rows in (("train", 6), ("valid", 2), ("test", 2)):
        write_csv(exam / f"{name}.csv", kaggle_rows(rows))
    qrels = [{"question": str(i), "article": f"a{i}"} for i in range(6)]
    write_csv(exam / "train_qrels.csv", qrels)
    pairs = list(zip(ANIMALS, PLACES, strict=True))
    files = {"a.parquet": pairs[:5], "b.parquet": pairs[5:]}
    index = []
    for file, part in files.items():
        rows = [
            {
                "id": f"a{ANIMALS.index(animal)}",
                "title": animal.title(),
                "text": f"The {animal} is an animal. The {animal} lives in the {place}.",
                "categories": "",
            }
            for animal, place in part
        ]
        pq.write_table(pa.Table.from_pylist(rows), wikipedia / file)
        index += [{"id": row["id"], "file": file} for row in rows]
    pq.write_table(pa.Table.from_pylist(index), wikipedia / "wiki_2023_index.parquet")
    return tmp_path


@pytest.fixture
def measure(tmp_path):
    """Run a benchmark, and return its figures."""

    def run(script, *arguments):
        output = tmp_path / "bench.json"
        command = [sys.executable, f"benchmarks/{script}.py", *map(str, arguments)]
        command += ["--work", str(tmp_path / "work"), "--output", str(output)]
        subprocess.run(command, cwd=ROOT, check=True)
        return json.loads(output.read_text())

    return run


@pytest.mark.slow
def test_notebook_retrieval_finds_the_same_sentences(data, measure):
    figures = measure("notebook_retrieval", data, "--questions", 6, "--rounds", 1)
    assert figures["questions"] == 6
    assert figures["ratios"]["exact_identical"]["sets_without_repeats"] == 1
    assert figures["quality"]["notebook"]["recall_at_5"]["n"] == 6
    states = [f"{name}{state}" for name in ("exact", "recommended") for state in STATES]
    jobs = {name: len(runs) for name, runs in figures["runs"].items()}
    assert jobs == dict.fromkeys(["notebook", *states], 1)


@pytest.mark.slow
def test_both_readers_train_and_predict_the_same_questions(data, measure):
    parts = ["--parts", "speed,quality", "--models", "minilm", "--seeds", "[0]"]
    figures = measure("reader", data, *parts, "--questions", 2, "--rounds", 1)
    minilm, quality = figures["speed"]["minilm"], figures["quality"]
    runs = minilm["train"]["runs"]
    plain, ours = (runs[side][0]["tokens_per_question"] for side in ("plain", "ours"))
    assert plain > 2 * ours > 0
    for phase in ("train", "predict"):
        rate = minilm[phase]["questions_per_second"]
        assert minilm[phase]["ratio"] == pytest.approx(rate["ours"] / rate["plain"])
        assert minilm[phase]["share_of_peak"] > 0  # two timings: no bound holds under load
    assert quality["difference"]["n"] == 2
    assert quality["ours"]["value"] == pytest.approx(quality["each"]["ours"][0])


@pytest.mark.slow
def test_three_ways_to_run_a_model_rank_options_alike(data, measure):
    figures = measure("layerwise", data, "--small", "--questions", 2, "--rounds", 1)
    assert figures["same_order"] == {"layerwise": True, "offload": True}
    for way in ("layerwise", "offload"):
        ratio = figures[way]["seconds"] / figures["memory"]["seconds"]
        assert figures["ratios"][f"{way}_seconds"] == pytest.approx(ratio)


@pytest.mark.slow
def test_a_shared_prefix_changes_no_order(data, measure):
    figures = measure("shared_prefix", data, "--questions", 2, "--rounds", 1)
    assert figures["same_order"]
    assert figures["largest_difference"] < 1e-3
    assert figures["tokens_shared"] > figures["tokens_of_an_option"] > 0


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_runs_on_a_cpu(measure):
    figures = measure("gpu", *ON_CPU, "--rounds", 1, "--seconds", 1800)  # fails where a row does
    rows = {(row["group"], row["case"].split(",")[0], row["way"]): row for row in figures["rows"]}
    assert {group for group, *_ in rows} == {
        *("readers", "attention", "encoding", "decoders", "search")
    }
    fast, slow = (
        rows["readers", "answer", way]["seconds"] for way in ("packed", "one sequence per option")
    )
    (ratio,) = (v for name, v in figures["ratios"].items() if name.startswith("readers: answer"))
    assert ratio["times_faster"] == pytest.approx(slow / fast)
    assert rows["readers", "train", "packed"]["estimated_mib"] > 0
    dense, blocks = (
        rows["attention", "answer", way]["sum_of_logits"] for way in ("SDPA", "FlexAttention")
    )
    assert blocks == pytest.approx(dense, abs=1e-4)
    assert rows["attention", "train", "FlexAttention"]["skipped"] == (
        "FlexAttention has no gradient on a CPU"
    )
    in_memory, layers = (
        next(row for key, row in rows.items() if key[0] == "decoders" and key[2] == way)
        for way in ("in memory", "layer by layer")
    )
    assert layers["mean_score"] == pytest.approx(in_memory["mean_score"], abs=1e-2)
    exact = [row for key, row in rows.items() if key[0] == "search" and "seconds" in row]
    assert len(exact) >= 4
    assert all(row["first_is_right"] == 1 for row in exact if "bf16" not in row["way"])


@pytest.mark.slow
def test_what_a_group_does_not_reach_is_listed(measure):
    # 15 of the 16 seconds are for a row's end.
    rows = measure("gpu", *ON_CPU, "--groups", "search", "--seconds", 16)["rows"]
    assert rows
    assert {row["skipped"] for row in rows} == {"not reached in the 1 s of its group"}
