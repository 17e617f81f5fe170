"""Tiny random causal language models, and what they read."""

import torch
from datasets import Dataset
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from exam.config import Model, ReaderKind
from exam.readers.causal_lm.prompts import Prompter

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "llama-tied": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"pad_token_id": 60}),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM, {"head_dim": 8, "attn_implementation": "eager"}),
    "cohere": (CohereConfig, CohereForCausalLM, {}),
    "mixed windows": (
        Qwen2Config,
        Qwen2ForCausalLM,
        {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
        | {"use_sliding_window": True, "sliding_window": 12},
    ),
}
CHAT = "{% for m in messages %}<u>{{ m['content'] }}</u>\n{% endfor %}<a>\n"
WORDS = "A B C D E yes no answer question passage the otter lives in river and well : ."
QUESTIONS = [
    {"id": "1", "prompt": "the otter lives in", "options": ["the river", "the well and river"]},
    {"id": "2", "prompt": "yes the otter", "options": ["river", "in the passage", "well"]},
    {"id": "3", "prompt": "the question . the passage : the", "options": ["no", "yes", "and the"]},
]
PASSAGES = {
    "1": [{"text": "the otter lives in the river ."}, {"text": "the well and the river"}],
    "2": [{"text": "the passage"}],
}


def questions():
    return Dataset.from_list([{**question, "label": None} for question in QUESTIONS])


def model_of(family, tokenizer):
    config, kind, more = FAMILIES[family]
    torch.manual_seed(1)
    return kind(config(vocab_size=len(tokenizer), **SMALL, **more)).eval()


def prompter_of(tokenizer, scoring, **more):
    own = Model(name="m", kind=ReaderKind.causal_lm, scoring=scoring, **more)
    return Prompter.from_config(own, tokenizer)
