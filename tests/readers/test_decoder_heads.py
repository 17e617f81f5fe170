"""Decoders with a head that scores one sequence for each option."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import refuses
from tiny_encoders import CPU, features_of, texts
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import LlamaForSequenceClassification, TokenizersBackend

from exam.config import Dtype, Loss, Model, Tuning
from exam.readers.multiple_choice.collator import MultipleChoiceCollator
from exam.readers.multiple_choice.features import build_features
from exam.readers.multiple_choice.reader import MultipleChoiceReader
from exam.readers.quantization import dtype_kwargs

LORA = Tuning(name="lora", lora_rank=4, lora_dropout=0.0)
LLAMA = Model(name="t", architecture="llama", loss=Loss.binary, cross_option_bias=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory, questions):
    """A random decoder's folder."""
    folder = tmp_path_factory.mktemp("decoder")
    MultipleChoiceReader.build(
        replace(LLAMA, cross_option_bias=False), CPU, folder / "c", 0, texts(questions)
    ).save(folder)
    return folder


def reader_of(tmp_path, model, **values):
    return MultipleChoiceReader.build(model, {**CPU, "max_steps": 3, **values}, tmp_path / "c", 1)


def test_scores_equal_the_library_classifier(tmp_path, questions, base):
    reader = reader_of(tmp_path, replace(LLAMA, cross_option_bias=False, name_or_path=str(base)))
    logits = reader.predict_logits(features_of(reader, questions))
    plain = LlamaForSequenceClassification.from_pretrained(base).eval()
    rows = features_of(reader, questions).to_list()
    for row, scores in zip(rows, logits, strict=True):
        for option, score in zip(row["options"], scores, strict=True):
            question = [*row["prompt"], *option]
            ids = reader.build_collator(5).pair.build(row["windows"][0], question)["input_ids"]
            with torch.no_grad():
                expected = plain(torch.tensor([ids])).logits.item()
            assert score == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("tuning", [LORA, Tuning(freeze_embeddings=True, layer_decay=0.9)])
def test_a_trained_decoder_reloads_with_the_same_logits(tmp_path, questions, base, tuning):
    model = replace(LLAMA, name_or_path=str(base))
    reader = reader_of(tmp_path, model, learning_rate=0.01)
    features = features_of(reader, questions)
    before = reader.predict_logits(features)
    embeddings = reader.model.get_input_embeddings().weight.detach().clone()
    reader = reader.prepare_for_training(features, tuning)
    reader.train(features, features.select([]))
    logits = reader.predict_logits(features)
    assert not np.allclose(before, logits)
    assert torch.equal(reader.model.get_input_embeddings().weight, embeddings)
    reader.save(tmp_path / "run" / "model")
    again = reader_of(tmp_path / "again", replace(model, name_or_path=str(tmp_path / "run")))
    assert np.array_equal(again.predict_logits(features), logits)


def test_a_decoder_without_a_padding_token_pads_with_its_end(tmp_path, questions, base):
    reader = reader_of(tmp_path, replace(LLAMA, cross_option_bias=False, name_or_path=str(base)))
    whole = reader.predict_logits(features_of(reader, questions))
    reader.tokenizer.save_pretrained(base / "none")
    reader.model.save_pretrained(base / "none")
    for name in ("tokenizer_config.json", "config.json"):
        text = (base / "none" / name).read_text()
        (base / "none" / name).write_text(
            text.replace('"pad_token"', '"eos_token"').replace('"pad_token_id": 0', '"x": 0')
        )
    again = reader_of(
        tmp_path, replace(LLAMA, cross_option_bias=False, name_or_path=str(base / "none"))
    )
    assert again.model.config.pad_token_id == again.tokenizer.eos_token_id
    assert again.predict_logits(features_of(again, questions)) == pytest.approx(whole, abs=1e-5)


def test_number_formats_that_need_a_gpu_are_refused_without_one():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    for model, setting, remedy in (
        (replace(LLAMA, dtype=Dtype.float16), "model.dtype=float16", "Set model.dtype=auto"),
        (replace(LLAMA, load_in_4bit=True), "model.load_in_4bit=true", "model.load_in_4bit=false"),
    ):
        with refuses(setting, remedy):
            dtype_kwargs(model, Dtype.float32)


def test_byte_level_vocabularies_get_a_space_between_texts(questions):
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False)
    raw.train_from_iterator(texts(questions) * 3, trainer)
    tokenizer = TokenizersBackend(tokenizer_object=raw, pad_token="<s>", eos_token="<s>")
    contexts = {"0": [{"text": "It is a log."}, {"text": "It lives."}]}
    (row,) = build_features(questions.select([0]), contexts, tokenizer, 500, 500)[0].to_list()
    batch = MultipleChoiceCollator(tokenizer, 5)([row])
    text = f" It is a log. It lives.\n{questions[0]['prompt']} {questions[0]['options'][0]}"
    (first, *_) = batch["input_ids"][0]
    assert first[batch["attention_mask"][0, 0].bool()].tolist() == tokenizer(text)["input_ids"]
