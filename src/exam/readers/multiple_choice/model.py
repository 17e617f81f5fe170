"""Load a reader's model, with an fp32 head, and its tokenizer."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_MULTIPLE_CHOICE_MAPPING,
    AutoConfig,
    AutoModelForMultipleChoice,
    BertTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from exam.config import FLASH, Dtype, Model, Packing
from exam.core.checkpoints import (
    check_new_weights,
    dropout_fields,
    resolve_checkpoint,
    translate_load_errors,
)
from exam.core.errors import ExamError
from exam.core.tokenization import check_vocabulary, load_tokenizer
from exam.readers.lexical import OVERLAP_FEATURES
from exam.readers.multiple_choice.attention import load_flash_attention, use_disentangled_attention
from exam.readers.multiple_choice.heads import (
    DecoderReader,
    Fp32Linear,
    make_decoder_class,
    set_padding,
    with_extra_scores,
)
from exam.readers.multiple_choice.packing import compute_dtype, make_packed_class
from exam.readers.quantization import dtype_kwargs
from exam.readers.tuning import find_adapter_base, load_adapters

log = logging.getLogger(__name__)

TINY_VOCABULARY = 2000
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "pad_token_id": 0,
}
SMALL_BY_TYPE: dict[str, dict[str, Any]] = {
    "deberta-v2": {
        "relative_attention": True,
        "position_buckets": 32,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
    },
    "longformer": {"attention_window": 32, "max_position_embeddings": 4097},
    "roberta": {"type_vocab_size": 2},
}


def inspect_model(config: Model) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a reader without memory for its weights, and its tokenizer.

    Raises:
        ExamError: the checkpoint does not load as configured, or its files contradict each other.
    """
    dtype_kwargs(config, Dtype.float32)
    model, tokenizer, *_ = _load(config, device_map="meta")
    check_vocabulary(tokenizer, model)
    _get_head(model)
    return model, tokenizer


def load_model(
    config: Model, seed: int, texts: Iterable[str] = ()
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a multiple-choice model and its tokenizer, ready for training or prediction.

    A folder of adapters loads together with the checkpoint that they change. `texts` train the
    tokenizer of a random model (`config.config`).
    """
    set_seed(seed)  # a new head starts from random weights
    if config.name_or_path is None:
        tokenizer = tiny_tokenizer(texts)
        settings = {**small_architecture(config), **dropout_fields(config.dropout)}
        random = AutoConfig.for_model(**settings, vocab_size=len(tokenizer))
        model = _select_class(config, random)(random)
        _prepare(model, tokenizer, config)
        return model, tokenizer
    model, tokenizer, adapters, new = _load(config, **dtype_kwargs(config, Dtype.float32))
    if new:
        log.debug("reader: newly initialised: %s (not in the checkpoint)", ", ".join(new))
    _prepare(model, tokenizer, config)
    return (load_adapters(model, adapters) if adapters else model), tokenizer


def _load(
    config: Model, **weights: Any
) -> tuple[Any, PreTrainedTokenizerBase, Path | None, list[str]]:
    """Return model, tokenizer, the folder of adapters if any, and the modules without weights."""
    checkpoint = config.required_checkpoint
    folder = resolve_checkpoint(checkpoint)
    base = find_adapter_base(folder)
    with translate_load_errors(checkpoint):
        architecture: PreTrainedConfig = AutoConfig.from_pretrained(
            folder, trust_remote_code=config.trust_remote_code, **dropout_fields(config.dropout)
        )
    kind = _select_class(config, architecture)
    with translate_load_errors(checkpoint):
        tokenizer = load_tokenizer(folder, trust_remote_code=config.trust_remote_code)
        model, info = kind.from_pretrained(
            folder if base is None else resolve_checkpoint(base),
            config=architecture,
            use_safetensors=True,
            trust_remote_code=config.trust_remote_code,
            ignore_mismatched_sizes=True,  # a head for another task
            output_loading_info=True,
            **weights,
        )
    new = check_new_weights(checkpoint, model, info, of_head=True)
    return model, tokenizer, folder if base else None, new


def small_architecture(config: Model) -> dict[str, Any]:
    """Return the settings of a small random model.

    Raises:
        ExamError: the library has no such architecture.
    """
    kind = (config.config or {}).get("model_type", config.architecture)
    if kind not in CONFIG_MAPPING:
        raise ExamError(
            f"transformers has no model.architecture={kind}.\n"
            "Give the model_type of its config.json, such as deberta-v2."
        )
    if config.config is not None:
        return {**config.config, "model_type": kind}
    settings = {**SMALL, **SMALL_BY_TYPE.get(str(kind), {})}
    if hasattr(CONFIG_MAPPING[str(kind)](), "num_key_value_heads"):
        settings["num_key_value_heads"] = SMALL["num_attention_heads"]
    return {**settings, "model_type": kind}


def _select_class(config: Model, architecture: PreTrainedConfig) -> Any:
    """Select the class that reads questions with the configured packing, or refuse it."""
    if config.attn_implementation == FLASH:
        load_flash_attention(architecture)
    architecture.measures = len(OVERLAP_FEATURES) if config.overlap_features else 0
    architecture.others = config.cross_option_bias
    mapping = MODEL_FOR_MULTIPLE_CHOICE_MAPPING
    kind: Any = mapping.get(type(architecture), None) or make_decoder_class(architecture)
    if kind is None and not config.trust_remote_code:
        raise ExamError(
            f"{config.name_or_path or config.architecture} is a {architecture.model_type} model, "
            "and transformers has no multiple-choice class for it.\n"
            "Choose another checkpoint, such as model=deberta_base"
        )
    if config.packing is not Packing.none:
        architecture.packing = config.packing.value
        return with_extra_scores(make_packed_class(architecture), architecture)
    if (trained := getattr(architecture, "packing", None)) is not None:
        raise ExamError(
            f"{config.name_or_path} was trained with model.packing={trained}: it lacks the pooler "
            f"that model.packing=none needs.\nSet model.packing={trained}"
        )
    if kind is None and (config.overlap_features or config.cross_option_bias):
        raise ExamError(
            "model.overlap_features and model.cross_option_bias need an architecture of "
            f"transformers, but {architecture.model_type} is remote code.\nLeave them out."
        )
    return AutoModelForMultipleChoice if kind is None else with_extra_scores(kind, architecture)


def _prepare(model: Any, tokenizer: PreTrainedTokenizerBase, config: Model) -> None:
    """Convert the head to fp32, and tell the Trainer that the loss is a mean over the batch."""
    use_disentangled_attention(model, flash=config.attn_implementation == FLASH)
    if hasattr(model.base_model, "embeddings"):
        model.base_model.embeddings.register_forward_hook(_narrow)
    if isinstance(model, DecoderReader):
        set_padding(tokenizer, model.config)
    _get_head(model).__class__ = Fp32Linear
    for module in model.modules():  # weights in 16 bits would not move at a usual rate
        if isinstance(module, Fp32Linear):
            module.float()
    model.accepts_loss_kwargs = False


def _get_head(model: Any) -> Any:
    """Return the layer that scores an option; XLNet and XLM name it differently."""
    head = getattr(model, "score" if isinstance(model, DecoderReader) else "classifier", None)
    if head is None:
        raise ExamError(
            f"A {model.config.model_type} model has no layer named classifier, which scores the "
            "options.\nChoose a checkpoint of another architecture, such as model=deberta_base"
        )
    return head


def _narrow(_embeddings: nn.Module, _inputs: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Keep the layers' sums in autocast's format on a CPU, instead of fp32."""
    return hidden.to(compute_dtype(hidden)) if hidden.device.type == "cpu" else hidden


def iter_texts(questions: Dataset) -> Iterator[str]:
    """Yield prompts and options, which train the tokenizer of a random model."""
    return (text for q in questions for text in [q["prompt"], *q["options"]])


def tiny_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """Build a WordPiece tokenizer from the texts' characters and most frequent words.

    The library's trainer breaks ties at random, which would give a resumed run other ids.
    """
    from tokenizers import normalizers, pre_tokenizers

    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    words = Counter(
        word
        for text in texts
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))
    )
    characters = sorted(set("".join(words)))
    frequent = sorted(words, key=lambda word: (-words[word], word))[:TINY_VOCABULARY]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *characters, *(f"##{c}" for c in characters), *frequent]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer: PreTrainedTokenizerBase = BertTokenizer(vocab=vocabulary)
    return tokenizer
