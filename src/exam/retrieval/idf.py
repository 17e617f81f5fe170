"""Count in how many articles of a corpus each word occurs: document frequencies."""

import logging
from collections import Counter
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from exam.core.artifacts import Stage, open_stage
from exam.core.files import write_atomically
from exam.core.logging import track
from exam.data.articles import CorpusFile, iter_articles
from exam.retrieval.evaluation import words

FILE = "words.parquet"
SAMPLE = 200_000  # articles counted at most, evenly spread
SCHEMA = pa.schema(
    {
        "word": pa.string(),  # in lower case
        "articles": pa.int64(),  # number of articles that contain it
    }
)


@dataclass(frozen=True)
class Rarity:
    """How many articles of a corpus hold each of its words."""

    stage: Stage

    def of(self, vocabulary: set[str]) -> dict[str, float]:
        """Return the inverse document frequency, log(N / (1 + df)), of each word."""
        is_known = pc.field("word").isin(sorted(vocabulary))
        columns = pq.read_table(self.stage.folder / FILE, filters=is_known).to_pydict()
        frequency = dict(zip(columns["word"], columns["articles"], strict=True))
        n = self.stage.metadata["articles"]
        return {
            word: float(np.log(n / (1 + frequency.get(word, 0)))) for word in sorted(vocabulary)
        }


def build_rarity(searched: Stage, files: list[CorpusFile], name: str, outputs: Path) -> Rarity:
    """Count the words of every article, or of an even sample of 200,000.

    `searched` is the index or passage table of the corpus that the files hold.
    """
    key = {"corpus": searched.key["corpus"], "sample": SAMPLE}
    with open_stage(outputs, "words", name, key, log_level=logging.DEBUG) as stage:
        if not stage.reused:
            stream = chain.from_iterable(map(iter_articles, files))
            frequency: Counter[str] = Counter()
            articles = 0
            total = searched.metadata["articles"]
            seen = track(stream, "words", total, "articles")
            for article in islice(seen, 0, None, -(-total // SAMPLE)):
                frequency.update(set(words(f"{article.title} {article.text}")))
                articles += 1
            columns = {"word": list(frequency), "articles": list(frequency.values())}
            table = pa.table(columns, schema=SCHEMA)
            with write_atomically(stage.folder / FILE) as temporary:
                pq.write_table(table, temporary)
            stage.finish([FILE], articles=articles, words=len(table))
    return Rarity(stage)
