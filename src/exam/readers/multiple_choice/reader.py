"""A reader that scores options with a transformer under the Hugging Face Trainer."""

import logging
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow.parquet as pq
import torch
from accelerate.utils import AutocastKwargs
from datasets import Dataset, Features
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from exam.config import (
    DEFAULT_K,
    Context,
    Layout,
    Model,
    Packing,
    Train,
    Tuning,
    answering_values,
    trainer_values,
)
from exam.core import distributed
from exam.core.artifacts import Stage, open_stage
from exam.core.checkpoints import MODEL, Checkpoint, max_input_tokens, resolve_checkpoint
from exam.core.errors import ExamError
from exam.core.estimates import step_mib
from exam.core.files import write_atomically, write_json
from exam.core.tokenization import tokenizer_digest
from exam.core.trainer import CHECKPOINTS, TRAINING, add_callbacks, fit
from exam.data.questions import questions_digest
from exam.data.splits import Split
from exam.metrics import Floats, count_ties
from exam.readers.lexical import OVERLAP_FEATURES, compute_overlap_features, fit_weights
from exam.readers.multiple_choice.collator import Collator, MultipleChoiceCollator, PackedCollator
from exam.readers.multiple_choice.features import (
    DRAWN,
    EVIDENCE,
    FEATURES,
    TARGETS,
    TokenCounts,
    build_features,
    shuffle_options,
)
from exam.readers.multiple_choice.model import iter_texts, load_model
from exam.readers.trainer import (
    ReaderTrainer,
    ReaderTrainingArguments,
    build_reader_arguments,
    compute_metric,
    refuse_nan,
)
from exam.readers.tuning import (
    apply_tuning,
    count_parameters,
    find_adapter_base,
    is_adapted,
    merge_adapters,
    save_adapters,
)
from exam.retrieval.contexts import read_contexts

log = logging.getLogger(__name__)

FILE = "features.parquet"


@dataclass(frozen=True)
class MultipleChoiceReader:
    """A model, its tokenizer, and the Trainer's arguments, for training and prediction.

    `context` sets the number, order and layout of the passages.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    arguments: ReaderTrainingArguments
    config: Model
    context: Context = field(default_factory=Context)
    sharded: ReaderTrainer | None = None  # the Trainer of a model that no process holds whole

    @classmethod
    def build(
        cls,
        config: Model,
        trainer: dict[str, Any],
        folder: Path,
        seed: int,
        texts: Iterable[str] = (),
        context: Context | None = None,
        k: int = DEFAULT_K,
    ) -> Self:
        """Load a configured model; its Trainer saves below `folder`.

        `texts` train the tokenizer of a random model. MAP@k chooses the checkpoint.
        """
        context = context or Context()
        pooling = context.chunk_pooling
        arguments = build_reader_arguments(trainer, folder, seed, config, k, pooling)
        return cls(*cls.load_model(config, seed, texts), arguments, config, context)

    load_model = staticmethod(load_model)

    @classmethod
    def fit(cls, config: Train, folder: Path, split: Split, pool: Stage) -> Self:
        """Train on a split; save the model, its tokenizer and the figures of the training."""
        work, values = folder / CHECKPOINTS, trainer_values(config.trainer)
        texts = iter_texts(split.train)
        reader = cls.build(
            config.model, values, work, config.seed, texts, config.context, config.metric.k
        )
        shuffled = shuffle_options(split.train, config.seed)
        questions = shuffled.select_columns(list(split.dev.column_names))  # without soft labels
        train, _ = reader.encode(f"{config.data.name}-train", questions, pool, training=True)
        dev, _ = reader.encode(f"{config.data.name}-dev", split.dev, pool)
        if TARGETS in shuffled.column_names:
            train = train.add_column(TARGETS, shuffled[TARGETS][:])
        reader, figures = reader.prepare_for_training(train, config.tuning).train(train, dev)
        reader.save(folder / MODEL)
        if distributed.rank() == 0:
            write_json(folder / TRAINING, figures)
        return reader

    @classmethod
    def load(cls, config: Train, saved: Path, work: Path) -> Self:
        """Load the configured model for prediction."""
        values = answering_values(config.trainer)
        return cls.build(config.model, values, work, config.seed, context=config.context)

    def predict(self, questions: Dataset, contexts: Stage) -> tuple[Floats, TokenCounts | None]:
        """Return logits `(questions, options)`, and the counts of tokens."""
        features, tokens = self.encode(contexts.folder.name, questions, contexts)
        return self.predict_logits(features), tokens

    def prepare_for_training(self, features: Dataset, tuning: Tuning) -> Self:
        """Return the reader with the weights that `tuning` trains on `features`."""
        _check_sharding(self, tuning)
        if self.config.overlap_features:
            _fit_overlap_weights(self.model, features)
        model = apply_tuning(self.model, tuning, self.config.name_or_path)
        counts = count_parameters(model)
        log.debug("train: %s", "{trained:,} of {all:,} parameters ({share:.1%})".format(**counts))
        if self.arguments.bf16 or self.arguments.fp16:
            _widen_trained_weights(model)
        return replace(self, model=model, arguments=self.arguments.with_tuning(tuning))

    def train(self, train: Dataset, dev: Dataset) -> tuple[Self, dict[str, Any]]:
        """Train from the last complete checkpoint, if any, and load the best checkpoint.

        Returns the reader, and the Trainer's final figures with the number of trained parameters
        and the expected memory. The state file lies beside the checkpoints' folder.
        """
        if self.arguments.num_train_epochs == 0:
            log.info("train: trainer.num_train_epochs=0: the checkpoint answers without training")
            return self, {"steps": 0}
        options = max(len(o) for part in (train, dev) for o in part["options"])
        trainer = self.build_trainer(train, dev if len(dev) else None, options)
        counted: Any = trainer.train_dataset
        estimate = _estimate_memory(self, counted["tokens"][:], options)
        figures = fit(trainer)
        log.debug("train: %s", " · ".join(f"{name} {value}" for name, value in figures.items()))
        figures |= trainer.final_losses()
        figures |= {"parameters": count_parameters(self.model), "estimated_mib": estimate}
        is_sharded = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
        return replace(self, sharded=trainer if is_sharded else None), figures

    def predict_logits(self, features: Dataset) -> Floats:
        """Return logits `(questions, options)`; `-inf` where a question has no such option.

        Raises:
            ExamError: the model gave NaN.
        """
        options = max(len(o) for o in features["options"])
        unlabelled = features.remove_columns("labels")  # some questions may have no label
        trainer = self.sharded or self.build_trainer(None, unlabelled, options)
        # Every weight is used once a batch, so a copy in bfloat16 is not worth caching.
        trainer.accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)
        trainer.data_collator = collator = self.build_collator(options)
        counted = add_token_counts(unlabelled, collator)
        predictions = np.asarray(trainer.predict(counted).predictions, dtype=np.float64)
        logits = np.empty_like(predictions)
        logits[trainer.prediction_order(counted)] = predictions
        refuse_nan(logits)
        if ties := count_ties(logits):
            log.warning("predict: %d questions with equal logits, ranked in option order", ties)
        return logits

    def save(self, folder: Path) -> None:
        """Write model and tokenizer from rank 0; every process must call this.

        Adapters are saved without the checkpoint that they change, if that has a folder: a random
        model and a checkpoint with adapters have none, and are saved merged.
        """
        trainer, model = self.sharded, self.model
        state = trainer and trainer.accelerator.get_state_dict(trainer.model_wrapped)
        if distributed.rank() > 0:
            return
        if is_adapted(model) and (base := _find_whole_base(self)) is not None:
            save_adapters(model, base, folder, state)
        else:
            whole: Any = merge_adapters(model) if is_adapted(model) else model
            whole.save_pretrained(folder, state_dict=state)
        self.tokenizer.save_pretrained(folder)

    def build_collator(self, options: int) -> Collator:
        """Build the collator of questions with at most `options` options."""
        layout = self.context.layout
        shared = (self.tokenizer, options, layout, self.arguments.seed)
        if self.config.packing is not Packing.none:
            return PackedCollator(*shared)
        is_longformer = self.model.config.model_type == "longformer"
        return MultipleChoiceCollator(*shared, global_attention=is_longformer)

    def max_length(self, *, training: bool) -> int:
        """Return how many tokens context, prompt and an option may take."""
        is_packed = self.config.packing is not Packing.none
        ends_context = is_packed and self.context.layout is Layout.question_first  # with a token
        return self.config.length(training=training) - ends_context

    def encode(
        self, name: str, questions: Dataset, contexts: Stage, *, training: bool = False
    ) -> tuple[Dataset, TokenCounts | None]:
        """Encode questions with a stage's passages, and count their tokens.

        The token ids are cached beside the stage as `name`.
        """
        top_k, order = self.context.passages(training=training), self.context.order
        chunks = self.context.chunks
        max_length = self.max_length(training=training)
        longest = max_input_tokens(self.model, max_length)
        has_evidence = self.config.overlap_features
        key = {
            "format": 6,
            "questions": questions_digest(questions),
            "contexts": contexts.hash,
            "tokenizer": tokenizer_digest(self.tokenizer),
            "top_k": top_k,
            "max_length": max_length,
            "longest": longest,
            "order": order.value,
            "chunks": chunks,
            "evidence": list(OVERLAP_FEATURES) if has_evidence else None,
        }
        outputs = contexts.folder.parents[1]
        with (
            distributed.main_process_first(),
            open_stage(outputs, "features", name, key, log_level=logging.DEBUG) as stage,
        ):
            path = stage.folder / FILE
            if not stage.reused:
                passages = read_contexts(contexts, top_k)
                features, stats = build_features(
                    questions, passages, self.tokenizer, max_length, longest, order, chunks
                )
                if has_evidence:
                    budget = max_length * chunks
                    overlap = compute_overlap_features(questions, contexts, top_k, budget)
                    rows = [
                        row[: len(options)].tolist()
                        for row, options in zip(overlap, questions["options"], strict=True)
                    ]
                    features = features.add_column("evidence", rows, feature=EVIDENCE["evidence"])
                with write_atomically(path) as temporary:
                    features.to_parquet(temporary)
                stage.finish([FILE], questions=len(features), **asdict(stats))
        tokens = TokenCounts(**stage.metadata["tokens"])
        tokens.warn("features")
        schema = Features({**FEATURES, **EVIDENCE}) if has_evidence else FEATURES
        features = Dataset.from_dict(pq.read_table(path).to_pydict(), features=schema)
        if training and self.context.train_chunks is not None:
            features = features.add_column(DRAWN, [self.context.train_chunks] * len(features))
        return features, tokens

    def build_trainer(
        self, train: Dataset | None, dev: Dataset | None, options: int
    ) -> ReaderTrainer:
        """Build the Trainer, with MAP@k as its metric."""
        collator = self.build_collator(options)
        trainer = ReaderTrainer(
            model=self.model,
            args=self.arguments,
            train_dataset=None if train is None else add_token_counts(train, collator),
            eval_dataset=None if dev is None else add_token_counts(dev, collator),
            data_collator=collator,
            compute_metrics=partial(compute_metric, k=self.arguments.metric_k),
            processing_class=self.tokenizer,
        )
        add_callbacks(trainer)
        return trainer


def add_token_counts(features: Dataset, collator: Collator) -> Dataset:
    """Add the number of tokens that each question takes of a batch."""
    counts = [collator.count_tokens(row) for row in features.to_list()]
    return features.add_column("tokens", counts)


def _estimate_memory(
    reader: MultipleChoiceReader, tokens: list[int], options: int
) -> dict[str, int]:
    """Log and return the device memory of a step, in MiB; `tokens` are those of each question."""
    args, packed = reader.arguments, reader.config.packing is not Packing.none
    longest = max(tokens) // (1 if packed else options)
    size = args.per_device_train_batch_size
    sizes = step_mib(reader.model, args, round(np.mean(tokens) * size), longest)
    parts = " · ".join(f"{name} {mib:,}" for name, mib in sizes.items())
    log.debug("train: about %s MiB: %s (batches of %d)", f"{sum(sizes.values()):,}", parts, size)
    return sizes


def _fit_overlap_weights(model: Any, features: Dataset) -> None:
    """Fit untrained weights of the overlap features as a conditional logit.

    From zero, the learning rates that suit the other weights would hardly move these.
    """
    if model.evidence.weight.any():
        return
    answered = features.filter(lambda row: row["labels"] is not None, load_from_cache_file=False)
    evidence, labels = answered["evidence"], answered["labels"]
    values = np.full((len(labels), max(map(len, evidence)), len(OVERLAP_FEATURES)), np.nan)
    for row, options in zip(values, evidence, strict=True):
        row[: len(options)] = options
    with torch.no_grad():
        model.evidence.weight[0] = torch.from_numpy(fit_weights(values, np.array(labels)))


def _widen_trained_weights(model: nn.Module) -> None:
    """Convert the fp16 weights that are trained to fp32.

    A step is below fp16's precision, and a gradient scaler refuses fp16 weights. Autocast narrows
    the weights again in every product.
    """
    for weight in model.parameters():
        if weight.requires_grad and weight.dtype is torch.float16:
            weight.data = weight.data.float()


def _check_sharding(reader: MultipleChoiceReader, tuning: Tuning) -> None:
    """Refuse settings that need whole weights if each process holds a part of them."""
    libraries = {"DeepSpeed": reader.arguments.deepspeed, "FSDP": reader.arguments.fsdp}
    for name, setting in libraries.items():
        launched = os.environ.get(f"ACCELERATE_USE_{name.upper()}", "false")  # accelerate launch
        if not setting and launched.lower() != "true":
            continue
        if tuning.awp_lr is not None:
            raise ExamError(
                f"tuning.awp_lr shifts each weight by its gradient, and {name} splits weights.\n"
                f"Set tuning.awp_lr=null, or train without {name}: torchrun trains a whole copy on "
                "every GPU."
            )
        if tuning.lora_rank is not None and _find_whole_base(reader) is None:
            raise ExamError(
                f"Adapters of a random or adapted model are saved merged, and {name} splits "
                "weights.\nSet model.name_or_path to a whole checkpoint, or choose tuning=full"
            )


def _find_whole_base(reader: MultipleChoiceReader) -> Checkpoint | None:
    """Return the reader's checkpoint if it is a whole model, to which adapters can refer."""
    base = reader.config.checkpoint
    return base if base and find_adapter_base(resolve_checkpoint(base)) is None else None
