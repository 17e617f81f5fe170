"""Measure time and peak memory of cases, whose ways take turns.

A case compares ways of doing one thing. A way is prepared outside of the measurement, so that only
its weights are on the device while it works. A way that lacks something is skipped with the reason.
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
Work = Callable[[], Facts | None]  # is measured; returns figures beside time and memory
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
    """The rows of a group, each appended to a file once it is measured."""

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
    """Return seconds and peak memory of one run, and the figures that it returns."""
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
    """Free the memory that the last way left on the device."""
    import gc

    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def outcome(error: Exception) -> Facts:
    """Return why a way has no figures: it was skipped, or failed with an error."""
    import torch

    from exam.core.errors import ExamError

    reason = (str(error).splitlines() or [""])[0]
    if isinstance(error, torch.OutOfMemoryError):
        return {"skipped": "out of the GPU's memory"}
    if isinstance(error, UnavailableError | ImportError | ExamError):
        return {"skipped": reason}
    return {"failed": f"{type(error).__name__}: {reason}"[:500]}


def summary(runs: list[Facts], case: Case) -> Facts:
    """Return the medians of a way's runs, and its rate."""
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
    """Move a model to the device while it is measured."""
    model.to(device)
    try:
        yield
    finally:
        model.to("cpu")
