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


def refused(bench: Bench, name: str, *more: str, **options) -> str:
    """The message of a refusal: exit code 2, no traceback, and no stage has begun."""
    outputs = bench.outputs("refused")
    done = train(bench, name, outputs, *more, **options)
    assert done.code == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert stages(outputs) == set()
    lines = [line for line in done.stderr.splitlines() if not re.match(r"\d\d:\d\d:\d\d ", line)]
    assert 2 <= len(lines) <= 4, done.stderr
    return "\n".join(lines)


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


def test_a_missing_repository_is_named(bench):
    message = refused(bench, "acme/none")
    assert "model.name_or_path=acme/none: the hub has no such repository" in message


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
        (
            "published/longformer_race",
            "potsawee/longformer-large-4096-answering-race",
            ["vocab.json", "merges.txt"],
        ),
        ("modernbert", "answerdotai/ModernBERT-base", ["tokenizer.json"]),
        (
            "qwen_7b",
            "Qwen/Qwen2.5-7B-Instruct",
            ["tokenizer.json", "vocab.json", "merges.txt"],
        ),
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
    done = bench.run(
        "infer",
        f"ckpt={stage(outputs, 'train')}",
        "data=kaggle",
        f"data.dir={bench.questions / 'questions'}",
        f"outputs={outputs}",
        offline=True,
    ).check()
    assert done.requests == []


def test_a_run_keeps_its_commit_when_main_moves(bench):
    """A language model that answers as published lies in the cache alone."""
    name, outputs = "acme/decoder", bench.outputs("kept")
    bench.hub.add(name, files_of_model("Qwen/Qwen2.5-7B-Instruct"))
    train(bench, name, outputs, "model=qwen_7b", "model.max_length=512").check()
    bench.hub.move(name, {"model-00001-of-00004.safetensors": b"damaged"})
    done = bench.run(
        "infer",
        f"ckpt={stage(outputs, 'train')}",
        "data=kaggle",
        f"data.dir={bench.questions / 'questions'}",
        f"outputs={outputs}",
    ).check()
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
    more = ["retriever=bm25", "reranker=cross_encoder", "reranker.ckpt=acme/old", "data.limit=4"]
    bench.run("retrieve", *bench.setting(bench.outputs("renamed"), *more)).check()
    setting = bench.setting(bench.outputs("renamed"), *more)
    assert bench.run("retrieve", *setting, offline=True).check().requests == []


@pytest.mark.parametrize("what", ["encoder", "reranker"])
def test_an_encoder_or_reranker_that_is_missing_is_named_before_work(bench, what):
    key = {"encoder": "encoder.name_or_path", "reranker": "reranker.ckpt"}[what]
    more = {
        "encoder": ["retriever=two_stage"],
        "reranker": ["retriever=bm25", "reranker=cross_encoder"],
    }[what]
    outputs = bench.outputs("missing")
    done = bench.run("retrieve", *bench.setting(outputs, *more, f"{key}=acme/none"))
    assert done.code == 2
    assert "Traceback" not in done.stderr
    assert f"{key}=acme/none: the hub has no such repository" in done.stderr
    assert stages(outputs) == set()


def test_a_missing_data_set_is_named(bench):
    more = ["data.hub=acme/none", "retriever=none", "evaluate=false"]
    outputs = bench.outputs("missing")
    done = bench.run("retrieve", "data=sciq", *more, f"outputs={outputs}")
    assert done.code == 2
    assert "Traceback" not in done.stderr
    assert "data.hub=acme/none" in done.stderr


def test_a_data_set_keeps_to_its_revision(bench):
    """A moved main is another set of questions; the earlier revision gives the earlier one."""
    files = files_of_data_set("allenai/sciq")
    bench.hub.add("acme/sciq", files, kind="dataset")
    old = bench.hub.get("acme/sciq", "dataset").main.sha
    more = ["data=sciq", "data.hub=acme/sciq", "retriever=none", "evaluate=false"]
    first, second, third = (bench.outputs("sciq") for _ in range(3))
    bench.run("retrieve", *more, f"outputs={first}").check()
    train, valid = (f"data/{s}-00000-of-00001.parquet" for s in ("train", "validation"))
    card = files["README.md"].replace(b"num_examples: 24", b"num_examples: 8")
    bench.hub.move("acme/sciq", {train: files[valid], "README.md": card}, kind="dataset")
    done = bench.run("retrieve", *more, f"outputs={second}").check()
    assert "acme/sciq" in done.stderr
    assert "has moved" in done.stderr
    bench.run("retrieve", *more, f"data.revision={old}", f"outputs={third}").check()
    names = [stage(o, "contexts", "sciq-train").name for o in (first, second, third)]
    assert names[0] == names[2] != names[1]


def test_a_gated_data_set_needs_the_right_token(bench):
    bench.hub.add("acme/gated", files_of_data_set("allenai/sciq"), kind="dataset")
    bench.hub.gate("acme/gated", "hf_right", kind="dataset")
    more = ["data=sciq", "data.hub=acme/gated", "retriever=none", "evaluate=false"]
    done = bench.run("retrieve", *more, f"outputs={bench.outputs('gated')}")
    assert done.code == 2
    assert "Traceback" not in done.stderr
    assert "gated" in done.stderr
    assert "HF_TOKEN" in done.stderr  # the remedy
    outputs = bench.outputs("gated")
    bench.run("retrieve", *more, f"outputs={outputs}", HF_TOKEN="hf_right").check()


def test_an_interrupted_data_set_goes_on(bench):
    path = "data/validation-00000-of-00001.parquet"
    bench.hub.add("acme/cut", files_of_data_set("allenai/sciq"), kind="dataset")
    bench.hub.cut("acme/cut", path, after_bytes=100)
    more = ["data=sciq", "data.hub=acme/cut", "retriever=none", "evaluate=false"]
    done = bench.run("retrieve", *more, f"outputs={bench.outputs('cut')}")
    bench.hub.heal()
    assert done.code == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "acme/cut" in done.stderr
    done = bench.run("retrieve", *more, f"outputs={bench.outputs('cut')}").check()
    assert "README.md" not in done.fetched
    assert done.fetched[path] == 1
