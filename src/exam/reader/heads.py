"""What an option's score is made of besides its own vector."""

from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import initialization as init
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.modeling_outputs import MultipleChoiceModelOutput


def joined_class(architecture: Any, config: PreTrainedConfig) -> Any:
    """A multiple-choice architecture whose score `config.measures` or `config.others` join.

    The score is linear, so that joining a measure to an option's vector is adding its weighted
    value.
    """
    if not getattr(config, "measures", 0) and not getattr(config, "others", False):
        return architecture
    return mixed(JoinedReader, architecture)


@cache
def mixed(mixin: type, architecture: Any) -> type[PreTrainedModel]:
    """An architecture under its own name, with a mixin's methods before its own."""
    kind: Any = type(architecture)
    found: type[PreTrainedModel] = kind(architecture.__name__, (mixin, architecture), {})
    return found


class Fp32Linear(nn.Linear):
    """A head outside autocast: bf16 logits tie often, and ties are ranked by option order."""

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Scores of pooled vectors, in fp32 whatever surrounds it."""
        with torch.autocast(pooled.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return functional.linear(pooled.float(), self.weight.float(), bias)


class JoinedReader(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Mixed into a multiple-choice architecture."""

    def __init__(self, config: PreTrainedConfig) -> None:
        """Build the architecture and a weight for each measure, and for the other options."""
        super().__init__(config)
        if config.measures:
            self.evidence = Fp32Linear(config.measures, 1, bias=False)
        if config.others:
            self.others = Fp32Linear(1, 1, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        option_mask: torch.Tensor | None = None,
        evidence: torch.Tensor | None = None,
        **inputs: torch.Tensor,
    ) -> MultipleChoiceModelOutput:
        """Logits `(questions, options)`; `evidence` `(questions, options, measures)`.

        Where every option exists, `option_mask` `(questions, options)` may be left out.
        """
        logits = super().forward(**inputs).logits.float()
        if evidence is not None:
            logits = logits + self.evidence(evidence).squeeze(-1)
        if self.config.others:
            exists = torch.ones_like(logits).bool() if option_mask is None else option_mask
            logits = logits + self.others(_others(logits, exists)[..., None]).squeeze(-1)
        return MultipleChoiceModelOutput(logits=logits)

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing joins until it is trained."""
        if module in (getattr(self, "evidence", None), getattr(self, "others", None)):
            init.zeros_(module.get_parameter("weight"))
        else:
            super()._init_weights(module)  # type: ignore[no-untyped-call]


def _others(logits: torch.Tensor, option_mask: torch.Tensor) -> torch.Tensor:
    """The mean of each question's other options' logits; 0 where there are none."""
    real = logits.masked_fill(~option_mask, 0)
    number = (option_mask.sum(dim=-1, keepdim=True) - 1).clamp(min=1)
    return (real.sum(dim=-1, keepdim=True) - real) / number


# Decoders: one sequence for each option, scored at its last token.


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
