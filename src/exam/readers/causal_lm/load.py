"""Load a causal language model where `model.weights_location` puts its weights."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    GgufConfig,
    PreTrainedTokenizerBase,
    set_seed,
)

from exam.config import Dtype, Model, WeightsLocation
from exam.core.checkpoints import (
    check_new_weights,
    resolve_checkpoint,
    translate_load_errors,
)
from exam.core.devices import compute_device
from exam.core.errors import ExamError
from exam.core.precision import default_half_dtype
from exam.core.tokenization import check_vocabulary, load_tokenizer
from exam.data.schema import LETTERS
from exam.readers.causal_lm.layerwise import Layerwise
from exam.readers.causal_lm.prompts import TEMPLATES, Prompter
from exam.readers.causal_lm.scoring import InMemory, Runner
from exam.readers.multiple_choice.heads import set_padding
from exam.readers.multiple_choice.model import small_architecture, tiny_tokenizer
from exam.readers.quantization import dtype_kwargs

DECODERS = ("ForCausalLM", "GPT2LMHeadModel")


def inspect_decoder(config: Model) -> tuple[Any, PreTrainedTokenizerBase]:
    """Return a causal language model without memory for its weights, and its tokenizer.

    Raises:
        ExamError: the checkpoint cannot be loaded, or is not a decoder, or its files contradict
            each other.
    """
    dtype_kwargs(config, default_half_dtype())
    folder, architecture, tokenizer = _load_parts(config)
    if _gguf_file(config, folder):  # the library reads a GGUF file only as a whole
        with torch.device("meta"):
            factory: Any = AutoModelForCausalLM
            model = factory.from_config(architecture)
    else:
        model = _load_weights(config, folder, architecture, {"device_map": "meta"})
    check_vocabulary(tokenizer, model)
    return model, tokenizer


def load_runner(config: Model, work: Path) -> tuple[Runner, Prompter, int]:
    """Return a model's runner, its prompter, and its window in tokens.

    States and weights that do not fit in memory go to files below `work`.
    """
    folder, architecture, tokenizer = _load_parts(config)
    runner = _build_runner(config, folder, architecture, work)
    window = get_window(config, architecture, training=False)
    return runner, Prompter.from_config(config, tokenizer), window


def load_causal_lm(config: Model, default: Dtype) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer; `default` is its number format if none is configured."""
    folder, architecture, tokenizer = _load_parts(config)
    weights = dtype_kwargs(config, default)
    return _load_weights(config, folder, architecture, weights), tokenizer


def build_random_decoder(
    config: Model, seed: int, texts: Iterable[str]
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Build a small random model of the configured architecture, with a tokenizer of the texts.

    The tokenizer also learns the template and the replies, often enough to keep them whole.
    """
    set_seed(seed)
    template = config.template or TEMPLATES[config.scoring]
    tokenizer = tiny_tokenizer([*texts, *([template, "yes no", *LETTERS] * 100)])
    architecture = AutoConfig.for_model(**small_architecture(config), vocab_size=len(tokenizer))
    if type(architecture) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise _not_decoder_error(f"model.architecture={architecture.model_type}", architecture)
    factory: Any = AutoModelForCausalLM
    return factory.from_config(architecture), tokenizer


def get_window(config: Model, architecture: Any, *, training: bool) -> int:
    """Return how many tokens the model reads at most."""
    limit: int = getattr(architecture, "max_position_embeddings", 1 << 30)
    return min(config.length(training=training), limit)


def _load_parts(config: Model) -> tuple[Path, Any, PreTrainedTokenizerBase]:
    """Return a checkpoint's folder, the configuration of its model, and its tokenizer."""
    checkpoint = config.required_checkpoint
    folder = resolve_checkpoint(checkpoint)
    options = {"trust_remote_code": config.trust_remote_code, **_gguf_file(config, folder)}
    with translate_load_errors(checkpoint):
        architecture = AutoConfig.from_pretrained(folder, **options)
    names, kind = architecture.architectures or [], type(architecture)
    is_unnamed = not names and kind in MODEL_FOR_CAUSAL_LM_MAPPING  # read from a GGUF file
    is_decoder = is_unnamed and kind not in MODEL_FOR_MASKED_LM_MAPPING
    if not is_decoder and not any(name.endswith(DECODERS) for name in names):
        raise _not_decoder_error(f"model.name_or_path={config.name_or_path}", architecture)
    with translate_load_errors(checkpoint):
        tokenizer = load_tokenizer(folder, **options)
    set_padding(tokenizer, architecture)
    return folder, architecture, tokenizer


def _gguf_file(config: Model, folder: Path) -> dict[str, Any]:
    """Return the GGUF file of a checkpoint; a run trained from one holds safetensors instead."""
    if config.gguf_file is None or not (folder / config.gguf_file).is_file():
        return {}
    return {"gguf_file": config.gguf_file}


def _not_decoder_error(setting: str, architecture: Any) -> ExamError:
    names = ", ".join(architecture.architectures or []) or architecture.model_type
    return ExamError(
        f"{setting} is not a decoder ({names}), and model.kind=causal_lm needs one.\n"
        "Name a decoder, or choose another model (model=minilm)."
    )


def _build_runner(config: Model, folder: Path, architecture: Any, work: Path) -> Runner:
    weights = dtype_kwargs(config, default_half_dtype())
    device = compute_device()
    memory = round(config.max_memory_gib * 2**30)
    if config.weights_location is WeightsLocation.layerwise:
        with translate_load_errors(config.required_checkpoint):
            return Layerwise(
                folder, architecture, weights["dtype"], device, work / "states", memory
            )
    if config.weights_location is WeightsLocation.offload:
        weights |= {
            "device_map": "auto",
            "offload_folder": str(work / "offload"),
            "max_memory": _max_memory(memory),
        }
    model = _load_weights(config, folder, architecture, weights)
    return InMemory(model if "device_map" in weights else model.to(device), device)


def _load_weights(config: Model, folder: Path, architecture: Any, weights: dict[str, Any]) -> Any:
    options = _gguf_file(config, folder)
    if options:  # dequantized, so that it can be trained and saved
        options["quantization_config"] = GgufConfig(dequantize=True)
    checkpoint = config.required_checkpoint
    with translate_load_errors(checkpoint):
        factory: Any = AutoModelForCausalLM
        model, info = factory.from_pretrained(
            folder,
            config=architecture,
            trust_remote_code=config.trust_remote_code,
            output_loading_info=True,
            **weights,
            **(options or {"use_safetensors": True}),
        )
    check_new_weights(checkpoint, model, info, of_head=False)
    return model


def _max_memory(memory: int) -> dict[int | str, int]:
    """Return the bytes that accelerate may fill: 90 % of every GPU, and `memory` of the host's."""
    from accelerate.utils import get_max_memory

    gpus = {n: int(0.9 * size) for n, size in get_max_memory().items() if n != "cpu"}
    return {**gpus, "cpu": memory}
