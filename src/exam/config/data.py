"""The data group: questions, their files and columns, how they are split."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from omegaconf import MISSING

from exam.config.values import as_list, check_folder_name, setting
from exam.core.errors import ExamError


class Source(Enum):
    """The source of questions."""

    files = "files"
    hub = "hub"


class AnswerForm(Enum):
    """How answers name the right option."""

    auto = "auto"  # the one form that fits the whole file
    letter = "letter"  # C: the label of an option
    index0 = "index0"  # 2: its number, counted from 0
    index1 = "index1"  # 3: its number, counted from 1
    text = "text"  # the text of an option


ROLES = ("id", "prompt", "answer", "correct", "context", "article", "options")
COLUMNS: dict[str, str | None] = {"id": "id", "prompt": "prompt", "answer": "answer"}


@dataclass
class Data:
    """Questions: files or splits of a hub data set, their columns, how they are split.

    `train`, `valid` and `test` are a name or a list of names: files, folders or patterns of files
    below `dir`, splits of the hub data set, or the words `generated` (the `generator` group's
    questions) and `demo` (the questions of the package).
    """

    name: str = setting(MISSING, "Name in folders and reports.")
    source: Source = setting(Source.files, "Where the questions come from.")
    dir: str | None = setting(None, "Folder of the files.")
    hub: str | None = setting(None, "Hub data set, as owner/name.")
    hub_config: str | None = setting(None, "Configuration of the hub data set.")
    revision: str | None = setting(None, "Branch, tag or commit of the data set; null: main.")
    competition: str | None = setting(None, "Kaggle competition that has the files `dir` lacks.")
    train: Any = setting(None, "Questions to train on.")
    valid: Any = setting(None, "Questions to report results on.")
    test: Any = setting(None, "Questions to answer.")
    extra_train: Any = setting(None, "More questions to train on, never held out.")
    header: list[str] | None = setting(None, "Columns, in order, of CSV files without a header.")
    options: str | None = setting(
        "ABCDE", "Letters of the option columns; null: the list column data.columns.options."
    )
    columns: dict[str, str | None] = setting(
        COLUMNS.copy,
        "Column of id, prompt, answer, correct (the right option's text), context, article, "
        "options (a list) or a letter; a.b is the value b inside of column a.",
    )
    answer: AnswerForm = setting(
        AnswerForm.auto, "How answers name the right option; auto: as fits the whole file."
    )
    shuffle_options: bool = setting(False, "Shuffle the options of each question.")
    folds: int = setting(10, "Folds of the training questions.", minimum=2)
    fold: int | None = setting(0, "Fold that selects the checkpoint; null: none.", minimum=0)
    cross_validate: bool = setting(False, "Train a reader without each fold, which it predicts.")
    valid_fraction: float = setting(
        0.0, "Share of train to hold out when valid is null.", minimum=0, below=1
    )
    split_seed: int = setting(0, "Seed of the split.")
    soft_labels: str | None = setting(None, "Predictions whose probabilities train the reader.")
    soft_weight: float = setting(0.5, "Weight of soft against true labels.", above=0, maximum=1)
    drop_leaks: bool = setting(False, "Drop training questions repeated in dev, valid or test.")
    strict: bool = setting(False, "Refuse questions with two equal options.")
    limit: int | None = setting(None, "Read at most this many questions.", minimum=1)

    def __post_init__(self) -> None:
        """Read options from a list where its column has a name."""
        if self.columns.get("options"):
            self.options = None

    @property
    def uses_generated_questions(self) -> bool:
        """True if any entry names generated questions."""
        entries = (self.train, self.valid, self.test, self.extra_train)
        return any("generated" in as_list(entry) for entry in entries)

    def validate(self) -> None:
        """Refuse names, options, folds and soft labels that contradict each other."""
        check_folder_name("data.name", self.name)
        if self.source is Source.hub and not self.hub:
            raise ExamError("data.source=hub needs data.hub.\nSet data.hub=<owner/name>")
        options = self.options
        if options is not None and not 2 <= len(set(options)) == len(options) <= 26:
            raise ExamError(
                f"data.options must name 2 to 26 different options (got {options}).\n"
                "Give one letter for each, such as data.options=ABCD"
            )
        for name in self.columns:
            if name not in ROLES and len(name) > 1:
                raise ExamError(
                    f"data.columns.{name} is not a column that exam reads.\nLeave it out, or write "
                    f"data.columns.<name>=<column> with {', '.join(ROLES)} or an option's letter."
                )
        if self.fold is not None and self.fold >= self.folds and not self.cross_validate:
            raise ExamError(
                f"data.fold must be below data.folds={self.folds} (got {self.fold}).\n"
                f"Choose data.fold between 0 and {self.folds - 1}, or data.cross_validate=true to "
                "predict every fold. To train on all questions, set data.fold=null "
                "trainer.eval_strategy=no trainer.load_best_model_at_end=false"
            )
        if self.soft_labels is not None and self.shuffle_options:
            raise ExamError(
                "data.soft_labels need the order of options that they were predicted in, and "
                "data.shuffle_options=true changes it.\nLeave one of them out."
            )
