"""Measure how much each passage raises a reader's probability of the right option.

With `training_pairs.positives=reader`, the passages with the largest gains train a reranker or an
encoder.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from scipy.special import log_softmax

from exam.config import ReaderKind, Restore, Train, reader_values
from exam.config.saved import CHECKPOINTS
from exam.core.artifacts import Stage, open_stage
from exam.core.checkpoints import MODEL, max_input_tokens
from exam.core.errors import ExamError
from exam.core.files import checksum_matches, write_atomically, write_with_checksum
from exam.data.questions import questions_digest
from exam.pipelines.infer import restore_run
from exam.pipelines.preflight import check_saved_reader
from exam.readers.multiple_choice.features import build_features
from exam.readers.multiple_choice.reader import MultipleChoiceReader
from exam.retrieval.contexts import Contexts, read_contexts

log = logging.getLogger(__name__)

FILE = "gains.parquet"
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


def restore_reader(config: Train) -> tuple[Stage, Train]:
    """Return the run that `training_pairs.reader` names, and its configuration.

    Raises:
        ExamError: the run cannot be restored, or its reader cannot read one passage at a time.
    """
    trusted = [group for group in CHECKPOINTS if getattr(config, group).trust_remote_code]
    restore = Restore(
        ckpt=config.training_pairs.reader,
        outputs=config.outputs,
        log_level=config.log_level,
        offline=config.offline,
        run={group: {"trust_remote_code": True} for group in trusted},
    )
    run, settings = restore_run(restore, reads_questions=False)
    model, saved = settings.model, run.folder / MODEL
    if model.kind is not ReaderKind.transformer or model.overlap_features:
        kind = f"model.kind={model.kind.value}"
        state = "model.overlap_features=true" if model.overlap_features else kind
        raise ExamError(
            f"training_pairs.reader={run.folder} has {state}; training_pairs.positives=reader "
            "needs a transformer that reads one passage at a time.\n"
            "Set a run of such a reader: training_pairs.reader=<folder>"
        )
    check_saved_reader(settings, saved)
    return run, replace(settings, model=model.at(saved))


def measure_gains(
    run: Stage, config: Train, questions: Dataset, contexts: Stage, depth: int, outputs: Path
) -> Path:
    """Return the file with the gains (SCHEMA) of each question's best `depth` passages.

    `run` and `config` come from `restore_reader`. An interrupted stage continues at the first
    missing shard of questions.
    """
    key = {
        "run": run.hash,
        "weights": run.files,
        "questions": questions_digest(questions),
        "contexts": contexts.hash,
        "depth": depth,
        "trainer": reader_values(config),
    }
    with open_stage(outputs, "gains", run.folder.name, key) as stage:
        if not stage.reused:
            work = stage.folder / "predictions"
            reader = MultipleChoiceReader.load(config, run.folder / MODEL, work)
            passages = read_contexts(contexts, depth)
            shards = [
                _measure(stage.folder / f"gains-{start:06d}.parquet", shard, passages, reader)
                for start in range(0, len(questions), QUESTIONS_PER_SHARD)
                for shard in [questions.skip(start).take(QUESTIONS_PER_SHARD)]
            ]
            table = pa.concat_tables(shards)
            with write_atomically(stage.folder / FILE) as temporary:
                pq.write_table(table, temporary)
            stage.finish([FILE], questions=len(questions), passages=len(table))
        for path in stage.folder.glob("gains-*.parquet"):
            path.unlink()
    return stage.folder / FILE


def _measure(
    path: Path, questions: Dataset, contexts: Contexts, reader: MultipleChoiceReader
) -> pa.Table:
    """Return the gains of a shard of questions; read its file if it is complete."""
    if not checksum_matches(path):
        rows = _gains(questions, contexts, reader)
        with write_with_checksum(path) as temporary:
            pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary)
        log.info("gains: %s · %d passages", path.name, len(rows))
    return pq.read_table(path)


def _gains(
    questions: Dataset, contexts: Contexts, reader: MultipleChoiceReader
) -> list[dict[str, Any]]:
    """Read each question without a passage, then with each of its passages.

    Returns:
        Rows of SCHEMA.
    """
    copies: list[dict[str, Any]] = []
    passage_of: Contexts = {}
    for question in questions:
        for passage in [None, *contexts.get(question["id"], [])]:
            key = str(len(copies))
            copies.append({**question, "id": key})
            passage_of[key] = [] if passage is None else [passage]
    length = reader.max_length(training=True)
    limit = max_input_tokens(reader.model, length)
    repeated = Dataset.from_list(copies, features=questions.features)
    features, _ = build_features(repeated, passage_of, reader.tokenizer, length, limit)
    scores = log_softmax(reader.predict_logits(features), axis=1)
    right = iter(scores[np.arange(len(copies)), repeated["label"]].tolist())
    rows = []
    for question in questions:
        without = next(right)
        passages = contexts.get(question["id"], [])
        rows += [{**passage, "gain": next(right) - without} for passage in passages]
    return [{name: row[name] for name in SCHEMA.names} for row in rows]
