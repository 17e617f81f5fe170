"""The files that a command names: looked for before anything heavy is imported."""

import difflib
import logging
from collections.abc import Iterator
from glob import escape, glob
from pathlib import Path
from typing import Any

from exam.config import Command, Data, Restore, Source, Task, Train, as_list
from exam.core.artifacts import check_finished
from exam.core.errors import ExamError, collect_error, join_errors
from exam.core.logging import log_once
from exam.core.security import require_network
from exam.data.cells import match_column
from exam.data.headers import headerless_error, looks_like_a_row
from exam.data.tables import SAVED, base_name, is_table, read_rows

log = logging.getLogger(__name__)

INPUT = Path("/kaggle/input")
QRELS = "_qrels"  # ends the name of a file of relevance judgements
METADATA = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json", SAVED)
BUILTIN = ("generated", "demo")  # names of questions that are not the user's files


def check_paths(config: Command) -> None:
    """Refuse unfinished runs, and question files that are missing or no tables.

    Raises:
        ExamError: the first of the runs, or all of the files.
    """
    runs = as_list(config.ckpt) if isinstance(config, Restore) else []
    if isinstance(config, Train) and config.task is not Task.reader:
        runs = as_list(config.training_pairs.reader or None)
    for run in runs:
        check_finished(Path(run))
    data: Data | None = getattr(config, "data", None)
    if data is None or data.source is not Source.files:
        return
    if isinstance(config, Restore):
        entries = as_list(data.test or data.valid)
    else:
        last = data.extra_train if isinstance(config, Train) else data.test
        entries = [*as_list(data.train), *as_list(data.valid), *as_list(last)]
    errors: list[ExamError] = []
    for entry in dict.fromkeys(entries):
        if entry in BUILTIN:
            continue
        with collect_error(errors):
            for path in find_question_files(data, entry):
                with collect_error(errors):
                    _check_columns(data, path)
    if errors:
        raise join_errors(errors)


def _check_columns(data: Data, path: Path) -> None:
    """Refuse a file whose first row lacks columns, with the settings that read them."""
    rows = read_question_rows(data, path)
    if (first := next(rows, None)) is None:
        return
    names = [data.columns.get("id"), data.columns.get("prompt") or "prompt"]
    names += [data.columns.get(letter) or letter for letter in data.options or ""]
    names += [] if data.options else [data.columns.get("options") or "options"]
    tops = [(name, name.partition(".")[0]) for name in names if name]
    if not all(any(match_column(name, first) for name in pair) for pair in tops):
        from exam.data.schema import parse_questions  # slow to import

        parse_questions([first, *rows], data, str(path))


def read_question_rows(data: Data, path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file of questions.

    Raises:
        ExamError: it is not a table, or its first row is a question instead of a header.
    """
    for number, row in enumerate(read_rows(path, data.header)):
        if not number and looks_like_a_row([*row]) and data.columns.get("prompt") not in row:
            raise headerless_error(path, [*row])
        yield row


def find_question_files(data: Data, entry: str) -> list[Path]:
    """Return the files of an entry of `data.train`, `valid`, `test` or `extra_train`.

    Raises:
        ExamError: neither `data.dir` nor the data's competition has it.
    """
    files = find_local_files(data, entry)
    if not files and data.competition is not None:
        file = find_competition_file(data.competition, entry)
        files = [] if file is None else [file]
    if files:
        return files
    path = Path(data.dir or ".") / entry
    if path.is_dir():
        below = f"{entry.rstrip('/')}/**/*"
        raise ExamError(
            f"{path} holds no table (CSV, JSON or Parquet).\n"
            + (
                f"Its folders do: read all of them with '{below}' in place of {entry}."
                if find_local_files(data, below)
                else "Give a folder with tables, or the name of a file."
            )
        )
    present = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, present, n=1)
    hint = f"Did you mean {Path(entry).with_name(near[0])}? " if near else ""
    parts = ("train", "valid", "test", "extra_train")
    part = next((name for name in parts if entry in as_list(getattr(data, name))), "test")
    without = (
        "; or hold out a share of train: data.valid=null data.valid_fraction=0.2"
        if part == "valid" and data.train is not None
        else ""
    )
    raise ExamError(
        f"{path} does not exist.\n{hint}Give its folder and its name: data.dir=<folder> "
        f"data.{part}=<file>{without}"
    )


def find_local_files(data: Data, entry: str) -> list[Path]:
    """Return the file of that name, the tables of that folder, or those that match the pattern."""
    folder = Path(data.dir or ".")
    path = folder / entry
    if path.is_file() or (path / SAVED).is_file():
        return [path]
    pattern = f"{escape(entry)}/*" if path.is_dir() else entry
    names = glob(pattern, root_dir=folder, recursive=True)  # noqa: PTH207 - leaves out hidden files
    paths = [folder / name for name in sorted(names)]
    has_ending = Path(entry).suffix not in ("", ".*")  # the pattern itself chooses
    files = [
        p
        for p in paths
        if (is_table(p) or (has_ending and p.is_file())) and not (is_qrels(p) or p.name in METADATA)
    ]
    left_out = sorted({path.name for path in paths if path.is_file()} - {p.name for p in files})
    without = f", without {', '.join(left_out)}" if left_out else ""
    log_once(log, logging.INFO, f"questions: {path}: {len(files)} files{without}")
    return files


def is_qrels(path: Path) -> bool:
    """Tell a table of relevance judgements by its name."""
    return is_table(path) and base_name(path.name).lower().endswith(QRELS)


def find_competition_file(competition: str, name: str) -> Path | None:
    """Return a file of a Kaggle competition: attached to the notebook, or else downloaded.

    None: it is not attached, and `kagglehub` is not installed.

    Raises:
        ExamError: the download fails, or is needed offline.
    """
    for folder in (INPUT / competition, INPUT / "competitions" / competition):
        if (folder / name).is_file():
            return folder / name
    require_network(f"{name} of the competition {competition}", "give a folder: data.dir=<folder>")
    try:
        import kagglehub
    except ImportError:
        return None
    log.info("questions: downloading %s of the competition %s", name, competition)
    try:
        return Path(kagglehub.competition_download(competition, path=name))
    except Exception as error:  # its client raises errors of many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ExamError(
            f"Cannot download {name} of the competition {competition}: {reason}\n"
            "Accept its rules and log in (kagglehub.login()), or give a folder: data.dir=<folder>"
        ) from error
