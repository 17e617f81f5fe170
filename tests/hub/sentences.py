"""Sentence encoders and cross-encoders, as they are published."""

import torch

from hub import configs, vocabularies
from hub.configs import Config, small
from hub.vocabularies import Vocabulary, text
from hub.weights import (
    COMMON,
    ONNX,
    OPENVINO,
    RUST,
    TENSORFLOW,
    Files,
    bin_of,
    cast,
    random_state,
    safetensors_of,
    settings_files,
    with_positions,
)

ALL = TENSORFLOW | RUST | ONNX | OPENVINO  # what the oldest repositories hold beside
BERT_SPECIAL = {
    f"{name.lower()}_token": f"[{name}]" for name in ("CLS", "MASK", "PAD", "SEP", "UNK")
}
BERT_SETTINGS = dict(
    sorted(
        {
            **BERT_SPECIAL,
            "clean_up_tokenization_spaces": True,
            "do_basic_tokenize": True,
            "do_lower_case": True,
            "model_max_length": 512,
            "never_split": None,
            "strip_accents": None,
            "tokenize_chinese_chars": True,
            "tokenizer_class": "BertTokenizer",
        }.items()
    )
)
MPNET_SPECIAL = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "[UNK]",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": {
        "content": "<mask>",
        "single_word": False,
        "lstrip": True,
        "rstrip": False,
        "normalized": False,
    },
}
MPNET_SETTINGS = {
    "do_lower_case": True, "bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>",
    "cls_token": "<s>", "unk_token": "[UNK]", "pad_token": "<pad>", "mask_token": "<mask>",
    "tokenize_chinese_chars": True, "strip_accents": None, "model_max_length": 512,
    "special_tokens_map_file": None, "name_or_path": "microsoft/mpnet-base",
    "tokenizer_class": "MPNetTokenizer",
}  # fmt: skip


def sentence_bert(
    config: Config,
    vocabulary: Vocabulary,
    length: int,
    pooling: str = "mean",
    dtype: torch.dtype = torch.float32,
    beside: Files | None = None,
) -> Files:
    """A sentence encoder of sentence-transformers: bare keys, and the files of its modules."""
    settings = small(config, vocabulary.tokens)
    is_mpnet = config["model_type"] == "mpnet"
    state = random_state("MPNetModel" if is_mpnet else "BertModel", settings)
    state = cast(with_positions(state, "", settings), dtype)
    indent, end = (None, "") if is_mpnet else (2, "\n")
    return {
        **COMMON,
        **vocabulary.files,
        **modules_files(settings["hidden_size"], length, pooling),
        "config.json": text(settings, 2, "\n"),
        "tokenizer_config.json": text(MPNET_SETTINGS if is_mpnet else BERT_SETTINGS, indent, end),
        "special_tokens_map.json": text(MPNET_SPECIAL if is_mpnet else BERT_SPECIAL, indent, end),
        "model.safetensors": safetensors_of(state),
        "pytorch_model.bin": bin_of(state),
        **(ONNX if beside is None else beside),
    }


def modules_files(width: int, length: int, pooling: str) -> Files:
    """The files of a Transformer, a Pooling and a Normalize."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    names = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}
    modes = {f"pooling_mode_{mode}": name == pooling for name, mode in names.items()}
    versions = {"sentence_transformers": "2.0.0", "transformers": "4.6.1", "pytorch": "1.8.1"}
    return {
        "modules.json": text(modules, 2),
        "1_Pooling/config.json": text({"word_embedding_dimension": width, **modes}, 2),
        "sentence_bert_config.json": text({"max_seq_length": length, "do_lower_case": False}, 2),
        "config_sentence_transformers.json": text({"__version__": versions}, 2),
    }


def minilm() -> Files:
    """Its tokenizer.json cuts and pads every text to 128 tokens."""
    vocabulary = vocabularies.cut_and_padded(vocabularies.bert(is_cased=False), 128)
    return sentence_bert(configs.MINILM, vocabulary, 256, beside=ALL)


def mpnet() -> Files:
    return sentence_bert(configs.MPNET, vocabularies.mpnet(), 384, beside=ONNX | OPENVINO)


def bge_small() -> Files:
    vocabulary = vocabularies.bert(is_cased=False)
    return sentence_bert(configs.BGE_SMALL, vocabulary, 512, pooling="cls")


def gte_base() -> Files:
    """Stored in fp16."""
    vocabulary = vocabularies.bert(is_cased=False)
    return sentence_bert(configs.GTE_BASE, vocabulary, 512, dtype=torch.float16)


def e5_base() -> Files:
    return sentence_bert(configs.E5_BASE, vocabularies.bert(is_cased=False), 512)


def ms_marco() -> Files:
    """A cross-encoder without the files of modules."""
    vocabulary = vocabularies.bert(is_cased=False)
    config = small(configs.MS_MARCO, vocabulary.tokens)
    state = random_state("BertForSequenceClassification", config)
    state = with_positions(state, "bert.", config)
    return {
        **settings_files(config, vocabulary, BERT_SETTINGS, BERT_SPECIAL),
        "model.safetensors": safetensors_of(state),
        "pytorch_model.bin": bin_of(state),
        **ONNX,
        **OPENVINO,
    }


def bge_reranker() -> Files:
    """XLM-RoBERTa with a head of one label; safetensors alone."""
    vocabulary = vocabularies.xlm_roberta()
    config = small(configs.XLM_ROBERTA, vocabulary.tokens)
    special = dict.fromkeys(("bos_token", "cls_token"), "<s>") | {"pad_token": "<pad>"}
    special |= dict.fromkeys(("eos_token", "sep_token"), "</s>") | {"unk_token": "<unk>"}
    special |= {"mask_token": {"content": "<mask>", "lstrip": True}}
    settings = special | {
        "clean_up_tokenization_spaces": True,
        "mask_token": "<mask>",
        "model_max_length": 8192,
        "sp_model_kwargs": {},
        "tokenizer_class": "XLMRobertaTokenizer",
    }
    state = random_state("XLMRobertaForSequenceClassification", config)
    files = settings_files(config, vocabulary, settings, special)
    return files | {"model.safetensors": safetensors_of(state)}
