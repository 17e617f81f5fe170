"""Read questions from files, hub data sets, the demo and the generator.

Questions are a `datasets.Dataset` with the columns of `FEATURES`, whatever the file looked like.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, concatenate_datasets

from exam.config import AnswerForm, Data, Source, as_list
from exam.config.data import COLUMNS
from exam.core.errors import ExamError, collect_error, join_errors, spell_command
from exam.core.files import digest
from exam.core.hub import Repository, access_error, translate_hub_errors
from exam.core.logging import log_once
from exam.data.cells import normalize_id, read_articles, read_text
from exam.data.corpus import Articles, article_id
from exam.data.files import BUILTIN, QRELS, find_question_files, is_qrels, read_question_rows
from exam.data.option_order import find_fixed_orders
from exam.data.schema import (
    FEATURES,
    LETTERS,
    Draft,
    draft_questions,
    label_drafts,
    parse_questions,
)
from exam.data.tables import SAVED, base_name, read_rows, strip_packing

log = logging.getLogger(__name__)

MAX_IDS = 10  # of a log line
SAVED_SPLITS = "dataset_dict.json"  # in a folder of `DatasetDict.save_to_disk`
DEMO = Path(__file__).parent / "demo" / "questions.csv"
QREL_COLUMNS = {  # the names of their columns; the second ones are BEIR's
    "question": ("question", "query-id"),
    "article": ("article", "corpus-id"),
    "relevance": ("relevance", "score"),
}


def read_questions(data: Data, entries: Any, generated: Path | None = None) -> Dataset:
    """Read the questions of the given entries of `data.train`, `data.valid` or `data.test`.

    `generated` is the generator's file, for the entry of that name.

    Raises:
        ExamError: a file or row does not match the configuration; names file, row and remedy.
    """
    entries = as_list(entries)
    parts: list[tuple[str, Dataset | Draft]] = []
    errors: list[ExamError] = []
    for entry in entries:
        with collect_error(errors):
            for name, read in _list_sources(data, entry, generated):
                with collect_error(errors):
                    parts.append((name, read()))
    if errors:
        raise join_errors(errors)
    prefixes = _shorten([name for name, _ in parts])
    labelled = iter(label_drafts([part for _, part in parts if isinstance(part, Draft)], data))
    sets = [
        _add_articles(next(labelled), Path(part.source)) if isinstance(part, Draft) else part
        for _, part in parts
    ]
    if len(sets) > 1:  # ids count from 0 in every public file
        sets = [prefix_ids(part, prefix) for part, prefix in zip(sets, prefixes, strict=True)]
    questions = concatenate_datasets(sets) if sets else empty_questions()
    repeated = [key for key, count in Counter(questions["id"]).items() if count > 1]
    if repeated:
        raise ExamError(
            f"{', '.join(entries)} give {len(repeated)} ids twice (first: {repeated[0]!r}).\n"
            "Name each file once, and give the files different names."
        )
    if data.limit:
        questions = questions.select(range(min(data.limit, len(questions))))
    _log_fixed_orders(questions, ", ".join(entries))
    return questions


def _log_fixed_orders(questions: Dataset, source: str) -> None:
    """Count the questions whose options keep their order, because it has a meaning."""
    if rows := find_fixed_orders(questions["options"]):
        log.info(
            "questions: %d of %d in %s keep the order of their options, which refer to others or "
            "are letters (first: %s)",
            len(rows),
            len(questions),
            source,
            questions[rows[0]]["id"],
        )


def questions_digest(questions: Dataset) -> str:
    """Hash the content of every question, for the keys of the stages that read them."""
    return digest(questions.to_list())


def warn_of_repeats(questions: Dataset, part: str) -> None:
    """Name the questions that repeat an earlier one of the same part exactly."""
    first: dict[tuple[str, ...], str] = {}
    repeats = []
    for question in questions:
        key = (question["prompt"], *sorted(question["options"]))
        if (earlier := first.setdefault(key, question["id"])) != question["id"]:
            repeats.append(f"{question['id']} repeats {earlier}")
    if repeats:
        log.warning(
            "questions: %d of %d %s questions repeat an earlier one exactly, and count in every "
            "score; intervals keep repetitions together: %s",
            len(repeats),
            len(questions),
            part,
            ", ".join(repeats[:MAX_IDS]) + (" …" if len(repeats) > MAX_IDS else ""),
        )


def empty_questions() -> Dataset:
    """Return questions without a row."""
    return Dataset.from_dict({name: [] for name in FEATURES}, features=FEATURES)


def prefix_ids(questions: Dataset, prefix: str) -> Dataset:
    """Prefix every question's id, so that files with equal ids can be joined."""
    return _replace_column(questions, "id", [f"{prefix}:{key}" for key in questions["id"]])


def _replace_column(questions: Dataset, name: str, values: list[Any]) -> Dataset:
    return Dataset.from_dict({**questions.to_dict(), name: values}, features=FEATURES)


def _shorten(names: list[str]) -> list[str]:
    """Return the names of files without folder and ending, as far as they still differ."""
    shorter: list[Callable[[Path], object]] = [
        lambda p: base_name(p.name),
        lambda p: p.with_suffix(""),
        str,
    ]
    for shorten in shorter:
        short = [str(shorten(Path(name))) for name in names]
        if len(set(short)) == len(short):
            return short
    repeated = Counter(names).most_common(1)[0][0]
    raise ExamError(f"{repeated} is named twice.\nName each file once.")


def _list_sources(
    data: Data, entry: str, generated: Path | None
) -> list[tuple[str, Callable[[], Dataset | Draft]]]:
    """Return the name of each file of an entry, and the function that reads it.

    The answers of files and hub splits are read later, for all of them together.
    """
    if entry in BUILTIN:
        path = generated if entry == "generated" else DEMO
        if path is None:
            raise ExamError(
                f"data={data.name} needs generated questions, which this command cannot write.\n"
                f"Write them first with {spell_command('generate')} and give the file."
            )
        return [(entry, partial(read_exam_csv, path))]
    if data.source is Source.hub:
        return [(entry, partial(_read_split, data, entry))]
    paths = find_question_files(data, entry)
    folder = Path(data.dir or ".")
    is_listed = paths != [folder / entry]
    names = [str(p.relative_to(folder)) if folder in p.parents else str(p) for p in paths]
    return [
        (name if is_listed else entry, partial(_read_file, data, path))
        for name, path in zip(names, paths, strict=True)
    ]


def _read_split(data: Data, split: str) -> Draft:
    return draft_questions(read_hub_rows(data, split), data, f"{data.hub} ({split})")


def _read_file(data: Data, path: Path) -> Draft:
    return draft_questions(read_question_rows(data, path), data, str(path))


def read_exam_csv(path: Path) -> Dataset:
    """Read questions that exam wrote; those of the demo name their article by its title."""
    rows = list(read_rows(path))
    letters = "".join(c for c in LETTERS if rows and c in rows[0])
    columns: dict[str, str | None] = {**COLUMNS, "article": "article"}
    data = Data(path.stem, options=letters, columns=columns, answer=AnswerForm.letter)
    questions = parse_questions(rows, data, path.name)
    if path != DEMO:
        return questions
    articles = [list(map(article_id, titles)) for titles in questions["articles"]]
    return _replace_column(questions, "articles", articles)


def _add_articles(questions: Dataset, path: Path) -> Dataset:
    """Add each question's articles from the qrels beside its file, if there are any."""
    qrels = find_qrels(path)
    if qrels is None:
        return questions
    ids = set(questions["id"])
    judged = read_qrels(qrels)
    articles_of = {k if k in ids else normalize_id(k): articles for k, articles in judged.items()}
    unknown = [key for key in articles_of if key not in ids]
    if len(unknown) == len(articles_of):
        raise ExamError(
            f"The qrels beside {path} name none of its questions ({unknown[0]!r} …).\n"
            "Their column `question` must hold the questions' ids."
        )
    if unknown:
        log.warning(
            "questions: %d of %d questions of %s are not in %s (first: %r)",
            *(len(unknown), len(articles_of), qrels.name, path.name, unknown[0]),
        )
    articles = [articles_of.get(question["id"], question["articles"]) for question in questions]
    return _replace_column(questions, "articles", articles)


def find_qrels(questions: Path) -> Path | None:
    """Return the table `<file>_qrels` beside a file of questions, whatever the endings of both.

    Raises:
        ExamError: there are several.
    """
    name = questions.name
    stems = {stem.lower() for stem in (base_name(name), strip_packing(name), name)}
    beside = questions.parent.iterdir() if questions.parent.is_dir() else ()
    paths = sorted(
        p for p in beside if is_qrels(p) and base_name(p.name).lower().removesuffix(QRELS) in stems
    )
    if len(paths) > 1:
        raise ExamError(
            f"{questions} has two tables of qrels, {paths[0].name} and {paths[1].name}.\n"
            "Keep one of them."
        )
    return paths[0] if paths else None


def read_qrels(path: Path) -> dict[str, list[str]]:
    """Return each question's right articles, without those of relevance zero or less.

    Raises:
        ExamError: a column is missing, a relevance is not a number, or no article is right.
    """
    articles_of: dict[str, list[str]] = {}
    for number, row in enumerate(read_rows(path), 1):
        columns = {name: _find_column(row, names) for name, names in QREL_COLUMNS.items()}
        if columns["question"] is None or columns["article"] is None:
            raise ExamError(
                f"{path} has columns {', '.join(row)}.\nQrels need question and article."
            )
        question = str(row[columns["question"]]).strip()
        articles = articles_of.setdefault(question, [])
        if columns["relevance"] is None or _is_relevant(row[columns["relevance"]], number, path):
            right = read_articles(row[columns["article"]], f"{path}, row {number}")
            articles += [article for article in right if article not in articles]
    if not any(articles_of.values()):
        raise ExamError(
            f"{path} names no right article.\nWrite a row for each: question,article; or delete it."
        )
    return articles_of


def check_articles(questions: Dataset, corpus: Articles, name: str) -> None:
    """Check that the right articles of questions are in the corpus: others cannot be found.

    Warn of some that are missing, and of the demo's questions, which go with any corpus.

    Raises:
        ExamError: all are missing.
    """
    articles = list(dict.fromkeys(chain.from_iterable(filter(None, questions["articles"]))))
    if not articles:
        return
    wanted, ids = pa.array(articles, pa.string()), corpus.table["id"]
    present = set(ids.filter(pc.is_in(ids, value_set=wanted)).to_pylist())
    missing = [article for article in articles if article not in present]
    if missing and (present or set(missing) <= _demo_articles()):
        log_once(
            log,
            logging.WARNING,
            f"{name}: {len(missing)} of {len(articles)} right articles are not in the corpus, so "
            f"they cannot be found (first: {missing[0]!r})",
        )
    elif missing:
        titles = corpus.table["title"]
        are_titles = pc.any(pc.is_in(titles, value_set=wanted)).as_py()
        column = corpus.files[0].columns.get("title") if are_titles else None
        first = next(iter(ids.slice(0, 1).to_pylist()), None)
        raise ExamError(
            f"{name}: none of the {len(articles)} right articles ({missing[0]!r} …) is in the "
            f"corpus, whose ids are {first!r} ….\n"
            + (
                f"They are titles: set corpus.columns.id={column}"
                if column
                else "Write the corpus's ids into the qrels, or give the corpus that they belong "
                "to. Without the file of qrels, recall is not scored."
            )
        )


def _demo_articles() -> set[str]:
    return set(chain.from_iterable(read_exam_csv(DEMO)["articles"]))


def _find_column(row: Collection[str], names: tuple[str, ...]) -> str | None:
    return next((column for column in row if column.lower() in names), None)


def _is_relevant(value: Any, number: int, path: Path) -> bool:
    """Tell whether a relevance is above zero."""
    try:
        return float(read_text(value)) > 0
    except (TypeError, ValueError):
        raise ExamError(
            f"{path}, row {number}: relevance {value!r} is not a number.\nWrite 1 or 0."
        ) from None


def read_hub_rows(data: Data, split: str) -> Iterable[dict[str, Any]]:
    """Return a split's rows: of a folder of `save_to_disk`, or at the pinned commit of the hub."""
    from datasets import load_dataset

    folder = Path(str(data.hub))
    if (folder / SAVED_SPLITS).is_file() or (folder / SAVED).is_file():
        return _saved_split(data, folder, split)
    repository = Repository(str(data.hub), data.revision, "data.hub", "dataset")
    try:
        with translate_hub_errors(repository):
            dataset = load_dataset(
                repository.name, data.hub_config, split=split, revision=data.revision
            )
    except (OSError, ValueError, RuntimeError) as error:
        if "is a gated dataset" in str(error):
            raise access_error(repository) from None
        remedy = _hub_remedy(data, split, str(error))
        raise ExamError(
            f"Cannot read the data set {data.hub} ({split}): {str(error).splitlines()[0]}\n{remedy}"
        ) from None
    commits = {Path(file["filename"]).parent.name for file in dataset.cache_files}
    if data.revision is not None and commits and commits != {data.revision}:
        raise ExamError(
            f"data.hub={data.hub}: commit {data.revision:.8} is not in the cache, only "
            f"{min(commits):.8} is, and the hub cannot be reached.\n"
            f"Run once online, or set data.revision={min(commits)}"
        )
    rows: Iterable[dict[str, Any]] = dataset
    return rows


def _hub_remedy(data: Data, split: str, error: str) -> str:
    """Name the configurations or splits that the library's message lists."""
    listed = re.search(
        r"(Available|available configs|Should be one of):? \[(.*?)\]", error, re.DOTALL
    )
    names = re.findall(r"'([^']+)'", listed[2]) if listed else []
    if names and "split" in error.partition("\n")[0]:
        return _split_remedy(data, split, names)
    if names:
        return "Give one of its configurations: " + " or ".join(
            f"data.hub_config={name}" for name in names
        )
    if re.search(r"Couldn't (reach|find)|Can't (reach|load)|OfflineMode", error):
        return (
            "Fetch it once with a connection, which keeps it in the cache, or give files: data=csv "
            "data.train=<file> data.valid=<file>, with the same data.columns."
        )
    return (
        "Check data.hub_config and the split; or give files: data=csv data.train=<file> "
        "data.valid=<file>, with the same data.columns."
    )


def _split_remedy(data: Data, split: str, names: list[str]) -> str:
    entries = vars(data)
    key = next(k for k in ("train", "valid", "test", "extra_train") if split in as_list(entries[k]))
    return "Give one of its splits: " + " or ".join(f"data.{key}={name}" for name in names)


def _saved_split(data: Data, folder: Path, split: str) -> Iterable[dict[str, Any]]:
    """Return a split's rows of a folder that `datasets` wrote with `save_to_disk`."""
    if (folder / split / SAVED).is_file():
        return read_rows(folder / split)
    error = f"Cannot read the data set {folder} ({split}): "
    if not (folder / SAVED).is_file():
        names = sorted(path.parent.name for path in folder.glob(f"*/{SAVED}"))
        remedy = _split_remedy(data, split, names)
        raise ExamError(f"{error}it has no such split.\n{remedy}")
    if [data.train, data.valid, data.test, data.extra_train].count(None) < 3:
        raise ExamError(
            f"{error}it is one set of questions, without splits.\n"
            f"Give it as a file, for one purpose: data=csv data.train={folder}"
        )
    return read_rows(folder)
