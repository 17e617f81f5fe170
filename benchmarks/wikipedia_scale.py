"""Index and search as many vectors as Wikipedia has articles, in a notebook's memory.

    python benchmarks/wikipedia_scale.py --data <folder> --work <folder> --out <file>
    python benchmarks/wikipedia_scale.py --small        # random vectors, seconds

`--data` (or EXAM_DATA) holds exam/*.csv and wikipedia/*.parquet. Centres are the real vectors of
the corpus's sentences, queries those of real prompts. Each synthetic vector is a centre plus noise
in a random direction, as long as puts two of one centre as far apart as that centre is from its
nearest real neighbour. Nothing ever holds all vectors: they are drawn anew, block by block, from
their seed. Build and search run in processes of their own, whose peak resident memory (mapped
pages counted) is the system's own figure.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from exam.config import Corpus, CorpusFormat, Index, IndexType
from exam.core.environment import peak_memory_mib, reset_peak_memory
from exam.core.files import write_json
from exam.core.logging import print_result, setup_logging
from exam.metrics import estimate
from exam.retrieval.vectors import (
    IndexSpec,
    VectorIndex,
    Vectors,
    build_vectors,
    choose_index_spec,
    cleanup_partial_build,
    exact_search,
    import_faiss,
)

WIKIPEDIA = 6_286_775
BLOCK = 65_536
K = 3
QUERIES = 200
TARGETS = {"build_peak_gib": 4.0, "search_peak_gib": 1.5, "recall_at_3": 0.95, "seconds": 5.0}


def main() -> None:
    """Run the parts in order, or, in a process of its own, one of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default=os.environ.get("EXAM_DATA"))
    parser.add_argument("--work", type=Path, default=Path("outputs/bench/wikipedia_scale"))
    parser.add_argument("--out", type=Path, default=Path("outputs/bench/wikipedia_scale.json"))
    parser.add_argument("--vectors", type=int, default=WIKIPEDIA)
    parser.add_argument("--sentences", type=int, default=20_000)
    parser.add_argument("--centres", type=Path, help="vectors at hand (.npy), not to be encoded")
    parser.add_argument("--probe", type=int, default=Index.nprobe)
    parser.add_argument("--refine", type=int, default=Index.refine_k)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--part", choices=["encode", "build", "search", "exact"])
    parser.add_argument("--real", action="store_true", help="the real vectors alone")
    given = parser.parse_args()
    if given.small:
        given.vectors = min(given.vectors, 20_000)
    setup_logging("info")
    if given.part:
        print_result(json.dumps(globals()[f"part_{given.part}"](given)))
    else:
        run(given)


def run(given: argparse.Namespace) -> None:
    """Every part in a process of its own; one file of figures."""
    given.work.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {"encode": _process(given, "encode")}
    for name, flags in {"synthetic": [], "real": ["--real"]}.items():
        parts = {part: _process(given, part, *flags) for part in ("build", "search", "exact")}
        figures[name] = {**parts, "ratios": _ratios(parts)}
        shutil.rmtree(given.work / name)
    figures["ratios"] = figures["synthetic"]["ratios"]
    figures["targets"] = TARGETS
    write_json(given.out, figures)
    print_result(json.dumps(figures["ratios"], indent=2))


def _process(given: argparse.Namespace, part: str, *flags: str) -> dict[str, Any]:
    """Run one part in a process of its own, so that its peak memory is its own."""
    values = [
        f"--{name}={getattr(given, name)}"
        for name in ("data", "work", "vectors", "sentences", "centres", "probe", "refine")
        if getattr(given, name) is not None
    ]
    small = ["--small"] if given.small else []
    done = subprocess.run(
        [sys.executable, __file__, *values, *small, *flags, "--part", part],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def part_encode(given: argparse.Namespace) -> dict[str, Any]:
    """Centres and queries: real vectors, kept in the work folder; random ones when small."""
    paths = [given.work / "centres.npy", given.work / "queries.npy"]
    if not all(path.is_file() for path in paths):
        centres, queries = _random() if given.small else _encoded(given)
        for path, vectors in zip(paths, (centres, queries), strict=True):
            np.save(path, vectors, allow_pickle=False)
    centres, queries = (np.load(path, allow_pickle=False) for path in paths)
    similarity = exact_search(centres, iter([centres]), 2)[0][:, 1]
    spread = np.sqrt(np.maximum(0, 2 - 2 * similarity))
    np.save(given.work / "spread.npy", spread.astype(np.float32), allow_pickle=False)
    return {
        "centres": len(centres),
        "centres_from": given.centres.name if given.centres else "sentences",
        "queries": len(queries),
        "nearest_neighbour_distance": _quartiles(spread),
    }


def _quartiles(values: Vectors) -> list[float]:
    return [round(float(q), 4) for q in np.quantile(values, [0.25, 0.5, 0.75])]


def _random() -> tuple[Vectors, Vectors]:
    """Few random directions with neighbours: a form of the benchmark that needs no data."""
    random = np.random.default_rng(0)
    topics = random.standard_normal((50, 64), dtype=np.float32)
    both = topics[random.integers(0, 50, 700)] + random.standard_normal((700, 64), np.float32)
    both /= np.linalg.norm(both, axis=1, keepdims=True)
    return both[:500], both[500:]


def _encoded(given: argparse.Namespace) -> tuple[Vectors, Vectors]:
    """A sample of the corpus's distinct sentences, and of all prompts, by the default encoder."""
    from exam.config.compose import compose_config
    from exam.data.articles import iter_articles
    from exam.data.corpus import corpus_files
    from exam.data.sentences import sentence_offsets
    from exam.retrieval.encoder import SentenceEncoder

    data = Path(given.data)
    corpus = Corpus(name="w", format=CorpusFormat.wikipedia, dir=str(data / "wikipedia"))
    prompts = []
    for name in ("train", "valid", "test"):
        with (data / "exam" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            prompts += [row["prompt"] for row in csv.DictReader(file)]
    encoder = SentenceEncoder(compose_config("retrieve", "encoder=minilm").encoder)
    queries = encoder.queries(_drawn(prompts, QUERIES))
    if given.centres:
        return np.load(given.centres, allow_pickle=False), queries
    articles = (a for file in corpus_files(corpus, given.work) for a in iter_articles(file))
    texts = dict.fromkeys(a.text[s:e] for a in articles for s, e in sentence_offsets(a.text, 4))
    return encoder.passages(_drawn(list(texts), given.sentences)), queries


def _drawn(texts: list[str], n: int) -> list[str]:
    chosen = np.random.default_rng(0).choice(len(texts), min(n, len(texts)), replace=False)
    return [texts[i] for i in np.sort(chosen)]


def _blocks(given: argparse.Namespace) -> Iterator[Vectors]:
    """All vectors, block by block: the same at every call."""
    centres = np.load(given.work / "centres.npy", allow_pickle=False)
    if given.real:
        yield centres
        return
    spread = np.load(given.work / "spread.npy", allow_pickle=False)
    for start in range(0, given.vectors, BLOCK):
        random = np.random.default_rng([1, start])
        size = min(BLOCK, given.vectors - start)
        own = random.integers(0, len(centres), size)
        noise = random.standard_normal((size, centres.shape[1]), dtype=np.float32)
        # Two points at this distance from their centre, at right angles, are `spread` apart.
        noise *= (spread[own] / np.sqrt(2) / np.linalg.norm(noise, axis=1))[:, None]
        noise += centres[own]
        noise /= np.linalg.norm(noise, axis=1, keepdims=True)
        yield noise


def _folder(given: argparse.Namespace) -> Path:
    found: Path = given.work / ("real" if given.real else "synthetic")
    found.mkdir(exist_ok=True)
    return found


def part_build(given: argparse.Namespace) -> dict[str, Any]:
    """Build the index of the stream."""
    centres = np.load(given.work / "centres.npy", mmap_mode="r", allow_pickle=False)
    rows = len(centres) if given.real else given.vectors
    index = Index(type=IndexType.low_memory, nprobe=given.probe, refine_k=given.refine)
    spec = choose_index_spec(index, rows, centres.shape[1])
    folder = _folder(given)
    started = time.perf_counter()
    files, facts = build_vectors(lambda: _blocks(given), folder, spec)
    cleanup_partial_build(folder)
    write_json(folder / "facts.json", facts)
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "peak_mib": round(peak_memory_mib(), 1),
        "spec": asdict(spec),
        "predicted_bytes": {"memory": spec.memory, "disk": spec.disk},
        "disk_bytes": sum((folder / name).stat().st_size for name in files),
        "exact_bytes": 4 * rows * spec.dimension,
        "recall_of_own_vectors": facts["recall"],
    }


def part_search(given: argparse.Namespace) -> dict[str, Any]:
    """Search all queries at once: the first time, then warm (the median of three)."""
    folder = _folder(given)
    spec = IndexSpec(**json.loads((folder / "facts.json").read_text(encoding="utf-8"))["spec"])
    index = VectorIndex(folder, spec)
    queries = np.load(given.work / "queries.npy", allow_pickle=False)
    import_faiss()
    before = peak_memory_mib()
    seconds, cpu = [], []
    rows = np.empty((0, K), np.int64)
    for _ in range(4):
        started, spent = time.perf_counter(), time.process_time()
        _, rows = index.search(queries, K)
        seconds.append(time.perf_counter() - started)
        cpu.append(time.process_time() - spent)
    np.save(folder / "found.npy", rows, allow_pickle=False)
    return {
        "first_seconds": round(seconds[0], 3),
        "warm_seconds": round(float(np.median(seconds[1:])), 3),
        "warm_processor_seconds": round(float(np.median(cpu[1:])), 3),
        "load_average": round(os.getloadavg()[0], 1),
        "peak_mib": round(peak_memory_mib(), 1),
        "peak_before_search_mib": round(before, 1),
    }


def part_exact(given: argparse.Namespace) -> dict[str, Any]:
    """Recall against exact search over the float32 stream."""
    folder = _folder(given)
    queries = np.load(given.work / "queries.npy", allow_pickle=False)
    found = np.load(folder / "found.npy", allow_pickle=False)
    reset_peak_memory()
    started = time.perf_counter()
    scores, exact = exact_search(queries, _blocks(given), K)
    shares = [len(set(a) & set(b)) / K for a, b in zip(exact, found, strict=True)]
    recall = estimate(np.array(shares))
    return {
        "recall_at_3": {"value": recall.value, "n": recall.n, "ci": [recall.low, recall.high]},
        "similarity_of_nearest": _quartiles(scores[:, 0]),
        "gap_of_third_to_first": _quartiles(scores[:, 0] - scores[:, 2]),
        "seconds": round(time.perf_counter() - started, 1),
        "peak_mib": round(peak_memory_mib(), 1),
    }


def _ratios(parts: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Each figure as a share of its target (recall: of at least; the others: of at most)."""
    build, search, exact = parts["build"], parts["search"], parts["exact"]
    return {
        "build_peak_to_target": round(build["peak_mib"] / 1024 / TARGETS["build_peak_gib"], 3),
        "search_peak_to_target": round(search["peak_mib"] / 1024 / TARGETS["search_peak_gib"], 3),
        "recall_at_3_to_target": round(exact["recall_at_3"]["value"] / TARGETS["recall_at_3"], 3),
        "warm_seconds_to_target": round(search["warm_seconds"] / TARGETS["seconds"], 3),
        "disk_to_exact": round(build["disk_bytes"] / build["exact_bytes"], 3),
    }


if __name__ == "__main__":
    main()
