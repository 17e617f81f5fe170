"""Pickled weights: the same tensors in safetensors, and attacks that run nothing."""

import json
import os
import pickle
import zipfile
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from helpers import refuses
from safetensors.torch import load_file, save_file
from torch import nn

from exam.config import Checkpoint
from exam.core import conversion
from exam.core.checkpoints import resolve_checkpoint, select_files
from exam.core.conversion import convert_file, convert_folder, read_tensors
from exam.core.errors import ExamError

TENSORS = {
    "encoder.weight": torch.arange(12, dtype=torch.float16).reshape(3, 4),
    "encoder.bias": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "ids": torch.arange(5),
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache for this test only."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    conversion._convert.cache_clear()
    return tmp_path / "cache" / "exam" / "converted"


@pytest.fixture
def mark(tmp_path):
    """A file that exists once an attack has run."""
    return tmp_path / "code-has-run"


class Attack:
    """Run a command when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Network(nn.Module):
    """Pickled as a whole it names its class, which unpickling would import."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)


def checkpoint(folder):
    return Checkpoint("reader", "model.name_or_path", str(folder))


def equal(one, two):
    return one.keys() == two.keys() and all(
        torch.equal(one[name], two[name]) and one[name].dtype == two[name].dtype for name in one
    )


@pytest.mark.parametrize("is_zip", [True, False])
def test_tensors_come_back_bit_by_bit(tmp_path, is_zip):
    torch.save(OrderedDict(TENSORS), tmp_path / "w.bin", _use_new_zipfile_serialization=is_zip)
    convert_file(tmp_path / "w.bin", tmp_path / "w.safetensors")
    assert equal(load_file(tmp_path / "w.safetensors"), TENSORS)


def test_tied_and_transposed_tensors_are_written_apart(tmp_path):
    base = torch.arange(6.0).reshape(2, 3)
    state = {
        "embeddings": base,
        "decoder": base,
        "transposed": base.t(),
        "parameter": nn.Parameter(base),
    }
    torch.save(state, tmp_path / "w.bin")
    convert_file(tmp_path / "w.bin", tmp_path / "w.safetensors")
    written = load_file(tmp_path / "w.safetensors")
    assert equal(written, {name: value.detach() for name, value in state.items()})


def attacks(mark):
    """Each attack's bytes, by name."""
    command = f"touch {mark}"
    system = Attack(os.system, command)
    evaluate = Attack(eval, f"__import__('os').system({command!r})")
    module = Network()
    files = {}

    def saved(value, **options):
        path = mark.with_name("attack.bin")
        torch.save(value, path, **options)
        return path.read_bytes()

    files["pickle"] = pickle.dumps(system)
    files["pickle in a state dict"] = pickle.dumps({"w": evaluate})
    files["torch.save"] = saved({"w": torch.ones(1), "x": system})
    files["torch.save, old format"] = saved({"x": evaluate}, _use_new_zipfile_serialization=False)
    files["attribute of a state dict"] = saved(_with_attribute(evaluate))
    files["a whole module"] = saved(module)
    files["an import"] = saved({"x": Attack(__import__, "this")})
    script = mark.with_name("script.bin")
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), str(script))
    files["TorchScript"] = script.read_bytes()
    return files


def _with_attribute(attack):
    state = OrderedDict(w=torch.ones(1))
    state._metadata = attack
    return state


@pytest.mark.parametrize(
    "name",
    ["pickle", "pickle in a state dict", "torch.save", "torch.save, old format",
     "attribute of a state dict", "a whole module", "an import", "TorchScript"],
)  # fmt: skip
def test_an_attack_runs_nothing(tmp_path, mark, cache, name):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(attacks(mark)[name])
    with pytest.raises(
        ExamError, match=r"pytorch_model\.bin (?:holds more than tensors|cannot be)"
    ):
        resolve_checkpoint(checkpoint(folder))
    assert not mark.exists()
    assert not [path for path in cache.rglob("*") if path.suffix != ".lock"]


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("pickle", "Unsupported operand 149"),
        ("torch.save", "unsupported GLOBAL posix.system whose module posix is blocked"),
        ("a whole module", "GLOBAL test_conversion.Network was not an allowed global by default"),
    ],
)
def test_the_message_names_the_cause_and_not_how_to_run_it(tmp_path, mark, name, cause):
    (tmp_path / "w.bin").write_bytes(attacks(mark)[name])
    with pytest.raises(ExamError) as caught:
        read_tensors(tmp_path / "w.bin")
    assert cause in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert "safe_globals" not in str(caught.value)


def test_the_attacks_would_run_with_an_unrestricted_reader(mark):
    for name in ("pickle", "torch.save"):
        path = mark.with_name("attack.bin")
        path.write_bytes(attacks(mark)[name])
        torch.load(path, weights_only=False) if name != "pickle" else pickle.loads(
            path.read_bytes()
        )
        assert mark.exists()
        mark.unlink()


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"model": {"w": torch.ones(1)}}, "model is a dict"),
        ({"w": torch.ones(1), "epoch": 3}, "epoch is a int"),
        ({1: torch.ones(1)}, "1 is a Tensor"),
        ([torch.ones(1)], "a list where a state dict is expected"),
        ({"w": torch.ones(3).to_sparse()}, "sparse"),
    ],
)
def test_anything_but_a_dictionary_of_tensors_is_refused(tmp_path, state, reason):
    torch.save(state, tmp_path / "w.bin")
    with pytest.raises(ExamError, match=rf"w\.bin holds more than tensors: .*{reason}"):
        convert_file(tmp_path / "w.bin", tmp_path / "w.safetensors")
    assert not (tmp_path / "w.safetensors").exists()


@pytest.mark.parametrize("length", [0, 1, 20, 300, -10])
def test_a_damaged_file_is_one_message(tmp_path, length):
    torch.save(TENSORS, tmp_path / "whole.bin")
    (tmp_path / "w.bin").write_bytes((tmp_path / "whole.bin").read_bytes()[:length])
    with pytest.raises(ExamError, match=r"w\.bin (?:cannot be read|holds more than tensors): "):
        convert_file(tmp_path / "w.bin", tmp_path / "w.safetensors")


@pytest.fixture
def sharded(tmp_path):
    """A checkpoint of two pickled shards and a module, with an index of the shards."""
    folder = tmp_path / "model"
    (folder / "dense").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "modules.json").write_text('[{"path": ""}, {"path": "dense"}, {"path": "../x"}]')
    torch.save({"a": torch.ones(1)}, folder / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": torch.zeros(2)}, folder / "pytorch_model-00002-of-00002.bin")
    write_index(folder, a=1, b=2)
    torch.save({"linear.weight": torch.ones(2, 2)}, folder / "dense" / "pytorch_model.bin")
    return folder


def write_index(folder, **shards):
    names = {key: f"pytorch_model-{number:05}-of-00002.bin" for key, number in shards.items()}
    content = json.dumps({"metadata": {}, "weight_map": names})
    (folder / "pytorch_model.bin.index.json").write_text(content)


def test_shards_and_modules_are_converted_with_their_index(sharded):
    converted = resolve_checkpoint(checkpoint(sharded))
    assert sorted(str(p.relative_to(converted)) for p in converted.rglob("*") if p.is_file()) == [
        "config.json", "dense/model.safetensors", "manifest.json",
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "model.safetensors.index.json", "modules.json",
    ]  # fmt: skip
    index = json.loads((converted / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {
        "a": "model-00001-of-00002.safetensors",
        "b": "model-00002-of-00002.safetensors",
    }


def test_shards_of_an_earlier_upload_are_left_out(sharded):
    torch.save({"a": torch.full((1,), 9.0)}, sharded / "pytorch_model-00003-of-00003.bin")
    converted = resolve_checkpoint(checkpoint(sharded))
    assert load_file(converted / "model-00001-of-00002.safetensors")["a"] == 1
    assert not list(converted.glob("*00003*"))
    (sharded / "pytorch_model.bin.index.json").unlink()
    with pytest.raises(ExamError, match=r"pytorch_model\.bin\.index\.json is missing"):
        resolve_checkpoint(checkpoint(sharded))


def test_a_missing_shard_is_named(sharded):
    (sharded / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(ExamError, match=r"pytorch_model-00002-of-00002\.bin is missing"):
        resolve_checkpoint(checkpoint(sharded))


def test_an_index_that_names_files_elsewhere_is_not_followed(sharded):
    torch.save({"secret": torch.ones(1)}, sharded.parent / "secret.bin")
    content = json.dumps({"weight_map": {"a": "../secret.bin"}})
    (sharded / "pytorch_model.bin.index.json").write_text(content)
    with pytest.raises(ExamError, match=r"\.\./secret\.bin is missing"):
        resolve_checkpoint(checkpoint(sharded))


def test_safetensors_that_are_not_complete_do_not_hide_a_pickle(tmp_path):
    names = ["config.json", "pytorch_model.bin", "model-00001-of-00002.safetensors"]
    assert "pytorch_model.bin" in select_files(names, checkpoint("a/b"), set())
    names = ["config.json", "pytorch_model.bin", "adapter_model.safetensors"]
    assert {*names} == {*select_files(names, checkpoint("a/b"), set())}


def test_a_cache_that_cannot_be_written_is_named(sharded, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ExamError, match="XDG_CACHE_HOME=<folder>"):
        resolve_checkpoint(checkpoint(sharded))


def test_a_conversion_that_does_not_fit_is_refused(sharded, monkeypatch, cache):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(ExamError, match=r"(?s)conversion of .* takes .*XDG_CACHE_HOME="):
        resolve_checkpoint(checkpoint(sharded))
    assert not [path for path in cache.rglob("*") if path.suffix != ".lock"]


def test_a_gguf_file_that_is_not_there_is_named(tmp_path):
    (tmp_path / "m.Q4.gguf").touch()
    gguf = Checkpoint("reader", "model.name_or_path", str(tmp_path), gguf_file="typo.gguf")
    with refuses("no file typo.gguf; it holds m.Q4.gguf.", "model.gguf_file="):
        resolve_checkpoint(gguf)


def test_a_conversion_is_kept_and_made_again_for_other_or_damaged_files(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    torch.save({"w": torch.ones(1)}, folder / "pytorch_model.bin")
    names = ["config.json", "pytorch_model.bin"]
    first = convert_folder(folder, names)
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    conversion._convert.cache_clear()
    assert convert_folder(folder, names) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == stamp

    conversion._convert.cache_clear()
    save_file({"w": torch.zeros(1)}, first / "model.safetensors")  # damaged
    assert load_file(convert_folder(folder, names) / "model.safetensors")["w"] == 1

    torch.save({"w": torch.full((1,), 7.0)}, folder / "pytorch_model.bin")
    second = convert_folder(folder, names)
    assert second != first
    assert load_file(second / "model.safetensors")["w"] == 7


def test_safetensors_come_first_and_other_frameworks_are_left_out():
    names = [
        ".gitattributes", "README.md", "config.json", "spm.model", "bpe.codes", "source.spm",
        "pytorch_model.bin", "pytorch_model.generator.bin", "tf_model.h5", "rust_model.ot",
        "onnx/model.onnx", "onnx/config.json", "pooling/config.json", "dense/pytorch_model.bin",
        "chat_template.jinja", "modeling.py", "model.gguf", "pytorch_model.bin.index.json",
    ]  # fmt: skip
    texts = {
        "pooling/config.json", "chat_template.jinja", "config.json", "spm.model", "bpe.codes",
        "source.spm",
    }  # fmt: skip
    reader, modules = checkpoint("a/b"), {"pooling", "dense"}
    index = "pytorch_model.bin.index.json"
    assert {*select_files(names, reader, modules)} == texts | {
        "dense/pytorch_model.bin", "pytorch_model.bin", index,
    }  # fmt: skip
    assert {*select_files([*names, "model.safetensors"], reader, modules)} == texts | {
        "model.safetensors", "dense/pytorch_model.bin",
    }  # fmt: skip
    assert "dense/pytorch_model.bin" not in select_files(names, reader, set())
    trusted = Checkpoint("reader", "model.name_or_path", "a/b", trust_remote_code=True)
    assert "modeling.py" in select_files(names, trusted, set())
    gguf = Checkpoint("reader", "model.name_or_path", "a/b", gguf_file="model.gguf")
    assert select_files(names, gguf, set()) == ["model.gguf"]


def test_a_folder_without_weights_or_configuration_says_what_it_holds(tmp_path):
    folder = tmp_path / "input"
    (folder / "deberta").mkdir(parents=True)
    (folder / "deberta" / "config.json").write_text("{}")
    holds = f"model.name_or_path={folder} holds deberta/config.json; config.json is missing"
    with refuses(holds, f"(model.name_or_path={folder}/deberta)"):
        resolve_checkpoint(checkpoint(folder))
    (folder / "deberta" / "tf_model.h5").touch()
    with refuses(f"{folder}/deberta holds", "pytorch_model.bin are missing", "model.name_or_path="):
        resolve_checkpoint(checkpoint(folder / "deberta"))


def test_a_zip_bomb_of_names_stays_in_the_cache(tmp_path, mark):
    path = tmp_path / "w.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"w": 1}))
        archive.writestr("../../code-has-run", "x")
    with pytest.raises(ExamError, match=r"w\.bin"):
        convert_file(path, tmp_path / "w.safetensors")
    assert not mark.exists()
