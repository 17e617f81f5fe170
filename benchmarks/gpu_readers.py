"""Benchmark readers on a GPU: packed or one sequence per option, and two kinds of attention.

Every measurement has a copy of the weights: accelerate leaves a model wrapped in the number format
that it was last trained in.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from flex import flex
from gpu_cases import Case, Facts, UnavailableError, Work
from reader_models import SHAPES
from transformers import MODEL_MAPPING, AutoConfig

from exam.config import Model, Packing
from exam.core.estimates import step_mib
from exam.readers.multiple_choice.features import FEATURES
from exam.readers.multiple_choice.model import tiny_tokenizer
from exam.readers.multiple_choice.reader import MultipleChoiceReader
from exam.readers.trainer import build_reader_arguments

OPTIONS, PROMPT, OPTION = 5, 60, 20  # tokens of prompt and option; the context takes the rest
BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 300,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "deberta": {**SHAPES["deberta"], **BASE, "pooler_hidden_size": 768},  # DeBERTa-v3-base
    "bert": {"model_type": "bert", **BASE, "vocab_size": 30522, "max_position_embeddings": 2048},
}
FORMATS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Tokens of a sequence: questions in a batch of training, steps, questions to answer.
AMOUNTS = {
    "full": {512: (16, 12, 512), 1280: (4, 12, 256)},
    "tiny": {128: (2, 2, 4)},
}


def readers(size: str, device: str, work: Path) -> list[Case]:
    """Train and answer: one sequence per option, and packed, with and without checkpointing."""
    cases = []
    for length, (batch, steps, questions) in AMOUNTS[size].items():
        for form in ("bf16", "fp16") if device == "cuda" else ("fp32",):
            values = number_format(form) | {
                "per_device_train_batch_size": batch,
                "per_device_eval_batch_size": 4 * batch,
                "max_steps": steps,
            }
            train_rows = rows_of(size, length, batch * steps)
            eval_rows = rows_of(size, length, questions)
            load = partial(reader_of, work, size, "deberta")
            of = partial(arguments_of, values, work, device)
            cases.append(
                Case(
                    f"train, {length} tokens, {form}",
                    {
                        "one sequence per option": partial(training, load, "none", of, train_rows),
                        "packed": partial(training, load, "options", of, train_rows),
                        "packed, checkpointing": partial(
                            training, load, "options", partial(of, checkpointing=True), train_rows
                        ),
                    },
                    batch * steps,
                    "questions",
                )
            )
            cases.append(
                Case(
                    f"answer, {length} tokens, {form}",
                    {
                        "one sequence per option": partial(answering, load, "none", of, eval_rows),
                        "packed": partial(answering, load, "options", of, eval_rows),
                    },
                    questions,
                    "questions",
                )
            )
    return cases


def attention(size: str, device: str, work: Path) -> list[Case]:
    """Compare SDPA with a dense mask and FlexAttention, in packed readers without dropout."""
    cases = []
    form = "bf16" if device == "cuda" else "fp32"
    for family in FAMILIES:
        for length, (batch, steps, _) in AMOUNTS[size].items():
            rows = rows_of(size, length, batch)
            for phase, run in (("answer", forward), ("train", forward_and_backward)):
                load = partial(reader_of, work, size, family)
                ways = {
                    "SDPA": partial(passes, load, nullcontext, run, rows, form, steps, device),
                    "FlexAttention": partial(passes, load, flex, run, rows, form, steps, device),
                }
                name = f"{phase}, packed {family}, {length} tokens, {form}"
                cases.append(Case(name, ways, batch * steps, "questions"))
    return cases


def number_format(form: str) -> dict[str, Any]:
    """Return the Trainer's arguments of a number format."""
    return {"bf16": form == "bf16", "fp16": form == "fp16"}


def arguments_of(
    values: dict[str, Any], work: Path, device: str, *, checkpointing: bool = False
) -> Any:
    """Return new arguments of the Trainer: the last ones that are built set the process's state."""
    defaults = {
        "use_cpu": device == "cpu",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "learning_rate": 1e-6,
        "activation_checkpointing": checkpointing,
    }
    return build_reader_arguments(
        {**defaults, **values}, work / "trainer", 0, Model(name="deberta")
    )


@cache
def checkpoint(work: Path, size: str, family: str) -> Path:
    """Write random weights and a tokenizer once; return their folder."""
    folder = work / f"{family}-{size}"
    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        shape = FAMILIES[family] | (TINY if size == "tiny" else {})
        config = AutoConfig.for_model(**{**shape, "pooler_hidden_size": shape["hidden_size"]})
        architecture: Any = MODEL_MAPPING[type(config)]
        tiny_tokenizer(["a question"]).save_pretrained(folder)
        architecture(config).save_pretrained(folder)
    return folder


@cache
def reader_of(work: Path, size: str, family: str, packing: str) -> MultipleChoiceReader:
    """Load a reader without dropout on the CPU."""
    config = Model(
        name=family,
        name_or_path=str(checkpoint(work, size, family)),
        packing=Packing(packing),
        dropout=0.0,
    )
    return MultipleChoiceReader.build(config, {"use_cpu": True, "bf16": False}, work / "trainer", 0)


@cache
def rows_of(size: str, length: int, number: int) -> Dataset:
    """Return questions of random tokens whose sequences are `length` tokens long."""
    random = np.random.default_rng(length)
    most = TINY["vocab_size"] if size == "tiny" else 30000

    def ids(count: int) -> list[int]:
        return list(map(int, random.integers(10, most, count)))

    rows = [
        {
            "windows": [ids(length - PROMPT - OPTION - 4)],  # with four special tokens
            "prompt": ids(PROMPT),
            "options": [ids(OPTION) for _ in range(OPTIONS)],
            "labels": int(random.integers(OPTIONS)),
        }
        for _ in range(number)
    ]
    return Dataset.from_list(rows, features=FEATURES)


@contextmanager
def training(
    load: Callable[[str], MultipleChoiceReader],
    packing: str,
    arguments: Callable[[], Any],
    rows: Dataset,
) -> Iterator[Work]:
    """Train some steps with the Trainer."""
    reader = on_device(load(packing), arguments())
    tokens = reader.build_collator(OPTIONS).count_tokens(rows[0])
    longest = tokens // (1 if packing == "options" else OPTIONS)

    def run() -> Facts:
        args = reader.arguments
        reader.build_trainer(rows, None, OPTIONS).train()
        size = args.per_device_train_batch_size
        estimate = step_mib(reader.model, args, tokens * size, longest)
        return {"estimated_mib": sum(estimate.values())}

    yield run


@contextmanager
def answering(
    load: Callable[[str], MultipleChoiceReader],
    packing: str,
    arguments: Callable[[], Any],
    rows: Dataset,
) -> Iterator[Work]:
    """Predict with the Trainer."""
    reader = on_device(load(packing), arguments())

    def run() -> None:
        reader.predict_logits(rows)

    yield run


def on_device(reader: MultipleChoiceReader, arguments: Any) -> MultipleChoiceReader:
    """Copy a reader to the device of its Trainer."""
    model = copy.deepcopy(reader.model).to(arguments.device)
    return replace(reader, model=model, arguments=arguments)


@contextmanager
def passes(
    load: Callable[[str], MultipleChoiceReader],
    way: Callable[[], AbstractContextManager[None]],
    run: Callable[..., Any],
    rows: Dataset,
    form: str,
    steps: int,
    device: str,
) -> Iterator[Work]:
    """Pass one batch through a packed reader several times."""
    reader = load("options")
    model: Any = copy.deepcopy(reader.model)
    model = model.eval().to(device)
    batch = reader.build_collator(OPTIONS)(rows.to_list())
    inputs = {n: v.to(device) for n, v in batch.items() if n not in ("labels", "option_mask")}
    if run is forward_and_backward and way is flex and device == "cpu":
        raise UnavailableError("FlexAttention has no gradient on a CPU")

    def work() -> Facts:
        autocast = torch.autocast(device, FORMATS[form], enabled=form != "fp32")
        with way(), autocast:
            for _ in range(steps):
                logits = run(model, inputs)
        return {"sum_of_logits": float(logits.double().sum())}

    yield work


def forward(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the logits."""
    with torch.no_grad():
        logits: torch.Tensor = model(**inputs).logits
    return logits


def forward_and_backward(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the logits, after computing the gradient of their sum."""
    logits: Any = model(**inputs).logits
    logits.sum().backward()
    detached: torch.Tensor = logits.detach()
    return detached
