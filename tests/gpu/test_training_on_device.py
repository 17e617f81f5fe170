"""Training where a GPU does it: every number format, AWP, adapters, resumption, processes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerators import DEVICES, FORMATS, NEAR, needs_gpus, on_gpu, trainer_on
from helpers import kaggle_rows, make_place, read_losses, run_exam, tiny
from tiny_encoders import FAMILIES, as_questions, features_of, model_of, texts

from exam.config import Model, Packing, Tuning
from exam.core.trainer import last_complete_checkpoint
from exam.readers.multiple_choice.reader import MultipleChoiceReader

PLACES = [
    *(pytest.param("cpu", dtype, marks=pytest.mark.slow) for dtype in ("fp32", "bf16")),
    *(on_gpu("cuda", dtype) for dtype in FORMATS),
]
STEPS = 12  # fp16 leaves the first ones out, until its scale suits the gradient
AWP = Tuning(name="awp", awp_lr=0.1, awp_eps=1e-2, awp_start_epoch=0.0)
LORA = Tuning(name="lora", lora_rank=4, lora_dropout=0.0)


@pytest.fixture(scope="module")
def questions():
    return as_questions(kaggle_rows(12))


@pytest.fixture
def reader_on(tmp_path, questions, monkeypatch):
    """Make a reader of random weights whose Trainer works on a device."""
    for shape in FAMILIES.values():
        monkeypatch.setitem(shape, "initializer_range", 0.1)

    def load(
        device, dtype="fp32", family="deberta", packing=Packing.options, config=None, **values
    ):
        arguments = trainer_on(device, dtype, **{"max_steps": STEPS, **values})
        config = config or model_of(family, packing)
        reader = MultipleChoiceReader.build(config, arguments, tmp_path / "c", 0, texts(questions))
        reader.arguments._n_gpu = min(1, reader.arguments.n_gpu)  # never torch's DataParallel
        return reader

    return load


def weights_of(model):
    return {name: p.detach().cpu().clone() for name, p in model.named_parameters()}


def trained(reader, questions, tuning=None):
    features = features_of(reader, questions)
    reader = reader.prepare_for_training(features, tuning or Tuning())
    return *reader.train(features, features.select([])), features


@pytest.mark.parametrize(("device", "dtype"), PLACES)
@pytest.mark.parametrize("packing", [Packing.options, Packing.none])
def test_training_lowers_the_loss_and_moves_every_weight(
    tmp_path, questions, reader_on, device, dtype, packing
):
    reader = reader_on(device, dtype, packing=packing, max_steps=40, learning_rate=3e-3)
    before = weights_of(reader.model)
    reader, figures, features = trained(reader, questions)
    assert {p.device.type for p in reader.model.parameters()} == {device}
    assert {p.dtype for p in reader.model.parameters()} == {torch.float32}
    still = {n for n, p in weights_of(reader.model).items() if torch.equal(before[n], p)}
    assert still <= {"classifier.bias", "pooler.dense.bias"}
    losses = read_losses(tmp_path)
    assert np.isfinite(losses).all()
    assert np.mean(losses[-8:]) < np.mean(losses[:8])
    assert ("peak_gpu_mib" in figures) == torch.cuda.is_available()
    assert np.isfinite(reader.predict_logits(features)).all()


@pytest.mark.parametrize("device", DEVICES[1:])
def test_fp16_scales_the_loss_and_leaves_out_what_overflows(questions, reader_on, device):
    reader = reader_on(device, "fp16", max_grad_norm=0.0)
    features = features_of(reader, questions)
    trainer = reader.build_trainer(features, None, 5)
    trainer.accelerator.scaler._init_scale = 2.0**30
    trainer.train()
    scaler = trainer.accelerator.scaler
    assert 0 < scaler.get_scale() < 2.0**30
    assert all(torch.isfinite(p).all() for p in reader.model.parameters())


@pytest.mark.parametrize(("device", "dtype"), PLACES)
def test_weight_perturbation_leaves_whole_weights(questions, reader_on, device, dtype):
    reader = reader_on(device, dtype)
    before = weights_of(reader.model)
    reader, _, features = trained(reader, questions, tuning=AWP)
    after = weights_of(reader.model)
    assert all(torch.isfinite(weight).all() for weight in after.values())
    assert sum(not torch.equal(before[n], after[n]) for n in after) >= len(after) - 1
    assert np.isfinite(reader.predict_logits(features)).all()


@pytest.mark.parametrize(("device", "dtype"), PLACES)
def test_adapters_train_under_checkpointing_and_reload(
    tmp_path, questions, reader_on, device, dtype
):
    base = reader_on(device, dtype)
    base.save(tmp_path / "base")
    config = replace(base.config, name_or_path=str(tmp_path / "base"), config=None)
    reader = reader_on(device, dtype, config=config, activation_checkpointing=True)
    before = weights_of(reader.model)
    reader, _, features = trained(reader, questions, LORA)
    after = weights_of(reader.model.get_base_model())
    plain = {name.replace(".base_layer.", "."): weight for name, weight in after.items()}
    frozen = [name for name in before if "classifier" not in name]
    assert all(torch.equal(before[name], plain[name]) for name in frozen)
    logits = reader.predict_logits(features)
    reader.save(tmp_path / "run")
    again = reader_on(device, dtype, config=replace(config, name_or_path=str(tmp_path / "run")))
    assert again.predict_logits(features) == pytest.approx(logits, abs=1e-2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", ["bert", "deberta", "modernbert"])
def test_checkpointed_training_has_the_same_losses(tmp_path, questions, reader_on, device, family):
    losses = []
    for checkpointing in (False, True):
        reader = reader_on(device, family=family, activation_checkpointing=checkpointing)
        trained(reader, questions)
        losses.append(read_losses(tmp_path))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize(("device", "dtype"), PLACES)
def test_resumed_training_ends_where_uninterrupted_training_does(
    tmp_path, questions, reader_on, device, dtype
):
    logits = []
    for stops in ([STEPS], [5, STEPS]):
        for steps in stops:
            folder = tmp_path / str(len(stops))
            values = {"save_strategy": "steps", "save_steps": 5, "lr_scheduler_type": "constant"}
            reader = reader_on(device, dtype, max_steps=steps, **values)
            reader.arguments.output_dir = str(folder / "c")
            reader, figures, features = trained(reader, questions)
            assert figures["steps"] == steps
        assert last_complete_checkpoint(folder / "c") is not None
        logits.append(reader.predict_logits(features))
    assert logits[1] == pytest.approx(logits[0], abs=NEAR[dtype])


@pytest.mark.parametrize("device", DEVICES[1:])
@pytest.mark.parametrize("family", ["bert", "deberta"])
def test_the_cpu_answers_as_the_gpu_that_trained(tmp_path, questions, reader_on, device, family):
    reader, _, features = trained(reader_on(device, "bf16", family), questions)
    reader.save(tmp_path / "run")
    saved = Model(name="t", name_or_path=str(tmp_path / "run"), packing=Packing.options)
    there, here = (reader_on(d, config=saved).predict_logits(features) for d in (device, "cpu"))
    assert here == pytest.approx(there, abs=1e-3)


@pytest.mark.parametrize("device", DEVICES[1:])
def test_adam_in_8_bits_moves_the_weights(questions, reader_on, device):
    pytest.importorskip("bitsandbytes")
    reader = reader_on(device, "bf16", optim="adamw_bnb_8bit")
    before = weights_of(reader.model)
    reader, _, _ = trained(reader, questions)
    after = weights_of(reader.model)
    assert reader.arguments.optim == "adamw_bnb_8bit"
    assert sum(not torch.equal(before[n], after[n]) for n in after) >= len(after) - 1


@pytest.mark.parametrize("device", DEVICES[1:])
def test_compiled_training_has_the_losses_of_the_plain_one(tmp_path, questions, reader_on, device):
    losses = []
    for compiled in (False, True):
        reader = reader_on(device, family="bert", max_steps=3, torch_compile=compiled)
        trained(reader, questions)
        losses.append(read_losses(tmp_path))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("processes", [pytest.param(2, marks=needs_gpus(2))])
def test_two_gpus_train_one_run(tmp_path, processes):
    pytest.importorskip("hydra")
    pytest.importorskip("altair")
    place = make_place(tmp_path)
    run_exam("train", *tiny(place), "trainer.bf16=true", processes=processes)
    assert "best" in json.loads(next(tmp_path.glob("outputs/train/*/training.json")).read_text())
