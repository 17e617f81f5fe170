"""Our reader against a plain `Trainer` script as the notebooks write it, side by side in one run.

    python benchmarks/reader.py DATA [--parts speed,quality,growth] [--rounds 3]

DATA (or EXAM_DATA) holds `exam/{train,valid}.csv` and `wikipedia/*.parquet`. Both sides read the
same questions and BM25 passages, at most 256 tokens for an option. Every timed run has a process
of its own, and the sides take turns. Timed: `trainer.train()` and `trainer.predict()`; not the
imports, the loading, or the tokenisation, which are reported apart.

- `plain`: `AutoModelForMultipleChoice`, float32, batches of 8, one sequence for each option; its
  quality is measured without dropout too;
- `ours`: this project's reader as configured, with `model.packing=options`. MiniLM and MPNet are
  configured without dropout, which the plain script leaves as the checkpoint has it.

MiniLM has its real weights; MPNet-base and DeBERTa-v3-xsmall are random models of that shape.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from reader_jobs import PHASES, pairs, peak, run
from side_by_side import command_line, median, parsed

LENGTH, BATCH, TOP_K = 256, 8, 5
DEEP = 40  # passages that fill the longest input
TIMED = {"minilm": 128, "mpnet": 32, "deberta": 48}  # questions, to train on and to predict
SEEDS = (0, 1, 2)
LENGTHS, OPTIONS, BATCHES = (128, 256, 512, 1024, 2048), (2, 3, 5, 10), (1, 2, 4, 8, 16, 32)


class Bench:
    """Starts jobs one after the other and keeps what they found.

    An interrupted run continues behind its last whole job, unless the code has changed since.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Take the command line's folders and threads."""
        from exam.core.files import digest, file_digest

        self.arguments = arguments
        root = Path(__file__).parents[1]
        sources = sorted(
            p for part in ("src", "conf", "benchmarks") for p in root.glob(f"{part}/**/*")
        )
        code = digest([file_digest(path) for path in sources if path.suffix in (".py", ".yaml")])
        self.found = arguments.work / f"jobs-{code[:8]}"
        self.found.mkdir(exist_ok=True)

    def job(self, kind: str, repetition: int = 0, **settings: Any) -> dict[str, Any]:
        """What a job finds in a fresh process; of several repetitions each is run."""
        from exam.core.files import digest

        arguments = self.arguments
        defaults = {
            "model": "minilm",
            "questions": None,
            "options": None,
            "length": LENGTH,
            "top_k": TOP_K,
            "batch": BATCH,
            "seed": 0,
            "dropout": None,  # the checkpoint's own
            "logits": False,
            "phases": list(PHASES),
        }
        job = {"kind": kind, **defaults, **settings}
        threads = str(arguments.threads)
        path = self.found / f"{digest([job, repetition, threads, str(arguments.data)])[:16]}.json"
        if not path.is_file():
            command = [sys.executable, __file__, str(arguments.data), "--work", str(arguments.work)]
            command += ["--threads", threads, "--job", json.dumps(job), "--output", str(path)]
            environment = {**os.environ, "OMP_NUM_THREADS": threads}
            subprocess.run(command, check=True, env=environment)
        found: dict[str, Any] = json.loads(path.read_text())
        shown = {k: v for k, v in settings.items() if k != "logits"}
        seconds = [round(found[k]["seconds"], 2) for k in PHASES if k in found]
        sys.stderr.write(f"{kind} {shown} {seconds}\n")
        return found

    def speed(self, model: str) -> dict[str, Any]:
        """Both sides in turn, and their medians."""
        questions = min(TIMED[model], self.arguments.questions or TIMED[model])
        figures: dict[str, Any] = {"questions": questions}
        for (phase, times), part in zip(PHASES.items(), ("train", "valid"), strict=True):
            runs: dict[str, list[dict[str, Any]]] = {"plain": [], "ours": []}
            for repetition in range(self.arguments.rounds):
                for side, done in runs.items():
                    settings: dict[str, Any] = {"side": side, "model": model, "phases": [phase]}
                    settings |= {"repetition": repetition, "questions": questions}
                    done.append(self.job("run", **settings))
            useful = self.job("pairs", model=model, questions=questions, part=part)
            rows = round(BATCH * useful["tokens"])
            limit = self.job("peak", model=model, rows=rows)
            flops = 2 * limit["products_per_token"] * useful["tokens"]
            flops += 4 * limit["layers"] * limit["hidden"] * useful["pairs"]
            rate, memory = (
                {side: median([run[phase] for run in done], name) for side, done in runs.items()}
                for name in ("questions_per_second", "mib")
            )
            reached = times * flops * rate["ours"] / 1e9
            figures[phase] = {
                "questions_per_second": rate,
                "ratio": rate["ours"] / rate["plain"],
                "mib": memory,
                "memory_ratio": memory["ours"] / memory["plain"],
                "useful_gflops": reached,
                "share_of_peak": reached / limit[f"{phase}_gflops"],
                "peak": limit,
                **useful,
                "runs": runs,
            }
        return figures

    def quality(self) -> dict[str, Any]:
        """MAP@3 on the reported questions after one epoch, over several seeds."""
        import numpy as np

        from exam.config import DEFAULT_K
        from exam.metrics import average_precision, rank_options, summarize

        sides: dict[str, dict[str, Any]] = {
            "plain": {"side": "plain"},
            "plain_without_dropout": {"side": "plain", "dropout": 0.0},
            "ours": {"side": "ours"},
        }
        scores: dict[str, list[Any]] = {side: [] for side in sides}
        for seed in self.arguments.seeds:
            for side, settings in sides.items():
                settings |= {"seed": seed, "logits": True, "questions": self.arguments.questions}
                done = self.job("run", **settings)
                order = rank_options(np.array(done["logits"]))
                scores[side].append(average_precision(order, np.array(done["labels"]), DEFAULT_K))
        mean = {side: np.mean(found, axis=0) for side, found in scores.items()}
        return {
            "seeds": list(self.arguments.seeds),
            "each": {side: [float(np.mean(s)) for s in found] for side, found in scores.items()},
            **{side: summarize(values) for side, values in mean.items()},
            "difference": summarize(mean["ours"] - mean["plain"]),
            "difference_without_dropout": summarize(mean["ours"] - mean["plain_without_dropout"]),
        }

    def growth(self) -> dict[str, Any]:
        """How the cost of our reader grows; DeBERTa's shape, whose positions have no end."""
        questions = self.arguments.questions or 16
        base: dict[str, Any] = {"side": "ours", "questions": questions}
        return {
            "length": {
                n: self.job("run", model="deberta", length=n, top_k=DEEP, batch=2, **base)
                for n in LENGTHS
            },
            "options": {n: self.job("run", options=n, **base) for n in OPTIONS},
            "batch": {
                n: self.job("run", batch=n, **{**base, "questions": 2 * max(n, questions)})
                for n in BATCHES
            },
        }


def worker(job: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """One job of one process."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    from exam.core.environment import tune_malloc

    disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(arguments.threads)
    if job["kind"] == "run":
        if job["side"] == "ours":
            tune_malloc()  # as every command of the project begins
        return run(job, arguments.data, arguments.work)
    if job["kind"] == "peak":
        return peak(job, arguments.work)
    return pairs(job, arguments.data, arguments.work)


def main() -> None:
    """Parse the command line; compare, or do one job of the comparison."""
    parser = command_line("reader", __doc__)
    parser.add_argument("--parts", default="speed,quality,growth")
    parser.add_argument("--models", default="minilm,mpnet,deberta")
    parser.add_argument("--questions", type=int, help="at most N questions in every run")
    parser.add_argument("--seeds", type=json.loads, default=list(SEEDS))
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    arguments = parsed(parser)
    from exam.core.files import write_json

    if arguments.job:
        found = worker(arguments.job, arguments)
        write_json(arguments.output, found)
        return
    bench = Bench(arguments)
    figures: dict[str, Any] = {}
    for part in arguments.parts.split(","):
        if part == "speed":
            for model in arguments.models.split(","):
                figures.setdefault(part, {})[model] = bench.speed(model)
                write_json(arguments.output, figures)
        else:
            figures[part] = getattr(bench, part)()
            write_json(arguments.output, figures)
    shutil.rmtree(bench.found)  # all of it is in the output; a next run measures anew
    sys.stdout.write(f"{json.dumps(figures.get('speed', figures), indent=1)}\n{arguments.output}\n")


if __name__ == "__main__":
    main()
