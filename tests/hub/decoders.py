"""Causal language models, and the encoder and rerankers made of such, as they are published."""

import torch

from hub import configs, vocabularies
from hub.configs import Config, small
from hub.vocabularies import QWEN_SPECIAL, Vocabulary, text
from hub.weights import Files, State, cast, random_state, safetensors_of, settings_files, shards_of

CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + "
    "'<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
JUDGE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements of the Query. Answer "
    'yes or no.<|im_end|>\n<|im_start|>user\n<Query>: {{ messages | selectattr("role", "eq", '
    '"query") | map(attribute="content") | first }}\n<Document>: {{ messages | selectattr("role", '
    '"eq", "document") | map(attribute="content") | first }}<|im_end|>\n<|im_start|>assistant\n'
)
LLAMA_SETTINGS = {
    "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>",
    "clean_up_tokenization_spaces": False, "eos_token": "</s>", "legacy": True,
    "model_max_length": 10**30, "pad_token": None, "sp_model_kwargs": {},
    "tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>",
}  # fmt: skip
LLAMA_SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
SCORE = "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"


def qwen_7b() -> Files:
    """Four shards of bf16, a head that is not shared, more rows than tokens."""
    vocabulary = vocabularies.qwen()
    config = qwen_config(configs.QWEN, vocabulary, spare=399)
    state = cast(random_state("Qwen2ForCausalLM", config), torch.bfloat16)
    return {**qwen_files(config, vocabulary, CHAT), **shards_of(state, 4, "model", "safetensors")}


def mistral_7b() -> Files:
    """Two shards, in both forms; no token for padding."""
    vocabulary = vocabularies.llama()
    config = small(configs.MISTRAL, vocabulary.tokens)
    state = cast(random_state("MistralForCausalLM", config), torch.bfloat16)
    return {
        **llama_files(config, vocabulary),
        **shards_of(state, 2, "model", "safetensors"),
        **shards_of(state, 2, "pytorch_model", "bin"),
    }


def platypus2_70b() -> Files:
    """Fifteen shards, in both forms; fp16, with frequencies in fp32 that nothing reads."""
    vocabulary = vocabularies.llama()
    config = small(configs.PLATYPUS, vocabulary.tokens)
    state = cast(random_state("LlamaForCausalLM", config), torch.float16)
    for layer in range(config["num_hidden_layers"]):
        state[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    return {
        **llama_files(config, vocabulary),
        **shards_of(state, 15, "model", "safetensors"),
        **shards_of(state, 15, "pytorch_model", "bin"),
    }


def qwen3_reranker() -> Files:
    """A reranker whose score is a yes less a no."""
    vocabulary = vocabularies.qwen()
    config = qwen_config(configs.QWEN3, vocabulary)
    way = {"method": "forward", "method_output_name": "logits"}
    modes = {"text": way, "message": {**way, "format": "flat"}}
    return {
        **qwen_files(config, vocabulary, JUDGE),
        **score_files(vocabulary.id("yes"), vocabulary.id("no"), modes),
        "model.safetensors": safetensors_of(tied("Qwen3ForCausalLM", config, torch.bfloat16)),
    }


def mxbai_rerank() -> Files:
    """A reranker whose score is a 1 less a 0."""
    vocabulary = vocabularies.qwen()
    config = qwen_config(configs.MXBAI, vocabulary)
    modes = {"text": {"method": "forward", "method_output_name": "logits"}}
    return {
        **qwen_files(config, vocabulary, None),
        **score_files(vocabulary.id("1"), vocabulary.id("0"), modes),
        "model.safetensors": safetensors_of(tied("Qwen2ForCausalLM", config, torch.float16)),
    }


def qwen3_embedding() -> Files:
    """An encoder: keys without `model.`, pooling by the last token, a prompt for queries."""
    vocabulary = vocabularies.qwen()
    config = qwen_config(configs.QWEN3, vocabulary)
    state = tied("Qwen3ForCausalLM", config, torch.bfloat16)
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    pooling = {"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}
    prompts = {"query": "Instruct: Retrieve relevant passages\nQuery:", "document": ""}
    return {
        **qwen_files(config, vocabulary, CHAT),
        "modules.json": text(modules, 2),
        "1_Pooling/config.json": text(
            {"word_embedding_dimension": config["hidden_size"], **pooling, "include_prompt": True},
            2,
        ),
        "config_sentence_transformers.json": text(
            {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"}, 2
        ),
        "model.safetensors": safetensors_of(
            {key.removeprefix("model."): value for key, value in state.items()}
        ),
    }


def qwen_config(config: Config, vocabulary: Vocabulary, spare: int = 8) -> Config:
    """A Qwen's small config, with so many rows more than tokens."""
    rows = vocabulary.tokens + spare
    end = "<|endoftext|>" if config is configs.MXBAI else "<|im_end|>"
    ids = {"bos_token_id": vocabulary.id("<|endoftext|>"), "eos_token_id": vocabulary.id(end)}
    return small(config, rows, **ids)


def qwen_files(config: Config, vocabulary: Vocabulary, chat: str | None) -> Files:
    """A Qwen's files but the weights."""
    decoder = {vocabulary.id(token): {"content": token, "special": True} for token in QWEN_SPECIAL}
    settings = {
        "add_prefix_space": False,
        "added_tokens_decoder": decoder,
        "additional_special_tokens": QWEN_SPECIAL[1:],
        "bos_token": None,
        **({} if chat is None else {"chat_template": chat}),
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    ids = {name: config[name] for name in ("bos_token_id", "eos_token_id")}
    return {
        **settings_files(config, vocabulary, settings),
        "LICENSE": b"Apache License\n",
        "generation_config.json": text(ids, 2, "\n"),
    }


def llama_files(config: Config, vocabulary: Vocabulary) -> Files:
    """A Llama's files but the weights."""
    ids = {name: config[name] for name in ("bos_token_id", "eos_token_id")}
    return {
        **settings_files(config, vocabulary, LLAMA_SETTINGS, LLAMA_SPECIAL),
        "generation_config.json": text(ids, 2, "\n"),
    }


def score_files(true_token: int, false_token: int, modes: dict[str, object]) -> Files:
    """The files of a Transformer and a LogitScore."""
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": TRANSFORMER},
        {"idx": 1, "name": "1", "path": "1_LogitScore", "type": SCORE},
    ]
    settings = {
        "transformer_task": "text-generation",
        "modality_config": modes,
        "module_output_name": "causal_logits",
    }
    whole = {"model_type": "CrossEncoder", "prompts": {}, "default_prompt_name": None}
    whole |= {"activation_fn": "torch.nn.modules.linear.Identity"}
    score = {"true_token_id": true_token, "false_token_id": false_token}
    return {
        "modules.json": text(modules, 2),
        "1_LogitScore/config.json": text(score | {"module_input_name": "causal_logits"}, 4),
        "sentence_bert_config.json": text(settings, 4),
        "config_sentence_transformers.json": text(whole, 2),
    }


def tied(class_name: str, config: Config, dtype: torch.dtype) -> State:
    """The weights of a model whose head is its embeddings, which are saved once."""
    state = cast(random_state(class_name, config), dtype)
    state.pop("lm_head.weight")
    return state
