"""Load a reader: fp32 weights, an fp32 head, a tokenizer."""

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
    AutoTokenizer,
    BertTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    set_seed,
)

from exam.artefacts import KEY
from exam.config import Dtype, Model, Packing
from exam.errors import ExamError
from exam.precision import weights_in
from exam.reader.decoders import DecoderReader, decoder_class, with_padding
from exam.reader.disentangled import flash_attention, use_disentangled
from exam.reader.heads import Fp32Linear, joined_class
from exam.reader.measures import MEASURES
from exam.reader.packing import compute_dtype, packed_class
from exam.reader.tuning import adapters_base, with_adapters
from exam.weights import dropout_fields, locate, reaching

TINY_VOCABULARY = 2000
TOKENIZER = "tokenizer.json"
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


def check_reachable(config: Model) -> None:
    """Refuse a checkpoint that cannot be read, or not as it is to be read, before any work."""
    if config.name_or_path is not None:
        with reaching("reader", config.name_or_path, "model.name_or_path"):
            architecture = AutoConfig.from_pretrained(
                locate(config.name_or_path), trust_remote_code=config.trust_remote_code
            )
        _class(config, architecture)


def load_reader(
    config: Model, seed: int, texts: Iterable[str] = ()
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A multiple-choice model and its tokenizer, ready for training or prediction.

    A folder of adapters is read together with the checkpoint that they change.
    `texts` train the tokenizer of a random model (`config.config`); they are not read otherwise.
    """
    set_seed(seed)  # a new head starts from random weights
    base = None
    if config.name_or_path is None:
        tokenizer = tiny_tokenizer(texts)
        own = {**small_architecture(config), **dropout_fields(config.dropout)}
        architecture = AutoConfig.for_model(**own, vocab_size=len(tokenizer))
        model = _class(config, architecture)(architecture)
    else:
        place = locate(config.name_or_path)
        with reaching("reader", config.name_or_path, "model.name_or_path"):
            tokenizer = load_tokenizer(config, place)
            architecture = AutoConfig.from_pretrained(
                place,
                trust_remote_code=config.trust_remote_code,
                **dropout_fields(config.dropout),
            )
            base = adapters_base(Path(place))
            model = _class(config, architecture).from_pretrained(
                place if base is None else locate(base),
                config=architecture,
                use_safetensors=True,
                trust_remote_code=config.trust_remote_code,
                **weights_in(config, Dtype.float32),  # deberta-v3-large is stored in fp16
            )
    prepared = _prepared(model, tokenizer, config)
    if base is not None:
        prepared = with_adapters(prepared, Path(place))
    return prepared, tokenizer


def empty_reader(config: Model) -> PreTrainedModel:
    """Build a checkpoint's architecture on the meta device: shapes and no weights."""
    with reaching("reader", str(config.name_or_path), "model.name_or_path"):
        architecture = AutoConfig.from_pretrained(locate(str(config.name_or_path)))
    kind = _class(config, architecture)
    with torch.device("meta"):
        automatic = kind is AutoModelForMultipleChoice
        model: PreTrainedModel = (kind.from_config if automatic else kind)(architecture)
    return model


def load_tokenizer(config: Model, place: str, **form: Any) -> PreTrainedTokenizerBase:
    """A checkpoint's; a run's own as it was saved, where the library goes by the model's kind."""
    own = (Path(place).parent / KEY).is_file() and (Path(place) / TOKENIZER).is_file()
    kind: Any = PreTrainedTokenizerFast if own else AutoTokenizer
    found: PreTrainedTokenizerBase = kind.from_pretrained(
        place, trust_remote_code=config.trust_remote_code, **form
    )
    return found


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
        flash_attention(architecture)
    architecture.measures = len(MEASURES) if config.evidence else 0
    architecture.others = config.others
    plain: Any = MODEL_FOR_MULTIPLE_CHOICE_MAPPING.get(type(architecture), None)
    plain = plain or decoder_class(architecture)
    if plain is None and not config.trust_remote_code:
        raise ExamError(
            f"{config.name_or_path or config.architecture} is a {architecture.model_type} model, "
            "and the library has no reader of questions with that architecture.\n"
            "Choose another checkpoint, such as model=deberta_base."
        )
    if config.packing is not Packing.none:
        architecture.packing = config.packing.value
        return joined_class(packed_class(architecture), architecture)
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
    return AutoModelForMultipleChoice if plain is None else joined_class(plain, architecture)


def _prepared(model: Any, tokenizer: PreTrainedTokenizerBase, config: Model) -> PreTrainedModel:
    """Put the head in fp32 and say that the model does not normalise the loss over a step."""
    use_disentangled(model, flash=config.flash)
    if hasattr(model.base_model, "embeddings"):
        model.base_model.embeddings.register_forward_hook(_narrow)
    if isinstance(model, DecoderReader):
        with_padding(tokenizer, model.config)
        model.score.__class__ = Fp32Linear
    else:
        model.classifier.__class__ = Fp32Linear
    for module in model.modules():  # weights in 16 bits would not move at a usual rate
        if isinstance(module, Fp32Linear):
            module.float()
    model.accepts_loss_kwargs = False
    prepared: PreTrainedModel = model
    return prepared


def _narrow(_embeddings: nn.Module, _inputs: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Under autocast on a CPU let the layers' sums stay in its format too, instead of fp32."""
    return hidden.to(compute_dtype(hidden)) if hidden.device.type == "cpu" else hidden


def longest_input(model: PreTrainedModel, max_length: int) -> int:
    """How many tokens the model reads; with relative positions, which have no end, at least 4096.

    Raises:
        ExamError: `model.max_length` is more than the model's position embeddings.
    """
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            reserved = 0 if module.padding_idx is None else module.padding_idx + 1
            limit = module.num_embeddings - reserved
            if max_length > limit:
                raise ExamError(
                    f"model.max_length={max_length} is more than the {limit} tokens this model "
                    f"reads.\nSet model.max_length={limit}, or choose another model."
                )
            return limit
    return max(max_length, 4096)


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
