"""`exam generate`: write training questions from a corpus."""

from pathlib import Path

from exam.config import Chunking, Generate, Retriever, RetrieverKind
from exam.core.artifacts import log_reused
from exam.core.logging import print_result
from exam.generation.generate import QUESTIONS, generate
from exam.pipelines.preflight import check_models
from exam.retrieval.retriever import Retrieval


def run_generate(config: Generate) -> None:
    """Write the questions, and print their file."""
    check_models(config)
    retrieval = Retrieval(
        config.corpus,
        config.encoder,
        Chunking(),
        Retriever(name="none", kind=RetrieverKind.none),
        config.index,
        Path(config.outputs),
    )
    stage = generate(retrieval, config.generator, config.resume.value)
    log_reused([*retrieval.stages, stage])
    print_result(str(stage.folder / QUESTIONS))
