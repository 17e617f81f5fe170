"""Causal language models on a GPU: in memory, layer by layer, offloaded, in 4 bits, trained."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerators import DEVICES, FORMATS, on_gpu, trainer_on
from tiny_decoders import CHAT, FAMILIES, PASSAGES, SMALL, WORDS, model_of, prompter_of, questions
from transformers import LlamaConfig, LlamaForCausalLM

from exam.config import Dtype, Model, ReaderKind, Scoring, Tuning, WeightsLocation
from exam.readers.causal_lm import load
from exam.readers.causal_lm.layerwise import Layerwise
from exam.readers.causal_lm.load import load_causal_lm, load_runner
from exam.readers.causal_lm.reader import FEATURES, LetterReader
from exam.readers.causal_lm.scoring import InMemory, score_options
from exam.readers.multiple_choice.model import tiny_tokenizer

CPU = torch.device("cpu")
LORA = Tuning(name="lora", lora_rank=4, lora_dropout=0.0)
WIDE = {**SMALL, "hidden_size": 128, "intermediate_size": 256, "initializer_range": 0.1}
SLOW = pytest.param("cpu", "fp32", marks=pytest.mark.slow)
PLACES = [SLOW, *(on_gpu("cuda", dtype) for dtype in FORMATS)]
SOME = ["llama", "gemma2", "mixed windows"]


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = tiny_tokenizer([WORDS] * 3)
    tokenizer.chat_template = CHAT
    return tokenizer


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """A random Llama, wide enough for 4-bit kernels, in several files."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **WIDE))
    model.save_pretrained(folder, max_shard_size="200KB")
    tokenizer.save_pretrained(folder)
    return folder


def asked_of(prompter):
    return prompter.build_prompts(questions(), PASSAGES, 200)


def agree(ours, theirs, near):
    """Whether the scores of the options that exist are near."""
    exist = np.isfinite(theirs)
    assert (np.isfinite(ours) == exist).all()
    return np.linalg.norm(ours[exist] - theirs[exist]) < near * np.linalg.norm(theirs[exist])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scoring", list(Scoring))
@pytest.mark.parametrize("family", FAMILIES)
def test_a_shared_prefix_scores_as_on_the_cpu(tokenizer, device, scoring, family):
    asked = asked_of(prompter := prompter_of(tokenizer, scoring))
    exact = score_options(InMemory(model_of(family, tokenizer), CPU), prompter, asked, 2)
    model = model_of(family, tokenizer).to(device)
    scores = score_options(InMemory(model, torch.device(device)), prompter, asked, 2)
    assert agree(scores, exact, 1e-3)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("memory", [0, 1 << 30], ids=["on disk", "in memory"])
@pytest.mark.parametrize("family", SOME)
def test_layer_by_layer_scores_as_on_the_cpu(tokenizer, tmp_path, device, memory, family):
    asked = asked_of(prompter := prompter_of(tokenizer, Scoring.yes_no))
    model = model_of(family, tokenizer)
    model.save_pretrained(tmp_path / "m", max_shard_size="20KB")
    place = torch.float32, torch.device(device), tmp_path / "w", memory
    layers = Layerwise(tmp_path / "m", model.config, *place)
    scores = score_options(layers, prompter, asked, 2)
    assert agree(scores, score_options(InMemory(model, CPU), prompter, asked, 2), 1e-3)
    assert all(p.is_meta for p in layers.base.layers.parameters())


FROM_FILES = [("cpu", Dtype.float32), *(on_gpu("cuda", Dtype(d)) for d in ("bfloat16", "float16"))]


@pytest.mark.parametrize(("device", "dtype"), FROM_FILES)
def test_layer_by_layer_from_files_scores_as_in_memory(tmp_path, folder, device, dtype):
    scores = {}
    for execution in (WeightsLocation.memory, WeightsLocation.layerwise):
        config = decoder(folder, dtype=dtype, weights_location=execution)
        runner, prompter, _ = load_runner(config, tmp_path)
        assert runner.device.type == device or torch.cuda.is_available()
        scores[execution] = score_options(runner, prompter, asked_of(prompter), 2)
    assert agree(scores[WeightsLocation.layerwise], scores[WeightsLocation.memory], 1e-2)
    whole, _ = load_causal_lm(decoder(folder, dtype=Dtype.float32), Dtype.float32)
    exact = score_options(InMemory(whole, CPU), prompter, asked_of(prompter), 2)
    assert agree(scores[WeightsLocation.memory], exact, 0.1)


@pytest.mark.parametrize("device", DEVICES)
def test_what_a_gpu_does_not_hold_is_offloaded(tmp_path, folder, device, monkeypatch):
    config = decoder(folder, dtype=Dtype.float32)
    whole, _ = load_causal_lm(config, Dtype.float32)
    size = sum(p.numel() * p.element_size() for p in whole.parameters())
    # accelerate keeps room for a layer on a GPU, which is a third of this model
    memory = {0: 3 * size // 4, "cpu": size // 4} if device == "cuda" else {"cpu": size // 3}
    monkeypatch.setattr(load, "_max_memory", lambda _: memory)
    runner, prompter, _ = load_runner(
        replace(config, weights_location=WeightsLocation.offload), tmp_path
    )
    places = set(map(str, runner.model.hf_device_map.values()))
    assert "disk" in places
    assert (places & {"0", "cuda:0"} != set()) == (device == "cuda")
    scores = score_options(runner, prompter, asked_of(prompter), 2)
    exact = score_options(InMemory(whole, CPU), prompter, asked_of(prompter), 2)
    assert agree(scores, exact, 1e-3)


def decoder(folder, **values):
    values = {"scoring": Scoring.yes_no, "max_length": 200, "max_memory_gib": 1.0, **values}
    return Model(name="m", kind=ReaderKind.causal_lm, name_or_path=str(folder), **values)


def letters(tokenizer):
    asked = asked_of(prompter := prompter_of(tokenizer, Scoring.letters))
    tokens = prompter.single_token_ids("ABC")
    from datasets import Dataset

    columns = {
        "prefix": [one.prefix for one in asked],
        "options": [tokens[: one.options] for one in asked],
        "labels": [1, 2, 0],
    }
    return Dataset.from_dict(columns, features=FEATURES)


def learn_and_read_again(folder, tokenizer, config, values, tuning, near):
    reader = LetterReader.build(config, values, folder / "c", 0)
    features = letters(tokenizer)
    reader = reader.prepare_for_training(features, tuning)
    reader.train(features, features.select([]))
    logits = reader.predict_logits(features)
    assert logits.argmax(axis=1).tolist() == [1, 2, 0]
    reader.save(folder / "run" / "model")
    saved = replace(config, name_or_path=str(folder / "run" / "model"))
    again = LetterReader.build(saved, values, folder / "again", 0)
    assert agree(again.predict_logits(features), logits, near)


@pytest.mark.parametrize(("device", "dtype"), PLACES)
@pytest.mark.parametrize("tuning", [Tuning(), LORA], ids=["full", "lora"])
def test_letters_are_learned_and_read_again(tokenizer, tmp_path, folder, device, dtype, tuning):
    values = trainer_on(device, dtype, max_steps=80, learning_rate=3e-3)
    config = decoder(folder, scoring=Scoring.letters)
    learn_and_read_again(tmp_path, tokenizer, config, values, tuning, 1e-2)


@pytest.mark.parametrize("device", DEVICES[1:])
def test_4_bits_score_nearly_as_16_and_take_less(tmp_path, folder, device):
    pytest.importorskip("bitsandbytes")
    scores, sizes = [], []
    for packed in (False, True):
        runner, prompter, _ = load_runner(decoder(folder, load_in_4bit=packed), tmp_path)
        assert runner.device.type == device
        layers = runner.model.base_model.layers
        sizes.append(sum(p.numel() * p.element_size() for p in layers.parameters()))
        scores.append(score_options(runner, prompter, asked_of(prompter), 2))
    assert sizes[1] < 0.4 * sizes[0]
    exist = np.isfinite(scores[0])
    assert np.corrcoef(scores[0][exist], scores[1][exist])[0, 1] > 0.8


@pytest.mark.parametrize("device", DEVICES[1:])
def test_adapters_learn_on_4_bits(tokenizer, tmp_path, folder, device):
    pytest.importorskip("bitsandbytes")
    config = decoder(folder, scoring=Scoring.letters, load_in_4bit=True)
    values = trainer_on(device, "bf16", max_steps=80, learning_rate=3e-3)
    values |= {"activation_checkpointing": True}
    learn_and_read_again(tmp_path, tokenizer, config, values, LORA, 5e-2)
