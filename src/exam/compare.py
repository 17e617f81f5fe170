"""`python -m exam.compare RUN_A RUN_B …`: runs on the same questions, paired."""

import argparse
import sys
from pathlib import Path

from exam.errors import ExamError
from exam.runtime import complain, say


def main(arguments: list[str] | None = None) -> int:
    """Print and save the comparison; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m exam.compare", description=__doc__)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder of train or infer"
    )
    parser.add_argument("--json", type=Path, help="where to write the same figures")
    options = parser.parse_args(arguments)
    try:
        say(compare(options.runs, options.json))
    except ExamError as error:
        complain(str(error))
        return 2
    return 0


def compare(runs: list[Path], target: Path | None) -> str:
    """The first run against each of the others, with the random row beside them.

    Raises:
        ExamError: the runs answered other questions, or the answers are not known.
    """
    import numpy as np

    from exam.answers.predictions import read_predictions
    from exam.answers.results import RANDOM, System, of_logits, results, table
    from exam.artefacts import finished, write_json
    from exam.metrics import random_average_precision

    stages = [finished(run) for run in runs]
    found = [read_predictions(run / "predictions.parquet") for run in runs]
    first = found[0]
    labels = [label for label in first.labels if label is not None]
    if len(labels) < len(first.ids):
        raise ExamError(f"{runs[0]} answered questions whose answers are not known.")
    for run, other in zip(runs[1:], found[1:], strict=True):
        if (other.ids, other.labels) != (first.ids, first.labels):
            both = zip(first.ids, other.ids, strict=False)
            differing = next((f"{a} and {b}" for a, b in both if a != b), "number or labels")
            raise ExamError(
                f"{runs[0]} and {run} answered different questions: {differing}.\n"
                "Compare runs with the same data.valid."
            )
    systems = [of_logits(run.name, p.logits, labels) for run, p in zip(runs, found, strict=True)]
    random = random_average_precision(np.isfinite(first.logits).sum(axis=1))
    rows = [System(RANDOM, random), *systems]
    pairs = [(systems[0], other) for other in systems[1:]]
    figures = results(rows, pairs, stages)
    if target is not None:
        write_json(target, figures)
    return table(figures)


if __name__ == "__main__":
    sys.exit(main())
