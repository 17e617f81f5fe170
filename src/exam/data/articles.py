"""Stream a file's articles, or look them up by id."""

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from exam.config.retrieval import COLUMNS
from exam.core.errors import ExamError
from exam.data import kinds
from exam.data.cells import WHOLE_ID, normalize_id, read_text
from exam.data.sentences import first_sentence
from exam.data.tables import is_parquet, read_rows, translate_parquet_errors

OTHER_NAMES = {"id": "_id", "text": "contents"}  # of columns, in the files of BEIR and Pyserini
BATCH = 1024


@dataclass(frozen=True)
class Article:
    """An article; `title` may be empty."""

    id: str
    title: str
    text: str


@dataclass(frozen=True)
class CorpusFile:
    """A file of articles. A text file, which is one article, has no columns.

    `folder` is the folder of the corpus, which names its files.
    """

    path: Path
    columns: dict[str, str | None]
    folder: Path | None = None

    @property
    def source(self) -> str:
        """The file's name below the corpus's folder, which every passage carries."""
        path = Path(os.path.normpath(self.path))
        folder = path.parent if self.folder is None else Path(os.path.normpath(self.folder))
        return path.relative_to(folder).as_posix() if folder in path.parents else path.name

    @property
    def is_parquet(self) -> bool:
        """True if articles can be looked up without reading all of them."""
        return bool(self.columns) and is_parquet(self.path)


def iter_articles(file: CorpusFile) -> Iterator[Article]:
    """Stream a file's articles in order.

    Raises:
        ExamError: the file is damaged, or a column is missing or holds no texts.
    """
    if not file.columns:
        yield _read_text(file)
    elif file.is_parquet:
        for block in parquet_blocks(file):
            yield from (Article(**row) for row in block.to_pylist())
    else:
        for number, row in enumerate(read_rows(file.path, document_remedy=kinds.ARTICLES), 1):
            yield _row_article(file, number, row)


def get_articles(file: CorpusFile, ids: Collection[str]) -> dict[str, Article]:
    """Look up articles of a file by id.

    Raises:
        ExamError: one is missing: the file has changed since it was indexed.
    """
    ids = set(ids)
    if file.is_parquet:
        wanted = pa.array(sorted(ids), pa.large_string())
        blocks = (b.filter(pc.is_in(b["id"], value_set=wanted)) for b in parquet_blocks(file))
        articles = [Article(**row) for block in blocks for row in block.to_pylist()]
    else:
        articles = [article for article in iter_articles(file) if article.id in ids]
    article_of = {article.id: article for article in articles}
    if missing := ids - article_of.keys():
        raise ExamError(
            f"{file.path} has no article {min(missing)!r} any more.\n"
            "It is damaged, or has changed during this run: restore it, and run again."
        )
    return article_of


def _read_text(file: CorpusFile) -> Article:
    """Read a text file as an article, titled by the file's name."""
    path, data = file.path, file.path.read_bytes()
    kind = kinds.find_kind(path, data[: kinds.HEAD])
    if kind is not None or b"\0" in data:
        raise ExamError(
            f"{path} is {'no text' if kind is None else kind.name}.\n"
            "Convert it to plain text in UTF-8, or leave it out: corpus.files=<pattern>"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ExamError(
            f"{path} is not UTF-8 ({error.reason} at byte {error.start}).\n"
            "Save it as UTF-8, or leave it out: corpus.files=<pattern>"
        ) from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return Article(file.source, path.stem.replace("_", " "), text)


def _find_columns(file: CorpusFile, names: Collection[str]) -> dict[str, str | None]:
    """Return the columns of id, title and text in a file or row with these names.

    Id and text may have the names of OTHER_NAMES. A missing column of titles is null.

    Raises:
        ExamError: the column of the id or the text is missing.
    """
    columns = dict(file.columns)
    for name, other in OTHER_NAMES.items():
        column = columns[name]
        if column is None or column in names:
            continue
        if column != COLUMNS[name] or other not in names:
            number = ", number the articles (corpus.columns.id=null)" if name == "id" else ""
            raise ExamError(
                f"{file.path} has the columns {', '.join(names)}, but no {column!r}.\n"
                f"Name the column of the {name} with corpus.columns.{name}=<name>{number}, "
                "or leave the file out with corpus.files=<pattern>"
            )
        columns[name] = other
    if columns["title"] not in names:
        in_text = columns["title"] and columns["text"] == OTHER_NAMES["text"]
        columns["title"] = columns["text"] if in_text else None
    return columns


def _split_title(file: CorpusFile, text: str) -> tuple[str, str]:
    """Split a first line that is the title, in quotation marks or by configuration, from a text."""
    first, line, rest = text.partition("\n")
    title = first.strip()
    is_quoted = len(title) > 2 and title[0] == title[-1] == '"'
    if line and (is_quoted or file.columns["title"] == file.columns["text"]):
        return title[1:-1] if is_quoted else title, rest
    return "", text


def _row_article(file: CorpusFile, number: int, row: dict[str, Any]) -> Article:
    """Return the article of a row."""
    columns = _find_columns(file, row.keys())
    cells = {}
    for name, column in columns.items():
        try:
            cells[name] = "" if column is None else read_text(row[column])
        except TypeError as error:
            raise ExamError(
                f"{file.path}, article {number}: {column!r} holds a {error}.\n"
                f"Write a text; name another column with corpus.columns.{name}=<name>"
            ) from None
    key, title, text = cells["id"], cells["title"], cells["text"]
    if columns["title"] == columns["text"]:
        title, text = _split_title(file, text)
    return Article(normalize_id(key) if columns["id"] else f"{file.source}:{number}", title, text)


def parquet_blocks(file: CorpusFile, names: Collection[str] = tuple(COLUMNS)) -> Iterator[pa.Table]:
    """Yield columns of a Parquet file's articles as texts, a block of rows at a time."""
    schema = pa.schema([(name, pa.large_string()) for name in names])
    with translate_parquet_errors(file.path), pq.ParquetFile(file.path) as parquet:
        columns = _find_columns(file, parquet.schema_arrow.names)
        _check_types(file.path, parquet.schema_arrow, columns)
        used = sorted({column for name in names if (column := columns[name])})
        numbers = count(1)
        for batch in parquet.iter_batches(BATCH, columns=used):
            texts = {column: _to_texts(batch[column]) for column in used}
            empty = pa.array([""] * len(batch), pa.large_string())
            block: dict[str, Any] = {n: texts.get(columns[n] or "", empty) for n in names}
            if columns["id"]:
                ids = pc.utf8_trim_whitespace(block["id"])
                block["id"] = pc.replace_substring_regex(ids, f"^{WHOLE_ID}$", r"\1")
            else:
                block["id"] = [f"{file.source}:{next(numbers)}" for _ in range(len(batch))]
            if columns["title"] == columns["text"]:
                parts = [_split_title(file, text) for text in block["title"].to_pylist()]
                block["title"], block["text"] = map(list, zip(*parts, strict=True))
            yield pa.table({name: block[name] for name in names}, schema)


def _to_texts(column: pa.Array) -> pa.Array:
    """Return a column of any type as texts; nothing and NaN as empty ones."""
    if pa.types.is_nested(column.type):
        return pa.array(map(read_text, column.to_pylist()), pa.large_string())
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    return column.cast(pa.large_string()).fill_null("")


def _check_types(path: Path, schema: pa.Schema, columns: dict[str, str | None]) -> None:
    """Refuse columns that are repeated, or that Arrow cannot cast to texts."""
    for name, column in columns.items():
        types = [field.type for field in schema if field.name == column]
        if column is not None and not (len(types) == 1 and _is_text(types[0], name)):
            problem = f"occurs {len(types)} times" if len(types) > 1 else f"holds {types[0]}"
            raise ExamError(
                f"{path}: column {column!r} {problem}; it must occur once and hold texts.\n"
                f"Name another one with corpus.columns.{name}=<name>"
            )


def _is_text(kind: pa.DataType, name: str) -> bool:
    """Tell whether cells of a type can be texts; a list may be the paragraphs of a text."""
    if name == "text" and pa.types.is_nested(kind) and not pa.types.is_map(kind):
        return not pa.types.is_struct(kind) and _is_text(kind.value_type, "id")
    try:
        pa.nulls(0, kind).cast(pa.large_string())
    except pa.ArrowException:
        return False
    return True


def title_and_first_sentence(article: Article) -> str:
    """Return the text that the index encodes for an article."""
    first = first_sentence(article.text)
    return f"{article.title}. {first}".strip(". ") if article.title else first
