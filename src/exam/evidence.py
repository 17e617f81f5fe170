"""What each passage alone adds to a trained reader's belief in the right option.

The passages that add most are positives for training a reranker or an encoder
(`pairs.positives=<the file>`): made by a stage of its own, so that retrieval needs no reader.
"""

import logging
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from scipy.special import log_softmax

from exam.artefacts import open_stage
from exam.config import Train, answering_values, plain
from exam.files import atomic, is_sealed, sealed
from exam.loading import longest_input
from exam.precision import reader_values
from exam.questions import questions_digest
from exam.reader.features import build_features
from exam.reader.reader import Reader
from exam.reader.training import predict
from exam.retrieval.contexts import read_contexts
from exam.retrieval.evaluation import Contexts
from exam.stage import Stage

log = logging.getLogger(__name__)

FILE = "evidence.parquet"
QUESTIONS_PER_SHARD = 128
SCHEMA = pa.schema(
    {
        "question_id": pa.string(),
        "passage_id": pa.string(),
        "rank": pa.int32(),
        "gain": pa.float64(),  # log-probability of the right option with the passage, less without
        "title": pa.string(),
        "text": pa.large_string(),
    }
)


def weigh_passages(
    config: Train,
    trained: Stage,
    questions: Dataset,
    contexts: Stage,
    depth: int,
    outputs: Path,
    resume: str,
) -> Stage:
    """Write the gain of each question's best `depth` passages, each alone; a stage's folder.

    `config.model` names the trained weights. Shards of questions that are there are read again.
    """
    key = {
        "run": trained.hash,
        "weights": trained.files,
        "questions": questions_digest(questions),
        "contexts": contexts.hash,
        "depth": depth,
        "layout": config.context.layout.value,
        "model": {**plain(config.model), "name_or_path": None},
        "trainer": reader_values(config),
    }
    with open_stage(outputs, "evidence", trained.folder.name, key, resume) as stage:
        if not stage.reused:
            found = read_contexts(contexts, depth)
            values, work = answering_values(config.trainer), stage.folder / "predictions"
            layout = config.context.layout
            reader = Reader.load(config.model, values, work, config.seed, layout=layout)
            tables = _shards(stage.folder, questions, found, reader)
            whole = pa.concat_tables(tables)
            with atomic(stage.folder / FILE) as temporary:
                pq.write_table(whole, temporary)
            gains = whole["gain"].to_pylist()
            raised = sum(gain > 0 for gain in gains)
            stage.finish([FILE], questions=len(questions), passages=len(gains), raised=raised)
        for path in stage.folder.glob("gains-*.parquet"):
            path.unlink()
    return stage


def _shards(folder: Path, questions: Dataset, contexts: Contexts, reader: Reader) -> list[pa.Table]:
    """All questions' gains, a shard of questions at a time."""
    tables = []
    for number, start in enumerate(range(0, len(questions), QUESTIONS_PER_SHARD)):
        path = folder / f"gains-{number:06d}.parquet"
        own = questions.select(range(start, min(start + QUESTIONS_PER_SHARD, len(questions))))
        tables.append(_shard(path, own, contexts, reader))
    return tables


def _shard(path: Path, questions: Dataset, contexts: Contexts, reader: Reader) -> pa.Table:
    """Some questions' gains, read where they are there."""
    if not is_sealed(path):
        rows = list(_gains(questions, contexts, reader))
        with sealed(path) as temporary:
            pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary)
        log.info("evidence: %s · %d passages", path.name, len(rows))
    return pq.read_table(path)


def _gains(questions: Dataset, contexts: Contexts, reader: Reader) -> list[dict[str, Any]]:
    """Rows of SCHEMA: each question is asked without a passage, and once with each."""
    asked: list[dict[str, Any]] = []
    alone: Contexts = {}
    for question in questions:
        for passage in [None, *contexts.get(question["id"], [])]:
            key = str(len(asked))
            asked.append({**question, "id": key})
            alone[key] = [] if passage is None else [passage]
    longest = reader.length(training=True)
    limit = longest_input(reader.model, longest)
    repeated = Dataset.from_list(asked, features=questions.features)
    features, _ = build_features(repeated, alone, reader.tokenizer, longest, limit)
    chances = log_softmax(predict(reader, features), axis=1)
    found = iter([float(row[q["label"]]) for row, q in zip(chances, asked, strict=True)])
    rows = []
    for question in questions:
        without = next(found)
        passages = contexts.get(question["id"], [])
        for passage, chance in zip(passages, islice(found, len(passages)), strict=True):
            own = {name: passage[name] for name in SCHEMA.names if name != "gain"}
            rows.append({**own, "gain": chance - without})
    return rows
