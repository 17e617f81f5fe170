"""Split a corpus into passages: overlapping windows of whole sentences, stored on disk."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from exam.config import Chunking
from exam.core.artifacts import Stage, open_stage
from exam.core.errors import ExamError
from exam.core.files import write_atomically
from exam.core.logging import track
from exam.data.articles import CorpusFile, iter_articles
from exam.data.corpus import Articles
from exam.data.sentences import SENTENCES_VERSION, sentence_offsets, splitter
from exam.data.words import WORDS_VERSION, word_spans

FILE = "passages.arrow"
ARTICLES_PER_BLOCK = 1024
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
    """The passages of a corpus by row, memory-mapped, in the order of its articles."""

    stage: Stage
    files: list[CorpusFile]
    table: pa.Table  # SCHEMA

    def __len__(self) -> int:
        return len(self.table)

    def rows(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Return the passages with these row numbers, in this order."""
        passages: list[dict[str, Any]] = self.table.take(pa.array(numbers, pa.int64())).to_pylist()
        return passages

    def texts(self, what: str = "") -> Iterator[list[str]]:
        """Yield the texts of all passages in blocks; `what` labels a progress bar."""
        blocks = self.table.select(["title", "text"]).to_batches()
        for batch in track(blocks, what, len(blocks), "blocks") if what else blocks:
            yield [passage_text(row) for row in batch.to_pylist()]


def passage_text(passage: dict[str, Any]) -> str:
    """Return the text to encode and search: "title. text"."""
    title, text = passage["title"], passage["text"]
    return f"{title}. {text}" if title else text


def build_passages(articles: Articles, chunking: Chunking, outputs: Path) -> PassageTable:
    """Split a corpus into passages, one file's articles after another.

    Raises:
        ExamError: the corpus has no text.
    """
    key = {
        "corpus": articles.key,
        "passages": asdict(chunking),
        "words": WORDS_VERSION,
        "sentences": SENTENCES_VERSION,
        **splitter().key,
    }
    with open_stage(outputs, "passages", articles.name, key) as stage:
        if not stage.reused:
            count = _write(stage.folder / FILE, articles, chunking)
            if not count:
                raise ExamError(
                    f"corpus={articles.name} has no text.\n"
                    "Name its files: corpus.dir=<folder> corpus.files=<pattern>; or set a smaller "
                    "chunking.min_sentence_chars."
                )
            stage.finish([FILE], articles=len(articles), passages=count)
    with pa.memory_map(str(stage.folder / FILE)) as source:
        return PassageTable(stage, articles.files, pa.ipc.open_file(source).read_all())


def _write(path: Path, articles: Articles, chunking: Chunking) -> int:
    """Write the passages of every article; return their number."""
    count = 0
    sources = ((file.source, article) for file in articles.files for article in iter_articles(file))
    stream = track(sources, "split", len(articles), "articles")
    with write_atomically(path) as temporary, pa.ipc.new_file(str(temporary), SCHEMA) as writer:
        while block := list(islice(stream, ARTICLES_PER_BLOCK)):
            rows = [
                (article.id, article.title, start, end, article.text[start:end], source)
                for source, article in block
                for start, end in chunk(article.text, chunking)
            ]
            count += len(rows)
            if rows:
                writer.write_batch(pa.record_batch(list(zip(*rows, strict=True)), SCHEMA))
    return count


def chunk(text: str, chunking: Chunking) -> list[tuple[int, int]]:
    """Return start and end of each passage: whole sentences of up to `chunking.chunk_words` words.

    A passage repeats the last sentences of the previous one (`chunking.overlap_sentences`), if they
    leave room for the next. A sentence longer than a passage (often a list) is split between words.
    """
    pieces = [
        piece
        for start, end in sentence_offsets(text, chunking.min_sentence_chars)
        for piece in _pieces(text, start, end, chunking.chunk_words)
    ]
    spans: list[tuple[int, int]] = []
    fresh = 0  # the first piece without a passage
    while fresh < len(pieces):
        first = max(0, fresh - chunking.overlap_sentences)
        while sum(words for _, _, words in pieces[first : fresh + 1]) > chunking.chunk_words:
            first += 1
        last, words = first, 0
        while last < len(pieces) and words + pieces[last][2] <= chunking.chunk_words:
            words += pieces[last][2]
            last += 1
        spans.append((pieces[first][0], pieces[last - 1][1]))
        fresh = last
    return spans


def _pieces(text: str, start: int, end: int, words: int) -> Iterator[tuple[int, int, int]]:
    """Yield a sentence as (start, end, words), split into parts of at most `words`."""
    spans = word_spans(text[start:end])
    for number in range(0, len(spans), words):
        part = spans[number : number + words]
        yield start + part[0][0], start + part[-1][1], len(part)
