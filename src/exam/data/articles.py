"""The articles of one file: streamed in batches, and looked up by id."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from exam.core.errors import ExamError
from exam.data.sentences import sentence_offsets
from exam.data.tables import parquet_of, read_rows

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
    with parquet_of(file.path), pq.ParquetFile(file.path) as parquet:
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
        with parquet_of(file.path):
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
    with parquet_of(file.path):
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
