"""The groups of a reader: context, model, tuning."""

from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from exam.config.values import setting
from exam.core.checkpoints import Checkpoint, require_checkpoint
from exam.core.errors import ExamError
from exam.core.precision import Dtype


class ReaderKind(Enum):
    """The kind of reader."""

    transformer = "transformer"
    lexical = "lexical"
    causal_lm = "causal_lm"

    @property
    def is_neural(self) -> bool:
        """True if it loads the checkpoint of a transformer."""
        return self in (ReaderKind.transformer, ReaderKind.causal_lm)


class Scoring(Enum):
    """The way in which a causal language model scores options."""

    letters = "letters"  # the logit of each option's letter
    yes_no = "yes_no"  # the logit of yes minus that of no, after each option
    likelihood = "likelihood"  # the mean log-probability of each option's tokens


class WeightsLocation(Enum):
    """The location of a causal language model's weights while it runs."""

    memory = "memory"  # on the device
    offload = "offload"  # on devices, in memory and on disk, distributed by accelerate
    layerwise = "layerwise"  # on disk; each layer is read once for all questions


class Packing(Enum):
    """The order of a question's parts in a transformer's input."""

    none = "none"  # one sequence for each option
    options = "options"  # all options after one shared context
    cross = "cross"  # as options, and a layer compares them before they are scored


class Order(Enum):
    """The order of a question's passages; truncation always drops the least relevant first."""

    best_first = "best_first"
    best_last = "best_last"  # next to the question


class Layout(Enum):
    """The part of a question that comes first."""

    context_first = "context_first"
    question_first = "question_first"  # prompt and option, and the context fills the rest


class ChunkPooling(Enum):
    """The way in which an option's scores in several windows become one."""

    sum = "sum"  # log-sum-exp: one softmax over all windows and options
    max = "max"
    mean = "mean"


class Loss(Enum):
    """The loss of a transformer's training."""

    softmax = "softmax"  # cross-entropy over a question's options
    binary = "binary"  # binary cross-entropy of each option


class BatchBy(Enum):
    """The size that is equal from batch to batch; `per_device_*_batch_size` counts questions."""

    questions = "questions"
    tokens = "tokens"  # questions of similar length; the batch size is their average number


@dataclass
class Context:
    """The ranked passages that the reader sees."""

    num_passages: int = setting(5, "Passages to read for each question.", minimum=0)
    train_num_passages: int | None = setting(
        None, "Passages in training; null: num_passages.", minimum=0
    )
    eval_num_passages: int | None = setting(
        None, "Passages in inference; null: num_passages.", minimum=0
    )
    chunks: int = setting(
        1, "Windows of max_length tokens that share the passages; each is read.", minimum=1
    )
    train_chunks: int | None = setting(
        None, "Windows that each epoch of training draws for a question; null: all.", minimum=1
    )
    chunk_pooling: ChunkPooling = setting(
        ChunkPooling.sum, "How an option's scores in its windows become one."
    )
    order: Order = setting(Order.best_first, "Order of the passages in a window.")
    layout: Layout = setting(Layout.context_first, "Which part of a question comes first.")

    def validate(self) -> None:
        """Refuse to draw more windows than there are."""
        if self.train_chunks is not None and self.train_chunks > self.chunks:
            raise ExamError(
                f"context.train_chunks={self.train_chunks} exceeds context.chunks={self.chunks}.\n"
                f"Set context.chunks={self.train_chunks}, or leave context.train_chunks out."
            )

    def passages(self, *, training: bool) -> int:
        """Return how many of the ranked passages the reader reads."""
        top_k = self.train_num_passages if training else self.eval_num_passages
        return self.num_passages if top_k is None else top_k


FLASH = "flashdeberta"  # a package
SETTINGS_OF = {  # one neural kind only
    ReaderKind.transformer: (
        *("packing", "overlap_features", "loss", "cross_option_bias"),
        *("attn_implementation", "dropout"),
    ),
    ReaderKind.causal_lm: (
        *("scoring", "use_chat_template", "template"),
        *("weights_location", "max_memory_gib", "gguf_file"),
    ),
}


@dataclass
class Model:
    """A reader: a checkpoint, small random weights, or word overlap (`kind=lexical`)."""

    name: str = setting(MISSING, "Name in folders and reports.")
    kind: ReaderKind = setting(ReaderKind.transformer, "Kind of reader.")
    name_or_path: str | None = setting(None, "Hub id or folder; null: small random weights.")
    revision: str | None = setting(None, "Branch, tag or commit of a hub id; null: main.")
    packing: Packing = setting(Packing.none, "How the options of a question share sequences.")
    max_length: int = setting(256, "Tokens (lexical: words) of a sequence, at most.", minimum=1)
    eval_max_length: int | None = setting(None, "Tokens in inference; null: max_length.", minimum=1)
    batch_by: BatchBy = setting(BatchBy.tokens, "Which size is equal from batch to batch.")
    loss: Loss = setting(Loss.softmax, "Loss; trainer.label_smoothing_factor smooths either.")
    cross_option_bias: bool = setting(
        False, "loss=binary: add a learned multiple of the other options' mean."
    )
    overlap_features: bool = setting(
        False, "Add features of word overlap with the passages to the score."
    )
    attn_implementation: str = setting(
        "auto", "flashdeberta: for DeBERTa on a GPU, with packing=none.", choices=("auto", FLASH)
    )
    dropout: float | None = setting(None, "Dropout; null: the checkpoint's.", minimum=0, below=1)
    architecture: str | None = setting(None, "Architecture of small random weights.")
    config: dict[str, Any] | None = setting(None, "Configuration of small random weights.")
    scoring: Scoring = setting(Scoring.letters, "causal_lm: how options are scored.")
    use_chat_template: bool | None = setting(
        None, "causal_lm: apply the chat template; null: if any."
    )
    template: str | None = setting(
        None, "causal_lm: prompt with {context}, {prompt}, {options} or {option}."
    )
    weights_location: WeightsLocation = setting(
        WeightsLocation.memory, "causal_lm: where the weights are."
    )
    max_memory_gib: float = setting(4.0, "GiB of hidden states (layerwise) or weights (offload).")
    dtype: Dtype = setting(
        Dtype.auto, "Number format; auto: float32, unless an untrained causal_lm."
    )
    load_in_4bit: bool = setting(False, "Decoder on a GPU: load in NF4 and train adapters.")
    gguf_file: str | None = setting(None, "causal_lm: file of a GGUF checkpoint.")
    trust_remote_code: bool = setting(False, "Run code that comes with the checkpoint.")

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
            self.gguf_file,
        )

    @property
    def required_checkpoint(self) -> Checkpoint:
        """The checkpoint; refuse a configuration that names none."""
        return require_checkpoint(self.checkpoint, "model.name_or_path")

    def at(self, folder: Path) -> "Model":
        """Return the same reader with the checkpoint of a folder."""
        return replace(self, name_or_path=str(folder), revision=None)

    def length(self, *, training: bool) -> int:
        """Return the greatest number of tokens (lexical reader: words) that are read."""
        return self.max_length if training else self.eval_max_length or self.max_length

    def validate(self) -> None:
        """Refuse a reader without weights, settings of another kind, and contradictions."""
        if self.kind.is_neural:
            self._check_kind()
        if self.kind is ReaderKind.causal_lm:
            self._check_weights()
            self._check_template()
        if self.cross_option_bias and self.loss is not Loss.binary:
            raise ExamError(
                "model.cross_option_bias=true has no effect with model.loss=softmax, which compares"
                " the options already.\nSet model.loss=binary, or leave model.cross_option_bias "
                "out."
            )
        if self.attn_implementation == FLASH and self.packing is not Packing.none:
            raise ExamError(
                f"model.attn_implementation={FLASH} needs one sequence for each option (got "
                f"model.packing={self.packing.value}).\n"
                "Set model.packing=none, or leave model.attn_implementation out."
            )

    def _check_kind(self) -> None:
        """Refuse a missing checkpoint, and settings that only the other neural reader has."""
        if not (self.name_or_path or self.config or self.architecture):
            raise ExamError(
                "model.name_or_path has no value.\n"
                "Set model.name_or_path=<hub id or folder>, or choose a model, as model=minilm"
            )
        for kind, names in SETTINGS_OF.items():
            for name in names if kind is not self.kind else ():
                if getattr(self, name) != getattr(Model(), name):
                    raise ExamError(
                        f"model.{name} has no effect with model.kind={self.kind.value}; it is for "
                        f"model.kind={kind.value}.\nLeave it out, or choose another model."
                    )

    def _check_weights(self) -> None:
        """Refuse quantized weights of a causal language model where they cannot run."""
        if self.load_in_4bit and self.weights_location is not WeightsLocation.memory:
            raise ExamError(
                "model.load_in_4bit=true needs model.weights_location=memory "
                f"(got {self.weights_location.value}).\nLeave one of them out."
            )
        if self.gguf_file and self.weights_location is WeightsLocation.layerwise:
            raise ExamError(
                "model.weights_location=layerwise reads safetensors, but model.gguf_file names a "
                "GGUF file.\nChoose model.weights_location=memory, or a checkpoint in safetensors."
            )

    def _check_template(self) -> None:
        """Refuse a template without the part that is scored, or with parts read once an option."""
        required = {Scoring.letters: "{options}", Scoring.yes_no: "{option}"}.get(self.scoring, "")
        for part in ("{prompt}", required):
            if part not in (self.template or part):
                raise ExamError(
                    f"model.template needs {part} for model.scoring={self.scoring.value}.\n"
                    f"Add {part} to the template."
                )
        _, option, suffix = (self.template or "").partition("{option}")
        if option and ("{option}" in suffix or "{context}" in suffix):
            raise ExamError(
                "model.template repeats {option}, or has {context} after it; the model would read "
                "that part anew for every option.\nPut {context} first, and {option} once."
            )
        if self.scoring is Scoring.likelihood and option:
            raise ExamError(
                "model.template must not contain {option} with model.scoring=likelihood, which "
                "appends the option.\nLeave {option} out."
            )


@dataclass
class Tuning:
    """The weights of a transformer to train, and how fast."""

    name: str = setting("full", "Name in folders and reports.")
    freeze_embeddings: bool = setting(False, "Freeze the embeddings.")
    freeze_layers: float = setting(0.0, "Lowest layers to freeze; below 1: a share.", minimum=0)
    layer_decay: float = setting(
        1.0, "Learning-rate factor of each lower layer.", above=0, maximum=1
    )
    head_learning_rate: float | None = setting(
        None, "Learning rate of the head; null: trainer.learning_rate.", above=0
    )
    lora_rank: int | None = setting(None, "Rank of LoRA adapters; null: no adapters.", minimum=1)
    lora_alpha: float = setting(32.0, "Scale of LoRA adapters.")
    lora_dropout: float = setting(0.05, "Dropout of LoRA adapters.", minimum=0, below=1)
    lora_targets: Any = setting(None, "Names of linear modules to adapt; null: all in the layers.")
    use_rslora: bool = setting(False, "Scale adapters by the root of the rank, for high ranks.")
    use_dora: bool = setting(False, "Adapt magnitude and direction separately.")
    awp_lr: float | None = setting(
        None, "Relative length of the adversarial shift of the weights; null: none.", above=0
    )
    awp_eps: float | None = setting(
        1e-4, "Greatest relative shift of a single weight; null: any.", above=0
    )
    awp_start_epoch: float = setting(0.5, "Epoch of the first adversarial shift.")

    def validate(self) -> None:
        """Refuse settings of adapters where there are none."""
        if self.lora_rank is None and (self.use_rslora or self.use_dora or self.lora_targets):
            raise ExamError(
                "tuning.use_rslora, tuning.use_dora and tuning.lora_targets need LoRA adapters.\n"
                "Choose tuning=lora, or leave them out."
            )
