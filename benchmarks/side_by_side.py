"""What the benchmarks share: arguments, questions with passages, time and memory, medians."""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def command_line(name: str, document: str) -> argparse.ArgumentParser:
    """What every comparison is given, with its own file and folder below outputs/bench."""
    parser = argparse.ArgumentParser(description=document.splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path, default=os.environ.get("EXAM_DATA"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--work", type=Path, default=Path("outputs/bench", name))
    parser.add_argument("--output", type=Path, default=Path("outputs/bench", f"{name}.json"))
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments of this process, the folder for its work made."""
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("give the folder of questions and articles, or set EXAM_DATA")
    arguments.work.mkdir(parents=True, exist_ok=True)
    return arguments


def resident_mib() -> float:
    """Resident memory of this process now."""
    line = next(r for r in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in r)
    return int(line.split()[1]) / 1024


def measured(work: Callable[[], Any], before: float | None = None) -> tuple[Any, dict[str, float]]:
    """What `work` returns, its seconds, and its peak memory above `before` MiB, or above now's."""
    from exam.core.environment import peak_memory_mib, reset_peak_memory

    before = resident_mib() if before is None else before
    reset_peak_memory()
    start, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        "mib": peak_memory_mib() - before,
    }


def median(runs: list[dict[str, Any]], figure: str) -> float:
    """The median of one figure."""
    return float(statistics.median(run[figure] for run in runs))


def questions_and_contexts(
    data: Path, work: Path, part: str, top_k: int, limit: int | None = None
) -> tuple[Any, Any]:
    """The first questions of a file, or all, and their `top_k` best BM25 passages."""
    from exam.config.compose import compose_config
    from exam.data.questions import read_questions
    from exam.retrieval.contexts import read_contexts
    from exam.retrieval.retriever import Retrieval

    config: Any = compose_config(
        "retrieve",
        "data=kaggle",
        "corpus=wikipedia",
        "retriever=bm25",
        f"data.dir={data / 'exam'}",
        f"corpus.dir={data / 'wikipedia'}",
        f"data.limit={limit or 'null'}",
        f"outputs={work}",
    )
    questions = read_questions(config.data, f"{part}.csv")
    found = Retrieval.from_config(config).contexts(questions, f"bench-{part}")
    return questions, read_contexts(found, top_k)
