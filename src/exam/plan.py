"""What `exam train` is about to do, what it finds done, and about how long the rest will take."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from exam.artefacts import NotYetError, looking
from exam.config import ALL_FOLDS, Train, trainer_values
from exam.splits import Split
from exam.stage import manifests

log = logging.getLogger(__name__)


def announce(config: Train, split: Split, look: Callable[[], None]) -> bool:
    """Log the plan of a training whose questions are known; `look` opens every stage of it.

    Returns whether anything is left to do.

    Times are those of the newest runs of the same kind in the same outputs.
    """
    runs = _runs(config)
    cross_fitted = config.data.fold == ALL_FOLDS
    folds = config.data.folds
    trained = len(split.train) * (folds - 1) // folds if cross_fitted else len(split.train)
    trained += len(split.extra)
    epochs = _epochs(trainer_values(config.trainer))
    again = "" if runs == 1 else f" · {runs} readers"
    span = f" for {epochs:g} epochs" if config.model.kind.is_neural else ""
    log.info(
        "plan: %d questions train %s%s, %d are answered · retriever %s%s",
        *(trained, config.model.name, span, len(split.valid), config.retriever.name, again),
    )
    outputs, steps = Path(config.outputs), {}
    try:
        with looking():
            look()
        first = None
    except NotYetError as missing:
        first = str(missing)
    if first is None:
        log.info("plan: all of it is done already, and reused")
        return False
    if first == "train":
        log.info("plan: passages are there already")
    else:
        log.info("plan: passages are to be found, beginning with %s", first)
        each = _each(outputs, "contexts", lambda found: found["facts"].get("questions", 0))
        steps["contexts"] = each and each * (len(split.pool) + len(split.valid))
    each = _each(
        outputs,
        "train",
        lambda found: (
            found["key"].get("model", {}).get("name") == config.model.name
            and found["facts"]["questions"] * _epochs(found["key"]["trainer"])
        ),
    )
    steps["training"] = each and each * trained * epochs * runs
    parts = [f"{name} {_clock(seconds)}" for name, seconds in steps.items()]
    log.info("plan: about how long, by earlier runs here: %s", " · ".join(parts))
    return True


def _runs(config: Train) -> int:
    folds = config.data.folds if config.data.fold == ALL_FOLDS else 1
    return folds * (len(config.seed) if isinstance(config.seed, list) else 1)


def _epochs(trainer: dict[str, Any]) -> float:
    """The number of epochs, the library's own where none is set."""
    given = trainer.get("num_train_epochs")
    return float(given) if isinstance(given, int | float) else 3.0


def _each(outputs: Path, kind: str, count: Callable[[dict[str, Any]], float]) -> float | None:
    """Seconds for each of what the newest stage of a kind counts; None without one that does."""
    for found in manifests(outputs, kind):
        number = count(found)
        if number:
            return float(found["seconds"]) / number
    return None


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
