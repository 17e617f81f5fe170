"""Encoders that readers start from, as they are published."""

import torch

from hub import configs, vocabularies
from hub.configs import Config, small
from hub.vocabularies import text
from hub.weights import (
    COMMON,
    FLAX,
    ONNX,
    RUST,
    TENSORFLOW,
    Files,
    State,
    bin_of,
    cast,
    random_state,
    safetensors_of,
    settings_files,
    with_gamma_and_beta,
    with_positions,
    with_prefix,
)


def deberta(size: str) -> Files:
    """`microsoft/deberta-v3-<size>`: no safetensors, no tokenizer.json, no dtype, heads of MLM."""
    spm = vocabularies.deberta_spm()
    config = small(configs.DEBERTA, len(vocabularies.pieces_of(spm)) + 100)
    state = cast(deberta_state(config), torch.float16)
    generator = {key: value for key, value in state.items() if key.startswith("lm_predictions")}
    return {
        **COMMON,
        "config.json": text(config, 2),
        "spm.model": spm,
        "tokenizer_config.json": text({"do_lower_case": False, "vocab_type": "spm"}, 2, "\n"),
        "pytorch_model.bin": bin_of(state),
        "pytorch_model.generator.bin": bin_of(generator),
        **TENSORFLOW,
        **(RUST if size == "base" else {}),
    }


def deberta_state(config: Config) -> State:
    """The model's weights, those of its two heads, and positions that it does not read."""
    width, rows = config["hidden_size"], config["vocab_size"]
    state = with_prefix(random_state("DebertaV2Model", config), "deberta.")
    positions = torch.randn(config["max_position_embeddings"], width)
    state["deberta.embeddings.position_embeddings.weight"] = positions
    for head in ("lm_predictions.lm_head.", "mask_predictions."):
        state[f"{head}dense.weight"] = torch.randn(width, width)
        state[f"{head}dense.bias"] = torch.randn(width)
        state[f"{head}LayerNorm.weight"] = torch.ones(width)
        state[f"{head}LayerNorm.bias"] = torch.zeros(width)
    state["lm_predictions.lm_head.bias"] = torch.zeros(rows)
    state["mask_predictions.classifier.weight"] = torch.randn(1, width)
    state["mask_predictions.classifier.bias"] = torch.zeros(1)
    return state


def bert_base_cased() -> Files:
    vocabulary = vocabularies.bert(is_cased=True)
    config = small(configs.BERT_BASE_CASED, vocabulary.tokens)
    state = with_gamma_and_beta(random_state("BertForPreTraining", config))
    return {
        **settings_files(config, vocabulary),
        "tokenizer_config.json": text({"do_lower_case": False, "model_max_length": 512}),
        "model.safetensors": safetensors_of(state),
        "pytorch_model.bin": bin_of(state),
        **TENSORFLOW,
        **FLAX,
    }


def longformer_base() -> Files:
    """No safetensors, no tokenizer_config.json."""
    vocabulary = vocabularies.roberta()
    config = small(configs.LONGFORMER, vocabulary.tokens)
    state = random_state("LongformerForMaskedLM", config)
    return {
        **settings_files(config, vocabulary),
        "pytorch_model.bin": bin_of(with_positions(state, "longformer.", config)),
        **TENSORFLOW,
        **RUST,
    }


RACE_TOKENS = {
    "bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>",
    "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>",
}  # fmt: skip
RACE_SPECIAL = {
    name: {
        "content": token,
        "lstrip": token == "<mask>",
        "normalized": True,
        "rstrip": False,
        "single_word": False,
    }
    for name, token in RACE_TOKENS.items()
}


def longformer_race() -> Files:
    """No safetensors, no tokenizer.json; a head of multiple choice."""
    vocabulary = vocabularies.roberta()
    config = small(configs.LONGFORMER_RACE, vocabulary.tokens)
    state = random_state("LongformerForMultipleChoice", config)
    added = {name: {"__type": "AddedToken", **token} for name, token in RACE_SPECIAL.items()}
    settings = {
        "add_prefix_space": False,
        **added,
        "errors": "replace",
        "model_max_length": 4096,
        "tokenizer_class": "LongformerTokenizer",
        "trim_offsets": True,
    }
    files = settings_files(config, vocabulary, settings, RACE_SPECIAL)
    del files["tokenizer.json"]
    return files | {"pytorch_model.bin": bin_of(state)}


def modernbert() -> Files:
    vocabulary = vocabularies.modernbert()
    names = {"bos": "CLS", "cls": "CLS", "eos": "SEP", "sep": "SEP", "pad": "PAD"}
    ids = {f"{name}_token_id": vocabulary.id(f"[{token}]") for name, token in names.items()}
    config = small(configs.MODERNBERT, vocabulary.tokens, **ids)
    state = random_state("ModernBertForMaskedLM", config)
    state.pop("decoder.weight")  # shared with the embeddings
    special = {
        f"{name.lower()}_token": f"[{name}]" for name in ("CLS", "MASK", "PAD", "SEP", "UNK")
    }
    settings = special | {
        "clean_up_tokenization_spaces": True,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 8192,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return {
        **settings_files(config, vocabulary, settings, special),
        "model.safetensors": safetensors_of(state),
        "pytorch_model.bin": bin_of(state),
        **ONNX,
    }
