"""Passages: the corpus cut into overlapping windows of whole sentences, kept on disk."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from exam.artefacts import open_stage
from exam.articles import (
    Article,
    CorpusFile,
    count_articles,
    iter_articles,
    with_own_ids,
)
from exam.config import Corpus, Passages
from exam.corpus import corpus_files, corpus_key
from exam.errors import ExamError
from exam.files import atomic
from exam.runtime import watched
from exam.sentences import sentence_offsets, splitter
from exam.stage import Stage

FILE = "passages.arrow"
ARTICLES_AT_ONCE = 1024
SCHEMA = pa.schema(
    {
        "article_id": pa.string(),  # the article's id in the corpus
        "title": pa.string(),  # title of the article
        "start": pa.int64(),  # first character in the article
        "end": pa.int64(),  # character after the last one
        "text": pa.large_string(),  # the passage, without the title
        "source": pa.string(),  # name of the corpus file
    }
)


@dataclass(frozen=True)
class PassageTable:
    """The passages of a corpus by their row, memory-mapped: in the order of its articles."""

    stage: Stage
    files: list[CorpusFile]
    table: pa.Table  # SCHEMA

    def __len__(self) -> int:
        return len(self.table)

    def rows(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """The passages with the given row numbers, in that order."""
        chosen: list[dict[str, Any]] = self.table.take(pa.array(numbers, pa.int64())).to_pylist()
        return chosen

    def texts(self, what: str = "") -> Iterator[list[str]]:
        """Every passage as it is searched, "title. text", in blocks; a bar says `what` for."""
        blocks = self.table.select(["title", "text"]).to_batches()
        for batch in watched(blocks, what, len(blocks), "blocks") if what else blocks:
            yield [searched(row) for row in batch.to_pylist()]


def searched(passage: dict[str, Any]) -> str:
    """A passage's text with its article's title in front."""
    title, text = passage["title"], passage["text"]
    return f"{title}. {text}" if title else text


def build_passages(corpus: Corpus, passages: Passages, outputs: Path) -> PassageTable:
    """Cut a corpus into passages, one file's articles after another.

    Raises:
        ExamError: the corpus holds no text.
    """
    files = corpus_files(corpus, outputs)
    key = {"corpus": corpus_key(files), "passages": asdict(passages), **splitter().key}
    with open_stage(outputs, "passages", corpus.name, key) as stage:
        if not stage.reused:
            articles, count = _write(stage.folder / FILE, files, passages)
            if not count:
                raise ExamError(
                    f"corpus={corpus.name} holds no text.\n"
                    "Give articles with corpus.dir= and corpus.files=, or a smaller "
                    "passages.min_sentence_chars."
                )
            stage.finish([FILE], articles=articles, passages=count)
    with pa.memory_map(str(stage.folder / FILE)) as source:
        return PassageTable(stage, files, pa.ipc.open_file(source).read_all())


def _write(path: Path, files: list[CorpusFile], passages: Passages) -> tuple[int, int]:
    """Write the passages of every article; how many articles and passages there are."""
    articles = count = 0
    every = chain.from_iterable(_sourced(file) for file in files)
    stream = watched(every, "split", count_articles(files), "articles")
    with atomic(path) as temporary, pa.ipc.new_file(str(temporary), SCHEMA) as writer:
        while block := list(islice(stream, ARTICLES_AT_ONCE)):
            rows = [
                {
                    "article_id": article.id,
                    "title": article.title,
                    "start": start,
                    "end": end,
                    "text": article.text[start:end],
                    "source": source,
                }
                for source, article in block
                for start, end in windows(article.text, passages)
            ]
            articles += len(block)
            count += len(rows)
            if rows:
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
    return articles, count


def _sourced(file: CorpusFile) -> Iterator[tuple[str, Article]]:
    return ((file.source, article) for article in with_own_ids(file, iter_articles(file)))


def windows(text: str, passages: Passages) -> list[tuple[int, int]]:
    """Start and end of each window: whole sentences of up to `passages.words` words in all.

    A window begins with the last `passages.overlap` sentences of the one before, as far as they
    leave room for the next. A sentence
    longer than a window (lists often pass for one) is cut between words.
    """
    pieces = [
        piece
        for start, end in sentence_offsets(text, passages.min_sentence_chars)
        for piece in _pieces(text, start, end, passages.words)
    ]
    found: list[tuple[int, int]] = []
    fresh = 0  # the first piece that no window has held
    while fresh < len(pieces):
        first = max(0, fresh - passages.overlap)
        while sum(words for _, _, words in pieces[first : fresh + 1]) > passages.words:
            first += 1
        last, words = first, 0
        while last < len(pieces) and words + pieces[last][2] <= passages.words:
            words += pieces[last][2]
            last += 1
        found.append((pieces[first][0], pieces[last - 1][1]))
        fresh = last
    return found


def _pieces(text: str, start: int, end: int, words: int) -> Iterator[tuple[int, int, int]]:
    """A sentence as (start, end, words), cut where it has more than `words`."""
    spans = [match.span() for match in re.finditer(r"\S+", text[start:end])]
    for number in range(0, len(spans), words):
        part = spans[number : number + words]
        yield start + part[0][0], start + part[-1][1], len(part)
