"""Features, collator, model, training: literal tensors and invariants."""

import copy
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import contexts_stage, kaggle_rows, refuses
from tiny_encoders import (
    CPU,
    TINY,
    as_questions,
    contexts_of,
    features_of,
    reader_in,
    reader_of,
    texts,
)

from exam.config import Context, Loss, Model, Packing
from exam.core.artifacts import MANIFEST, write_manifest
from exam.core.checkpoints import max_input_tokens
from exam.core.errors import ExamError
from exam.core.files import read_json, write_json
from exam.core.tokenization import token_ids
from exam.core.trainer import last_complete_checkpoint
from exam.data.schema import FEATURES
from exam.evaluation.results import describe_training
from exam.metrics import map_at_k
from exam.readers.multiple_choice.collator import MultipleChoiceCollator
from exam.readers.multiple_choice.features import (
    SpecialTokens,
    build_features,
    shuffle_options,
)
from exam.readers.multiple_choice.model import inspect_model, load_model, tiny_tokenizer
from exam.readers.multiple_choice.reader import MultipleChoiceReader
from exam.readers.trainer import LOSSES, equal_chances_loss, option_loss


@pytest.fixture(scope="module")
def questions() -> Dataset:
    return as_questions(kaggle_rows(24))


CHOOSING = {
    "num_train_epochs": 3,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "load_best_model_at_end": True,
}


def test_only_the_context_is_truncated(questions):
    tokenizer = tiny_tokenizer(texts(questions))
    passages = ["It lives in the river.", "The log is a place.", "It is number 1."]
    first = [token_ids(tokenizer, [p])[0] for p in passages]
    needed = max(
        len(token_ids(tokenizer, [q["prompt"]])[0])
        + max(map(len, token_ids(tokenizer, q["options"])))
        for q in questions.select([0])
    ) + tokenizer.num_special_tokens_to_add(pair=True)
    room = len(first[0]) + 2
    rows, stats = build_features(
        questions.select([0]), contexts_of(questions, passages), tokenizer, needed + room, 512
    )
    assert rows[0]["windows"][0] == first[0] + first[1][:2]
    assert rows[0]["prompt"] == token_ids(tokenizer, [questions[0]["prompt"]])[0]
    assert rows[0]["options"] == token_ids(tokenizer, questions[0]["options"])
    left = len(first[1]) - 2 + len(first[2])
    assert (stats.cut.questions, stats.cut.passages, stats.cut.tokens) == (1, 1, left)


def test_question_longer_than_the_budget_loses_its_context_not_its_options(questions):
    tokenizer = tiny_tokenizer(texts(questions))
    rows, _ = build_features(
        questions, contexts_of(questions), tokenizer, max_length=5, longest=512
    )
    assert rows[0]["windows"][0] == []
    assert rows[0]["options"] == token_ids(tokenizer, questions[0]["options"])


def test_question_longer_than_the_model_is_refused(questions):
    tokenizer = tiny_tokenizer(texts(questions))
    with pytest.raises(ExamError, match=r"the model reads 8.\n.*shorten the question"):
        build_features(questions, {}, tokenizer, max_length=8, longest=8)


def test_special_tokens_in_a_text_stay_text(questions):
    tokenizer = tiny_tokenizer(texts(questions))
    forged = token_ids(tokenizer, ["the [SEP] river [CLS]"])[0]
    assert not {tokenizer.sep_token_id, tokenizer.cls_token_id} & set(forged)


def test_shuffled_options_keep_the_right_text_and_balance_the_letters():
    questions = as_questions(
        [{**r, "A": f"right {r['id']}", "answer": "A"} for r in kaggle_rows(100)]
    )
    shuffled = shuffle_options(questions, seed=1)
    for before, after in zip(questions, shuffled, strict=True):
        assert sorted(before["options"]) == sorted(after["options"])
        assert after["options"][after["label"]] == f"right {after['id']}"
    assert min(np.bincount(shuffled["label"], minlength=5)) >= 10
    assert shuffle_options(questions, seed=1)["label"][:] == shuffled["label"][:]
    assert shuffle_options(questions, seed=2)["label"][:] != shuffled["label"][:]


def test_collator_lays_out_literal_tensors(small):
    tokenizer, i = small
    row = {
        "windows": [[i["a"], i["b"]]],
        "prompt": [i["c"]],
        "options": [[i["d"]], [i["e"], i["f"]]],
    }
    before = copy.deepcopy(row)
    batch = MultipleChoiceCollator(tokenizer, options=2)([{**row, "labels": 1}])
    cls, sep, pad = 2, 3, 0
    assert batch["input_ids"].tolist() == [
        [
            [cls, i["a"], i["b"], sep, i["c"], i["d"], sep, pad],
            [cls, i["a"], i["b"], sep, i["c"], i["e"], i["f"], sep],
        ]
    ]
    assert batch["attention_mask"].tolist() == [[[1] * 7 + [0], [1] * 8]]
    assert batch["token_type_ids"].tolist() == [
        [[0, 0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 1, 1, 1, 1]]
    ]
    assert batch["labels"].tolist() == [1]
    assert batch["option_mask"].tolist() == [[True, True]]
    assert row == before


def test_collator_without_labels_and_without_context(small):
    tokenizer, i = small
    row = {"windows": [[]], "prompt": [i["c"]], "options": [[i["d"]], [i["e"]]], "labels": None}
    batch = MultipleChoiceCollator(tokenizer, options=2)([row])
    assert "labels" not in batch
    assert batch["input_ids"].tolist() == [[[2, i["c"], i["d"], 3], [2, i["c"], i["e"], 3]]]


def test_collator_pads_missing_options(small):
    tokenizer, i = small
    rows = [
        {"windows": [[]], "prompt": [i["c"]], "options": [[i["d"]], [i["e"]], [i["f"]]]},
        {"windows": [[]], "prompt": [i["c"]], "options": [[i["d"]], [i["e"]]]},
    ]
    batch = MultipleChoiceCollator(tokenizer, options=3)(rows)
    assert batch["input_ids"].shape == (2, 3, 4)
    assert batch["option_mask"].tolist() == [[True, True, True], [True, True, False]]


def test_special_tokens_equal_the_tokenizer(small):
    tokenizer, i = small
    built = SpecialTokens.from_tokenizer(tokenizer, pair=True).build([i["a"]], [i["b"], i["c"]])
    assert built == dict(tokenizer("a", "b c", return_token_type_ids=True))


def test_loss_ignores_options_that_do_not_exist():
    logits = torch.tensor([[1.0, 2.0, -torch.inf]])
    two = torch.nn.functional.cross_entropy(logits[:, :2], torch.tensor([1]), label_smoothing=0.3)
    assert option_loss(logits, torch.tensor([[0.0, 1.0, 0.0]]), 0.3).item() == pytest.approx(
        two.item()
    )


def test_head_stays_fp32_under_autocast(tmp_path, questions):
    reader = reader_in(tmp_path, questions)
    batch = MultipleChoiceCollator(reader.tokenizer, 5)(
        features_of(reader, questions).to_list()[:2]
    )
    batch.pop("option_mask"), batch.pop("labels")
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert reader.model(**batch).logits.dtype == torch.float32


def test_position_limits():
    bert = {
        "model_type": "bert",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    model, _ = load_model(Model(name="b", config={**bert, "intermediate_size": 16}), 0, ["a"])
    assert max_input_tokens(model, 256) == 512
    with refuses("model.max_length=600", "512 tokens", "Set model.max_length=512"):
        max_input_tokens(model, 600)
    roberta = {**bert, "model_type": "roberta", "intermediate_size": 16, "pad_token_id": 1}
    model, _ = load_model(
        Model(name="r", config={**roberta, "max_position_embeddings": 514}), 0, ["a"]
    )
    assert max_input_tokens(model, 512) == 512


def test_training_moves_every_parameter(tmp_path, questions):
    reader = reader_in(tmp_path, questions, num_train_epochs=1)
    before = {n: p.detach().clone() for n, p in reader.model.named_parameters()}
    features = features_of(reader, questions)
    reader.train(features, features.select([]))
    still = [n for n, p in reader.model.named_parameters() if torch.equal(before[n], p)]
    assert still == []


def first_step(tmp_path, questions, batch, accumulation):
    """Loss and gradient norm that the Trainer logs for the first optimiser step."""
    reader = reader_in(
        tmp_path,
        questions,
        max_steps=1,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
    )
    features = features_of(reader, questions)
    trainer = reader.build_trainer(features, None, 5)
    trainer.train()
    log = trainer.state.log_history[0]
    return log["loss"], log["grad_norm"]


def test_accumulation_equals_a_larger_batch(tmp_path, questions):
    whole = first_step(tmp_path / "a", questions, 8, 1)
    parts = first_step(tmp_path / "b", questions, 1, 8)
    assert whole == pytest.approx(parts, rel=1e-4)
    assert whole[0] == pytest.approx(np.log(5), abs=0.05)  # not eight times that


def test_predict_equals_evaluate_and_a_reloaded_model(tmp_path, questions):
    reader = reader_in(tmp_path, questions, num_train_epochs=1, per_device_eval_batch_size=5)
    features = features_of(reader, questions)
    reader.train(features, features.select([]))
    logits = reader.predict_logits(features)
    evaluated = reader.build_trainer(None, features, 5).evaluate()
    assert evaluated["eval_map_at_3"] == map_at_k(logits, np.array(questions["label"]), 3)
    reader.model.save_pretrained(tmp_path / "m")
    reader.tokenizer.save_pretrained(tmp_path / "m")
    saved = replace(reader.config, name_or_path=str(tmp_path / "m"))
    again = MultipleChoiceReader.build(
        saved, {**CPU, "per_device_eval_batch_size": 5}, tmp_path, seed=9
    )
    weights = again.model.state_dict()
    assert all(
        torch.equal(weights[name], weight) for name, weight in reader.model.state_dict().items()
    )
    # The last bit of a matrix product depends on where its weights lie in memory.
    assert again.predict_logits(features_of(again, questions)) == pytest.approx(
        logits, rel=0, abs=1e-8
    )


def test_partly_answered_questions_are_predicted(tmp_path, questions):
    reader = reader_in(tmp_path, questions, per_device_eval_batch_size=4)
    rows = [{**q, "label": None if i > 7 else q["label"]} for i, q in enumerate(questions)]
    part = reader.predict_logits(features_of(reader, Dataset.from_list(rows, features=FEATURES)))
    assert np.array_equal(part, reader.predict_logits(features_of(reader, questions)))


def test_a_diverged_reader_is_refused(tmp_path, questions):
    reader = reader_in(tmp_path, questions)
    with torch.no_grad():
        reader.model.classifier.weight.fill_(torch.nan)
    with pytest.raises(ExamError, match=r"NaN for 24 of 24 (.|\n)* lower trainer\.learning_rate"):
        reader.predict_logits(features_of(reader, questions))


def test_a_checkpoint_without_its_best_one_is_not_resumed(tmp_path, questions):
    reader = reader_in(tmp_path, questions, **CHOOSING)
    features = features_of(reader, questions)
    reader.train(features.select(range(16)), features.select(range(16, 24)))
    folder = tmp_path / "c"
    newest = last_complete_checkpoint(folder)
    state = read_json(newest / "trainer_state.json")
    state["best_model_checkpoint"] = str(folder / "checkpoint-1")
    write_json(newest / "trainer_state.json", state)
    mark_whole(newest)
    assert last_complete_checkpoint(folder) != newest


def mark_whole(checkpoint):
    files = [p for p in checkpoint.rglob("*") if p.is_file() and p.name != MANIFEST]
    write_manifest(checkpoint / MANIFEST, [str(p.relative_to(checkpoint)) for p in files])


def test_training_does_not_resume_with_another_number_of_processes(tmp_path, questions):
    reader = reader_in(tmp_path, questions, max_steps=2, save_strategy="steps", save_steps=1)
    features = features_of(reader, questions)
    reader.train(features, features.select([]))
    newest = tmp_path / "c" / "checkpoint-2"
    for number in range(2):  # as two processes name them
        shutil.copy(newest / "rng_state.pth", newest / f"rng_state_{number}.pth")
    (newest / "rng_state.pth").unlink()
    mark_whole(newest)
    with refuses(str(newest), "2 processes with batches of 8", "1 process with", "resume=never"):
        reader.train(features, features.select([]))


def test_predict_needs_no_labels_and_masks_missing_options(tmp_path, questions):
    reader = reader_in(tmp_path, questions)
    rows = [{**q, "label": None} for q in questions.select(range(3))]
    rows[1]["options"] = rows[1]["options"][:3]
    features = features_of(reader, Dataset.from_list(rows, features=FEATURES))
    logits = reader.predict_logits(features)
    assert np.isinf(logits).tolist() == [[False] * 5, [False] * 3 + [True] * 2, [False] * 5]
    whole = reader.predict_logits(features_of(reader, questions.select(range(3))))
    assert logits[1, :3] == pytest.approx(whole[1, :3], abs=1e-5)


class Stop(Exception):
    """Stands for a process that is killed."""


def losses(trainer_state):
    return [(h["step"], h["loss"]) for h in trainer_state if "loss" in h]


def eight_steps(folder, questions):
    """Training that saves every third step; its predictions and its state."""
    dropout = {**TINY, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    steps = {
        "max_steps": 8,
        "save_strategy": "steps",
        "save_steps": 3,
        "per_device_train_batch_size": 4,
    }
    reader = reader_in(folder, questions, config=dropout, **steps)
    features = features_of(reader, questions)
    reader.train(features, features.select([]))
    return reader.predict_logits(features), read_json(folder / "trainer_state.json")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, questions):
    return eight_steps(tmp_path_factory.mktemp("whole"), questions)


@pytest.mark.parametrize("cut", ["between checkpoints", "within a checkpoint"])
def test_resumed_training_equals_uninterrupted(
    tmp_path, questions, uninterrupted, cut, monkeypatch
):
    from transformers import Trainer

    whole, state = uninterrupted
    name = "training_step" if cut == "between checkpoints" else "_save_optimizer_and_scheduler"
    real, calls = getattr(Trainer, name), []
    limit = 5 if cut == "between checkpoints" else 2

    def dying(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == limit:
            raise Stop
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, name, dying)
    with pytest.raises(Stop):
        eight_steps(tmp_path / "cut", questions)
    monkeypatch.setattr(Trainer, name, real)
    assert last_complete_checkpoint(tmp_path / "cut" / "c").name == "checkpoint-3"
    resumed, resumed_state = eight_steps(tmp_path / "cut", questions)
    assert resumed_state["global_step"] == state["global_step"] == 8
    assert losses(resumed_state["log_history"]) == losses(state["log_history"])
    assert np.array_equal(resumed, whole)


def test_best_checkpoint_is_chosen_on_the_dev_fold(tmp_path, questions):
    reader = reader_in(tmp_path, questions, **CHOOSING)
    features = features_of(reader, questions)
    _, figures = reader.train(features.select(range(16)), features.select(range(16, 24)))
    score = map_at_k(
        reader.predict_logits(features.select(range(16, 24))),
        np.array(questions["label"][16:24]),
        3,
    )
    assert figures["best"] == pytest.approx(score)


def test_features_are_cached_until_an_input_changes(tmp_path, questions):
    tokenizer = tiny_tokenizer(texts(questions))
    stage, other = (
        contexts_stage(tmp_path, {key: [{"text": text}] for key in questions["id"]}, text=text)
        for text in ("It lives in the river.", "The log is a place.")
    )
    reader = replace(reader_in(tmp_path, questions), context=Context(num_passages=1))

    def features(contexts=stage, tokenizer=tokenizer, questions=questions, max_length=48):
        config = replace(reader.config, max_length=max_length)
        reading = replace(reader, tokenizer=tokenizer, config=config)
        encoded, _ = reading.encode("f", questions, contexts)
        folders = sorted(p.name for p in (tmp_path / "features").iterdir() if p.is_dir())
        return encoded.to_list(), len(folders)

    built, folders = features()
    direct = build_features(
        questions, contexts_of(questions, ["It lives in the river."]), tokenizer, 48, 512
    )
    assert built == direct[0].to_list()
    assert folders == 1
    assert features() == (built, 1)
    assert features(contexts=other)[1] == 2
    assert features(tokenizer=tiny_tokenizer(texts(questions)[:9]))[1] == 3
    assert features(questions=shuffle_options(questions, seed=3))[1] == 4
    assert features(max_length=20)[1] == 5
    assert features() == (built, 5)


@pytest.mark.parametrize("packing", [Packing.none, Packing.options])
def test_an_architecture_that_reads_no_options_is_refused_before_any_work(tmp_path, packing):
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    (tmp_path / "model.safetensors").touch()
    with refuses(f"{tmp_path} is a t5 model", "such as model=deberta_base"):
        inspect_model(Model(name="t", name_or_path=str(tmp_path), packing=packing))


def test_a_training_that_did_not_learn_is_named(tmp_path, questions):
    few, warnings = questions.select(range(8)), {}
    for rate in (0.0, 3e-3):
        folder = tmp_path / f"rate-{rate}"
        reader = reader_of(folder, few, num_train_epochs=12, learning_rate=rate)
        features = features_of(reader, few)
        _, figures = reader.train(features, features.select([]))
        assert figures["equal_chances_loss"] == pytest.approx(np.log(5))
        write_json(folder / "training.json", figures)
        warnings[rate] = describe_training(folder)
    assert "rate-0.0" in warnings[0.0][0]
    assert "1.609" in warnings[0.0][0]
    assert warnings[3e-3] == []


@pytest.mark.parametrize("loss", Loss)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_equal_chances_give_the_least_loss_without_reading(loss, smoothing):
    """The mean over right options of the loss of constant logits has its minimum there."""
    targets = torch.eye(4)
    bound = equal_chances_loss(torch.tensor([4.0]), loss, smoothing).item()
    constant = torch.linspace(-4, 4, 801)
    losses = [LOSSES[loss](torch.full((4, 4), x), targets, smoothing).item() for x in constant]
    assert min(losses) == pytest.approx(bound, abs=1e-4)
    uneven = torch.tensor([[0.3, 0.0, 0.0, 0.0]]).expand(4, 4) + constant[np.argmin(losses)]
    assert LOSSES[loss](uneven, targets, smoothing).item() > bound
