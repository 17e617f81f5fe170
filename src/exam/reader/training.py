"""Fine-tune a reader with `transformers.Trainer`, and predict with the same code."""

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import AutocastKwargs
from datasets import Dataset
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)
from transformers.utils.import_utils import is_bitsandbytes_available

from exam import ranks
from exam.artefacts import Stage
from exam.config import Adversary, Context, Layout, Model, Packing, Tuning
from exam.errors import ExamError
from exam.metrics import Floats, count_ties, map_at_k
from exam.precision import computes_in_bfloat16
from exam.reader.collator import Collator, MultipleChoiceCollator, PackedCollator
from exam.reader.features import Reading, saved_features
from exam.reader.lexical import fit as fit_logit
from exam.reader.measures import MEASURES
from exam.reader.memory import estimated_mib
from exam.reader.model import load_reader, longest_input
from exam.reader.trainer import ReaderTrainer
from exam.reader.tuning import (
    adapters_base,
    counts,
    is_adapted,
    merged,
    save_adapters,
    tuned,
)
from exam.runs import fit, training_arguments, with_callbacks
from exam.weights import locate

log = logging.getLogger(__name__)

EIGHT_BIT = "adamw_bnb_8bit"


@dataclass(frozen=True)
class Reader:
    """What training and prediction share: a model, its tokenizer, and the Trainer's arguments."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    arguments: TrainingArguments
    config: Model
    layout: Layout = Layout.context_first
    tuning: Tuning = field(default_factory=Tuning)
    adversary: Adversary = field(default_factory=Adversary)
    sharded: ReaderTrainer | None = None  # that trained it, where no process has it whole

    @classmethod
    def load(
        cls,
        config: Model,
        trainer: dict[str, Any],
        folder: Path,
        seed: int,
        texts: Iterable[str] = (),
        layout: Layout = Layout.context_first,
    ) -> "Reader":
        """The reader of a configuration; its Trainer saves below `folder`.

        `texts` train the tokenizer of a random model.
        """
        arguments = reader_arguments(trainer, folder, seed)
        return cls(*cls.load_model(config, seed, texts), arguments, config, layout)

    load_model = staticmethod(load_reader)

    def to_train(self, features: Dataset, tuning: Tuning, adversary: Adversary) -> "Reader":
        """The reader with what is to be trained of it on `features`, and how."""
        _check_sharding(self, tuning, adversary)
        if self.config.evidence:
            _start_evidence(self.model, features)
        model = tuned(self.model, tuning, self.config.name_or_path)
        return replace(self, model=model, tuning=tuning, adversary=adversary)

    def save(self, folder: Path) -> None:
        """Write model and tokenizer; all processes come here together, and rank 0 writes.

        Of adapters they alone, unless what they change has no place of its own: a random model, or
        one with adapters itself.
        """
        trainer, model, base = self.sharded, self.model, self.config.name_or_path
        state = trainer and trainer.accelerator.get_state_dict(trainer.model_wrapped)
        if ranks.rank() > 0:
            return
        if is_adapted(model) and base is not None and _has_own_base(self):
            save_adapters(model, base, folder, state)
        else:
            whole: Any = merged(model) if is_adapted(model) else model
            whole.save_pretrained(folder, state_dict=state)
        self.tokenizer.save_pretrained(folder)

    def collator(self, options: int) -> Collator:
        """What lays questions of at most so many options out as a batch."""
        if self.config.packing is not Packing.none:
            return PackedCollator(self.tokenizer, options, self.layout)
        marked = self.model.config.model_type == "longformer"
        return MultipleChoiceCollator(self.tokenizer, options, self.layout, global_attention=marked)

    def features(
        self,
        name: str,
        questions: Dataset,
        contexts: Stage,
        context: Context,
        *,
        training: bool = False,
    ) -> Dataset:
        """Questions with a stage's passages in token ids; kept beside the stage as `name`."""
        longer = self.config.length(training=training)
        if self.config.packing is not Packing.none and self.layout is Layout.question_first:
            longer -= 1  # the context ends with a token of its own
        reading = Reading(
            top_k=context.passages(training=training),
            max_length=longer,
            longest=longest_input(self.model, longer),
            order=context.order,
            evidence=self.config.evidence,
        )
        with ranks.leader_first():
            return saved_features(name, questions, contexts, self.tokenizer, reading)

    def trainer(self, train: Dataset | None, dev: Dataset | None, options: int) -> ReaderTrainer:
        """The Trainer, with MAP@3 as its metric."""
        collator = self.collator(options)
        trainer = ReaderTrainer(
            model=self.model,
            args=self.arguments,
            train_dataset=None if train is None else _measured(train, collator),
            eval_dataset=None if dev is None else _measured(dev, collator),
            data_collator=collator,
            compute_metrics=map_at_3,
            processing_class=self.tokenizer,
        )
        trainer.batch_by = self.config.batch_by
        trainer.loss, trainer.others = self.config.loss, self.config.others
        trainer.tuning, trainer.adversary = self.tuning, self.adversary
        with_callbacks(trainer)
        return trainer


def _measured(features: Dataset, collator: Collator) -> Dataset:
    """Features with the number of tokens each question takes of a batch."""
    return features.add_column("tokens", [collator.tokens(row) for row in features.to_list()])


def _start_evidence(model: Any, features: Dataset) -> None:
    """Weigh the measures as a conditional logit fitted on them alone does, unless they are trained.

    From nothing, the rates that suit the other weights would hardly move these.
    """
    answered = features.filter(lambda row: row["labels"] is not None, load_from_cache_file=False)
    evidence, labels = answered["evidence"], answered["labels"]
    if model.evidence.weight.any():
        return
    found = np.full((len(labels), max(map(len, evidence)), len(MEASURES)), np.nan)
    for row, own in zip(found, evidence, strict=True):
        row[: len(own)] = own
    with torch.no_grad():
        model.evidence.weight[0] = torch.from_numpy(fit_logit(found, np.array(labels)).weights)


def _check_sharding(reader: Reader, tuning: Tuning, adversary: Adversary) -> None:
    """Refuse what needs every weight whole where no process has it."""
    named = {"DeepSpeed": reader.arguments.deepspeed, "FSDP": reader.arguments.fsdp}
    for name, given in named.items():
        launched = os.environ.get(f"ACCELERATE_USE_{name.upper()}", "false")  # accelerate launch
        if not given and launched.lower() != "true":
            continue
        if adversary.adv_lr is not None:
            raise ExamError(
                f"adversary=awp shifts each weight by its own gradient, which {name} cuts up.\n"
                "Choose adversary=none, or run without it (torchrun alone trains a copy on every "
                "GPU)."
            )
        if tuning.lora_rank is not None and not _has_own_base(reader):
            raise ExamError(
                f"The adapters are saved merged, as what they change is random or adapted itself, "
                f"and {name} cuts the weights up.\n"
                "Give a whole checkpoint, model.name_or_path=<hub id or folder>, or choose "
                "tuning=full."
            )


def _has_own_base(reader: Reader) -> bool:
    """Whether adapters of this reader change a whole checkpoint that lies somewhere."""
    base = reader.config.name_or_path
    return base is not None and adapters_base(Path(locate(base))) is None


def map_at_3(prediction: EvalPrediction) -> dict[str, float]:
    """The Trainer's metric: `eval_map_at_3`."""
    logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    refuse_nan(logits)
    return {"map_at_3": map_at_k(logits.astype(np.float64), labels, k=3)}


def refuse_nan(logits: Floats) -> None:
    """Refuse logits that are no numbers."""
    broken = int(np.isnan(logits).any(axis=1).sum())
    if broken:
        raise ExamError(
            f"The reader gave NaN for {broken} of {len(logits)} questions.\n"
            "Train again with a lower trainer.learning_rate, or without fp16."
        )


def reader_arguments(values: dict[str, Any], folder: Path, seed: int) -> TrainingArguments:
    """The Trainer's arguments of a configuration, saving below `folder`."""
    own: dict[str, Any] = {"remove_unused_columns": False, "label_names": ["labels"]}
    if values.get("optim") == EIGHT_BIT and not (
        is_bitsandbytes_available() and torch.cuda.is_available()
    ):
        log.warning("train: trainer.optim=%s needs bitsandbytes and a GPU: adamw_torch", EIGHT_BIT)
        values = {**values, "optim": "adamw_torch"}
    own["use_cpu"] = values.get("use_cpu", not torch.accelerator.is_available())
    if not values.keys() & {"bf16", "fp16"}:
        own["bf16"] = computes_in_bfloat16(on_cpu=own["use_cpu"])
    return training_arguments(TrainingArguments, values, folder, seed, "map_at_3", **own)


def train(reader: Reader, train: Dataset, dev: Dataset) -> tuple[Reader, dict[str, Any]]:
    """Train, from the last whole checkpoint if there is one; the best checkpoint is left loaded.

    Returns the reader, and how it was trained: the Trainer's final figures, how many parameters
    learned, and what memory was expected. The state file lies beside the checkpoints' folder.
    """
    args = reader.arguments
    if args.num_train_epochs == 0:
        log.info("train: trainer.num_train_epochs=0: the checkpoint answers as it is")
        return reader, {"steps": 0}
    options = max(len(o) for part in (train, dev) for o in part["options"])
    trainer = reader.trainer(train, dev if len(dev) else None, options)
    estimate = _estimate(reader, train, options)
    figures = fit(trainer)
    log.info("train: %s", " · ".join(f"{name} {value}" for name, value in figures.items()))
    figures |= {"parameters": counts(reader.model), "estimated_mib": estimate}
    sharded = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
    return replace(reader, sharded=trainer if sharded else None), figures


def _estimate(reader: Reader, features: Dataset, options: int) -> dict[str, int]:
    """Say what a step will take of the device's memory, in MiB of each kind."""
    args, packed = reader.arguments, reader.config.packing is not Packing.none
    tokens = _measured(features, reader.collator(options))["tokens"][:]
    longest = max(tokens) // (1 if packed else options)
    size = args.per_device_train_batch_size
    found = estimated_mib(reader.model, args, round(np.mean(tokens) * size), longest)
    parts = " · ".join(f"{name} {mib:,}" for name, mib in found.items())
    log.info("train: about %s MiB: %s (batches of %d)", f"{sum(found.values()):,}", parts, size)
    return found


def predict(reader: Reader, features: Dataset) -> Floats:
    """Logits of shape `(questions, options)`; `-inf` where a question has no such option.

    Raises:
        ExamError: the model gave NaN.
    """
    options = max(len(o) for o in features["options"])
    unlabelled = features.remove_columns("labels")  # answers may be known for a part only
    trainer = reader.sharded or reader.trainer(None, unlabelled, options)
    # Every weight is used once a batch: a copy in bfloat16 need not be kept until its end.
    trainer.accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)
    trainer.data_collator = collator = reader.collator(options)
    measured = _measured(unlabelled, collator)
    found = np.asarray(trainer.predict(measured).predictions, dtype=np.float64)
    logits = np.empty_like(found)
    logits[trainer.predicted_order(measured)] = found
    refuse_nan(logits)
    ties = count_ties(logits)
    if ties:
        log.warning("predict: %d questions with equal logits, ranked in option order", ties)
    return logits
