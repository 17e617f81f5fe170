"""The models that a command runs, and whether several processes can share the work."""

from dataclasses import dataclass
from pathlib import Path

from exam.config import (
    Command,
    Generate,
    GeneratorKind,
    Infer,
    ReaderKind,
    Retrieving,
    Stress,
    Task,
    Train,
    WeightsLocation,
    is_trained,
    names,
    trainer_values,
)
from exam.config.saved import CONFIG, load_run

RETRIEVE = "exam retrieve"


@dataclass(frozen=True)
class Workload:
    """The parts of a command that run on a GPU where there is one.

    `single` is the reason to run in one process; None where several can share the work.
    """

    reader: bool  # a reader, or the encoder or reranker that is trained
    retrieval: bool  # an encoder, a reranker, or a language model that writes questions
    single: str | None = None
    spreads: bool = False  # one process fills every GPU

    @property
    def uses_gpu(self) -> bool:
        """Tell whether any part of the command runs on a GPU."""
        return self.reader or self.retrieval


def uses_encoder(config: Retrieving | Generate) -> bool:
    """Tell whether a command encodes texts."""
    if isinstance(config, Generate):
        return config.generator.kind is GeneratorKind.rules
    generates = (
        config.data.uses_generated_questions and config.generator.kind is GeneratorKind.rules
    )
    trains = isinstance(config, Train) and config.task is Task.encoder
    return config.retriever.encodes or generates or trains


def uses_writer(config: Retrieving | Generate) -> bool:
    """Tell whether a command has a language model write questions."""
    asks = isinstance(config, Generate) or config.data.uses_generated_questions
    return asks and config.generator.kind is GeneratorKind.llm


def workload_of(config: Command) -> Workload:
    """Return a command's workload, from its configuration or from those of the runs it restores.

    Raises:
        ExamError: a run's configuration cannot be read, or an override names none of its values.
    """
    if isinstance(config, Train):
        return Workload(_reads_on_gpu(config), _retrieves_on_gpu(config), _single(config))
    if isinstance(config, Retrieving):
        return Workload(False, _retrieves_on_gpu(config), RETRIEVE)
    if isinstance(config, Generate):
        return Workload(False, _retrieves_on_gpu(config), "exam generate")
    if isinstance(config, Infer | Stress):
        return _restored(config)
    return Workload(False, False)


def _restored(config: Infer | Stress) -> Workload:
    """Return the work of every run that a command restores."""
    files = [Path(name) / CONFIG for name in names(config.ckpt)]
    runs = [load_run(file, config, log_changes=False) for file in files if file.is_file()]
    reasons = [reason for run in runs if (reason := _single(run))]
    if isinstance(config, Stress):
        reasons = ["exam stress"]
    passes = isinstance(config, Infer) and bool(config.variants)
    return Workload(
        any(map(_reads_on_gpu, runs)),
        bool(runs) and (passes or any(map(_retrieves_on_gpu, runs))),
        reasons[0] if reasons else None if runs else "predictions=",
        any(map(_spreads, runs)),
    )


def _single(config: Train) -> str | None:
    """Return the reason to keep a run in one process; None where several can share it."""
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
    return config.model.weights_location is WeightsLocation.offload


def _retrieves_on_gpu(config: Retrieving | Generate) -> bool:
    reranks = isinstance(config, Retrieving) and config.reranker.ckpt is not None
    writes = uses_writer(config) and config.generator.llm.local
    return uses_encoder(config) or reranks or writes
