"""`exam demo`: measure what retrieval adds.

Train a MiniLM reader on generated questions twice, without and with retrieved passages. Both answer
the same 252 hand-written questions.
"""

from pathlib import Path

from exam.core.logging import print_result

OVERRIDES = ("trainer.num_train_epochs=1",)
CLOSED, OPEN = "closed book (MiniLM)", "open book (MiniLM)"


def run_demo() -> None:
    """Train and evaluate both readers, and print and save the table."""
    from exam.config.compose import compose_config
    from exam.core.files import write_json
    from exam.core.trainer import REPORT
    from exam.evaluation.results import PREDICTIONS, ScoredSystem, build_results, format_table
    from exam.pipelines.train import train_reader

    config = compose_config("train", *OVERRIDES)
    open_book = train_reader(config)
    closed_book = train_reader(compose_config("train", *OVERRIDES, "retriever=none"))
    *baselines, reader = open_book.systems
    without = ScoredSystem(CLOSED, closed_book.systems[-1].scores, reader.k)
    within = ScoredSystem(OPEN, reader.scores, reader.k)
    stages = {s.folder: s for s in (*closed_book.stages, *open_book.stages)}
    figures = build_results(
        [*baselines, without, within],
        [(within, without), (within, baselines[-1])],
        list(stages.values()),
    )
    path = Path(config.outputs) / "demo" / "results.json"
    write_json(path, figures)
    times = "\n".join(
        f"{seconds:>7.1f} s   {stage}{'   (reused)' if stage in figures['reused'] else ''}"
        for stage, seconds in figures["seconds"].items()
    )
    files = [run.stage.folder / PREDICTIONS for run in (open_book, closed_book)]
    report = open_book.stage.folder / REPORT
    print_result(
        "\n".join(["", format_table(figures), "", times, "", *map(str, [path, *files, report])])
    )
