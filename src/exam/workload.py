"""What a command computes on a GPU, and whether several processes can share it."""

from dataclasses import dataclass
from pathlib import Path

from exam.config import (
    Command,
    Evidence,
    Execution,
    Generate,
    GeneratorKind,
    Infer,
    ReaderKind,
    Retriever,
    RetrieverKind,
    Retrieving,
    Stress,
    Task,
    Train,
    is_trained,
    names,
    trainer_values,
)
from exam.run_config import CONFIG, load_run

RETRIEVE = "retrieve.py"
ENCODES = (RetrieverKind.two_stage, RetrieverKind.passages)


@dataclass(frozen=True)
class Workload:
    """What of a command runs on a GPU where there is one.

    `single` is the reason why it runs in one process; None where several can share the work.
    """

    reader: bool  # a reader, or the encoder or reranker that is trained
    retrieval: bool  # an encoder, a reranker, or a language model that writes questions
    single: str | None = None
    spreads: bool = False  # one process fills every GPU

    @property
    def uses_gpu(self) -> bool:
        """Whether any part of the command runs on a GPU."""
        return self.reader or self.retrieval


def workload_of(config: Command) -> Workload:
    """Return what a command computes, by its own configuration or that of the runs it restores.

    Raises:
        ExamError: a run's configuration cannot be read, or an override names none of its values.
    """
    if isinstance(config, Train):
        return Workload(_reads_on_gpu(config), _retrieves_on_gpu(config), _single(config))
    if isinstance(config, Retrieving):
        return Workload(False, _retrieves_on_gpu(config), RETRIEVE)
    if isinstance(config, Generate):
        return Workload(False, _writes_on_gpu(config), "generate.py")
    if isinstance(config, Infer | Stress | Evidence):
        return _restored(config)
    return Workload(False, False)


def _restored(config: Infer | Stress | Evidence) -> Workload:
    """Return the work of every run that a command restores."""
    files = [Path(name) / CONFIG for name in names(config.ckpt)]
    runs = [load_run(file, config, log_changes=False) for file in files if file.is_file()]
    reasons = [reason for run in runs if (reason := _single(run))]
    if isinstance(config, Stress | Evidence):
        reasons = [f"{type(config).__name__.lower()}.py"]
    passes = isinstance(config, Infer) and bool(config.passes)
    return Workload(
        any(map(_reads_on_gpu, runs)),
        bool(runs) and (passes or any(map(_retrieves_on_gpu, runs))),
        reasons[0] if reasons else None if runs else "predictions=",
        any(map(_spreads, runs)),
    )


def _single(config: Train) -> str | None:
    """Name what keeps a run in one process."""
    model = config.model
    if config.task is not Task.reader:
        return f"task={config.task.value}"
    if not model.kind.is_neural:
        return f"model={model.name}"
    if model.kind is ReaderKind.causal_lm and not is_trained(config.trainer):
        return f"model={model.name} without training"
    return None


def _reads_on_gpu(config: Train) -> bool:
    if config.task is not Task.reader:
        return True  # sentence-transformers scores on a GPU, wherever the Trainer trains
    if config.model.kind is ReaderKind.causal_lm and not is_trained(config.trainer):
        return True
    return config.model.kind.is_neural and not trainer_values(config.trainer).get("use_cpu")


def _spreads(config: Train) -> bool:
    return config.model.execution is Execution.offload


def _retrieves_on_gpu(config: Retrieving) -> bool:
    entries = (config.data.train, config.data.valid, config.data.test, config.data.extra)
    generates = any("generated" in names(entry) for entry in entries)
    return (
        _encodes(config.retriever)
        or config.reranker.ckpt is not None
        or (generates and _writes_on_gpu(config))
    )


def _encodes(retriever: Retriever) -> bool:
    return any(search.kind in ENCODES for search in (retriever, *retriever.members.values()))


def _writes_on_gpu(config: Retrieving | Generate) -> bool:
    generator = config.generator
    return generator.kind is GeneratorKind.rules or generator.writer.local
