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

from exam.config import Dtype, Execution, Model
from exam.errors import ExamError
from exam.llm.layerwise import Layerwise
from exam.llm.prompts import TEMPLATES, Prompter
from exam.llm.scoring import InMemory, Runner
from exam.precision import half_here, weights_in
from exam.question_rows import LETTERS
from exam.reader.decoders import with_padding
from exam.reader.model import load_tokenizer, small_architecture, tiny_tokenizer
from exam.weights import locate, reaching

DECODERS = ("ForCausalLM", "GPT2LMHeadModel")


def check_decoder(config: Model) -> None:
    """Refuse a checkpoint that cannot be read, or is no decoder, before any work."""
    if config.name_or_path is not None:
        _architecture(config, _place(config))


def load_causal(config: Model, work: Path) -> tuple[Runner, Prompter, int]:
    """What runs the model, what lays questions out for it, and its window in tokens.

    What does not fit in memory lies below `work` meanwhile.
    """
    place = _place(config)
    architecture = _architecture(config, place)
    tokenizer = _tokenizer(config, place)
    with_padding(tokenizer, architecture)
    prompter = Prompter.of(config, tokenizer)
    runner = _runner(config, place, architecture, work)
    return runner, prompter, window(config, architecture, training=False)


def load_whole(config: Model, place: str, otherwise: Dtype) -> tuple[Any, PreTrainedTokenizerBase]:
    """The model and its tokenizer; `otherwise` is its number format if none is configured."""
    architecture, tokenizer = _architecture(config, place), _tokenizer(config, place)
    with_padding(tokenizer, architecture)
    return _weights(config, place, architecture, weights_in(config, otherwise)), tokenizer


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


def empty_decoder(config: Model) -> Any:
    """Build a checkpoint's architecture on the meta device: shapes and no weights."""
    architecture = _architecture(config, locate(str(config.name_or_path)))
    factory: Any = AutoModelForCausalLM
    with torch.device("meta"):
        return factory.from_config(architecture)


def _words(config: Model) -> list[str]:
    """What a random model's tokenizer has to know, often enough: replies, and the template."""
    return [config.template or TEMPLATES[config.scoring], "yes no", *LETTERS] * 100


def window(config: Model, architecture: Any, *, training: bool) -> int:
    """How many tokens are read at most."""
    limit: int = getattr(architecture, "max_position_embeddings", 1 << 30)
    return min(config.length(training=training), limit)


def _place(config: Model) -> str:
    place = locate(str(config.name_or_path))
    if config.execution is Execution.layerwise and not Path(place).is_dir():
        from huggingface_hub import snapshot_download

        with reaching("reader", place, "model.name_or_path"):
            place = snapshot_download(place, ignore_patterns=["*.bin", "*.pth", "*.gguf"])
    return place


def _form(config: Model, place: str) -> dict[str, Any]:
    """The GGUF file of a checkpoint that is one; a run that was trained from it has none."""
    folder = Path(place)
    if config.gguf is None or (folder.is_dir() and not (folder / config.gguf).is_file()):
        return {}
    return {"gguf_file": config.gguf}


def _tokenizer(config: Model, place: str) -> PreTrainedTokenizerBase:
    with reaching("reader", str(config.name_or_path), "model.name_or_path"):
        return load_tokenizer(config, place, **_form(config, place))


def _architecture(config: Model, place: str) -> Any:
    with reaching("reader", str(config.name_or_path), "model.name_or_path"):
        found = AutoConfig.from_pretrained(
            place, trust_remote_code=config.trust_remote_code, **_form(config, place)
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


def _runner(config: Model, place: str, architecture: Any, work: Path) -> Runner:
    weights = weights_in(config, half_here())
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    memory = round(config.memory_gib * 2**30)
    if config.execution is Execution.layerwise:
        own = weights["dtype"], device, work / "states", memory
        with reaching("reader", str(config.name_or_path), "model.name_or_path"):
            return Layerwise(Path(place), architecture, *own)
    if config.execution is Execution.offload:
        folder = str(work / "offload")
        weights |= {
            "device_map": "auto",
            "offload_folder": folder,
            "max_memory": _devices(memory),
        }
    model = _weights(config, place, architecture, weights)
    return InMemory(model if "device_map" in weights else model.to(device), device)


def _weights(config: Model, place: str, architecture: Any, weights: dict[str, Any]) -> Any:
    packed = _form(config, place)
    form = packed or {"use_safetensors": True}
    if packed:  # unpacked, whatever kernels there are: so it can be trained and saved
        form["quantization_config"] = GgufConfig(dequantize=True)
    with reaching("reader", str(config.name_or_path), "model.name_or_path"):
        return AutoModelForCausalLM.from_pretrained(
            place,
            config=architecture,
            trust_remote_code=config.trust_remote_code,
            **weights,
            **form,
        )


def _devices(memory: int) -> dict[int | str, int]:
    """What accelerate may fill: nine tenths of every GPU, and so much of the memory."""
    from accelerate.utils import get_max_memory

    gpus = {n: int(0.9 * size) for n, size in get_max_memory().items() if n != "cpu"}
    return {**gpus, "cpu": memory}
