"""Two-stage retrieval against the open-book notebooks' own way, side by side in one run.

    python benchmarks/notebook_retrieval.py DATA [--questions N] [--rounds 3]

DATA (or EXAM_DATA) holds `exam/{train,valid,test}.csv` and `wikipedia/*.parquet` with
`wiki_2023_index.parquet`. Every timed run has a process of its own, and the sides take turns:

- `notebook`: the published kernels' steps, plainly written;
- `exact`: this project with the same numbers (float32, 384 tokens, every sentence encoded);
- `recommended`: this project's `retriever=two_stage_prefiltered` as it is configured.

Given to each, and not timed: its index of article leads, the imports, the loaded encoder.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from notebook_way import MINILM_SENTENCES, notebook, notebook_index
from our_retrieval import SETTINGS, configured, ours, ours_index, retrieval_of
from side_by_side import command_line, median, parsed


def quality(data: Path, work: Path, limit: int | None, passages: list[Any]) -> dict[str, Any]:
    """Recall and answer support of passages, each over the questions where it is known."""
    from exam.data.questions import read_questions
    from exam.data.words import split_words
    from exam.metrics import summarize
    from exam.retrieval.contexts import option_support, question_scores

    config = configured("exact", data, work / "exact", limit)
    questions = read_questions(config.data, config.data.test)
    retrieval = retrieval_of(config)
    wanted = {w for q in questions for option in q["options"] for w in split_words(option)}
    idf = retrieval.document_frequencies.idf(wanted)
    contexts = {
        key: [{**p, "rank": rank} for rank, p in enumerate(own, 1)]
        for key, own in zip(questions["id"], passages, strict=True)
    }
    support = option_support(questions, contexts, idf)
    scores = question_scores(questions, contexts, support)
    wanted_scores = ("recall_at_1", "recall_at_5", "supported")
    return {name: summarize(scores[name]) for name in wanted_scores if name in scores}


def identical(ours: list[Any], theirs: list[Any]) -> dict[str, float]:
    """Shares of questions whose five sentences are the same, in their order and as sets.

    The notebook may list a sentence twice that stands in two articles; ours never does. So there
    are also shares over the questions where it does not, and that of all questions whose distinct
    sentences are the first of ours.
    """
    pairs = [
        ([p["text"] for p in a[:MINILM_SENTENCES]], [p["text"] for p in b])
        for a, b in zip(ours, theirs, strict=True)
    ]
    single = [(a, b) for a, b in pairs if len(set(b)) == len(b)]
    distinct = [(a, list(dict.fromkeys(b))) for a, b in pairs]
    return {
        "lists": statistics.mean(a == b for a, b in pairs),
        "distinct": statistics.mean(a[: len(b)] == b for a, b in distinct),
        "without_repeats": len(single),
        "lists_without_repeats": statistics.mean(a == b for a, b in single),
        "sets_without_repeats": statistics.mean(set(a) == set(b) for a, b in single),
    }


def worker(job: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One job of one process."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(arguments.threads)
    data, work, limit = arguments.data, arguments.work, arguments.questions
    name, _, part = job.partition("-")
    if name == "notebook":
        return notebook_index(data, work) if part == "index" else notebook(data, work, limit)
    if part == "index":
        return ours_index(name, data, work)
    return ours(name, data, work, limit, part == "changed")


def started(job: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """A job in a fresh process."""
    threads = str(arguments.threads)
    path = arguments.work / f"{job}.json"
    command = [sys.executable, __file__, str(arguments.data), "--work", str(arguments.work)]
    command += ["--worker", job, "--threads", threads]
    command += ["--questions", str(arguments.questions)] if arguments.questions else []
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run(command, check=True, env=environment)
    found: dict[str, Any] = json.loads(path.read_text())
    brief = {k: round(v, 2) for k, v in found.items() if isinstance(v, float)}
    sys.stderr.write(f"{job}: {brief}\n")
    return found


def forget(work: Path, name: str) -> None:
    """Take away what an earlier round left, but for the index."""
    for folder in ("contexts", "embeddings"):
        shutil.rmtree(work / name / folder, ignore_errors=True)


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every round of every side, and what they come to."""
    building = {
        name: started(f"{name}-index", arguments) for name in ("notebook", "exact", "recommended")
    }
    runs: dict[str, list[dict[str, Any]]] = {}
    for _ in range(arguments.rounds):
        for job in ("notebook", *(f"{n}{p}" for n in SETTINGS for p in ("", "-again", "-changed"))):
            if job in SETTINGS:
                forget(arguments.work, job)
            runs.setdefault(job, []).append(started(job, arguments))
    cut = {name: [p[:MINILM_SENTENCES] for p in runs[name][-1]["passages"]] for name in SETTINGS}
    lists = {"notebook": runs["notebook"][-1]["passages"], **cut}
    scores = {
        name: quality(arguments.data, arguments.work, arguments.questions, passages)
        for name, passages in lists.items()
    }
    peer = median(runs["notebook"], "seconds")
    ratios: dict[str, Any] = {}
    for name in SETTINGS:
        ratios |= {
            f"{name}_cold": peer / median(runs[name], "seconds"),
            f"{name}_again": peer / median(runs[f"{name}-again"], "seconds"),
            f"{name}_changed": peer / median(runs[f"{name}-changed"], "seconds"),
            f"{name}_memory": median(runs[name], "mib") / median(runs["notebook"], "mib"),
            f"{name}_identical": identical(lists[name], lists["notebook"]),
        }
        for metric in scores["notebook"]:
            difference = scores[name][metric]["value"] - scores["notebook"][metric]["value"]
            ratios[f"{name}_{metric}_difference"] = difference
    kept = ("seconds", "cpu_seconds", "encode_seconds", "mib")
    return {
        "questions": len(lists["notebook"]),
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "dtype": {name: runs[name][-1]["dtype"] for name in SETTINGS},
        "ratios": ratios,
        "runs": {
            job: [{k: r[k] for k in kept if k in r} for r in rounds] for job, rounds in runs.items()
        },
        "quality": scores,
        "building": building,
    }


def main() -> None:
    """Parse the command line; compare, or do one job of the comparison."""
    parser = command_line("notebook_retrieval", __doc__)
    parser.add_argument("--questions", type=int, help="only the first N questions")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parsed(parser)
    if arguments.worker:
        found = worker(arguments.worker, arguments)
        (arguments.work / f"{arguments.worker}.json").write_text(json.dumps(found))
        return
    result = compare(arguments)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    sys.stdout.write(json.dumps({k: result[k] for k in ("questions", "ratios")}, indent=2) + "\n")
    sys.stdout.write(f"{arguments.output}\n")


if __name__ == "__main__":
    main()
