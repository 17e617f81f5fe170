"""Context, model, tuning, adversary: what a reader reads, what it is, how it learns."""

from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from exam.config.values import Checkpoint, Dtype


class ReaderKind(Enum):
    """What answers the questions."""

    transformer = "transformer"
    lexical = "lexical"
    causal_lm = "causal_lm"

    @property
    def is_neural(self) -> bool:
        """Whether it is a checkpoint of a transformer."""
        return self in (ReaderKind.transformer, ReaderKind.causal_lm)


class Scoring(Enum):
    """How a causal language model scores options."""

    letters = "letters"  # the logit of each option's letter
    yes_no = "yes_no"  # yes less no, behind each option
    likelihood = "likelihood"  # the mean log-probability of each option's tokens


class Execution(Enum):
    """Where a causal language model's weights are while it runs."""

    memory = "memory"  # on the device
    offload = "offload"  # on the devices, in memory and on disk, as accelerate lays them out
    layerwise = "layerwise"  # on disk; each layer is read once for all questions


class Packing(Enum):
    """How a question is laid out for a transformer."""

    none = "none"  # one sequence for each option
    options = "options"  # all options behind one shared context
    cross = "cross"  # the same, and the options are compared before they are scored


class Order(Enum):
    """How a question's passages follow each other; the least relevant is cut first, always."""

    best_first = "best_first"
    best_last = "best_last"  # next to the question


class Layout(Enum):
    """What a reader reads first."""

    context_first = "context_first"
    question_first = "question_first"  # prompt and option, and the context fills the rest


class Loss(Enum):
    """What a transformer's training minimises."""

    softmax = "softmax"  # which of a question's options is right
    binary = "binary"  # of each option by itself, whether it is right


class BatchBy(Enum):
    """What is equal from batch to batch; `per_device_*_batch_size` counts questions."""

    questions = "questions"
    tokens = "tokens"  # of questions of like length; the batch size is their number on average


@dataclass
class Context:
    """What the reader sees of the ranked passages."""

    top_k: int = 5
    train_top_k: int | None = None  # in training, where it is another; null: top_k
    eval_top_k: int | None = None  # in evaluation and inference; null: top_k
    order: Order = Order.best_first
    layout: Layout = Layout.context_first

    def passages(self, *, training: bool) -> int:
        """How many of the ranked passages the reader reads."""
        own = self.train_top_k if training else self.eval_top_k
        return self.top_k if own is None else own


@dataclass
class Model:
    """A reader: hub id or folder, or small random weights; `lexical` needs neither."""

    name: str = MISSING
    kind: ReaderKind = ReaderKind.transformer
    name_or_path: str | None = None
    revision: str | None = None  # of a hub id: branch, tag or commit; null: main
    packing: Packing = Packing.none
    max_length: int = 256  # tokens of one option's sequence; words for the lexical reader
    eval_max_length: int | None = None  # in evaluation and inference; null: max_length
    batch_by: BatchBy = BatchBy.tokens
    loss: Loss = Loss.softmax  # trainer.label_smoothing_factor smooths either
    others: bool = False  # loss=binary: the mean of the other options' logits joins an option's own
    evidence: bool = False  # measures of each option against its passages join its score
    flash: bool = False  # DeBERTa with packing=none on a GPU: the package flashdeberta's attention
    dropout: float | None = None  # null: the checkpoint's own
    architecture: str | None = None  # without name_or_path: small random weights of this kind
    config: dict[str, Any] | None = None  # of them, where they are to be others
    scoring: Scoring = Scoring.letters  # causal_lm: how options are scored
    chat: bool | None = None  # causal_lm: framed by its chat template; null: where it has one
    template: str | None = None  # causal_lm: with {context}, {prompt}, {options} or {option}
    execution: Execution = Execution.memory  # causal_lm: where its weights are
    memory_gib: float = 4.0  # for hidden states (layerwise), for weights (offload)
    dtype: Dtype = Dtype.auto  # auto: float32, unless it is a causal_lm that answers untrained
    load_in_4bit: bool = False  # a decoder's, on a GPU: bitsandbytes' NF4, trained by adapters
    gguf: str | None = None  # causal_lm: the checkpoint's file, where it is a GGUF
    trust_remote_code: bool = False

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint to load; None for random weights and the lexical reader."""
        if self.name_or_path is None:
            return None
        return Checkpoint(
            "reader",
            "model.name_or_path",
            self.name_or_path,
            self.revision,
            self.trust_remote_code,
            self.gguf,
        )

    def at(self, folder: Path) -> "Model":
        """Return the same reader with the checkpoint of a folder."""
        return replace(self, name_or_path=str(folder), revision=None)

    def length(self, *, training: bool) -> int:
        """How many tokens (of the lexical reader: words) are read at most."""
        return self.max_length if training else self.eval_max_length or self.max_length


@dataclass
class Tuning:
    """Which weights of a transformer are trained, and how fast."""

    name: str = "full"
    freeze_embeddings: bool = False
    freeze_layers: float = 0.0  # the lowest ones; below 1 a share of all, as with warmup_steps
    layer_decay: float = 1.0  # a layer's learning rate in units of the next higher one's
    head_learning_rate: float | None = None  # null: trainer.learning_rate
    lora_rank: int | None = None  # null: the weights themselves are trained
    lora_alpha: float = 32.0
    lora_dropout: float = 0.05
    lora_targets: Any = None  # names of linear modules in the layers; null: all of them
    rslora: bool = False  # scaled by the rank's root, so that a high rank learns as fast
    dora: bool = False  # magnitude and direction apart


@dataclass
class Adversary:
    """A second pass of every training step, with weights shifted to where the loss is higher."""

    name: str = "none"
    adv_lr: float | None = None  # length of the shift in units of the weights' own; null: none
    adv_eps: float | None = 1e-4  # no weight moves by a larger share of itself; null: no such limit
    start_epoch: float = 0.5
