"""Decoders as readers: one sequence for each option, scored at its last token."""

from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.modeling_outputs import MultipleChoiceModelOutput

from exam.reader.heads import mixed


def decoder_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """The library's classifier of a decoder, reading questions; None where there is none."""
    kind: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    continues = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    if kind is None or not continues or not issubclass(kind, GenericForSequenceClassification):
        return None
    config.num_labels = 1
    return mixed(DecoderReader, kind)


class DecoderReader(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Mixed into a decoder with a head that scores one sequence."""

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: torch.Tensor
    ) -> MultipleChoiceModelOutput:
        """Logits `(questions, options)` of ids `(questions, options, length)`."""
        found = super().forward(
            input_ids=input_ids.flatten(0, 1),
            attention_mask=attention_mask.flatten(0, 1),
            use_cache=False,
        )
        return MultipleChoiceModelOutput(logits=found.logits.view(input_ids.shape[:2]))


def with_padding(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Let a decoder that was trained without padding pad with what ends a text."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    config.pad_token_id = tokenizer.pad_token_id
