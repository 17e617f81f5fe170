"""What of a reader is trained, how fast, and against what."""

import resource
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import refuses
from tiny_encoders import CPU, FAMILIES, features_of, model_of, texts
from torch import nn
from transformers import AutoConfig, AutoModel, TrainerCallback, TrainingArguments

from exam.config import Model, Packing, Tuning
from exam.core.errors import ExamError
from exam.core.estimates import step_mib
from exam.core.trainer import fit, last_complete_checkpoint
from exam.readers.multiple_choice.reader import MultipleChoiceReader
from exam.readers.trainer import perturb_weights
from exam.readers.tuning import count_parameters, get_layers, merge_adapters

LORA = Tuning(name="lora", lora_rank=4, lora_dropout=0.0)
AWP = Tuning(name="awp", awp_lr=0.1, awp_eps=None, awp_start_epoch=0.0)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def bases(tmp_path_factory, questions):
    """Folders of random models by family, as a checkpoint to start from."""

    def folder(family, packing=Packing.options):
        folder = tmp_path_factory.getbasetemp() / f"base-{family}-{packing.value}"
        if not folder.is_dir():
            reader = MultipleChoiceReader.build(
                model_of(family, packing), CPU, folder / "c", 0, texts(questions)
            )
            reader.save(folder)
        return str(folder)

    return folder


def reader_of(tmp_path, questions, base, packing=Packing.options, **values):
    config = Model(name="t", name_or_path=base, packing=packing)
    return MultipleChoiceReader.build(
        config, {**CPU, "max_steps": 2, **values}, tmp_path / "c", 0, texts(questions)
    )


def trained(reader, questions, tuning):
    features = features_of(reader, questions)
    reader = reader.prepare_for_training(features, tuning)
    reader.train(features, features.select([]))
    return reader, features


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("family", ["bert", slow("modernbert"), "deberta", slow("mpnet")])
def test_only_weights_that_are_not_frozen_move(tmp_path, questions, bases, family):
    reader = reader_of(tmp_path, questions, bases(family))
    before = weights(reader.model)
    trained(reader, questions, Tuning(name="f", freeze_embeddings=True, freeze_layers=1))
    still = {n for n, p in reader.model.named_parameters() if torch.equal(before[n], p)}
    frozen = {n for n in before if ".embeddings." in n or ".layer.0." in n or ".layers.0." in n}
    assert still - {"classifier.bias"} == frozen


def test_a_frozen_share_of_the_layers_is_logged(tmp_path, questions, bases, caplog):
    reader = reader_of(tmp_path, questions, bases("bert"))
    with caplog.at_level("DEBUG"):
        reader = reader.prepare_for_training(
            features_of(reader, questions), Tuning(freeze_layers=0.67)
        )
    layers = reader.model.base_model.encoder.layer
    assert [all(p.requires_grad for p in layer.parameters()) for layer in layers] == [0, 0, 1]
    counts = count_parameters(reader.model)
    per_layer = sum(p.numel() for p in layers[0].parameters())
    assert counts["all"] - counts["trained"] == 2 * per_layer
    said = f"train: {counts['trained']:,} of {counts['all']:,} parameters ({counts['share']:.1%})"
    assert said in caplog.messages


def test_more_layers_than_there_are_cannot_be_frozen(tmp_path, questions, bases):
    reader = reader_of(tmp_path, questions, bases("bert"))
    with refuses("tuning.freeze_layers=4", "3 layers", "Set at most 3, or a share below 1"):
        reader.prepare_for_training(features_of(reader, questions), Tuning(freeze_layers=4))


def test_layers_and_head_learn_at_separate_rates(tmp_path, questions, bases):
    reader = reader_of(tmp_path, questions, bases("deberta"), learning_rate=0.01)
    tuning = Tuning(layer_decay=0.5, head_learning_rate=0.1)
    features = features_of(reader, questions)
    trainer = reader.prepare_for_training(features, tuning).build_trainer(features, None, 5)
    optimizer = trainer.create_optimizer()
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    named = {name: rates[id(p)] for name, p in reader.model.named_parameters()}
    assert len(named) == len(rates)
    parts = {"encoder.layer.1.": 0.01, "encoder.layer.0.": 0.005, "classifier": 0.1}
    parts |= {"embeddings": 0.0025, "encoder.LayerNorm": 0.0025}
    for name, rate in named.items():
        assert {r for part, r in parts.items() if part in name} == {rate}, name
    decays = {g["weight_decay"] for g in optimizer.param_groups if g["lr"] == 0.01}
    assert len(decays) == 1  # without weight decay both groups have the same


@pytest.mark.parametrize(
    ("family", "packing"),
    [
        ("bert", Packing.options),
        ("deberta", Packing.none),
        *(slow(f, Packing.options) for f in FAMILIES if f != "bert"),
        slow("bert", Packing.none),
    ],
)
def test_adapters_reload_and_merge_to_the_same_logits(tmp_path, questions, bases, family, packing):
    base = bases(family, packing)
    reader = reader_of(tmp_path, questions, base, packing, activation_checkpointing=True)
    before = weights(reader.model)
    reader, features = trained(reader, questions, LORA)
    logits = reader.predict_logits(features)
    reader.save(tmp_path / "run" / "model")
    saved = {p.name for p in (tmp_path / "run" / "model").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "base.json"} <= saved
    assert "model.safetensors" not in saved

    again = reader_of(tmp_path / "again", questions, str(tmp_path / "run"), packing)
    assert np.array_equal(again.predict_logits(features), logits)
    whole = replace(again, model=merge_adapters(again.model))
    assert whole.predict_logits(features) == pytest.approx(logits, abs=1e-4)
    heads = [n for n in before if n.startswith(("classifier", "pooler", "head")) or ".pooler." in n]
    after = weights(whole.model)
    assert heads
    assert any(not torch.equal(before[n], after[n]) for n in heads)


def test_only_adapters_and_head_train(tmp_path, questions, bases):
    reader = reader_of(tmp_path, questions, bases("bert"))
    before = weights(reader.model)
    reader, _ = trained(reader, questions, replace(LORA, freeze_layers=2, lora_targets=["query"]))
    learning = [n for n, p in reader.model.named_parameters() if p.requires_grad]
    assert {n.split("bert.encoder.")[-1] for n in learning if "lora" in n} == {
        "layer.2.attention.self.query.lora_A.default.weight",
        "layer.2.attention.self.query.lora_B.default.weight",
    }
    size = 2 * 4 * 32 + 33  # two matrices of rank 4, and the head
    assert count_parameters(reader.model)["trained"] == size
    whole = weights(merge_adapters(reader.model))
    moved = {n for n, p in whole.items() if not torch.equal(before[n], p)}
    assert moved - {"classifier.bias"} == {
        "bert.encoder.layer.2.attention.self.query.weight",
        "classifier.weight",
    }


def test_adapters_of_a_random_model_are_saved_merged(tmp_path, questions):
    reader = MultipleChoiceReader.build(
        model_of("bert"), {**CPU, "max_steps": 2}, tmp_path / "c", 0, texts(questions)
    )
    reader, features = trained(reader, questions, LORA)
    reader.save(tmp_path / "m")
    again = reader_of(tmp_path, questions, str(tmp_path / "m"))
    assert again.predict_logits(features) == pytest.approx(
        reader.predict_logits(features), abs=1e-4
    )


def test_a_run_with_adapters_is_trained_further(tmp_path, questions, bases):
    first, features = trained(reader_of(tmp_path, questions, bases("bert")), questions, LORA)
    first.save(tmp_path / "run" / "model")
    again = reader_of(tmp_path / "a", questions, str(tmp_path / "run"), learning_rate=0.0)
    again, _ = trained(again, questions, LORA)
    assert again.predict_logits(features) == pytest.approx(first.predict_logits(features), abs=1e-4)


def test_adapters_of_another_base_are_refused(tmp_path, questions, bases):
    base, asked = tmp_path / "base", texts(questions)
    first, other = (
        MultipleChoiceReader.build(model_of("bert"), CPU, tmp_path / "c", seed, asked)
        for seed in (0, 1)
    )
    first.save(base)
    reader, _ = trained(reader_of(tmp_path, questions, str(base)), questions, LORA)
    reader.save(tmp_path / "run" / "model")
    other.save(base)
    with refuses(f"adapters of {base}, which", "has changed since.", "Restore"):
        reader_of(tmp_path, questions, str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("targets", "named"), [(["query", "q_proj"], "q_proj"), (["nothing"], "nothing")]
)
def test_unknown_lora_targets_are_refused(tmp_path, questions, bases, targets, named):
    reader = reader_of(tmp_path, questions, bases("bert"))
    tuning = replace(LORA, lora_targets=targets)
    with refuses(f"tuning.lora_targets={named}", "Choose from: dense, key, query, value."):
        reader.prepare_for_training(features_of(reader, questions), tuning)


def linear():
    module = nn.Linear(3, 2)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, -2.0, 3.0], [0.0, 1.0, 1.0]]))
    module(torch.ones(1, 3)).sum().backward()  # the gradient is one everywhere
    return module


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_the_shift_does_not_depend_on_the_gradients_scale(scale):
    module = linear()
    module.weight.grad *= scale
    before = module.weight.detach().clone()
    with perturb_weights(module, awp_lr=0.1, awp_eps=None):
        shift = module.weight.detach() - before
    assert shift.norm().item() == pytest.approx(0.1 * before.norm().item(), rel=1e-4)
    assert (shift / shift[0, 0]).flatten().tolist() == pytest.approx([1.0] * 6)
    assert torch.equal(module.weight, before)


def test_no_weight_moves_by_more_than_awp_eps():
    module = linear()
    before = module.weight.detach().clone()
    with perturb_weights(module, awp_lr=10.0, awp_eps=0.01):
        shift = (module.weight.detach() - before).flatten().tolist()
    assert shift == pytest.approx([0.01, 0.02, 0.03, 0.0, 0.01, 0.01], rel=1e-4)


def test_weights_are_restored_when_the_step_raises():
    module = linear()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}

    def step():
        with perturb_weights(module, 0.1, None):
            assert not torch.equal(module.weight, before["weight"])
            assert torch.equal(module.bias, before["bias"])  # biases are left alone
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        step()
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())


@pytest.mark.parametrize("tuning", [Tuning(), slow(LORA)], ids=["full", "lora"])
def test_weight_perturbation_adds_its_gradient_from_its_epoch_on(
    tmp_path, questions, bases, tuning
):
    logits = {}
    awp = replace(tuning, awp_lr=0.1, awp_eps=None, awp_start_epoch=0.0)
    for name, setting in {
        "none": tuning,
        "later": replace(awp, awp_start_epoch=99.0),
        "now": awp,
    }.items():
        reader = reader_of(tmp_path / name, questions, bases("bert"))
        reader, features = trained(reader, questions, setting)
        logits[name] = reader.predict_logits(features)
    assert np.array_equal(logits["none"], logits["later"])
    assert not np.allclose(logits["none"], logits["now"], atol=1e-5)


def test_weight_perturbation_changes_no_weight_that_is_not_trained(tmp_path, questions, bases):
    reader = reader_of(tmp_path, questions, bases("bert"))
    before = weights(reader.model)
    trained(reader, questions, replace(AWP, freeze_layers=2))
    layers = [n for n in before if ".layer.0." in n or ".layer.1." in n]
    after = weights(reader.model)
    assert layers
    assert all(torch.equal(before[n], after[n]) for n in layers)


@pytest.mark.parametrize(("sharded", "named"), [("deepspeed", "DeepSpeed"), ("fsdp", "FSDP")])
def test_weight_perturbation_needs_whole_weights(tmp_path, questions, bases, sharded, named):
    arguments = SimpleNamespace(**{"deepspeed": None, "fsdp": None, sharded: "settings"})
    reader = replace(reader_of(tmp_path, questions, bases("bert")), arguments=arguments)
    with refuses("tuning.awp_lr shifts each weight", f"{named} splits", "Set tuning.awp_lr=null"):
        reader.prepare_for_training(features_of(reader, questions), AWP)


def test_a_full_disk_leaves_the_last_whole_checkpoint_usable(tmp_path, questions, bases):
    whole, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}

    class Fill(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))

    reader = reader_of(tmp_path, questions, bases("bert"), **settings)
    features = features_of(reader, questions)
    trainer = reader.build_trainer(features, None, 5)
    trainer.add_callback(Fill())
    try:
        with refuses(f"A file below {tmp_path / 'c'} could not be written", "run the same command"):
            fit(trainer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (whole, resource.RLIM_INFINITY))
    assert last_complete_checkpoint(tmp_path / "c") == tmp_path / "c" / "checkpoint-2"
    again = reader_of(tmp_path, questions, bases("bert"), **settings)
    _, resumed = again.train(features, features.select([]))
    straight = reader_of(tmp_path / "other", questions, bases("bert"), **settings)
    straight.train(features, features.select([]))
    assert resumed["steps"] == 6
    assert "train_loss" not in resumed  # it would be that of the last steps alone
    assert np.array_equal(again.predict_logits(features), straight.predict_logits(features))


def test_memory_is_estimated_from_weights_and_tokens():
    model = nn.Linear(1024, 1024, bias=False)  # 4 MiB
    model.config = SimpleNamespace(num_hidden_layers=4, hidden_size=64, num_attention_heads=2)
    adam = TrainingArguments(optim="adamw_torch", use_cpu=True).optim  # not a plain string
    args = {"optim": adam, "bf16": True, "fp16": False, "gradient_checkpointing": False}
    kept = 4096 * (34 * 64 + 5 * 2 * 128)  # bytes a layer keeps of 4,096 tokens

    def mib(**changed):
        return step_mib(model, SimpleNamespace(**{**args, **changed}), 4096, 128)

    whole = {"weights": 4, "gradients": 4, "optimizer": 8, "activations": round(4 * kept / 2**20)}
    assert mib() == whole
    assert mib(optim="adamw_bnb_8bit") == {**whole, "optimizer": 2}
    assert mib(bf16=False)["activations"] == round(8 * kept / 2**20)
    once = kept + 2 * 4096 * 64 * 4  # a layer's at a time, and what enters each
    assert mib(gradient_checkpointing=True)["activations"] == round(once / 2**20)
    model.weight.requires_grad_(False)
    assert mib() == {**whole, "gradients": 0, "optimizer": 0}


def test_layers_under_another_name_are_refused():
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model("albert"))
    with pytest.raises(ExamError, match=r"albert(.|\n)*Choose tuning=full"):
        get_layers(model)
