"""Number formats, kernels and memory on simulated GPUs."""

import json
import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import kaggle_rows, make_place, refuses, tiny
from tiny_encoders import CPU, FAMILIES, TINY, as_questions, features_of, model_of, texts
from transformers import AutoConfig, AutoModel

from exam.cli import main
from exam.config import (
    Corpus,
    CorpusFormat,
    Dtype,
    Encoder,
    Index,
    Model,
    Packing,
    Tuning,
    reader_values,
)
from exam.config.compose import compose_config
from exam.core.devices import check_devices, has_kernels
from exam.core.errors import ExamError
from exam.core.estimates import checkpoint_bytes, training_bytes
from exam.core.precision import choose_formats, log_replaced_formats
from exam.data.corpus import list_articles
from exam.pipelines.launch import start_processes
from exam.pipelines.preflight import check_room, count_kept_checkpoints
from exam.readers.multiple_choice.model import tiny_tokenizer
from exam.readers.multiple_choice.reader import MultipleChoiceReader
from exam.readers.quantization import dtype_kwargs
from exam.retrieval.encoder import SentenceEncoder
from exam.retrieval.index import build_index

AWP = Tuning(name="awp", awp_lr=0.1, awp_eps=None, awp_start_epoch=0.0)
LORA = Tuning(name="lora", lora_rank=4)


BUILT = ["sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((6, 0), BUILT, False),  # P100
        ((7, 0), BUILT, True),  # V100
        ((7, 5), BUILT, True),  # T4
        ((8, 9), BUILT, True),  # L4: sm_80 and sm_86 are of its major version
        ((9, 0), BUILT, True),  # H100
        ((13, 0), BUILT, True),  # a later card compiles PTX
        ((13, 0), BUILT[:-1], False),
        ((6, 1), ["sm_60"], True),
        ((7, 0), ["sm_75"], False),
        ((7, 5), ["sm_70"], True),
        ((9, 0), ["sm_90a"], True),
        ((9, 1), ["sm_90a"], False),
        ((10, 0), ["compute_90a"], False),
        ((10, 3), ["sm_100f"], True),
        ((12, 0), ["sm_100f", "compute_100f"], False),
        ((6, 0), ["compute_60"], True),
        ((6, 0), ["compute_50"], True),
        ((5, 0), ["compute_60"], False),
        ((9, 0), ["gfx90a", ""], False),
    ],
)
def test_which_code_runs_on_which_card(capability, architectures, runs):
    assert has_kernels(capability, architectures) is runs


@pytest.fixture
def cards(monkeypatch):
    """Answer torch's questions about the GPUs, which are given by name, capability and GiB."""

    def are(*gpus, built=BUILT):
        properties = [SimpleNamespace(total_memory=int(gib * 2**30)) for *_, gib in gpus]
        answers = {
            "is_available": lambda: bool(gpus),
            "device_count": lambda: len(gpus),
            "get_arch_list": lambda: built,
            "get_device_name": lambda device=0: gpus[device][0],
            "get_device_capability": lambda device=0: gpus[device][1],
            "get_device_properties": lambda device=0: properties[device],
        }
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, answer)

    return are


P100_CARD, T4_CARD = ("Tesla P100-PCIE-16GB", (6, 0), 15.9), ("Tesla T4", (7, 5), 14.7)
NO_KERNELS = (
    "GPU {} is a Tesla P100-PCIE-16GB (compute capability 6.0); torch "
    f"{torch.__version__} has kernels for {', '.join(BUILT)}.\n"
    "Choose another accelerator (on Kaggle: GPU T4 x2), install a torch built for sm_60, or put "
    "CUDA_VISIBLE_DEVICES= in front of the command to compute on the processor."
)


def test_a_card_without_kernels_is_named_with_what_there_is(cards):
    cards(T4_CARD, P100_CARD)
    check_devices([0])
    with pytest.raises(ExamError) as caught:
        check_devices([0, 1])
    assert str(caught.value) == NO_KERNELS.format(1)
    cards(P100_CARD, built=[])  # a torch for processors
    check_devices([0])


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer=gpu", "retriever=none"],
        ["retriever=two_stage"],  # the encoder, of a reader that is trained on the processor
    ],
)
def test_a_command_is_refused_before_it_makes_a_folder(
    cards, tmp_path, monkeypatch, capsys, overrides
):
    cards(P100_CARD)
    workdir = make_place(tmp_path / "place")
    command = ["train", *tiny(workdir), "trainer.per_device_train_batch_size=2", *overrides]
    monkeypatch.setattr("sys.argv", command)
    assert main(command) == 2
    assert capsys.readouterr().err == f"{NO_KERNELS.format(0)}\n"
    assert not (workdir / "outputs").exists()


def test_what_computes_on_the_processor_needs_no_kernels(cards, tmp_path):
    cards(P100_CARD)
    workdir = make_place(tmp_path / "place")
    config = compose_config("train", *tiny(workdir))  # use_cpu: true, BM25
    assert not start_processes(config, "train", [])


def test_the_doctor_names_every_gpu(cards, monkeypatch, capsys):
    cards(T4_CARD, P100_CARD)
    assert main(["doctor", "--deep"]) == 1
    out = capsys.readouterr().out
    assert "gpu 0       Tesla T4, capability 7.5, 14.7 GiB\n" in out
    assert "gpu 1       Tesla P100-PCIE-16GB, capability 6.0, 15.9 GiB\n" in out
    assert "computes on cpu" in out
    assert out.endswith(f"{NO_KERNELS.format(1)}\n")


@pytest.fixture
def machine(monkeypatch):
    """Answer torch's questions about the machine: a card, or a processor, with bfloat16 or not."""

    def become(card, native):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: card is not None)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: card is not None)
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True: native or including_emulation,
        )
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: card)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)

    return become


T4, A100, OLD, NEW = ("Tesla T4", False), ("NVIDIA A100", True), (None, False), (None, True)


@pytest.mark.parametrize(
    ("device", "values", "formats", "message"),
    [
        (T4, {}, (False, True), None),
        (A100, {}, (True, False), None),
        (OLD, {}, (False, False), None),
        (NEW, {}, (True, False), None),
        (T4, {"use_cpu": True}, (False, False), None),
        (
            T4,
            {"bf16": True},
            (False, True),
            "trainer.bf16=true → fp16: Tesla T4 does not compute in bfloat16",
        ),
        (A100, {"bf16": True}, (True, None), None),
        (T4, {"bf16": False}, (False, None), None),  # a published recipe in fp32
        (T4, {"fp16": True}, (None, True), None),
        (A100, {"fp16": True}, (None, True), None),
        (OLD, {"bf16": True}, (True, None), None),
        (OLD, {"fp16": True}, (False, False), "trainer.fp16=true → fp32: needs a GPU"),
        (NEW, {"fp16": True}, (True, False), "trainer.fp16=true → bf16: needs a GPU"),
    ],
)
def test_a_reader_computes_in_a_format_of_its_device(
    machine, caplog, device, values, formats, message
):
    machine(*device)
    caplog.set_level(logging.INFO)
    chosen = choose_formats(values, choose=True)
    assert (chosen.get("bf16"), chosen.get("fp16")) == formats
    assert choose_formats(chosen, choose=True) == chosen
    log_replaced_formats(values, chosen)
    assert caplog.messages == ([] if message is None else [message])


def test_what_is_evaluated_in_half_precision_follows(machine, caplog):
    machine(*T4)
    caplog.set_level(logging.INFO)
    values = {"bf16": True, "bf16_full_eval": True, "optim": "adamw_torch"}
    chosen = choose_formats(values, choose=False)
    assert chosen == {
        "bf16": False,
        "fp16": True,
        "bf16_full_eval": False,
        "fp16_full_eval": True,
        "optim": "adamw_torch",
    }
    log_replaced_formats(values, chosen)
    assert caplog.messages == [
        "trainer.bf16=true → fp16: Tesla T4 does not compute in bfloat16",
        "trainer.bf16_full_eval=true → fp16_full_eval: Tesla T4 does not compute in bfloat16",
    ]
    assert choose_formats({}, choose=False) == {}


def test_weights_in_bfloat16_become_float16(machine, caplog):
    caplog.set_level(logging.INFO)
    config = compose_config("train", "model=mistral_7b").model  # dtype: bfloat16
    machine(*A100)
    assert dtype_kwargs(config, Dtype.float32) == {"dtype": torch.bfloat16}
    assert caplog.messages == []
    machine(*T4)
    assert dtype_kwargs(config, Dtype.float32) == {"dtype": torch.float16}
    assert caplog.messages == [
        "model.dtype=bfloat16 → float16: Tesla T4 does not compute in bfloat16"
    ]
    machine(*OLD)
    with pytest.raises(ExamError, match="neither a GPU nor a processor with bfloat16"):
        dtype_kwargs(config, Dtype.float32)


def test_the_format_is_part_of_what_determines_a_run(machine):
    config = compose_config("train", "trainer=gpu", "model=tiny")
    machine(*A100)
    native = reader_values(config)
    machine(*T4)
    other = reader_values(config)
    assert {k: v for k, v in native.items() if other[k] != v} == {"bf16": True}
    assert {k: v for k, v in other.items() if native.get(k) != v} == {"bf16": False, "fp16": True}
    lexical = compose_config("train", "trainer=gpu", "model=lexical")
    assert reader_values(lexical)["bf16"] is True  # which nothing reads


@pytest.mark.parametrize(("device", "half"), [(T4, torch.float16), (A100, torch.bfloat16)])
def test_four_bit_weights_are_multiplied_in_the_half_precision_of_the_gpu(
    machine, monkeypatch, device, half
):
    machine(*device)
    monkeypatch.setattr("transformers.utils.import_utils.is_bitsandbytes_available", lambda: True)
    form = dtype_kwargs(Model(name="m", load_in_4bit=True), Dtype.float32)
    assert form["dtype"] is torch.float32
    assert form["quantization_config"].bnb_4bit_compute_dtype is half


@pytest.fixture(scope="module")
def questions():
    return as_questions(kaggle_rows(8))


def reader_of(tmp_path, questions, family, packing, **values):
    config = model_of(family, packing)
    config.config["initializer_range"] = 0.2
    return MultipleChoiceReader.build(
        config, {**CPU, **values}, tmp_path / "c", 0, texts(questions)
    )


def batch_of(reader, questions):
    """Questions of different lengths, one without context and one with three options."""
    rows = features_of(reader, questions).to_list()[:4]
    rows[1]["windows"] = [[]]
    rows[2]["options"] = rows[2]["options"][:3]
    rows[2]["labels"] = 1
    return reader.build_collator(5)(rows)


def fp16():
    return torch.autocast("cpu", dtype=torch.float16)


LAYOUTS = [
    *[(family, Packing.options) for family in FAMILIES],
    ("bert", Packing.cross),
    ("bert", Packing.none),
    ("deberta", Packing.none),
]


@pytest.mark.parametrize(("family", "packing"), LAYOUTS)
def test_fp16_gives_the_logits_of_fp32_but_for_rounding(tmp_path, questions, family, packing):
    reader = reader_of(tmp_path, questions, family, packing)
    batch = batch_of(reader, questions)
    exists = batch.pop("option_mask")
    batch.pop("labels")
    model = reader.model.eval()
    with torch.no_grad():
        exact = model(**batch).logits
        with fp16():
            half = model(**batch).logits
    with fp16():  # with a gradient the attention is another on a processor
        learning = model(**batch).logits
    assert exact.dtype == half.dtype == learning.dtype == torch.float32
    assert np.ptp(exact[exists].numpy()) > 0.01
    for logits in (half, learning.detach()):
        assert logits[exists].numpy() == pytest.approx(exact[exists].numpy(), abs=2e-2)


def gradients(reader, batch, scaler=None):
    """Every weight's gradient of one training step of the Trainer, in the loss's own scale.

    With a scaler the loss is computed in fp16.
    """
    trainer = reader.build_trainer(None, None, 5)
    trainer.current_gradient_accumulation_steps = 1
    trainer.accelerator.scaler = scaler
    if scaler is not None:
        trainer.compute_loss_context_manager = fp16
    model = trainer.model.train()
    model.zero_grad()
    loss = trainer.training_step(model, dict(batch))
    scale = 1.0 if scaler is None else scaler.get_scale()
    grads = {n: p.grad / scale for n, p in model.named_parameters() if p.grad is not None}
    return loss.item(), grads


@pytest.mark.parametrize(
    ("tuning", "values"),
    [
        (Tuning(), {"label_smoothing_factor": 0.1}),
        (AWP, {}),
        (replace(LORA, awp_lr=0.1, awp_eps=None, awp_start_epoch=0.0), {}),
        (Tuning(), {"activation_checkpointing": True}),
    ],
    ids=["full", "awp", "lora-awp", "checkpointed"],
)
@pytest.mark.parametrize("family", ["deberta", "mpnet"])
def test_a_scaled_step_in_fp16_has_the_gradient_of_fp32(
    tmp_path, questions, family, tuning, values
):
    reader = reader_of(tmp_path, questions, family, Packing.options, **values)
    batch = batch_of(reader, questions)
    reader = reader.prepare_for_training(features_of(reader, questions), tuning)
    before = {n: p.detach().clone() for n, p in reader.model.named_parameters()}
    exact_loss, exact = gradients(reader, batch)
    loss, grads = gradients(reader, batch, torch.amp.GradScaler("cpu"))
    assert loss == pytest.approx(exact_loss, abs=1e-2)
    assert grads.keys() == exact.keys()
    whole, other = (torch.cat([g.flatten() for g in x.values()]) for x in (exact, grads))
    assert torch.nn.functional.cosine_similarity(whole, other, dim=0) > 0.995
    assert other.norm().item() == pytest.approx(whole.norm().item(), rel=0.05)
    assert all(torch.equal(p, before[n]) for n, p in reader.model.named_parameters())


def test_a_step_that_overflows_is_left_out_and_the_scale_halved(tmp_path, questions):
    reader = reader_of(tmp_path, questions, "bert", Packing.options)
    batch = batch_of(reader, questions)
    reader = reader.prepare_for_training(features_of(reader, questions), AWP)
    before = {n: p.detach().clone() for n, p in reader.model.named_parameters()}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    _, grads = gradients(reader, batch, scaler)
    assert not all(g.isfinite().all() for g in grads.values())
    optimizer = torch.optim.AdamW(reader.model.parameters(), lr=1e-3)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**59
    assert all(torch.equal(p, before[n]) for n, p in reader.model.named_parameters())


def test_fp16_weights_that_learn_are_widened(tmp_path, questions):
    reader = reader_of(tmp_path, questions, "bert", Packing.options)
    reader = replace(reader, model=reader.model.half())
    features = features_of(reader, questions)
    reader.arguments.fp16 = True
    reader = reader.prepare_for_training(features, Tuning(freeze_layers=2, freeze_embeddings=True))
    kinds = {p.requires_grad: set() for p in reader.model.parameters()}
    for weight in reader.model.parameters():
        kinds[weight.requires_grad].add(weight.dtype)
    assert kinds == {True: {torch.float32}, False: {torch.float16}}
    loss, grads = gradients(reader, batch_of(reader, questions), torch.amp.GradScaler("cpu"))
    assert np.isfinite(loss)
    assert {g.dtype for g in grads.values()} == {torch.float32}


def test_what_training_and_checkpoints_take():
    assert training_bytes(100, 100) == {"weights": 400, "gradients": 400, "optimizer": 800}
    assert training_bytes(100, 10, weight_bytes=2) == {
        "weights": 200,
        "gradients": 40,
        "optimizer": 80,
    }
    assert training_bytes(100, 10, optimizer="adamw_bnb_8bit")["optimizer"] == 20
    assert training_bytes(100, 10, optimizer="adafactor")["optimizer"] == 0
    assert training_bytes(100, 0, weight_bytes=0.5) == {
        "weights": 50,
        "gradients": 0,
        "optimizer": 0,
    }
    assert checkpoint_bytes(100, 100, number=3) == 3 * (400 + 800)  # weights, and Adam's two states
    assert checkpoint_bytes(10, 10, number=1, optimizer="paged_adamw_8bit") == 40 + 20
    assert checkpoint_bytes(100, 100, number=0) == 0


@pytest.mark.parametrize(
    ("values", "number"),
    [
        ({"save_strategy": "no"}, 0),
        ({"save_strategy": "epoch", "num_train_epochs": 2, "save_total_limit": 2}, 2),
        ({"save_strategy": "epoch", "num_train_epochs": 9, "save_total_limit": 2}, 3),
        ({"save_strategy": "epoch", "num_train_epochs": 0.5}, 1),
        ({"save_strategy": "epoch", "num_train_epochs": 5}, 5),
        ({"save_strategy": "steps", "save_total_limit": 4}, 5),
        ({}, 1),
    ],
)
def test_how_many_checkpoints_lie_side_by_side(values, number):
    assert count_kept_checkpoints(values) == number


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A folder of DeBERTa-v3-large's shape; its weights are a sparse file of zeros."""
    folder = tmp_path_factory.mktemp("large")
    shape = {
        "vocab_size": 128_100, "hidden_size": 1024, "intermediate_size": 4096,
        "num_attention_heads": 16, "num_hidden_layers": 24, "pooler_hidden_size": 1024,
        "position_buckets": 256,
    }  # fmt: skip
    (folder / "config.json").write_text(
        json.dumps({**TINY, **shape, "architectures": ["DebertaV2Model"]})
    )
    with torch.device("meta"):
        network = AutoModel.from_config(AutoConfig.from_pretrained(folder))
    header, size = {}, 0
    for name, weight in network.state_dict().items():
        end = size + weight.numel() * 2
        header[name] = {"dtype": "F16", "shape": list(weight.shape), "data_offsets": [size, end]}
        size = end
    content = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + size)
    tiny_tokenizer(["a"]).save_pretrained(folder)
    return folder


def config_of(large, tmp_path, *overrides):
    model = ["model=deberta_large", f"model.name_or_path={large}", f"outputs={tmp_path}"]
    return compose_config("train", *model, "trainer=gpu", *overrides)


def messages(caplog):
    """What this project logs; transformers reports what it loads, too."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("exam.")]


def test_training_that_cannot_fit_a_gpu_is_refused_with_what_it_takes(cards, large, tmp_path):
    cards(("GeForce GTX 1060", (6, 1), 6.0))
    figures = "6.5 GiB (weights 1.6 · gradients 1.6 · optimizer 3.2)"
    with refuses(figures, "GTX 1060 (GPU 0) has 6.0 GiB", "trainer=low_memory, tuning=lora"):
        check_room(config_of(large, tmp_path))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "training takes about 6.5 GiB (weights 1.6 · gradients 1.6 · optimizer 3.2)"),
        (["tuning=lora"], "training takes about 1.7 GiB (weights 1.7 · gradients 0.0 · optimizer"),
        (["trainer=low_memory"], "training takes about 4.1 GiB (weights 1.6 · gradients 1.6 · opt"),
        (["trainer=zero_shot"], "the reader takes about 1.6 GiB (weights 1.6)"),
    ],
)
def test_what_fits_is_said_in_a_line(cards, caplog, large, tmp_path, overrides, message):
    caplog.set_level(logging.DEBUG)
    cards(T4_CARD)
    check_room(config_of(large, tmp_path, *overrides))
    line = messages(caplog)[0]
    assert line.startswith(f"room: {message}")
    assert line.endswith("; Tesla T4 (GPU 0) has 14.7 GiB")
    assert len(messages(caplog)) == (1 if "trainer=zero_shot" in overrides else 2)


def test_answering_takes_the_weights_alone(cards, caplog, large, tmp_path):
    caplog.set_level(logging.DEBUG)
    cards(("small", (7, 5), 2.0))
    check_room(config_of(large, tmp_path), answers=True)
    assert messages(caplog) == [
        "room: the reader takes about 1.6 GiB (weights 1.6); small (GPU 0) has 2.0 GiB"
    ]


def test_a_processor_has_its_memory(monkeypatch, cards, large, tmp_path):
    cards()
    monkeypatch.setattr("exam.core.estimates.MEMINFO", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable: 4194304 kB\n")
    with pytest.raises(ExamError, match=r"optimizer 3\.2\), and the memory has 4\.0 GiB\."):
        check_room(config_of(large, tmp_path))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ExamError, match=r"and the memory has 2\.0 GiB\."):
        check_room(config_of(large, tmp_path))
    monkeypatch.setattr("exam.core.estimates.LIMITS", (tmp_path / "memory.max",))
    for limit, gib in (("1073741824", "0.5"), ("max", "2.0")):  # a container's
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        with pytest.raises(ExamError, match=f"and the memory has {gib} GiB"):
            check_room(config_of(large, tmp_path))


def test_checkpoints_that_the_disk_cannot_hold_are_refused(monkeypatch, cards, large, tmp_path):
    cards(T4_CARD)
    monkeypatch.setattr(
        "shutil.disk_usage", lambda path: SimpleNamespace(free=8 * 2**30 if path.is_dir() else 0)
    )
    outputs = tmp_path / "not" / "yet"
    with refuses("checkpoints 9.7 · models 1.6", "8.0 GiB.", "outputs=<folder>"):
        check_room(config_of(large, outputs, "name=n"))
    check_room(config_of(large, outputs, "name=n", "tuning=lora"))
    never = ["trainer.save_strategy=no", "trainer.eval_strategy=no"]
    never.append("trainer.load_best_model_at_end=false")
    check_room(config_of(large, outputs, "name=n", *never))
    begun = outputs / "train" / "n-00000000" / "checkpoints" / "checkpoint-1" / "optimizer.pt"
    begun.parent.mkdir(parents=True)
    with begun.open("wb") as file:
        file.truncate(4 * 2**30)  # an interrupted run has written so much of it
    check_room(config_of(large, outputs, "name=n"))


def test_an_index_that_the_disk_cannot_hold_is_refused(monkeypatch, encoder, tmp_path):
    small = SentenceEncoder(Encoder(name="e", name_or_path=str(encoder), max_length=64))
    rows = [{"id": str(i), "title": "Otter", "text": f"The otter {i}."} for i in range(10)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    corpus = Corpus(name="c", format=CorpusFormat.wikipedia, dir=str(tmp_path))
    articles = list_articles(corpus, tmp_path / "outputs")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    monkeypatch.setattr("exam.core.estimates.GIB", 1000)
    figures = "an index of 10 vectors takes about 2.6 GiB (encoded 1.3 · index 1.3)"
    with refuses(figures, str(tmp_path / "outputs"), "has 1.0 GiB", "outputs=<folder>"):
        build_index(articles, small, Index(), tmp_path / "outputs")
