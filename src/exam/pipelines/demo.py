"""`exam demo`: measure what retrieval adds.

Train a MiniLM reader on generated questions twice, without and with retrieved passages. Both answer
the same 252 hand-written questions.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from exam.core.logging import print_result

OVERRIDES = ("trainer.num_train_epochs=1",)
CLOSED, OPEN = "closed book (MiniLM)", "open book (MiniLM)"


def run_demo(seeds: Sequence[int] = ()) -> None:
    """Train and evaluate both readers, and print and save the table.

    With several seeds, train each reader with each of them.
    """
    from exam.config.compose import compose_config
    from exam.core.files import write_json
    from exam.core.trainer import REPORT
    from exam.evaluation.results import (
        NON_READING,
        PREDICTIONS,
        build_results,
        format_table,
        list_warnings,
    )
    from exam.pipelines.train import train_reader

    seeded = [f"seed={seeds[0] if len(seeds) == 1 else list(seeds)}"] if seeds else []
    overrides = [*OVERRIDES, *seeded]
    config = compose_config("train", *overrides)
    open_book = train_reader(config)
    closed_book = train_reader(compose_config("train", *overrides, "retriever=none"))
    baselines = open_book.systems[: NON_READING + 2]  # longest option and lexical, too
    without = replace(closed_book.systems[-1], name=CLOSED)
    within = replace(open_book.systems[-1], name=OPEN)
    stages = {s.folder: s for s in (*closed_book.stages, *open_book.stages)}
    figures = build_results(
        [*baselines, without, within],
        [(within, without), (within, baselines[-1])],
        list(stages.values()),
        list_warnings([closed_book.stage, open_book.stage]),
    )
    path = Path(config.outputs) / "demo" / "results.json"
    write_json(path, figures)
    times = "\n".join(
        f"{seconds:>7.1f} s   {stage}{'   (reused)' if stage in figures['reused'] else ''}"
        for stage, seconds in figures["seconds"].items()
    )
    files = [stage.folder / PREDICTIONS for stage in stages.values() if stage.kind == "train"]
    report = open_book.stage.folder / REPORT
    print_result(
        "\n".join(["", format_table(figures), "", times, "", *map(str, [path, *files, report])])
    )
