"""A language model larger than memory: layer by layer, offloaded by accelerate, and in memory.

    python benchmarks/layerwise.py DATA [--rounds 3]

DATA (or EXAM_DATA) holds `exam/valid.csv` and `wikipedia/*.parquet`. A random Llama of 1.1 billion
parameters, in shards of 16-bit floats made once below `--work`, answers 20 questions with five
BM25 passages each, yes less no behind every option. Every run has a process of its own; the ways
take turns. Memory is the peak above the process with Python, torch and the tokenizer; seconds
count from the checkpoint on disk to the scores.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from side_by_side import (
    command_line,
    measured,
    median,
    parsed,
    questions_and_contexts,
    resident_mib,
)

SHAPE: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "vocab_size": 32000,
}
SMALL: dict[str, Any] = {
    **SHAPE,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
}
WAYS = ("memory", "layerwise", "offload")
QUESTIONS, TOP_K = 20, 5
BUDGET_GIB = 0.2  # hidden states in memory, and what accelerate may keep of the weights


def checkpoint(work: Path, *, small: bool) -> Path:
    """The folder of the model, made once: shards of one layer or so."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from exam.core.packages import find_packaged_folder

    folder = work / ("small" if small else "llama")
    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        shape = SMALL if small else SHAPE
        torch.set_default_dtype(torch.float16)
        model = LlamaForCausalLM(LlamaConfig(**shape))
        torch.set_default_dtype(torch.float32)
        AutoTokenizer.from_pretrained(
            find_packaged_folder("sentence-transformers/all-MiniLM-L6-v2")
        ).save_pretrained(folder)
        model.save_pretrained(folder, max_shard_size="100MB")
    return folder


def run(way: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Answer the questions in one way."""
    import numpy as np

    from exam.config import Model, ReaderKind, Scoring, WeightsLocation
    from exam.core.environment import tune_malloc
    from exam.readers.causal_lm.load import load_runner
    from exam.readers.causal_lm.scoring import score_options

    questions, contexts = questions_and_contexts(
        arguments.data, arguments.work, "valid", TOP_K, arguments.questions
    )
    model = Model(
        name="llama",
        kind=ReaderKind.causal_lm,
        name_or_path=str(checkpoint(arguments.work, small=arguments.small)),
        scoring=Scoring.yes_no,
        use_chat_template=False,
        weights_location=WeightsLocation(way),
        max_length=4096,
        max_memory_gib=BUDGET_GIB,
    )
    tune_malloc()
    gc.collect()
    before = resident_mib()

    def answer() -> Any:
        runner, prompter, window = load_runner(model, arguments.work / f"work-{way}")
        asked = prompter.build_prompts(questions, contexts, window)
        return score_options(runner, prompter, asked, arguments.batch)

    scores, figures = measured(answer, before)
    order = np.argsort(-scores, axis=1, kind="stable").tolist()
    return {**figures, "before_mib": before, "order": order}


def main() -> None:
    """Parse the command line; compare, or do one run of the comparison."""
    parser = command_line("layerwise", __doc__)
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="a small model, seconds")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parsed(parser)
    from exam.core.files import write_json

    if arguments.way:
        write_json(arguments.output, run(arguments.way, arguments))
        return
    checkpoint(arguments.work, small=arguments.small)
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for number in range(arguments.rounds):
        for way, done in runs.items():
            path = arguments.work / f"{way}-{number}.json"
            command = [sys.executable, __file__, str(arguments.data), "--way", way]
            command += ["--questions", str(arguments.questions), "--batch", str(arguments.batch)]
            command += ["--work", str(arguments.work), "--output", str(path)]
            command += ["--small"] if arguments.small else []
            environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
            subprocess.run(command, check=True, env=environment)
            done.append(json.loads(path.read_text()))
    figures: dict[str, Any] = {
        way: {name: median(done, name) for name in ("seconds", "mib")} for way, done in runs.items()
    }
    orders = {way: done[0].pop("order") for way, done in runs.items()}
    figures["ratios"] = {
        f"{way}_seconds": figures[way]["seconds"] / figures["memory"]["seconds"] for way in WAYS[1:]
    }
    figures["same_order"] = {way: orders[way] == orders["memory"] for way in WAYS[1:]}
    write_json(arguments.output, {**figures, "runs": runs})
    sys.stdout.write(f"{json.dumps(figures, indent=1)}\n{arguments.output}\n")


if __name__ == "__main__":
    main()
