"""`python -m exam.compare A B …`: runs, or contexts, of the same questions, paired."""

import argparse
import sys
from itertools import zip_longest
from pathlib import Path

from exam.errors import ExamError
from exam.runtime import complain, say


def main(arguments: list[str] | None = None) -> int:
    """Print and save the comparison; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m exam.compare", description=__doc__)
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="of train or infer; or of contexts"
    )
    parser.add_argument(
        "--fit-on",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        default=[],
        help="contexts of other questions, one for each of those compared and in their order, "
        "that the lexical reader is fitted on; without them it is cross-fitted on those compared",
    )
    parser.add_argument(
        "--json", type=Path, help="where to write the same figures; of contexts also a plot (.png)"
    )
    options = parser.parse_args(arguments)
    try:
        if options.fit_on or (options.folders[0] / "contexts.parquet").is_file():
            say(compare_contexts(options.folders, options.fit_on, options.json))
        else:
            say(compare(options.folders, options.json))
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


def compare_contexts(folders: list[Path], fit_on: list[Path], target: Path | None) -> str:
    """The first contexts against each of the others, by recall, support and reader-free MAP@3.

    Raises:
        ExamError: a folder holds no contexts, or those of other questions.
    """
    from exam.answers.contexts import comparison, curves, plot, ranked, table
    from exam.artefacts import finished, write_json

    if fit_on and len(fit_on) != len(folders):
        raise ExamError(
            f"--fit-on names {len(fit_on)} folders for {len(folders)} that are compared.\n"
            "Give one for each, in their order."
        )
    stages, others = ([finished(folder) for folder in given] for given in (folders, fit_on))
    for stage in [*stages, *others]:
        if "questions.parquet" not in stage.files:
            raise ExamError(
                f"{stage.folder} holds no contexts with their questions.\n"
                "Give folders of outputs/contexts; run retrieve.py again where they are older."
            )
    for group in (stages, others):
        asked = [stage.key["questions"] for stage in group]
        differing = [s.folder for s, key in zip(group, asked, strict=True) if key != asked[0]]
        if differing:
            raise ExamError(
                f"{group[0].folder} and {differing[0]} hold contexts of different questions.\n"
                "Compare contexts of the same data."
            )
    if others and others[0].key["questions"] == stages[0].key["questions"]:
        raise ExamError(
            f"{others[0].folder} holds the questions that are compared.\n"
            "Fit on others, or leave out --fit-on: the reader is then cross-fitted."
        )
    systems = [ranked(stage, fitted_on) for stage, fitted_on in zip_longest(stages, others)]
    figures = comparison(systems)
    if target is not None:
        figures["curves"] = curves(systems)
        write_json(target, figures)
        plot(figures["curves"], target.with_suffix(".png"))
    return table(figures)


if __name__ == "__main__":
    sys.exit(main())
