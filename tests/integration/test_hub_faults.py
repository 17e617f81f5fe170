"""What can go wrong with a repository: one message each, before work, and the next start goes on.

The repositories are copies of the small DeBERTa under names that no other test uses.
"""

import re
import shutil
from itertools import count
from pathlib import Path

import pytest
from hub.bench import Bench, Done, stage, stages
from hub.layouts import files_of_model, write
from hub.question_sets import files_of_data_set
from hub.weights import safetensors_of, state_in

pytestmark = pytest.mark.slow

SOURCE = "microsoft/deberta-v3-xsmall"
NEEDED = {"config.json", "tokenizer_config.json", "spm.model", "pytorch_model.bin"}
SHORT = [
    *["model=deberta_xsmall", "retriever=none", "data.limit=4", "data.fold=null"],
    *["model.max_length=64", "trainer=zero_shot", "trainer.use_cpu=true"],
]
numbers = count()


@pytest.fixture
def name(bench: Bench) -> str:
    """A reader's repository of this test alone."""
    name = f"acme/reader-{next(numbers)}"
    bench.hub.add(name, files_of_model(SOURCE))
    yield name
    bench.hub.heal()


def train(bench: Bench, name: str, outputs: Path, *more: str, **options) -> Done:
    setting = bench.setting(outputs, *SHORT, f"model.name_or_path={name}", *more)
    return bench.run("train", *setting, **options)


def retrieve(bench: Bench, outputs: Path, *more: str, **options) -> Done:
    setting = ["evaluate=false", "data.limit=4", *more]
    return bench.run("retrieve", *bench.setting(outputs, *setting), **options)


def retrieve_sciq(bench: Bench, name: str, outputs: Path, *more: str, **options) -> Done:
    """Read the questions of a data set of the hub."""
    setting = ["data=sciq", f"data.hub={name}", "retriever=none", "evaluate=false", *more]
    return bench.run("retrieve", *setting, f"outputs={outputs}", **options)


def message_of(done: Done) -> str:
    """The message of a refusal: exit code 2 and no traceback."""
    assert done.code == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if not re.match(r"\d\d:\d\d:\d\d ", line)]
    assert 2 <= len(lines) <= 4, done.stderr
    return "\n".join(lines)


def refused(bench: Bench, name: str, *more: str, **options) -> str:
    """The message that refuses a training before any stage has begun."""
    outputs = bench.outputs("refused")
    message = message_of(train(bench, name, outputs, *more, **options))
    assert stages(outputs) == set()
    return message


def test_a_gated_reader_needs_the_right_token(bench, name):
    bench.hub.gate(name, "hf_right")
    bench.hub.tokens.add("hf_other")
    message = refused(bench, name)
    assert f"model.name_or_path={name} is a gated repository, and you are not logged in." in message
    assert "HF_TOKEN" in message
    message = refused(bench, name, HF_TOKEN="hf_other")
    assert "your token has no access to it" in message
    message = refused(bench, name, HF_TOKEN="hf_wrong")
    assert "the token is not valid" in message
    assert "hf_wrong" not in message
    done = train(bench, name, bench.outputs("gated"), HF_TOKEN="hf_right").check()
    assert done.fetched == dict.fromkeys(NEEDED, 1)
    # What is there already is read without a token.
    train(bench, name, bench.outputs("gated"), offline=True).check()


def test_a_missing_revision_is_named(bench, name):
    message = refused(bench, name, "model.revision=v2")
    assert f"model.name_or_path={name}: the repository has no revision v2." in message


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("config.json", "config.json is missing"),
        ("pytorch_model.bin", "model.safetensors and pytorch_model.bin are missing"),
    ],
)
def test_a_missing_file_is_named(bench, name, missing, said):
    bench.hub.move(name, {missing: None})
    message = refused(bench, name)
    assert f"model.name_or_path={name}" in message
    assert said in message


@pytest.mark.parametrize(
    ("group", "source", "missing"),
    [
        ("deberta_xsmall", SOURCE, ["spm.model"]),
        ("bert_base", "google-bert/bert-base-cased", ["vocab.txt", "tokenizer.json"]),
        ("modernbert", "answerdotai/ModernBERT-base", ["tokenizer.json"]),
        ("qwen_7b", "Qwen/Qwen2.5-7B-Instruct", ["tokenizer.json", "vocab.json", "merges.txt"]),
    ],
)
def test_a_missing_vocabulary_is_refused(bench, group, source, missing):
    """The library makes an empty tokenizer then, to which every word is unknown."""
    name = f"acme/{group}"
    files = files_of_model(source)
    bench.hub.add(name, {path: data for path, data in files.items() if path not in missing})
    message = refused(bench, name, f"model={group}")
    assert "the tokenizer's vocabulary is missing" in message


def test_an_interrupted_download_goes_on(bench, name):
    bench.hub.cut(name, "pytorch_model.bin", after_bytes=1000)
    message = refused(bench, name)
    assert f"The download of {name} broke off" in message
    assert "Run the same command again" in message
    bench.hub.heal()
    done = train(bench, name, bench.outputs("resumed")).check()
    assert done.fetched == {"pytorch_model.bin": 1}


def test_a_short_interruption_is_not_noticed(bench, name):
    bench.hub.cut(name, "pytorch_model.bin", after_bytes=1000, times=1)
    bench.hub.fail(name, "spm.model", status=429, times=1, retry_after=0)
    done = train(bench, name, bench.outputs("short")).check()
    assert done.fetched == dict.fromkeys(NEEDED, 1) | {"pytorch_model.bin": 2}


@pytest.mark.parametrize("status", [429, 503])
def test_a_hub_that_is_down_is_named(bench, name, status):
    bench.hub.fail(name, status=status)
    message = refused(bench, name)
    assert name in message
    assert str(status) in message


def test_nothing_in_the_cache_is_said_offline(bench, name):
    message = refused(bench, name, offline=True)
    assert f"model.name_or_path={name} is not complete in the cache" in message
    assert "offline=true" in message


def test_a_moved_main_is_another_run_and_said_once(bench, name):
    first, second, third = (bench.outputs("moved") for _ in range(3))
    train(bench, name, first).check()
    old = bench.hub.get(name).main.sha
    new = bench.hub.move(name, {"README.md": b"# Another\n"})

    done = train(bench, name, second).check()
    said = [line for line in done.stderr.splitlines() if "has moved" in line]
    assert len(said) == 1
    assert f"{name}: main has moved from {old[:8]} to {new[:8]} since its last use" in said[0]
    assert f"model.revision={old}" in said[0]
    assert stage(second, "train").name != stage(first, "train").name
    assert done.fetched == {}  # the files that are needed are the same

    done = train(bench, name, third, f"model.revision={old}").check()
    assert "has moved" not in done.stderr
    assert done.fetched == {}


def test_a_download_that_breaks_off_leaves_the_earlier_commit_for_offline_use(bench, name):
    train(bench, name, bench.outputs("before")).check()
    old = bench.hub.get(name).main.sha
    bench.hub.move(name, {"pytorch_model.bin": files_of_model(SOURCE)["pytorch_model.bin"] + b"x"})
    bench.hub.fail(name, "pytorch_model.bin", status=503)
    assert "HTTP 503" in refused(bench, name)
    done = train(bench, name, bench.outputs("before"), offline=True).check()
    assert f"{name} at commit {old}" in done.stderr


def test_a_run_answers_without_the_checkpoint_it_started_from(bench, tmp_path):
    outputs, folder = bench.outputs("gone"), tmp_path / "reader"
    write(folder, files_of_model(SOURCE))
    train(bench, str(folder), outputs).check()
    shutil.rmtree(folder)
    assert bench.infer(outputs, offline=True).requests == []


def test_a_run_keeps_its_commit_when_main_moves(bench):
    """A language model that answers as published lies in the cache alone."""
    name, outputs = "acme/decoder", bench.outputs("kept")
    bench.hub.add(name, files_of_model("Qwen/Qwen2.5-7B-Instruct"))
    train(bench, name, outputs, "model=qwen_7b", "model.max_length=512").check()
    bench.hub.move(name, {"model-00001-of-00004.safetensors": b"damaged"})
    done = bench.infer(outputs)
    assert done.fetched == {}
    assert "has moved" not in done.stderr


def test_a_pull_request_is_a_revision(bench):
    name, outputs = "acme/converted", bench.outputs("pull")
    bench.hub.add(name, files_of_model(SOURCE))
    weights = state_in(files_of_model(SOURCE)["pytorch_model.bin"])
    bench.hub.propose(name, 4, {"model.safetensors": safetensors_of(weights)})
    train(bench, name, outputs, "model.revision=refs/pr/4").check()
    assert bench.fetched(name) == dict.fromkeys(
        NEEDED - {"pytorch_model.bin"} | {"model.safetensors"}, 1
    )


def test_an_old_name_is_the_new_repository(bench):
    bench.hub.add("acme/new", files_of_model("cross-encoder/ms-marco-MiniLM-L6-v2"))
    bench.hub.rename("acme/old", "acme/new")
    more = ["retriever=bm25", "reranker=cross_encoder", "reranker.ckpt=acme/old"]
    retrieve(bench, bench.outputs("renamed"), *more).check()
    assert retrieve(bench, bench.outputs("renamed"), *more, offline=True).check().requests == []


@pytest.mark.parametrize(
    ("key", "more"),
    [
        ("encoder.name_or_path", ["retriever=two_stage"]),
        ("reranker.ckpt", ["retriever=bm25", "reranker=cross_encoder"]),
        ("model.name_or_path", []),
    ],
)
def test_a_missing_repository_is_named_before_work(bench, key, more):
    outputs = bench.outputs("missing")
    more = [*more, f"{key}=acme/none"]
    run = retrieve(bench, outputs, *more) if more[1:] else train(bench, "acme/none", outputs)
    assert f"{key}=acme/none: the hub has no such repository" in message_of(run)
    assert stages(outputs) == set()


def test_a_missing_data_set_is_named(bench):
    message = message_of(retrieve_sciq(bench, "acme/none", bench.outputs("missing")))
    assert "data.hub=acme/none" in message


def test_a_data_set_keeps_to_its_revision(bench):
    """A moved main is another set of questions; the earlier revision gives the earlier one."""
    files = files_of_data_set("allenai/sciq")
    bench.hub.add("acme/sciq", files, kind="dataset")
    old = bench.hub.get("acme/sciq", "dataset").main.sha
    first, second, third = (bench.outputs("sciq") for _ in range(3))
    retrieve_sciq(bench, "acme/sciq", first).check()
    train, valid = (f"data/{s}-00000-of-00001.parquet" for s in ("train", "validation"))
    card = files["README.md"].replace(b"num_examples: 24", b"num_examples: 8")
    bench.hub.move("acme/sciq", {train: files[valid], "README.md": card}, kind="dataset")
    assert "acme/sciq: main has moved" in retrieve_sciq(bench, "acme/sciq", second).check().stderr
    retrieve_sciq(bench, "acme/sciq", third, f"data.revision={old}").check()
    names = [stage(o, "contexts", "sciq-train").name for o in (first, second, third)]
    assert names[0] == names[2] != names[1]


def test_a_gated_data_set_needs_the_right_token(bench):
    bench.hub.add("acme/gated", files_of_data_set("allenai/sciq"), kind="dataset")
    bench.hub.gate("acme/gated", "hf_right", kind="dataset")
    outputs = bench.outputs("gated")
    message = message_of(retrieve_sciq(bench, "acme/gated", outputs))
    assert "gated repository" in message
    assert "HF_TOKEN" in message
    retrieve_sciq(bench, "acme/gated", outputs, HF_TOKEN="hf_right").check()


def test_an_interrupted_data_set_goes_on(bench):
    path = "data/validation-00000-of-00001.parquet"
    bench.hub.add("acme/cut", files_of_data_set("allenai/sciq"), kind="dataset")
    bench.hub.cut("acme/cut", path, after_bytes=100)
    outputs = bench.outputs("cut")
    assert "acme/cut" in message_of(retrieve_sciq(bench, "acme/cut", outputs))
    bench.hub.heal()
    done = retrieve_sciq(bench, "acme/cut", outputs).check()
    assert "README.md" not in done.fetched
    assert done.fetched[path] == 1
