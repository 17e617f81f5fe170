"""Load a causal language model in the way it is to be executed."""

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
    count_embeddings,
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
        ExamError: the checkpoint cannot be loaded, or is not a decoder, or its files do not agree.
    """
    folder = resolve_checkpoint(config.required_checkpoint)
    dtype_kwargs(config, default_half_dtype())
    architecture, tokenizer = _architecture(config, folder), _tokenizer(config, folder)
    set_padding(tokenizer, architecture)
    if _form(config, folder):  # the library reads a GGUF only as a whole
        with torch.device("meta"):
            factory: Any = AutoModelForCausalLM
            model = factory.from_config(architecture)
    else:
        model = _weights(config, folder, architecture, {"device_map": "meta"})
    check_vocabulary(tokenizer, count_embeddings(model))
    return model, tokenizer


def load_causal(config: Model, work: Path) -> tuple[Runner, Prompter, int]:
    """What runs the model, what lays questions out for it, and its window in tokens.

    What does not fit in memory lies below `work` meanwhile.
    """
    folder = resolve_checkpoint(config.required_checkpoint)
    architecture = _architecture(config, folder)
    tokenizer = _tokenizer(config, folder)
    set_padding(tokenizer, architecture)
    prompter = Prompter.of(config, tokenizer)
    runner = _runner(config, folder, architecture, work)
    return runner, prompter, window(config, architecture, training=False)


def load_whole(config: Model, otherwise: Dtype) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer; `otherwise` is its number format if none is configured."""
    folder = resolve_checkpoint(config.required_checkpoint)
    architecture, tokenizer = _architecture(config, folder), _tokenizer(config, folder)
    set_padding(tokenizer, architecture)
    return _weights(config, folder, architecture, dtype_kwargs(config, otherwise)), tokenizer


def random_decoder(
    config: Model, seed: int, texts: Iterable[str]
) -> tuple[Any, PreTrainedTokenizerBase]:
    """A small random model of the configured architecture, with a tokenizer of the texts."""
    set_seed(seed)
    tokenizer = tiny_tokenizer([*texts, *_words(config)])
    architecture = AutoConfig.for_model(**small_architecture(config), vocab_size=len(tokenizer))
    if type(architecture) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise _no_decoder(f"model.architecture={architecture.model_type}", architecture)
    factory: Any = AutoModelForCausalLM
    return factory.from_config(architecture), tokenizer


def _words(config: Model) -> list[str]:
    """What a random model's tokenizer has to know, often enough: replies, and the template."""
    return [config.template or TEMPLATES[config.scoring], "yes no", *LETTERS] * 100


def window(config: Model, architecture: Any, *, training: bool) -> int:
    """How many tokens are read at most."""
    limit: int = getattr(architecture, "max_position_embeddings", 1 << 30)
    return min(config.length(training=training), limit)


def _form(config: Model, folder: Path) -> dict[str, Any]:
    """The GGUF file of a checkpoint that is one; a run that was trained from it has none."""
    if config.gguf_file is None or not (folder / config.gguf_file).is_file():
        return {}
    return {"gguf_file": config.gguf_file}


def _tokenizer(config: Model, folder: Path) -> PreTrainedTokenizerBase:
    with translate_load_errors(config.required_checkpoint):
        return load_tokenizer(
            folder, trust_remote_code=config.trust_remote_code, **_form(config, folder)
        )


def _architecture(config: Model, folder: Path) -> Any:
    with translate_load_errors(config.required_checkpoint):
        found = AutoConfig.from_pretrained(
            folder, trust_remote_code=config.trust_remote_code, **_form(config, folder)
        )
    names, kind = found.architectures or [], type(found)
    unnamed = not names and kind in MODEL_FOR_CAUSAL_LM_MAPPING  # as out of a GGUF
    decodes = unnamed and kind not in MODEL_FOR_MASKED_LM_MAPPING
    if not decodes and not any(name.endswith(DECODERS) for name in names):
        raise _no_decoder(str(config.name_or_path), found)
    return found


def _no_decoder(what: str, architecture: Any) -> ExamError:
    names = ", ".join(architecture.architectures or []) or architecture.model_type
    return ExamError(
        f"{what} is no decoder ({names}): "
        "model.kind=causal_lm asks a model that continues texts.\n"
        "Give one, or choose another model (model=minilm)."
    )


def _runner(config: Model, folder: Path, architecture: Any, work: Path) -> Runner:
    weights = dtype_kwargs(config, default_half_dtype())
    device = compute_device()
    memory = round(config.max_memory_gib * 2**30)
    if config.weights_location is WeightsLocation.layerwise:
        own = weights["dtype"], device, work / "states", memory
        with translate_load_errors(config.required_checkpoint):
            return Layerwise(folder, architecture, *own)
    if config.weights_location is WeightsLocation.offload:
        weights |= {
            "device_map": "auto",
            "offload_folder": str(work / "offload"),
            "max_memory": _devices(memory),
        }
    model = _weights(config, folder, architecture, weights)
    return InMemory(model if "device_map" in weights else model.to(device), device)


def _weights(config: Model, folder: Path, architecture: Any, weights: dict[str, Any]) -> Any:
    packed = _form(config, folder)
    form = packed or {"use_safetensors": True}
    if packed:  # unpacked, whatever kernels there are: so it can be trained and saved
        form["quantization_config"] = GgufConfig(dequantize=True)
    checkpoint = config.required_checkpoint
    with translate_load_errors(checkpoint):
        factory: Any = AutoModelForCausalLM
        model, info = factory.from_pretrained(
            folder,
            config=architecture,
            trust_remote_code=config.trust_remote_code,
            output_loading_info=True,
            **weights,
            **form,
        )
    check_new_weights(checkpoint, model, info, of_head=False)
    return model


def _devices(memory: int) -> dict[int | str, int]:
    """What accelerate may fill: nine tenths of every GPU, and so much of the memory."""
    from accelerate.utils import get_max_memory

    gpus = {n: int(0.9 * size) for n, size in get_max_memory().items() if n != "cpu"}
    return {**gpus, "cpu": memory}
