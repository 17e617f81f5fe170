"""Heads of readers: fp32 scores, extra scores of an option, decoders."""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
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


def with_extra_scores(architecture: Any, config: PreTrainedConfig) -> Any:
    """Add the scores of `config.measures` and `config.others` to a multiple-choice architecture.

    The head is linear, so adding weighted features to the score equals appending them to an
    option's vector.
    """
    if not getattr(config, "measures", 0) and not getattr(config, "others", False):
        return architecture
    return make_subclass(ExtraScores, architecture)


@cache
def make_subclass(mixin: type, architecture: Any) -> type[PreTrainedModel]:
    """Make a subclass of a mixin and an architecture, with the architecture's name."""
    metaclass: Any = type(architecture)
    subclass: type[PreTrainedModel] = metaclass(architecture.__name__, (mixin, architecture), {})
    return subclass


class Fp32Linear(nn.Linear):
    """A head in fp32: bf16 logits tie often, and ties are ranked by option order."""

    def forward(self, pooled: Tensor) -> Tensor:
        """Return scores of pooled vectors in fp32, also under autocast."""
        with torch.autocast(pooled.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return functional.linear(pooled.float(), self.weight.float(), bias)


class ExtraScores(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Mixin of a multiple-choice architecture: add weighted features to an option's score."""

    def __init__(self, config: PreTrainedConfig) -> None:
        """Build the architecture, a weight for each feature and one for the other options.

        The modules keep the names `evidence` and `others` of saved checkpoints.
        """
        super().__init__(config)
        if config.measures:
            self.evidence = Fp32Linear(config.measures, 1, bias=False)
        if config.others:
            self.others = Fp32Linear(1, 1, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self, option_mask: Tensor | None = None, evidence: Tensor | None = None, **inputs: Tensor
    ) -> MultipleChoiceModelOutput:
        """Return logits `(questions, options)`; `evidence` is `(questions, options, features)`.

        Without `option_mask` `(questions, options)`, every option exists.
        """
        logits = super().forward(**inputs).logits.float()
        if evidence is not None:
            logits = logits + self.evidence(evidence).squeeze(-1)
        if self.config.others:
            exists = torch.ones_like(logits).bool() if option_mask is None else option_mask
            logits = logits + self.others(
                _mean_of_other_options(logits, exists)[..., None]
            ).squeeze(-1)
        return MultipleChoiceModelOutput(logits=logits)

    def _init_weights(self, module: nn.Module) -> None:
        """Start extra scores at zero."""
        if module in (getattr(self, "evidence", None), getattr(self, "others", None)):
            init.zeros_(module.get_parameter("weight"))
        else:
            super()._init_weights(module)  # type: ignore[no-untyped-call]


def _mean_of_other_options(logits: Tensor, option_mask: Tensor) -> Tensor:
    """Return the mean logit of a question's other options, 0 for a single option."""
    real = logits.masked_fill(~option_mask, 0)
    number = (option_mask.sum(dim=-1, keepdim=True) - 1).clamp(min=1)
    return (real.sum(dim=-1, keepdim=True) - real) / number


# Decoders: one sequence for each option, scored at its last token.


def make_decoder_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """Make a reader of the library's classifier of a decoder; None without one."""
    kind: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    continues = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    if kind is None or not continues or not issubclass(kind, GenericForSequenceClassification):
        return None
    config.num_labels = 1
    return make_subclass(DecoderReader, kind)


class DecoderReader(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Mixin of a decoder with a head that scores one sequence."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, **_: Tensor
    ) -> MultipleChoiceModelOutput:
        """Return logits `(questions, options)` of ids `(questions, options, length)`."""
        outputs = super().forward(
            input_ids=input_ids.flatten(0, 1),
            attention_mask=attention_mask.flatten(0, 1),
            use_cache=False,
        )
        return MultipleChoiceModelOutput(logits=outputs.logits.view(input_ids.shape[:2]))


def set_padding(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Pad with the end-of-text token if a decoder has no padding token."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    config.pad_token_id = tokenizer.pad_token_id
