"""Questions: read from files, hub data sets, the demo, or what was generated.

A set of questions is a `datasets.Dataset` with the columns of `FEATURES`: whatever the file
looked like, everything after this module sees `id`, `prompt`, `options`, `label`.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets

from exam.config import Data, Source, names
from exam.core.errors import ExamError, spell_command
from exam.core.files import digest
from exam.core.hub import Repository, access_error, translate_hub_errors
from exam.data.corpus import article_id
from exam.data.files import BUILTIN, find_question_file
from exam.data.schema import FEATURES, LETTERS, parse_questions
from exam.data.tables import read_rows

log = logging.getLogger(__name__)

DEMO = Path(__file__).parent / "demo" / "questions.csv"
EXAM_CSV_COLUMNS = {"id": "id", "prompt": "prompt", "answer": "answer", "article": "article"}


def read_questions(data: Data, entries: Any, generated: Path | None = None) -> Dataset:
    """Read one or several entries of `data.train`, `data.valid` or `data.test` into one set.

    Raises:
        ExamError: a file or row is not what the configuration says, with file, row and remedy.
    """
    wanted = names(entries)
    sets = [_read_entry(data, entry, generated) for entry in wanted]
    if len(sets) > 1:  # ids count from 0 in every public file
        sets = [prefix_ids(s, Path(name).stem) for s, name in zip(sets, wanted, strict=True)]
        _check_distinct(sets, wanted)
    whole = concatenate_datasets(sets) if sets else empty_questions()
    return whole.select(range(min(data.limit, len(whole)))) if data.limit else whole


def _check_distinct(sets: list[Dataset], wanted: list[str]) -> None:
    ids = Counter(key for part in sets for key in part["id"])
    double = [key for key, count in ids.items() if count > 1]
    if double:
        raise ExamError(
            f"{', '.join(wanted)} give {len(double)} ids twice (first: {double[0]!r}).\n"
            "Name each file once, and give the files different names."
        )


def questions_digest(questions: Dataset) -> str:
    """Hash of every question's content, for the keys of the stages that read them."""
    return digest(questions.to_list())


def empty_questions() -> Dataset:
    """A set without any."""
    return Dataset.from_dict({name: [] for name in FEATURES}, features=FEATURES)


def prefix_ids(questions: Dataset, stem: str) -> Dataset:
    """The questions with ids that tell where they come from."""
    ids = [f"{stem}:{i}" for i in questions["id"]]
    return Dataset.from_dict({**questions.to_dict(), "id": ids}, features=FEATURES)


def _read_entry(data: Data, entry: str, generated: Path | None) -> Dataset:
    if entry in BUILTIN:
        path = generated if entry == "generated" else DEMO
        if path is None:
            raise ExamError(
                f"data={data.name} asks for generated questions, which this command cannot make.\n"
                f"Write them first with {spell_command('generate')} and give the file."
            )
        return read_exam_csv(path)
    if data.source is Source.hub:
        return parse_questions(_hub_rows(data, entry), data, f"{data.hub} ({entry})")
    path = find_question_file(data, entry)
    questions = parse_questions(read_rows(path), data, str(path))
    return _with_qrels(questions, path)


def read_exam_csv(path: Path) -> Dataset:
    """Questions that this project wrote; those of the demo name their article by its title."""
    rows = list(read_rows(path))
    letters = "".join(c for c in LETTERS if rows and c in rows[0])
    form = Data(name=path.stem, options=letters, columns=dict(EXAM_CSV_COLUMNS))
    questions = parse_questions(rows, form, path.name)
    if path != DEMO:
        return questions
    articles = [article_id(title) for title in questions["article"]]
    return Dataset.from_dict({**questions.to_dict(), "article": articles}, features=FEATURES)


def _with_qrels(questions: Dataset, path: Path) -> Dataset:
    """Add each question's article from `<file>_qrels.csv` beside it, where there is one."""
    article = read_qrels(path.with_name(f"{path.stem}_qrels.csv"))
    if not article:
        return questions
    if not article.keys() & set(questions["id"]):
        raise ExamError(
            f"The qrels beside {path} name none of its questions ({next(iter(article))!r} …).\n"
            "Their column `question` holds the questions' ids."
        )
    articles = [
        article.get(i, a) for i, a in zip(questions["id"], questions["article"], strict=True)
    ]
    return Dataset.from_dict({**questions.to_dict(), "article": articles}, features=FEATURES)


def read_qrels(path: Path) -> dict[str, str]:
    """The article of each question, the first where there are several; empty without the file."""
    article: dict[str, str] = {}
    for row in read_rows(path) if path.is_file() else ():
        if "question" not in row or "article" not in row:
            raise ExamError(
                f"{path} has columns {', '.join(row)}.\nQrels need question and article."
            )
        article.setdefault(str(row["question"]), str(row["article"]))
    return article


def _hub_rows(data: Data, split: str) -> Iterable[dict[str, Any]]:
    """Return a split's rows at the pinned commit of the hub's data set.

    Raises:
        ExamError: there is no such configuration or split, or another commit is cached.
    """
    from datasets import load_dataset

    repository = Repository(str(data.hub), data.revision, "data.hub", "dataset")
    try:
        with translate_hub_errors(repository):
            dataset = load_dataset(
                repository.name, data.hub_config, split=split, revision=data.revision
            )
    except ExamError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        if "is a gated dataset" in str(error):
            raise access_error(repository) from None
        raise ExamError(
            f"The data set {data.hub} ({split}) cannot be read: {str(error).splitlines()[0]}\n"
            f"{_hub_remedy(str(error))}"
        ) from None
    commits = {Path(file["filename"]).parent.name for file in dataset.cache_files}
    if data.revision is not None and commits and commits != {data.revision}:
        raise ExamError(
            f"data.hub={data.hub}: commit {data.revision:.8} is not in the cache, only "
            f"{min(commits):.8} is, and the hub cannot be reached.\n"
            f"Run once where it can, or set data.revision={min(commits)}"
        )
    rows: Iterable[dict[str, Any]] = dataset
    return rows


def _hub_remedy(reason: str) -> str:
    configurations = re.findall(r"'([^']+)'", reason.partition("available configs:")[2])
    if configurations:
        return f"Give one of its configurations: data.hub_config={' or '.join(configurations)}"
    return (
        "Check data.hub_config and the split; or give files: data=csv data.train=<file> "
        "data.valid=<file>, with the same data.columns."
    )
