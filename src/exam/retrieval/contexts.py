"""Read, write and score contexts: the ranked passages of each question.

Scores need no reader: recall, MRR and answer support. The *support* of an option is the share of
its words, weighted by inverse document frequency, that occur in the question's best passages (up
to 450 words). Words of the prompt do not count. A question is *supported* if its right option has
a support above 0.6.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from exam.core.artifacts import Stage, load_stage, stages_differing_only_in
from exam.core.errors import ExamError
from exam.core.files import digest, read_object, write_atomically, write_json
from exam.core.logging import track
from exam.data.schema import FEATURES
from exam.data.tables import translate_parquet_errors
from exam.data.words import split_words
from exam.metrics import Estimate, Floats, recall_at_k, summarize
from exam.retrieval.idf import DocumentFrequencies, take_words

log = logging.getLogger(__name__)

FILE = "contexts.parquet"
QUESTIONS = "questions.parquet"
SUPPORT = "support.json"
IDF = "idf.json"
EVALUATION_FILES = (QUESTIONS, SUPPORT, IDF)
ROWS_PER_BLOCK = 20_000
SUPPORT_THRESHOLD = 0.6
DEPTHS = (1, 3, 5, 10, 20, 50)
Row = dict[str, Any]
Contexts = dict[str, list[Row]]  # each question's passages, best first
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


def rank_rows(scored: Iterable[tuple[float, Row]]) -> list[Row]:
    """Return rows with their scores and ranks, from pairs that come best first."""
    return [{**row, "rank": rank, "score": score} for rank, (score, row) in enumerate(scored, 1)]


def context_rows(question: str, scored: Iterable[tuple[float, Row]]) -> list[Row]:
    """Return rows of SCHEMA for scored spans of articles, best first."""
    return [
        {
            **row,
            "question_id": question,
            "passage_id": f"{row['article_id']}:{row['start']}-{row['end']}",
        }
        for row in rank_rows(scored)
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
    if empty := [name for name in ("question_id", "rank", "text") if table[name].null_count]:
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
) -> tuple[dict[str, Any], list[str]]:
    """Write EVALUATION_FILES; return the scores, and the ids of questions without passages.

    There are scores if answers or articles are known.

    Words are weighted by inverse document frequency in the corpus, or equally without a corpus.
    """
    rows = questions.to_list()
    texts = [text for question in rows for text in (question["prompt"], *question["options"])]
    vocabulary = set(chain.from_iterable(map(split_words, texts)))
    idf = frequencies.idf(vocabulary) if frequencies else dict.fromkeys(sorted(vocabulary), 1.0)
    with write_atomically(stage.folder / QUESTIONS) as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary)
    write_json(stage.folder / IDF, idf)
    support: list[list[float]] = []
    scores: dict[str, Floats] = {}
    contexts = read_contexts(stage)
    if contexts:
        support = option_support(questions, contexts, idf)
        scores = question_scores(questions, contexts, support)
    write_json(stage.folder / SUPPORT, dict(zip(questions["id"], support, strict=bool(contexts))))
    missing = [key for key in questions["id"] if key not in contexts]
    return {name: summarize(values) for name, values in scores.items()}, missing


def score_some(stage: Stage, questions: Dataset) -> dict[str, Any]:
    """Return the scores of some of a stage's questions, as `evaluate` does those of all."""
    support = read_support(stage, questions["id"])
    if support is None:
        return {}
    scores = question_scores(questions, read_contexts(stage), support)
    return {name: summarize(values) for name, values in scores.items()}


def option_support(
    questions: Dataset, contexts: Contexts, idf: dict[str, float]
) -> list[list[float]]:
    """Return the support of every option; 1 for an option whose words all occur in the prompt."""
    support = []
    for question in track(questions.to_list(), "support", len(questions), "questions"):
        passages = set().union(*take_words(contexts.get(question["id"], [])))
        prompt = set(split_words(question["prompt"]))
        support.append([_support(option, prompt, passages, idf) for option in question["options"]])
    return support


def _support(option: str, prompt: set[str], passages: set[str], idf: dict[str, float]) -> float:
    new = [w for w in dict.fromkeys(split_words(option)) if w not in prompt]
    total = sum(idf[w] for w in new)
    return sum(idf[w] for w in new if w in passages) / total if total > 0 else 1.0


def passage_support(question: Row, passage: Row, idf: dict[str, float]) -> float:
    """Return the support of the right option by one passage."""
    right = question["options"][question["label"]]
    return _support(
        right, set(split_words(question["prompt"])), set(split_words(passage["text"])), idf
    )


def question_scores(
    questions: Dataset, contexts: Contexts, support: list[list[float]]
) -> dict[str, Floats]:
    """Score the questions: recall and 1 / rank of known articles, *supported* of known answers.

    Recall is scored up to the depth of the deepest ranking.
    """
    scores: dict[str, Floats] = {}
    ranks = article_ranks(questions, contexts)
    if len(ranks):
        deepest = max(map(len, contexts.values()), default=0)
        scores.update({f"recall_at_{k}": recall_at_k(ranks, k) for k in DEPTHS if k <= deepest})
        scores["mrr"] = 1.0 / ranks
    labels = questions["label"][:]
    right = [s[label] for label, s in zip(labels, support, strict=True) if label is not None]
    if right:
        scores["supported"] = (np.array(right) > SUPPORT_THRESHOLD).astype(np.float64)
    return scores


def article_ranks(questions: Dataset, contexts: Contexts) -> Floats:
    """Return the rank of the first passage of a right article, for each question that has some.

    It is inf if none is ranked.
    """
    return np.array(
        [
            next((p["rank"] for p in contexts.get(key, []) if p["article_id"] in articles), np.inf)
            for key, articles in zip(questions["id"], questions["articles"], strict=True)
            if articles
        ],
        dtype=np.float64,
    )
