"""Read and write contexts: the ranked passages of each question."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from exam.core.artifacts import Stage, load_stage, stages_differing_only_in
from exam.core.errors import ExamError
from exam.core.files import digest, read_object, write_atomically, write_json
from exam.data.schema import FEATURES
from exam.data.tables import translate_parquet_errors
from exam.metrics import Estimate, summarize
from exam.retrieval.evaluation import Contexts, Row, option_support, question_scores
from exam.retrieval.idf import DocumentFrequencies, split_words

log = logging.getLogger(__name__)

FILE = "contexts.parquet"
QUESTIONS = "questions.parquet"
SUPPORT = "support.json"
IDF = "idf.json"
EVALUATION_FILES = (QUESTIONS, SUPPORT, IDF)
ROWS_PER_BLOCK = 20_000
REQUIRED = ("question_id", "rank", "text")  # in every row
SCHEMA = pa.schema(
    {
        "question_id": pa.string(),  # the question's id in its file
        "rank": pa.int32(),  # 1 is the best passage
        "score": pa.float32(),  # the retriever's score; scales differ between retrievers
        "article_id": pa.string(),  # the article's id in the corpus
        "passage_id": pa.string(),  # the article's id, and the passage's range of characters
        "title": pa.string(),  # title of the article
        "text": pa.large_string(),  # the passage, without the title
        "source": pa.string(),  # name of the corpus file
    }
)


@dataclass(frozen=True)
class ContextSet:
    """The ranked passages of one set of questions, and their scores."""

    stage: Stage

    @property
    def folder(self) -> Path:
        """The folder of contexts.parquet."""
        return self.stage.folder

    @property
    def passages(self) -> Dataset:
        """One row a passage, best first within a question, with the columns of SCHEMA.

        Raises:
            ExamError: the file is damaged or has another schema.
        """
        path = self.folder / FILE
        with translate_parquet_errors(path):
            return Dataset(pq.read_table(path, schema=SCHEMA))

    @property
    def scores(self) -> dict[str, Estimate]:
        """Recall and support with 95 % intervals, if articles or answers are known."""
        scores = self.stage.metadata["scores"]
        return {k: Estimate(v["n"], v["value"], *v["ci"]) for k, v in scores.items()}


Rank = Callable[[Dataset], Iterator[list[Row]]]  # each question's passages, best first


def context_rows(question: str, scored: Iterable[tuple[float, Row]]) -> list[Row]:
    """Return rows of SCHEMA for scored spans of articles, best first."""
    return [
        {
            **passage,
            "question_id": question,
            "rank": rank,
            "score": score,
            "passage_id": f"{passage['article_id']}:{passage['start']}-{passage['end']}",
        }
        for rank, (score, passage) in enumerate(scored, 1)
    ]


def cached_contexts(stage: Stage, questions: Dataset) -> Contexts:
    """Return the passages that other stages of the same key have ranked for the questions."""
    cached: Contexts = {}
    for folder in stages_differing_only_in(stage, entry="questions"):
        if len(cached) == len(questions):
            break
        try:
            other = load_stage(folder)
        except ExamError as error:
            log.warning("contexts: not reused: %s", str(error).splitlines()[0])
            continue
        ids = {_fingerprint(ranked): ranked["id"] for ranked in read_questions(other).to_list()}
        contexts = read_contexts(other)
        for question in questions.to_list():
            if (key := ids.get(_fingerprint(question))) is not None:
                rows = [{**row, "question_id": question["id"]} for row in contexts.get(key, [])]
                cached.setdefault(question["id"], rows)
    log.debug("contexts: %d of %d questions are cached", len(cached), len(questions))
    return cached


def _fingerprint(question: dict[str, Any]) -> str:
    """Return the digest of everything in a question that its ranking may depend on."""
    return digest([question["prompt"], question["options"], question["context"]])


def fill_missing(questions: Dataset, cached: Contexts, rank: Rank) -> Iterator[list[Row]]:
    """Yield each question's cached passages, or those that `rank` finds."""
    ids = questions["id"][:]
    missing = [i for i, key in enumerate(ids) if key not in cached]
    ranked = rank(questions.select(missing)) if missing else iter(())
    for key in ids:
        yield cached[key] if key in cached else next(ranked)
    next(ranked, None)  # lets it delete its temporary files


def write_contexts(stage: Stage, ranked: Iterator[list[Row]]) -> None:
    """Write ranked passages, a block of rows at a time."""
    with (
        write_atomically(stage.folder / FILE) as temporary,
        pq.ParquetWriter(temporary, SCHEMA) as writer,
    ):
        rows = chain.from_iterable(ranked)
        while block := list(islice(rows, ROWS_PER_BLOCK)):
            writer.write_table(pa.Table.from_pylist(block, schema=SCHEMA))


def read_contexts(stage: Stage, top_k: int | None = None) -> Contexts:
    """Return the `top_k` best passages of each question, or all, best first.

    Raises:
        ExamError: the file is damaged or has another schema, or a ranking has gaps.
    """
    path = stage.folder / FILE
    filters = None if top_k is None else [("rank", "<=", top_k)]
    with translate_parquet_errors(path):
        table = pq.read_table(path, schema=SCHEMA, filters=filters)
        rows = table.to_pylist()
    if empty := [name for name in REQUIRED if table[name].null_count]:
        raise ExamError(f"{path} has empty cells in {empty[0]}.\nRetrieve again.")
    contexts: Contexts = {}
    for row in rows:
        ranking = contexts.setdefault(row["question_id"], [])
        ranking.append(row)
        if row["rank"] != len(ranking):
            raise ExamError(
                f"{path}: passage {len(ranking)} of question {row['question_id']!r} has rank "
                f"{row['rank']}.\nRanks count from 1, best first. Retrieve again."
            )
    return contexts


def read_support(stage: Stage, ids: list[str]) -> list[list[float]] | None:
    """Return the support of every option by the best passages; None without passages.

    Raises:
        ExamError: the file lacks a question.
    """
    path = stage.folder / SUPPORT
    if not (support := read_object(path)):
        return None
    if missing := [key for key in ids if not isinstance(support.get(key), list)]:
        raise ExamError(f"{path} lacks question {missing[0]!r}.\nRetrieve again.")
    return [support[key] for key in ids]


def read_idf(stage: Stage) -> dict[str, float]:
    """Return the inverse document frequency in the corpus of every word of the questions."""
    idf: dict[str, float] = read_object(stage.folder / IDF)
    return idf


def read_questions(stage: Stage) -> Dataset:
    """Return the questions of the contexts."""
    path = stage.folder / QUESTIONS
    with translate_parquet_errors(path):
        table = pq.read_table(path, schema=FEATURES.arrow_schema)
        return Dataset.from_dict(table.to_pydict(), features=FEATURES)


def evaluate(
    stage: Stage, questions: Dataset, frequencies: DocumentFrequencies | None
) -> dict[str, Any]:
    """Write EVALUATION_FILES; return the scores, if answers or articles are known.

    Words are weighted by inverse document frequency in the corpus, or equally without a corpus.
    """
    rows = questions.to_list()
    texts = [text for question in rows for text in (question["prompt"], *question["options"])]
    vocabulary = set(split_words(" ".join(texts)))
    idf = frequencies.idf(vocabulary) if frequencies else dict.fromkeys(sorted(vocabulary), 1.0)
    with write_atomically(stage.folder / QUESTIONS) as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary)
    write_json(stage.folder / IDF, idf)
    contexts = read_contexts(stage)
    support = option_support(questions, contexts, idf) if contexts else []
    by_question = dict(zip(questions["id"], support, strict=bool(contexts)))
    write_json(stage.folder / SUPPORT, by_question)
    scores = question_scores(questions, contexts, support) if contexts else {}
    return {name: summarize(values) for name, values in scores.items()}
