"""This project's two-stage retrieval, in the same form as the notebooks'."""

import time
from pathlib import Path
from typing import Any

from notebook_way import FILES
from side_by_side import measured

SETTINGS = {
    "exact": ["retriever=two_stage", "encoder.max_length=384", "encoder.dtype=float32"],
    "recommended": ["retriever=two_stage_prefiltered"],
}


def configured(name: str, data: Path, outputs: Path, limit: int | None) -> Any:
    """A configuration of `exam retrieve`."""
    from exam.config.compose import compose_config

    return compose_config(
        "retrieve",
        "data=kaggle",
        "corpus=wikipedia",
        f"data.dir={data / 'exam'}",
        "data.train=null",
        "data.valid=null",
        f"data.test=[{','.join(FILES)}]",
        f"data.limit={limit or 'null'}",
        f"corpus.dir={data / 'wikipedia'}",
        f"outputs={outputs}",
        *SETTINGS[name],
    )


def retrieval_of(config: Any) -> Any:
    """The configured retrieval, its encoder loaded and used once."""
    from exam.retrieval.retriever import Retrieval

    found = Retrieval.from_config(config)
    found.sentence_encoder.encode(["first use"])
    return found


def ours_index(name: str, data: Path, work: Path) -> dict[str, Any]:
    """Build the index of one setting."""
    retrieval = retrieval_of(configured(name, data, work / name, None))
    return measured(lambda: retrieval.article_index)[1]


def ours(name: str, data: Path, work: Path, limit: int | None, change: bool) -> dict[str, Any]:
    """One run: seconds, of which encoding, memory, and the passages of each question."""
    from datasets import Dataset

    from exam.data.questions import read_questions
    from exam.data.schema import FEATURES
    from exam.retrieval.contexts import read_contexts

    config = configured(name, data, work / name, limit)
    retrieval = retrieval_of(config)
    encoder = type(retrieval.sentence_encoder)
    plain, spent = encoder.encode, [0.0]

    def timed(self: Any, texts: Any) -> Any:
        start = time.perf_counter()
        try:
            return plain(self, texts)
        finally:
            spent[0] += time.perf_counter() - start

    encoder.encode = timed

    def run() -> Any:
        questions = read_questions(config.data, config.data.test)
        if change:
            rows = questions.to_list()
            rows[0]["prompt"] += " Answer with care."
            questions = Dataset.from_list(rows, features=FEATURES)
        return questions, retrieval.contexts(questions, "bench")

    (questions, stage), figures = measured(run)
    found = read_contexts(stage)
    passages = [
        [{"article_id": p["article_id"], "text": p["text"]} for p in found.get(key, [])]
        for key in questions["id"]
    ]
    return {
        **figures,
        "encode_seconds": spent[0],
        "dtype": retrieval.sentence_encoder.dtype.value,
        "reused": stage.reused,
        "passages": passages,
    }
