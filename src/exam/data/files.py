"""The files that a command names: looked for before anything heavy is imported."""

import logging
from pathlib import Path

from exam.config import Command, Data, Restore, Source, Task, Train, as_list
from exam.core.artifacts import check_finished
from exam.core.errors import ExamError
from exam.core.security import require_network

log = logging.getLogger(__name__)

INPUT = Path("/kaggle/input")
BUILTIN = ("generated", "demo")  # names of questions that are not the user's files


def check_paths(config: Command) -> None:
    """Refuse unfinished runs and missing question files.

    Raises:
        ExamError: the first of them.
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
    for entry in entries:
        if entry not in BUILTIN:
            find_question_file(data, entry)


def find_question_file(data: Data, entry: str) -> Path:
    """Return the file of an entry of `data.train`, `valid`, `test` or `extra_train`.

    Raises:
        ExamError: neither `data.dir` nor the data's competition has it.
    """
    path = Path(data.dir or ".") / entry
    if not path.is_file() and data.competition is not None:
        path = find_competition_file(data.competition, entry) or path
    if not path.is_file():
        raise ExamError(
            f"{path} does not exist.\nGive its folder with data.dir=<folder> and its name with "
            "data.train=, data.valid= or data.test=<file>; without a valid file, "
            "data.valid=null data.valid_fraction=0.2 holds out a share of train."
        )
    return path


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
