"""Benchmark a GPU: packed questions, attention, encoding, search, models larger than memory.

    python benchmarks/gpu.py [--rounds 3] [--seconds 450] [--groups readers,attention]
    python benchmarks/gpu.py --size tiny --device cpu

All weights are random, in the shapes of published checkpoints; nothing is downloaded. In every
case the ways take turns, and a row is the median of the rounds with the peak of the GPU's memory.
Each group runs in a separate process, which ends when its time is over, so that an error or a lack
of memory costs the other groups nothing. Rows without figures state the reason.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SHARES = {  # of the time; a group leaves unused time to the next
    "readers": 0.33,
    "attention": 0.27,
    "encoding": 0.11,
    "decoders": 0.18,
    "search": 0.11,
}
GRACE = 15  # seconds for a row that is being measured when a group's time is over
Row = dict[str, Any]


def arguments_of(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=450, help="for everything")
    parser.add_argument("--groups", default=",".join(SHARES))
    parser.add_argument("--size", choices=["full", "tiny"], default="full")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--work", type=Path, default=Path("outputs/bench/gpu"))
    parser.add_argument("--output", type=Path, default=Path("outputs/bench/gpu.json"))
    parser.add_argument("--group", choices=list(SHARES), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def run_one(arguments: argparse.Namespace) -> None:
    """Measure one group, in this process."""
    start = time.monotonic()
    from gpu_cases import Rows, run_group
    from gpu_models import decoders, encoding, search
    from gpu_readers import attention, readers

    from exam.core.logging import quiet_libraries

    quiet_libraries()
    groups = {cases.__name__: cases for cases in (readers, attention, encoding, decoders, search)}
    cases = groups[arguments.group](arguments.size, arguments.device, arguments.work)
    planned = [{"case": case.name, "way": way} for case in cases for way in case.ways]
    path = rows_path(arguments, arguments.group)
    path.with_suffix(".planned").write_text(json.dumps(planned))
    rows = Rows(path, arguments.group)
    left = arguments.seconds - (time.monotonic() - start)
    run_group(cases, rows, arguments.rounds, left, arguments.device)


def rows_path(arguments: argparse.Namespace, group: str) -> Path:
    """Return the file that a group's rows are appended to."""
    path: Path = arguments.work / f"{group}.jsonl"
    return path


def run_apart(arguments: argparse.Namespace, group: str, seconds: float) -> list[Row]:
    """Measure a group in a separate process; return its rows, with those that were not reached."""
    path = rows_path(arguments, group)
    for old in (path, path.with_suffix(".planned")):
        old.unlink(missing_ok=True)
    reason = start_group(arguments, group, seconds) if seconds > 0 else ""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return as_planned(
        path, group, rows, reason or f"not reached in the {seconds:.0f} s of its group"
    )


def start_group(arguments: argparse.Namespace, group: str, seconds: float) -> str:
    """Run a group's process until it ends or its time is over; return its error, if any."""
    command = [sys.executable, __file__, "--group", group, "--seconds", str(seconds)]
    for name in ("rounds", "size", "device", "work"):
        command += [f"--{name}", str(getattr(arguments, name))]
    environment = dict(os.environ)
    if arguments.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    log = rows_path(arguments, group).with_suffix(".log")
    try:
        with log.open("w") as file:
            subprocess.run(
                command,
                check=True,
                env=environment,
                stdout=file,
                stderr=file,
                timeout=seconds + GRACE,
            )
    except subprocess.CalledProcessError as error:
        last = (log.read_text().strip().splitlines() or [""])[-1]
        return f"its process ended with {error.returncode}: {last}"
    except subprocess.TimeoutExpired:
        return ""
    return ""


def as_planned(path: Path, group: str, rows: list[Row], reason: str) -> list[Row]:
    """Return the rows in the planned order; `reason` is why one has no figures."""
    reached = {(row["case"], row["way"]): row for row in rows}
    file = path.with_suffix(".planned")
    planned = json.loads(file.read_text()) if file.is_file() else [{"case": "all", "way": "all"}]
    return [
        reached.get((row["case"], row["way"]), {"group": group, **row, "skipped": reason})
        for row in planned
    ]


def ratios_of(rows: list[Row]) -> dict[str, dict[str, Any]]:
    """Compare each way's speed and memory with those of its case's first way."""
    first: dict[str, Row] = {}
    ratios: dict[str, dict[str, Any]] = {}
    for row in rows:
        if "seconds" not in row:
            continue
        name = f"{row['group']}: {row['case']}"
        base = first.setdefault(name, row)
        if base is not row:
            memory, base_memory = row["peak_gpu_mib"], base["peak_gpu_mib"]  # None on a CPU
            ratios[f"{name}: {row['way']} / {base['way']}"] = {
                "times_faster": base["seconds"] / row["seconds"],
                "share_of_memory": memory / base_memory if memory and base_memory else None,
            }
    return ratios


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| case | way | a second | peak GPU MiB |", "|---|---|---|---|"]
    for row in rows:
        if "seconds" in row:
            rate = f"{row['per_second']:,.1f} {row['unit']}"
            memory = "–" if row["peak_gpu_mib"] is None else f"{row['peak_gpu_mib']:,.0f}"
        else:
            rate, memory = row.get("skipped") or f"**failed**: {row['failed']}", "–"
        lines.append(f"| {row['group']}: {row['case']} | {row['way']} | {rate} | {memory} |")
    return "\n".join(lines)


def machine(device: str) -> dict[str, Any]:
    """Return the GPU and the versions of the packages."""
    import torch

    from exam.core.environment import describe_environment

    facts: dict[str, Any] = {"device": device, **describe_environment()}
    if device == "cuda":
        properties: Any = torch.cuda.get_device_properties(0)
        facts |= {
            "gpu": properties.name,
            "gpu_gib": properties.total_memory / 2**30,
            "capability": list(torch.cuda.get_device_capability()),
            "cuda": torch.version.cuda,
        }
    return facts


def main() -> int:
    """Measure all groups, and write the rows after each; return 1 where a row failed."""
    arguments = arguments_of()
    if arguments.group:
        arguments.work.mkdir(parents=True, exist_ok=True)
        run_one(arguments)
        return 0
    import torch

    from exam.core.files import write_json

    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.stdout.write("skipped: no CUDA GPU (--device cpu --size tiny runs without one)\n")
        return 0
    arguments.work.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + arguments.seconds - GRACE
    facts, rows, groups = machine(arguments.device), [], arguments.groups.split(",")
    for number, group in enumerate(groups):
        share = SHARES[group] / sum(SHARES[later] for later in groups[number:])
        left = max(0.0, end - time.monotonic())
        rows += run_apart(arguments, group, share * left)
        results = {"machine": facts, "rows": rows, "ratios": ratios_of(rows)}
        write_json(arguments.output, results)
    sys.stdout.write(f"{table(rows)}\n{json.dumps(results['ratios'], indent=1)}\n")
    sys.stdout.write(f"{arguments.output}\n")
    return 1 if any("failed" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
