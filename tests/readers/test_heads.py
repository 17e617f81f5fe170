"""Extra scores of an option, losses, and the layout of a question."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import PLACES, contexts_stage, kaggle_rows
from tiny_encoders import CPU, FAMILIES, as_questions, contexts_of, texts
from transformers import LongformerForMultipleChoice

from exam.config import Layout, Loss, Model, Order, Packing, Tuning
from exam.readers.lexical import (
    OVERLAP_FEATURES,
    SPREADS,
    compute_logits,
    compute_overlap_features,
    fit_weights,
)
from exam.readers.multiple_choice.collator import MultipleChoiceCollator, PackedCollator
from exam.readers.multiple_choice.features import build_features
from exam.readers.multiple_choice.reader import MultipleChoiceReader
from exam.readers.trainer import binary_loss


def test_the_question_comes_first_and_its_context_fills_the_rest(small):
    tokenizer, i = small
    a, b, c, d, e = (i[x] for x in "abcde")
    row = {"windows": [[a, b]], "prompt": [c], "options": [[d], [e]], "labels": 0}
    batch = MultipleChoiceCollator(tokenizer, 2, Layout.question_first)([row])
    assert batch["input_ids"].tolist() == [[[2, c, d, 3, a, b, 3], [2, c, e, 3, a, b, 3]]]
    assert batch["token_type_ids"].tolist() == [[[0, 0, 0, 0, 1, 1, 1]] * 2]
    packed = PackedCollator(tokenizer, 2, Layout.question_first)([row])
    assert packed["input_ids"].tolist()[0][:10] == [2, c, 3, a, b, 3, d, 3, e, 3]
    assert packed["position_ids"].tolist()[0][:10] == [0, 1, 2, 3, 4, 5, 6, 7, 6, 7]
    without = {**row, "windows": [[]]}
    for kind in (MultipleChoiceCollator, PackedCollator):
        one, other = (kind(tokenizer, 2, layout)([without]) for layout in Layout)
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("layout", "context", "marks"),
    [
        (Layout.context_first, ["a", "b"], [0, 0, 0, 0, 1, 1, 0]),
        (Layout.question_first, ["a", "b"], [0, 1, 1, 0, 0, 0, 0]),
        (Layout.context_first, [], [0, 1, 1, 0]),
        (Layout.question_first, [], [0, 1, 1, 0]),
    ],
)
def test_longformer_attends_globally_from_prompt_and_option(small, layout, context, marks):
    tokenizer, i = small
    row = {"windows": [[i[x] for x in context]], "prompt": [i["c"]], "options": [[i["d"]]]}
    batch = MultipleChoiceCollator(tokenizer, 1, layout, global_attention=True)([row])
    assert batch["global_attention_mask"].tolist() == [[marks]]


def test_longformer_trains_and_its_global_tokens_matter(tmp_path, questions):
    config = {
        "model_type": "longformer",
        **{k: v for k, v in FAMILIES["bert"].items() if k != "model_type"},
        "attention_window": [8, 8, 8],
        "max_position_embeddings": 300,
        "pad_token_id": 0,
    }
    model = Model(name="t", config=config, max_length=100)
    reader = MultipleChoiceReader.build(
        model, {**CPU, "max_steps": 2}, tmp_path / "c", 0, texts(questions)
    )
    assert isinstance(reader.model, LongformerForMultipleChoice)
    long = contexts_of(questions, ["It lives in the river. The log is a place. " * 4])
    features, _ = build_features(questions, long, reader.tokenizer, 100, 297)
    reader.train(features, features.select([]))
    batch = reader.build_collator(5)(features.to_list()[:1])
    batch.pop("labels"), batch.pop("option_mask")
    reader.model.eval()
    with torch.no_grad():
        marked = reader.model(**batch).logits
        batch["global_attention_mask"] = torch.zeros_like(batch["global_attention_mask"])
        assert not torch.allclose(marked, reader.model(**batch).logits, atol=1e-4)


def test_the_best_passage_can_stand_next_to_the_question(small):
    tokenizer, i = small
    questions = as_questions([{**kaggle_rows(1)[0], "prompt": "c", **dict.fromkeys("ABCDE", "d")}])
    contexts = {"0": [{"text": "a b"}, {"text": "e f"}, {"text": "g g g"}]}
    best_last, _ = build_features(questions, contexts, tokenizer, 10, 512, Order.best_last)
    assert best_last[0]["windows"][0] == [i["g"], i["e"], i["f"], i["a"], i["b"]]


def test_binary_loss_is_the_mean_of_each_option():
    logits = torch.tensor([[1.0, -2.0, -torch.inf], [0.0, 3.0, 1.0]])
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])

    def entropy(x, y):
        p = 1 / (1 + np.exp(-x))
        return -(y * np.log(p) + (1 - y) * np.log(1 - p))

    for share in (0.0, 0.2):
        yes, no = 1 - share / 2, share / 2
        first = (entropy(1.0, yes) + entropy(-2.0, no)) / 2
        second = (entropy(0.0, no) + entropy(3.0, yes) + entropy(1.0, no)) / 3
        expected = (first + second) / 2
        assert binary_loss(logits, targets, share).item() == pytest.approx(expected, rel=1e-5)


WEIGHTS = dict.fromkeys(PLACES, 2.0) | {"animal": 1.0}


def stage_of(outputs, questions):
    """A stage of contexts whose first passage names the right place."""

    def passages(question):
        right = f"This animal lives in the {question['options'][question['label']]}."
        return [{"score": 2.0, "text": right}, {"score": 1.0, "text": "Nothing here."}]

    return contexts_stage(outputs, {q["id"]: passages(q) for q in questions}, WEIGHTS)


def joined(tmp_path, questions, packing=Packing.options, family="bert", **values):
    model = {"overlap_features": True, **values}
    config = Model(name="t", config=dict(FAMILIES[family]), packing=packing, **model)
    return MultipleChoiceReader.build(
        config, {**CPU, "max_steps": 2}, tmp_path / "c", 0, texts(questions)
    )


def test_overlap_features_are_centred_over_the_options(tmp_path):
    rows = [{**kaggle_rows(1)[0], "prompt": "the animal", **dict.fromkeys("ABCDE", "x")}]
    rows[0] |= {"A": "river log marsh", "B": "pond", "answer": "A"}
    questions = as_questions(rows)
    passages = [
        {"score": 3.0, "text": "the animal river log marsh"},
        {"score": 1.0, "text": "pond"},
    ]
    stage = contexts_stage(tmp_path, {"0": passages}, WEIGHTS)
    features = compute_overlap_features(questions, stage, 2, 48)
    assert features.shape == (1, 5, len(OVERLAP_FEATURES))
    by_name = {name: features[0, :, OVERLAP_FEATURES.index(name)] for name in OVERLAP_FEATURES}

    def centred(name, values):
        return pytest.approx((np.array(values) - np.mean(values)) / SPREADS[name])

    assert by_name["trigrams"] == centred("trigrams", [6.0, 0, 0, 0, 0])
    assert by_name["scored"] == centred("scored", [0.75, 0.25, 0, 0, 0])
    # Squared idf: each of river, log, marsh and pond 4, animal 1; x has none.
    one = 1 / np.sqrt(13)
    assert by_name["similarity"] == centred("similarity", [1.0, 2 / np.sqrt(5), one, one, one])
    assert by_name["centrality"][:2].tolist() == pytest.approx(
        by_name["centrality"][[1, 0]].tolist()
    )


def test_overlap_features_do_not_depend_on_other_questions(tmp_path, questions):
    text = "The otter lives in the river. A log is in the marsh, and a well in the meadow."
    features = []
    for some in (questions, questions.select([0])):
        idf = {place: 2.0 for place in PLACES if any(place in q["options"] for q in some)}
        passages = {key: [{"score": 1.0, "text": text}] for key in some["id"]}
        stage = contexts_stage(tmp_path, passages, idf, n=len(some))
        features.append(compute_overlap_features(some, stage, 1, 48)[0])
    assert np.array_equal(*features)


def test_overlap_features_start_as_a_conditional_logit(tmp_path, questions):
    stage = stage_of(tmp_path, questions)
    reader = joined(tmp_path, questions)
    features = reader.encode("f", questions, stage)[0]
    measured = np.array(features["evidence"][:])
    before = reader.predict_logits(features)
    reader = reader.prepare_for_training(features, Tuning())
    added = compute_logits(measured, fit_weights(measured, np.array(questions["label"])))
    assert reader.predict_logits(features) == pytest.approx(before + added, abs=1e-4)
    assert (added.argmax(1) == np.array(questions["label"])).all()


@pytest.mark.parametrize(
    ("packing", "family", "tuning"),
    [
        (Packing.options, "bert", Tuning()),
        pytest.param(Packing.none, "deberta", Tuning(), marks=pytest.mark.slow),
        (Packing.cross, "bert", Tuning(lora_rank=2)),
    ],
)
def test_extra_scores_are_trained_and_reload(tmp_path, questions, packing, family, tuning):
    stage = stage_of(tmp_path, questions)
    values = {"loss": Loss.binary, "cross_option_bias": True}
    base = joined(tmp_path, questions, packing, family, **values)
    base.save(tmp_path / "base")
    model = replace(base.config, config=None, name_or_path=str(tmp_path / "base"))
    arguments = {**CPU, "max_steps": 4, "learning_rate": 0.01}
    reader = MultipleChoiceReader.build(model, arguments, tmp_path / "c", 0)
    features = reader.encode("f", questions, stage)[0]
    reader = reader.prepare_for_training(features, tuning)
    started = reader.model.get_submodule("evidence").weight.detach().clone()
    reader.train(features, features.select([]))
    assert not torch.equal(reader.model.get_submodule("evidence").weight, started)
    logits = reader.predict_logits(features)
    reader.save(tmp_path / "run" / "model")
    saved = replace(model, name_or_path=str(tmp_path / "run"))
    again = MultipleChoiceReader.build(saved, CPU, tmp_path / "a", 9)
    assert again.model.get_submodule("others").weight.any()
    assert np.array_equal(again.predict_logits(features), logits)


def test_trained_overlap_weights_are_kept(tmp_path, questions):
    stage = stage_of(tmp_path, questions)
    reader = joined(tmp_path, questions)
    features = reader.encode("f", questions, stage)[0]
    with torch.no_grad():
        reader.model.get_submodule("evidence").weight.fill_(0.5)
    again = reader.prepare_for_training(features, Tuning())
    assert (again.model.get_submodule("evidence").weight == 0.5).all()


def test_the_cross_option_bias_ignores_missing_options(tmp_path, questions):
    reader = joined(
        tmp_path, questions, overlap_features=False, loss=Loss.binary, cross_option_bias=True
    )
    rows = build_features(questions, contexts_of(questions), reader.tokenizer, 48, 512)[
        0
    ].to_list()[:1]
    rows[0]["options"] = rows[0]["options"][:3]
    batch = reader.build_collator(5)(rows)
    batch.pop("labels")
    reader.model.eval()
    with torch.no_grad():
        alone = reader.model(**batch).logits[0, :3].numpy()
        reader.model.get_submodule("others").weight.fill_(2.0)
        logits = reader.model(**batch).logits[0, :3].numpy()
    assert logits == pytest.approx(alone + 2 * (alone.sum() - alone) / 2, abs=1e-5)


def test_another_number_of_options_is_predicted(tmp_path, questions):
    stage = stage_of(tmp_path, questions)
    reader = joined(tmp_path, questions)
    features = reader.encode("f", questions, stage)[0]
    reader = reader.prepare_for_training(features, Tuning())
    reader.train(features, features.select([]))
    rows = questions.to_list()
    rows[0] |= {"options": ["river", "log", "well"], "label": 0}
    rows[1] |= {"options": [*rows[1]["options"], "glacier", "sea"]}
    other = Dataset.from_list(rows[:2], features=questions.features)
    logits = reader.predict_logits(reader.encode("f", other, stage)[0])
    assert logits.shape == (2, 7)
    assert np.isfinite(logits).sum(axis=1).tolist() == [3, 7]
