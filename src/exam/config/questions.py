"""The data group: questions, their files and columns, how they are split."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING


class Source(Enum):
    """Where questions come from."""

    files = "files"
    hub = "hub"


ALL_FOLDS = "all"


@dataclass
class Data:
    """Questions: which files (or hub splits), which columns, how they are split.

    With `fold=all` every fold in turn is left out and predicted by what the others trained.
    `train`, `valid` and `test` are one name or a list of names: files below `dir`, splits of the
    hub data set, or the words `generated` (the `generator` group's questions) and `demo` (the
    questions shipped with the package).
    """

    name: str = MISSING
    source: Source = Source.files
    dir: str | None = None
    hub: str | None = None
    hub_config: str | None = None
    revision: str | None = None  # of the hub data set: branch, tag or commit; null: main
    competition: str | None = None  # on Kaggle, whose files serve where `dir` lacks them
    train: Any = None
    valid: Any = None
    test: Any = None
    extra: Any = None  # further questions to train on, in no fold: they are never held out
    options: str | None = "ABCDE"  # option columns; null when columns.options names a list column
    columns: dict[str, str | None] = field(
        default_factory=lambda: {"id": "id", "prompt": "prompt", "answer": "answer"}
    )  # and context, correct, options, or an option's letter where its column has another name
    shuffle_options: bool = False  # for data sets that list the right option first
    folds: int = 10
    fold: Any = 0  # which of the training questions choose the checkpoint; null: none; or `all`
    valid_share: float = 0.0  # held out of train when there is no valid file
    split_seed: int = 0
    soft_labels: str | None = None  # predictions whose probabilities train the reader, at
    soft_weight: float = 0.5  # this share where the answer is known, alone where it is not (extra)
    drop_leaks: bool = False  # leave training questions out that dev, valid or test repeats
    strict: bool = False
    limit: int | None = None
