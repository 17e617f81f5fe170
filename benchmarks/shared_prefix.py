"""What it saves to run a question's passages once for all of its options.

    python benchmarks/shared_prefix.py DATA [--questions 20] [--rounds 3]

DATA (or EXAM_DATA) holds `exam/valid.csv` and `wikipedia/*.parquet`. SmolLM2-135M-Instruct, in
float32, answers questions of five options with five BM25 passages each, yes less no behind every
option: with the keys and values of the shared part, and with a whole pass for each option. The
two take turns in one process.
"""

import argparse
import statistics
import sys
import time
from typing import Any

from side_by_side import command_line, parsed, questions_and_contexts

TOP_K = 5


def prepared(arguments: argparse.Namespace) -> tuple[Any, Any, Any]:
    """The model, its prompter, and the questions in tokens."""
    from exam.config.compose import compose_config
    from exam.readers.causal_lm.load import load_runner

    model = compose_config(
        "train",
        "model=smollm2",
        "model.dtype=float32",
        "model.scoring=yes_no",
        "trainer=zero_shot",
    ).model
    questions, contexts = questions_and_contexts(
        arguments.data, arguments.work, "valid", TOP_K, arguments.questions
    )
    runner, prompter, window = load_runner(model, arguments.work)
    return runner, prompter, prompter.build_prompts(questions, contexts, window)


def compared(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of both ways, their ratio, and whether they order the options alike."""
    import numpy as np
    import torch

    from exam.readers.causal_lm.prompts import Prompt
    from exam.readers.causal_lm.scoring import score_options

    torch.set_num_threads(arguments.threads)
    runner, prompter, shared = prepared(arguments)
    apart = [Prompt(one.prefix + e[:-1], [e[-1:]], 1) for one in shared for e in one.suffixes]
    seconds: dict[str, list[float]] = {"shared": [], "apart": []}
    scores = {}
    for _ in range(arguments.rounds):
        for way, asked in (("shared", shared), ("apart", apart)):
            start = time.perf_counter()
            found = score_options(runner, prompter, asked, 1)
            seconds[way].append(time.perf_counter() - start)
            scores[way] = found.reshape(len(shared), -1)
    order = {way: np.argsort(-own, axis=1, kind="stable") for way, own in scores.items()}
    return {
        "questions": len(shared),
        "tokens_shared": statistics.mean(len(one.prefix) for one in shared),
        "tokens_of_an_option": statistics.mean(len(e) for one in shared for e in one.suffixes),
        "seconds": seconds,
        "times_faster": statistics.median(seconds["apart"]) / statistics.median(seconds["shared"]),
        "same_order": bool((order["shared"] == order["apart"]).all()),
        "largest_difference": float(abs(scores["shared"] - scores["apart"]).max()),
    }


def main() -> None:
    """Parse the command line and compare."""
    parser = command_line("shared_prefix", __doc__)
    parser.add_argument("--questions", type=int, default=20)
    arguments = parsed(parser)
    from exam.core.files import write_json

    found = compared(arguments)
    write_json(arguments.output, found)
    sys.stdout.write(f"{found}\n{arguments.output}\n")


if __name__ == "__main__":
    main()
