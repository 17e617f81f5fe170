"""A Kaggle competition's own files: attached to a notebook, or fetched with an account."""

import logging
from pathlib import Path

from exam.core.errors import ExamError
from exam.core.security import require_network

log = logging.getLogger(__name__)

INPUT = Path("/kaggle/input")


def competition_file(competition: str, name: str) -> Path | None:
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
