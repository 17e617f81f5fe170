"""The benchmarks themselves, at the smallest size that runs every part of them."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import ANIMALS, PLACES, ROOT, kaggle_rows, run_script, write_csv


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


@pytest.mark.slow
def test_notebook_retrieval_finds_the_same_sentences(data, tmp_path):
    work, output = tmp_path / "work", tmp_path / "bench.json"
    command = [sys.executable, "benchmarks/notebook_retrieval.py", str(data), "--questions", "6"]
    command += ["--rounds", "1", "--work", str(work), "--output", str(output)]
    subprocess.run(command, cwd=ROOT, check=True)
    found = json.loads(output.read_text())
    assert found["questions"] == 6
    assert found["ratios"]["exact_identical"]["sets_without_repeats"] == 1
    assert found["quality"]["notebook"]["recall_at_5"]["n"] == 6
    jobs = {name: len(runs) for name, runs in found["runs"].items()}
    assert jobs == dict.fromkeys(
        [
            "notebook",
            *("exact", "exact-again", "exact-changed"),
            *("recommended", "recommended-again", "recommended-changed"),
        ],
        1,
    )


@pytest.mark.slow
def test_both_readers_train_and_predict_the_same_questions(data, tmp_path):
    output = tmp_path / "bench.json"
    command = [sys.executable, "benchmarks/reader.py", str(data), "--questions", "2"]
    command += ["--parts", "speed,quality", "--models", "minilm", "--rounds", "1", "--seeds", "[0]"]
    command += ["--work", str(tmp_path / "work"), "--output", str(output)]
    subprocess.run(command, cwd=ROOT, check=True)
    found = json.loads(output.read_text())
    minilm = found["speed"]["minilm"]
    runs = minilm["train"]["runs"]
    plain, ours = (runs[side][0]["tokens_per_question"] for side in ("plain", "ours"))
    assert plain > 2 * ours > 0
    for phase in ("train", "predict"):
        rate = minilm[phase]["questions_per_second"]
        assert minilm[phase]["ratio"] == pytest.approx(rate["ours"] / rate["plain"])
        assert minilm[phase]["share_of_peak"] > 0  # two timings: no bound holds under load
    assert found["quality"]["difference"]["n"] == 2
    assert found["quality"]["ours"]["value"] == pytest.approx(found["quality"]["each"]["ours"][0])


@pytest.mark.slow
def test_three_ways_to_run_a_model_rank_options_alike(data, tmp_path):
    output = tmp_path / "bench.json"
    command = [sys.executable, "benchmarks/layerwise.py", str(data), "--small", "--rounds", "1"]
    command += ["--questions", "2", "--work", str(tmp_path / "work"), "--output", str(output)]
    subprocess.run(command, cwd=ROOT, check=True)
    found = json.loads(output.read_text())
    assert found["same_order"] == {"layerwise": True, "offload": True}
    for way in ("layerwise", "offload"):
        ratio = found[way]["seconds"] / found["memory"]["seconds"]
        assert found["ratios"][f"{way}_seconds"] == pytest.approx(ratio)


@pytest.mark.slow
def test_a_shared_prefix_changes_no_order(data, tmp_path):
    output = tmp_path / "bench.json"
    given = [str(data), "--questions", "2", "--rounds", "1", "--work", str(tmp_path / "work")]
    script = ROOT / "benchmarks" / "shared_prefix.py"
    done = run_script(script, *given, "--output", str(output), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert found["same_order"]
    assert found["largest_difference"] < 1e-3
    assert found["tokens_shared"] > found["tokens_of_an_option"] > 0


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_runs_on_a_cpu(tmp_path):
    output = tmp_path / "bench.json"
    command = [sys.executable, "benchmarks/gpu.py", "--size", "tiny", "--device", "cpu"]
    command += ["--rounds", "1", "--seconds", "1800"]
    command += ["--work", str(tmp_path / "work"), "--output", str(output)]
    subprocess.run(command, cwd=ROOT, check=True)  # 1 where a row failed
    found = json.loads(output.read_text())
    rows = {(row["group"], row["case"].split(",")[0], row["way"]): row for row in found["rows"]}
    assert {group for group, *_ in rows} == {
        *("readers", "attention", "encoding", "decoders", "search")
    }
    fast, slow = (
        rows["readers", "answer", way]["seconds"] for way in ("packed", "one sequence per option")
    )
    (ratio,) = (v for name, v in found["ratios"].items() if name.startswith("readers: answer"))
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
def test_what_a_group_does_not_reach_is_listed(tmp_path):
    output = tmp_path / "bench.json"
    command = [sys.executable, "benchmarks/gpu.py", "--size", "tiny", "--device", "cpu"]
    command += ["--groups", "search", "--seconds", "16"]  # 15 of them for a row's end
    command += ["--work", str(tmp_path / "work"), "--output", str(output)]
    subprocess.run(command, cwd=ROOT, check=True)
    rows = json.loads(output.read_text())["rows"]
    assert rows
    assert {row["skipped"] for row in rows} == {"not reached in the 1 s of its group"}
