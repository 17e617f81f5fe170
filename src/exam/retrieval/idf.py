"""Document frequencies of words: in how many articles of a corpus each one occurs."""

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from exam.core.artifacts import Stage, open_stage
from exam.core.files import write_atomically
from exam.core.logging import track
from exam.data.articles import CorpusFile, iter_articles
from exam.data.words import WORDS_VERSION, count_words, split_words

FILE = "words.parquet"
SAMPLE = 200_000  # articles to count at most, evenly spaced
SCHEMA = pa.schema(
    {
        "word": pa.string(),  # as split_words writes it
        "articles": pa.int64(),  # number of articles that contain it
    }
)
WORD_BUDGET = 450


def take_words(passages: Iterable[dict[str, Any]], budget: int = WORD_BUDGET) -> list[list[str]]:
    """Return the words of the best passages that fit the budget, and always some of the first."""
    taken: list[list[str]] = []
    left = budget
    for passage in passages:
        words, length = split_words(passage["text"]), count_words(passage["text"])
        if taken and length > left:
            break
        taken.append(words if length <= left else words[: len(words) * left // length])
        left -= length
    return taken


@dataclass(frozen=True)
class DocumentFrequencies:
    """The number of articles of a corpus that contain each word."""

    stage: Stage

    def idf(self, vocabulary: set[str]) -> dict[str, float]:
        """Return the inverse document frequency of each word: log(N / (1 + df)).

        It is log((N + 1) / N) at least, so that all words of a tiny corpus have a weight.
        """
        is_known = pc.field("word").isin(sorted(vocabulary))
        columns = pq.read_table(self.stage.folder / FILE, filters=is_known).to_pydict()
        frequency = dict(zip(columns["word"], columns["articles"], strict=True))
        n = self.stage.metadata["articles"]
        return {
            word: float(np.log(max(n / (1 + frequency.get(word, 0)), (n + 1) / n)))
            for word in sorted(vocabulary)
        }


def build_document_frequencies(
    source: Stage, files: list[CorpusFile], name: str, outputs: Path
) -> DocumentFrequencies:
    """Count the words of every article, or of an even sample of 200,000.

    `source` is the index or passage table of the corpus that the files hold.
    """
    key = {"corpus": source.key["corpus"], "sample": SAMPLE, "words": WORDS_VERSION}
    with open_stage(outputs, "words", name, key, log_level=logging.DEBUG) as stage:
        if not stage.reused:
            total = source.metadata["articles"]
            stream = chain.from_iterable(map(iter_articles, files))
            articles = track(stream, "words", total, "articles")
            step = -(-total // SAMPLE)
            frequency: Counter[str] = Counter()
            for article in islice(articles, 0, None, step):
                frequency.update(set(split_words(f"{article.title} {article.text}")))
            columns = {"word": list(frequency), "articles": list(frequency.values())}
            table = pa.table(columns, schema=SCHEMA)
            with write_atomically(stage.folder / FILE) as temporary:
                pq.write_table(table, temporary)
            stage.finish([FILE], articles=-(-total // step), words=len(table))
    return DocumentFrequencies(stage)
