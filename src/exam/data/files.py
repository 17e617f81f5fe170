"""Folders and files that a command names: looked for before anything heavy is imported."""

import logging
from pathlib import Path
from typing import Any

from exam.config import Command, Data, Restore, Source, Task, Train, names
from exam.core.artifacts import check_finished
from exam.core.errors import ExamError
from exam.core.security import require_network

log = logging.getLogger(__name__)

INPUT = Path("/kaggle/input")
BUILTIN = ("generated", "demo")  # names of questions that are no file of the user's


def check_paths(config: Command) -> None:
    """Refuse a run that is not finished, and questions that are not there.

    Raises:
        ExamError: the first of them.
    """
    for name in names(config.ckpt) if isinstance(config, Restore) else ():
        check_finished(Path(name))
    if isinstance(config, Train) and config.task is not Task.reader and config.pairs.reader:
        check_finished(Path(config.pairs.reader))
    data: Data | None = getattr(config, "data", None)
    if data is not None and data.source is Source.files:
        asked: list[Any] = [data.test or data.valid]
        if not isinstance(config, Restore):
            asked = [data.train, data.valid, data.extra if isinstance(config, Train) else data.test]
        for entry in (name for own in asked for name in names(own) if name not in BUILTIN):
            find_question_file(data, entry)


def find_question_file(data: Data, entry: str) -> Path:
    """The file of an entry of `data.train`, `valid`, `test` or `extra`.

    Raises:
        ExamError: it is not there, nor can the data's competition give it.
    """
    path = Path(data.dir or ".") / entry
    if not path.is_file() and data.competition is not None:
        path = find_competition_file(data.competition, entry) or path
    if not path.is_file():
        raise ExamError(
            f"{path} does not exist.\nGive its folder with data.dir=<folder> and its name with "
            "data.train=, data.valid= or data.test=<file>; without a valid file, "
            "data.valid=null data.valid_share=0.2 holds out a share of train."
        )
    return path


def find_competition_file(competition: str, name: str) -> Path | None:
    """A file of a competition, or None where neither a notebook nor `kagglehub` can give it.

    Raises:
        ExamError: `kagglehub` is installed, and the competition is closed to its account.
    """
    for place in (INPUT / competition, INPUT / "competitions" / competition):
        if (place / name).is_file():
            return place / name
    require_network(f"{name} of the competition {competition}", "give a folder: data.dir=<folder>")
    try:
        import kagglehub
    except ImportError:
        return None
    log.info("questions: fetching %s of the competition %s", name, competition)
    try:
        return Path(kagglehub.competition_download(competition, path=name))
    except Exception as error:  # its client raises errors of many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ExamError(
            f"{name} of the competition {competition} could not be fetched: {reason}\n"
            "Accept its rules and log in (kagglehub.login()), or give a folder: data.dir=<folder>"
        ) from error
