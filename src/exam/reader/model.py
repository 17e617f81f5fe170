"""Load a reader: fp32 weights, an fp32 head, a tokenizer."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import (
    MODEL_FOR_MULTIPLE_CHOICE_MAPPING,
    AutoConfig,
    AutoModelForMultipleChoice,
    AutoTokenizer,
    BertTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from exam.config import Model, Packing
from exam.errors import ExamError
from exam.reader.disentangled import flash_attention, use_disentangled
from exam.reader.packing import compute_dtype, packed_class
from exam.weights import dropout_fields, locate, reaching

TINY_VOCABULARY = 2000


class Fp32Linear(nn.Linear):
    """A head outside autocast: bf16 logits tie often, and ties are ranked by option order."""

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Scores of pooled vectors, in fp32 whatever surrounds it."""
        with torch.autocast(pooled.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return functional.linear(pooled.float(), self.weight.float(), bias)


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

    `texts` train the tokenizer of a random model (`config.config`); they are not read otherwise.
    """
    set_seed(seed)  # a new head starts from random weights
    if config.name_or_path is None:
        tokenizer = tiny_tokenizer(texts)
        architecture = AutoConfig.for_model(**(config.config or {}), vocab_size=len(tokenizer))
        model = _class(config, architecture)(architecture)
    else:
        place = locate(config.name_or_path)
        with reaching("reader", config.name_or_path, "model.name_or_path"):
            tokenizer = AutoTokenizer.from_pretrained(
                place, trust_remote_code=config.trust_remote_code
            )
            architecture = AutoConfig.from_pretrained(
                place,
                trust_remote_code=config.trust_remote_code,
                **dropout_fields(config.dropout),
            )
            model = _class(config, architecture).from_pretrained(
                place,
                config=architecture,
                dtype=torch.float32,  # not the checkpoint's: deberta-v3-large is stored in fp16
                use_safetensors=True,
                trust_remote_code=config.trust_remote_code,
            )
    return _prepared(model, config), tokenizer


def _class(config: Model, architecture: PreTrainedConfig) -> Any:
    """What reads the questions as `model.packing` lays them out.

    Raises:
        ExamError: the architecture cannot be packed, or has no flash attention, or its checkpoint
            was trained on packed questions and is to read them otherwise.
    """
    if config.flash:
        flash_attention(architecture)
    if config.packing is not Packing.none:
        architecture.packing = config.packing.value
        return packed_class(architecture)
    if (trained := getattr(architecture, "packing", None)) is not None:
        raise ExamError(
            f"{config.name_or_path} was trained with model.packing={trained}: it has no pooler, "
            f"which model.packing=none reads by.\nSet model.packing={trained}."
        )
    return MODEL_FOR_MULTIPLE_CHOICE_MAPPING.get(type(architecture), AutoModelForMultipleChoice)


def _prepared(model: Any, config: Model) -> PreTrainedModel:
    """Put the head in fp32 and say that the model does not normalise the loss over a step."""
    use_disentangled(model, flash=config.flash)
    if hasattr(model.base_model, "embeddings"):
        model.base_model.embeddings.register_forward_hook(_narrow)
    head = model.classifier
    wide = Fp32Linear(head.in_features, head.out_features, bias=head.bias is not None)
    wide.load_state_dict(head.state_dict())
    model.classifier = wide
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
