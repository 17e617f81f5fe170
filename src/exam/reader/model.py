"""Load a reader: fp32 weights, an fp32 head, a tokenizer."""

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
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

from exam.checkpoints import (
    dropout_fields,
    require_checkpoint,
    resolve_checkpoint,
    translate_load_errors,
)
from exam.config import Dtype, Model, Packing
from exam.errors import ExamError
from exam.loading import check_new_weights, embedding_rows
from exam.precision import weights_in
from exam.reader.attention import load_flash_attention, use_disentangled_attention
from exam.reader.heads import (
    DecoderReader,
    Fp32Linear,
    make_decoder_class,
    set_padding,
    with_extra_scores,
)
from exam.reader.lexical import OVERLAP_FEATURES
from exam.reader.packing import compute_dtype, make_packed_class
from exam.reader.tuning import adapters_base, with_adapters
from exam.tokenization import check_vocabulary, load_tokenizer

log = logging.getLogger(__name__)

TINY_VOCABULARY = 2000
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "pad_token_id": 0,
}
OF_SMALL: dict[str, dict[str, Any]] = {
    "deberta-v2": {
        "pooler_hidden_size": 32,
        "relative_attention": True,
        "position_buckets": 32,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "max_relative_positions": -1,
        "type_vocab_size": 0,
    },
    "longformer": {"attention_window": 32, "max_position_embeddings": 4097},
    "roberta": {"type_vocab_size": 2},
}


def inspect_reader(config: Model) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a reader without memory for its weights, and its tokenizer.

    Raises:
        ExamError: the checkpoint cannot be loaded as configured, or its files do not agree.
    """
    folder, base = _folders(config)
    architecture = _architecture(config, folder)
    weights_in(config, Dtype.float32)
    with translate_load_errors(require_checkpoint(config)):
        tokenizer = load_tokenizer(folder, trust_remote_code=config.trust_remote_code)
    model, _ = _pretrained(config, architecture, base or folder, device_map="meta")
    check_vocabulary(tokenizer, embedding_rows(model))
    _head(model)
    return model, tokenizer


def load_reader(
    config: Model, seed: int, texts: Iterable[str] = ()
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a multiple-choice model and its tokenizer, ready for training or prediction.

    A folder of adapters is read together with the checkpoint that they change.
    `texts` train the tokenizer of a random model (`config.config`); they are not read otherwise.
    """
    set_seed(seed)  # a new head starts from random weights
    if config.name_or_path is None:
        tokenizer = tiny_tokenizer(texts)
        settings = {**small_architecture(config), **dropout_fields(config.dropout)}
        random = AutoConfig.for_model(**settings, vocab_size=len(tokenizer))
        return _prepared(_class(config, random)(random), tokenizer, config), tokenizer
    folder, base = _folders(config)
    architecture = _architecture(config, folder)
    with translate_load_errors(require_checkpoint(config)):
        tokenizer = load_tokenizer(folder, trust_remote_code=config.trust_remote_code)
    form = weights_in(config, Dtype.float32)  # deberta-v3-large is stored in fp16
    model, new = _pretrained(config, architecture, base or folder, **form)
    if new:
        log.debug("reader: newly initialised: %s (not in the checkpoint)", ", ".join(new))
    prepared = _prepared(model, tokenizer, config)
    return (with_adapters(prepared, folder) if base else prepared), tokenizer


def _folders(config: Model) -> tuple[Path, Path | None]:
    """Return a checkpoint's folder, and that of the checkpoint its adapters change."""
    folder = resolve_checkpoint(require_checkpoint(config))
    base = adapters_base(folder)
    return folder, None if base is None else resolve_checkpoint(base)


def _architecture(config: Model, folder: Path) -> PreTrainedConfig:
    with translate_load_errors(require_checkpoint(config)):
        architecture: PreTrainedConfig = AutoConfig.from_pretrained(
            folder, trust_remote_code=config.trust_remote_code, **dropout_fields(config.dropout)
        )
    _class(config, architecture)
    return architecture


def _pretrained(
    config: Model, architecture: PreTrainedConfig, folder: Path, **weights: Any
) -> tuple[Any, list[str]]:
    """Load the model of a folder; name the modules that its files lack."""
    checkpoint = require_checkpoint(config)
    with translate_load_errors(checkpoint):
        model, info = _class(config, architecture).from_pretrained(
            folder,
            config=architecture,
            use_safetensors=True,
            trust_remote_code=config.trust_remote_code,
            ignore_mismatched_sizes=True,  # a head for another task
            output_loading_info=True,
            **weights,
        )
    return model, check_new_weights(checkpoint, model, info, of_head=True)


def small_architecture(config: Model) -> dict[str, Any]:
    """The settings of a random model.

    Raises:
        ExamError: the library has no such architecture.
    """
    kind = (config.config or {}).get("model_type", config.architecture)
    if kind not in CONFIG_MAPPING:
        raise ExamError(
            f"model.architecture={kind} is none of the library's.\n"
            "Give the model_type of its config.json, such as deberta-v2."
        )
    if config.config is not None:
        return {**config.config, "model_type": kind}
    own = {**SMALL, **OF_SMALL.get(str(kind), {})}
    if hasattr(CONFIG_MAPPING[str(kind)](), "num_key_value_heads"):
        own["num_key_value_heads"] = SMALL["num_attention_heads"]
    return {**own, "model_type": kind}


def _class(config: Model, architecture: PreTrainedConfig) -> Any:
    """What reads the questions as `model.packing` lays them out.

    Raises:
        ExamError: the architecture cannot be packed, or has no flash attention, or its checkpoint
            was trained on packed questions and is to read them otherwise.
    """
    if config.flash:
        load_flash_attention(architecture)
    architecture.measures = len(OVERLAP_FEATURES) if config.evidence else 0
    architecture.others = config.others
    plain: Any = MODEL_FOR_MULTIPLE_CHOICE_MAPPING.get(type(architecture), None)
    plain = plain or make_decoder_class(architecture)
    if plain is None and not config.trust_remote_code:
        raise ExamError(
            f"{config.name_or_path or config.architecture} is a {architecture.model_type} model, "
            "and the library has no reader of questions with that architecture.\n"
            "Choose another checkpoint, such as model=deberta_base."
        )
    if config.packing is not Packing.none:
        architecture.packing = config.packing.value
        return with_extra_scores(make_packed_class(architecture), architecture)
    if (trained := getattr(architecture, "packing", None)) is not None:
        raise ExamError(
            f"{config.name_or_path} was trained with model.packing={trained}: it has no pooler, "
            f"which model.packing=none reads by.\nSet model.packing={trained}."
        )
    if plain is None and (config.evidence or config.others):
        raise ExamError(
            f"model.evidence and model.others join the scores of the library's own architectures, "
            f"and this is a {architecture.model_type} model.\nLeave them out."
        )
    return AutoModelForMultipleChoice if plain is None else with_extra_scores(plain, architecture)


def _prepared(model: Any, tokenizer: PreTrainedTokenizerBase, config: Model) -> PreTrainedModel:
    """Put the head in fp32 and say that the model does not normalise the loss over a step."""
    use_disentangled_attention(model, flash=config.flash)
    if hasattr(model.base_model, "embeddings"):
        model.base_model.embeddings.register_forward_hook(_narrow)
    if isinstance(model, DecoderReader):
        set_padding(tokenizer, model.config)
    _head(model).__class__ = Fp32Linear
    for module in model.modules():  # weights in 16 bits would not move at a usual rate
        if isinstance(module, Fp32Linear):
            module.float()
    model.accepts_loss_kwargs = False
    prepared: PreTrainedModel = model
    return prepared


def _head(model: Any) -> Any:
    """Return the layer that scores an option.

    Raises:
        ExamError: the architecture names it otherwise, as XLNet and XLM do.
    """
    head = getattr(model, "score" if isinstance(model, DecoderReader) else "classifier", None)
    if head is None:
        raise ExamError(
            f"A {model.config.model_type} model has no layer named classifier, which scores the "
            "options.\nChoose a checkpoint of another architecture, such as model=deberta_base."
        )
    return head


def _narrow(_embeddings: nn.Module, _inputs: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Under autocast on a CPU let the layers' sums stay in its format too, instead of fp32."""
    return hidden.to(compute_dtype(hidden)) if hidden.device.type == "cpu" else hidden


def tiny_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """A WordPiece tokenizer of the texts' characters and most frequent words.

    Counted here, because the library's trainer breaks ties at random and so gives a resumed run
    other ids.
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
