"""Damaged artifacts are refused by name or made again; they are never used, nor cause a traceback.

`EXAM_DAMAGES=20,50` cuts every file at 20 places and flips a byte at 50; by default a few.
"""

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import jsonl_corpus, make_articles, make_place, tiny

from exam.bundle.contents import Contents, check_bundle
from exam.config import Checkpoint, Dtype, Encoder, Index, IndexType
from exam.config.compose import compose_config
from exam.core import artifacts
from exam.core.artifacts import MANIFEST, load_stage, open_stage, stages_differing_only_in
from exam.core.checkpoints import MODEL, checkpoint_fingerprint
from exam.core.errors import ExamError
from exam.core.files import CHECKSUMS, checksum_matches, write_json, write_with_checksum
from exam.core.trainer import CheckpointCallback, last_complete_checkpoint
from exam.data.corpus import corpus_files, corpus_key, list_articles
from exam.evaluation.predictions import Predictions, read_all_predictions, write_predictions
from exam.generation.llm import ReplyCache
from exam.pipelines import passage_gain
from exam.pipelines.train import train_reader
from exam.readers.causal_lm.layerwise import States
from exam.retrieval import index as index_module
from exam.retrieval import vectors as vectors_module
from exam.retrieval.encoder import Embeddings, SentenceEncoder
from exam.retrieval.index import build_index
from exam.retrieval.vectors import choose_index_spec

CUTS, FLIPS = map(int, os.environ.get("EXAM_DAMAGES", "2,4").split(","))
TEXTS = ["the otter lives", "the heron", "where does it live", "an animal is an animal"]


def damages(path: Path):
    """Damage a file repeatedly, each time from its original content; yield a description."""
    whole, draw = path.read_bytes(), Random(path.name)
    positions = [draw.randrange(len(whole)) for _ in range(CUTS + FLIPS if whole else 0)]
    try:
        for number, position in enumerate(positions):
            change = bytes([whole[position] ^ draw.randrange(1, 256)])
            cut = number < CUTS
            path.write_bytes(whole[:position] + (b"" if cut else change + whole[position + 1 :]))
            if not (path.suffix == ".json" and parse_json(path.read_bytes()) == parse_json(whole)):
                yield f"{path} {'cut at' if cut else 'changed at'} {position} of {len(whole)}"
    finally:
        path.write_bytes(whole)


def parse_json(data: bytes):
    """Return the parsed JSON, so that white space does not count; other data as bytes."""
    try:
        return json.loads(data)
    except ValueError:
        return data


def files_of(folder: Path):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def refusal(use):
    """Return the message of the ExamError that `use` raises; None if it raises none."""
    try:
        use()
    except ExamError as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Every stage of a run that reads passages."""
    workdir = make_place(tmp_path_factory.mktemp("damaged"))
    train_reader(compose_config("train", *tiny(workdir)))
    return workdir / "outputs"


@pytest.mark.slow
def test_every_file_of_every_stage_is_refused_by_name(outputs):
    kinds = set()
    for manifest in outputs.glob(f"*/*/{MANIFEST}"):
        folder = manifest.parent
        kinds.add(folder.parent.name)
        for name in [*load_stage(folder).files, MANIFEST]:
            for damage in damages(folder / name):
                message = refusal(lambda folder=folder: load_stage(folder))
                assert message is not None, damage
                assert message.startswith(str(folder / name)), (damage, message)
                assert message.endswith(f"Delete the folder {folder} and run the command again.")
        load_stage(folder)
    assert kinds >= {"passages", "bm25", "words", "contexts", "features", "train"}


def test_a_damaged_manifest_does_not_stop_other_stages(tmp_path, caplog):
    for value in (1, 2):
        with open_stage(tmp_path, "k", "n", {"a": value}) as stage:
            stage.finish([])
    for damage in damages(stage.folder / MANIFEST):
        caplog.clear()
        with open_stage(tmp_path, "k", "n", {"a": 3}) as other:
            assert stages_differing_only_in(other, "a")[0] != stage.folder, damage
        assert f"not reused: {stage.folder / MANIFEST}" in caplog.text
        shutil.rmtree(other.folder)


@pytest.mark.parametrize(
    ("written", "changed"),
    [('"questions": 12', '"questions": 13'), ('"a": 1', '"a": 2'), ('"bytes": 1', '"bytes": 2')],
)
def test_a_manifest_vouches_for_every_value_in_it(tmp_path, written, changed):
    with open_stage(tmp_path, "k", "n", {"a": 1}) as stage:
        (stage.folder / "f").write_text("x")
        stage.finish(["f"], questions=12)
    path = stage.folder / MANIFEST
    assert load_stage(stage.folder).metadata == {"questions": 12}
    text = path.read_text()
    assert text.count(written) == 1
    path.write_text(text.replace(written, changed))
    assert refusal(lambda: load_stage(stage.folder)) == (
        f"{path} is not the file that was written, or one of an earlier version.\n"
        f"Delete the folder {stage.folder} and run the command again."
    )


def test_a_damaged_key_is_named_where_it_asks_for_generated(tmp_path):
    with open_stage(tmp_path, "k", "n", {"a": 1, "b": {"c": "text"}}) as stage:
        pass
    for damage in damages(stage.folder / "key.json"):

        def use():
            key = {"a": 1, "b": {"c": "text"}}
            with open_stage(tmp_path, "k", "n", key, resume=str(stage.folder)) as again:
                assert again.key == stage.key

        message = refusal(use)
        if message is None:  # a blank for another
            assert json.loads((stage.folder / "key.json").read_text()) == stage.key, damage
        else:
            assert str(stage.folder) in message, damage


def test_a_damaged_note_of_large_files_is_left_out_and_vouches_for_none(tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts, "LARGE", 100)
    with open_stage(tmp_path, "k", "n", {}) as stage:
        (stage.folder / "large").write_bytes(bytes(range(256)) * 4)
        stage.finish(["large"])
    (stage.folder / "verified.json").write_text("5")
    assert load_stage(stage.folder).reused
    for _ in damages(stage.folder / "verified.json"):
        load_stage(stage.folder)
        noted = (stage.folder / "verified.json").read_bytes()
        for damage in damages(stage.folder / "large"):
            (stage.folder / "verified.json").write_bytes(noted)
            assert refusal(lambda: load_stage(stage.folder)) is not None, damage


@pytest.mark.slow
def test_a_runs_damaged_weights_are_no_other_checkpoint(outputs):
    (run,) = outputs.glob("train/kaggle-*")
    weights = run / MODEL / "model.safetensors"
    for damage in damages(weights):
        message = refusal(
            lambda: checkpoint_fingerprint(Checkpoint("reader", "model.name_or_path", str(run)))
        )
        assert message is not None, damage
        assert message.startswith(f"{weights} is not the file that was written."), damage


def test_other_bytes_of_a_corpus_are_another_corpus(tmp_path):
    files = corpus_files(jsonl_corpus(make_articles(tmp_path / "articles.jsonl")), tmp_path)
    before = corpus_key(files)
    for damage in damages(tmp_path / "articles.jsonl"):
        assert corpus_key(files) != before, damage


def test_damaged_partial_results_are_written_again(tmp_path, caplog):
    with write_with_checksum(tmp_path / "part") as temporary:
        temporary.write_bytes(bytes(range(256)))
    for file in files_of(tmp_path):
        for damage in damages(file):
            caplog.clear()
            assert not checksum_matches(tmp_path / "part"), damage
            assert f"{tmp_path / 'part'} is not the file that was written" in caplog.text
    assert checksum_matches(tmp_path / "part")


@pytest.fixture(scope="module")
def sentences(encoder):
    return SentenceEncoder(Encoder(name="tiny", name_or_path=str(encoder), dtype=Dtype.float32))


def test_an_interrupted_index_goes_on_from_whole_shards_alone(tmp_path, sentences, monkeypatch):
    path = make_articles(tmp_path / "articles.jsonl")
    corpus = list_articles(jsonl_corpus(path), tmp_path / "listed")
    recipe = Index(type=IndexType.exact, shard_size=4)

    def interrupted(*_):
        raise KeyboardInterrupt

    whole = build_index(corpus, sentences, recipe, tmp_path / "whole").stage
    with monkeypatch.context() as patched:
        patched.setattr(index_module, "_assemble", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_index(corpus, sentences, recipe, tmp_path / "cut")
    (cut,) = (tmp_path / "cut" / "index").glob("c-*")
    shutil.copytree(tmp_path / "cut", tmp_path / "kept")
    for name in [path.name for path in files_of(cut) if path.name.startswith("shard-")]:
        for damage in damages(cut / name):
            rebuilt = build_index(corpus, sentences, recipe, tmp_path / "cut").stage
            expected = load_stage(whole.folder).files
            assert load_stage(rebuilt.folder).files == expected, damage
            assert not (rebuilt.folder / CHECKSUMS).exists()
            shutil.rmtree(tmp_path / "cut")
            shutil.copytree(tmp_path / "kept", tmp_path / "cut")


@pytest.mark.slow
def test_an_interrupted_build_of_lists_goes_on_from_whole_parts_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(vectors_module, "PART_BYTES", 4 * 8 * 100)
    vectors = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    plan = choose_index_spec(Index(type=IndexType.low_memory), *vectors.shape)
    folder = tmp_path / "built"
    folder.mkdir()

    def build():
        vectors_module.build_vectors(lambda: iter([vectors]), folder, plan)
        return [(folder / name).read_bytes() for name in ("vectors.npy", "index.faiss")]

    whole = build()
    names = [path.name for path in files_of(folder) if path.name != CHECKSUMS]
    assert len(names) == 2 + 1 + 2
    for name in names:
        for damage in damages(folder / name):
            (folder / "index.faiss").unlink(missing_ok=True)
            assert build() == whole, damage
    parts = {path: path.stat().st_mtime_ns for path in folder.glob("part-*.faiss")}
    (folder / "index.faiss").unlink()
    assert build() == whole
    assert parts == {path: path.stat().st_mtime_ns for path in parts}  # none was built again


def test_damaged_shards_of_gains_are_measured_again(tmp_path, monkeypatch):
    calls, path = [], tmp_path / "gains-000000.parquet"
    row = {"gain": 0.5}
    monkeypatch.setattr(passage_gain, "_gains", lambda *args: calls.append(args) or [row])

    def gains():
        shard = passage_gain._measure(path, "questions", {}, "reader")
        return shard["gain"].to_pylist()

    assert (gains(), gains(), len(calls)) == ([0.5], [0.5], 1)
    for number, damage in enumerate(damages(path), 2):
        assert (gains(), len(calls)) == ([0.5], number), damage


def test_damaged_embeddings_are_refused_by_name(tmp_path, sentences):
    vectors = Embeddings(sentences, tmp_path).queries(TEXTS)
    (shard,) = tmp_path.glob("embeddings/*/*.arrow")
    for damage in damages(shard):

        def use():
            again = Embeddings(sentences, tmp_path).queries(TEXTS)
            assert np.array_equal(again, vectors)

        message = refusal(use)
        if message is not None:  # a damaged key: its text is encoded again
            assert message.startswith(f"{shard} is a damaged shard of embeddings: "), damage
            assert message.endswith("\nDelete that file: its texts are encoded again."), damage
    shard.unlink()
    assert np.array_equal(Embeddings(sentences, tmp_path).queries(TEXTS), vectors)


def test_a_damaged_checkpoint_is_removed_and_the_one_before_taken(tmp_path, caplog):
    for step in (1, 2):
        folder = tmp_path / "whole" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(bytes(range(256)))
        (folder / "optimizer.pt").write_bytes(bytes(range(256)))
        state = {"best_model_checkpoint": None, "global_step": step}
        write_json(folder / "trainer_state.json", state)
        arguments = SimpleNamespace(should_save=True, output_dir=str(tmp_path / "whole"))
        CheckpointCallback().on_save(arguments, SimpleNamespace(global_step=step), None)
    workdir = tmp_path / "place"
    for name in [path.name for path in files_of(tmp_path / "whole" / "checkpoint-2")]:
        shutil.copytree(tmp_path / "whole", workdir)
        for damage in damages(workdir / "checkpoint-2" / name):
            caplog.clear()
            assert last_complete_checkpoint(workdir) == workdir / "checkpoint-1", damage
            assert f"incomplete checkpoint {workdir / 'checkpoint-2'}" in caplog.text
            shutil.copytree(tmp_path / "whole", workdir, dirs_exist_ok=True)
        assert last_complete_checkpoint(workdir) == workdir / "checkpoint-2"
        shutil.rmtree(workdir)


def test_damaged_states_are_not_resumed_from(tmp_path):
    @dataclass
    class Batch:
        rows: list
        prefix: torch.Tensor
        suffixes: torch.Tensor

    batches = [Batch([n], torch.tensor([[n]]), torch.tensor([])) for n in range(2)]
    states = States(tmp_path, batches, 0, 1, "float32")
    for number in range(2):
        states.put(number, 3, {"prefix": torch.full((4, 4), float(number))})
    states.mark_complete(3)
    for file in files_of(tmp_path):
        for damage in damages(file):
            assert States(tmp_path, batches, 0, 1, "float32").layer in (
                (None,) if file.suffix == ".safetensors" else (None, 3)
            ), damage
    assert States(tmp_path, batches[::-1], 0, 1, "float32").layer is None  # other questions
    assert States(tmp_path, batches, 0, 1, "bfloat16").layer is None
    again = States(tmp_path, batches, 0, 1, "float32")
    assert again.layer == 3
    assert torch.equal(again.get(1, 3)["prefix"], torch.ones(4, 4))


def test_damaged_replies_are_left_out_and_counted(tmp_path, caplog):
    journal = ReplyCache(tmp_path / "replies.jsonl")
    for number in range(5):
        question = {"question": f"What is {number}?", "options": ["å", "b"], "answer": 1}
        row = {"asked": str(number), "article": f"a{number}", "questions": [question]}
        journal.add({**row, "refused": [], "read": 1, "written": 2})
    for damage in damages(journal.path):
        caplog.clear()
        replies = ReplyCache(journal.path).rows
        assert all(journal.rows.get(key) == row for key, row in replies.items()), damage
        whole_lines = journal.path.read_bytes().count(b"\n") == len(replies)
        assert len(replies) == 5 or whole_lines or "broken, and left out" in caplog.text, damage


def test_damaged_predictions_are_refused_by_name(tmp_path):
    logits = np.random.default_rng(0).normal(size=(40, 5))
    predictions = Predictions([f"q{n}" for n in range(40)], logits, [1] * 40, "reader", "contexts")
    path = tmp_path / "p.parquet"
    write_predictions(path, [predictions])
    (expected,) = read_all_predictions(path)
    for damage in damages(path):

        def use():
            (actual,) = read_all_predictions(path)
            assert np.array_equal(actual.logits, expected.logits)
            assert (actual.ids, actual.labels, actual.name) == (
                expected.ids, expected.labels, expected.name,
            )  # fmt: skip

        message = refusal(use)
        assert message is None or str(path) in message, (damage, message)


def test_a_damaged_bundle_is_refused_by_name(tmp_path):
    (tmp_path / "source").write_bytes(bytes(range(256)))
    contents = Contents(tmp_path / "b")
    for name in ("wheels/a.whl", "corpus/0/articles.jsonl", "model/model.safetensors"):
        contents.add(tmp_path / "source", name)
    contents.close(limit_gib=1, python="{}.{}".format(*sys.version_info))
    check_bundle(tmp_path / "b")
    for file in files_of(tmp_path / "b"):
        for damage in damages(file):
            message = refusal(lambda: check_bundle(tmp_path / "b"))
            assert message is not None, damage
            assert message.startswith(str(file)), damage
