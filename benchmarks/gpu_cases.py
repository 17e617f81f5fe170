"""How the benchmark of a GPU measures: ways that take turns, time and peak memory, what is skipped.

A case compares ways of doing one thing. A way is prepared outside of the measurement, so that only
its own weights are on the device while it works, and what it lacks is the reason why it is skipped.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Facts = dict[str, Any]
Work = Callable[[], Facts | None]  # what is measured; figures of it beside time and memory
Way = Callable[[], AbstractContextManager[Work]]


class UnavailableError(Exception):
    """A way needs what this machine does not have."""


@dataclass
class Case:
    """Ways of doing one thing; the first one is the baseline of the ratios."""

    name: str
    ways: Mapping[str, Way]
    amount: int  # how much one measurement does
    unit: str  # of what


@dataclass
class Rows:
    """The rows of a group, each written as it is known."""

    path: Path
    group: str
    written: list[Facts] = field(default_factory=list)

    def write(self, case: str, way: str, **figures: Any) -> None:
        """Write one row."""
        row = {"group": self.group, "case": case, "way": way, **figures}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.written.append(row)


def run_group(cases: list[Case], rows: Rows, rounds: int, seconds: float, device: str) -> None:
    """Measure all cases in about `seconds`; every case may take its share of what is left."""
    end = time.monotonic() + seconds
    for number, case in enumerate(cases):
        left = end - time.monotonic()
        share = 1.5 * left / (len(cases) - number)
        if left <= 0:
            break
        run_case(case, rows, rounds, time.monotonic() + min(left, share), device)


def run_case(case: Case, rows: Rows, rounds: int, end: float, device: str) -> None:
    """Let the ways take turns, once to warm up and then `rounds` times or until `end`."""
    runs: dict[str, list[Facts]] = {way: [] for way in case.ways}
    for number in range(rounds + 1):
        for way in list(runs):
            try:
                figures = measured(case.ways[way], device)
            except Exception as error:  # noqa: BLE001 - one way's error is its own row
                free(device)
                del runs[way]
                rows.write(case.name, way, **outcome(error))
                continue
            if number:
                runs[way].append(figures)
        if number and time.monotonic() > end:
            break
    for way, done in runs.items():
        rows.write(case.name, way, **summary(done, case))


def measured(way: Way, device: str) -> Facts:
    """Seconds and peak memory of one run, and what it says of itself."""
    import torch

    with way() as work:
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        facts = work() or {}
        if device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        peak = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None
    free(device)
    return {"seconds": seconds, "peak_gpu_mib": peak, **facts}


def free(device: str) -> None:
    """Give back what the last way left on the device."""
    import gc

    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def outcome(error: Exception) -> Facts:
    """Why a way has no figures: what is lacking, or an error."""
    import torch

    from exam.errors import ExamError

    reason = (str(error).splitlines() or [""])[0]
    if isinstance(error, torch.OutOfMemoryError):
        return {"skipped": "out of the GPU's memory"}
    if isinstance(error, UnavailableError | ImportError | ExamError):
        return {"skipped": reason}
    return {"failed": f"{type(error).__name__}: {reason}"[:500]}


def summary(runs: list[Facts], case: Case) -> Facts:
    """The medians of a way's runs, and how much it does in a second."""
    seconds = statistics.median(run["seconds"] for run in runs)
    figures = {
        name: statistics.median(run[name] for run in runs)
        for name, value in runs[0].items()
        if isinstance(value, int | float)
    }
    rate = case.amount / seconds
    return {
        "peak_gpu_mib": None,
        **figures,
        "per_second": rate,
        "unit": case.unit,
        "runs": [run["seconds"] for run in runs],
    }


@contextmanager
def moved(model: Any, device: str) -> Iterator[None]:
    """A model on the device while it is measured, and beside it otherwise."""
    model.to(device)
    try:
        yield
    finally:
        model.to("cpu")
