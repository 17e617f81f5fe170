"""What a command will load is checked before any work; published files load as they are."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import exam, kaggle_rows, make_place, refuses, setting, write_csv
from hub.layouts import MODELS, deberta_folder, files_of_model, write
from safetensors.torch import load_file, save_file

from exam.config import Encoder, Model, Packing, ReaderKind, Reranker
from exam.config.compose import compose_config
from exam.core import conversion
from exam.core.conversion import convert_file
from exam.core.errors import ExamError
from exam.core.tokenization import load_tokenizer
from exam.pipelines.preflight import check_reader
from exam.pipelines.revisions import pin_revisions, uses_encoder
from exam.readers.multiple_choice.model import load_model
from exam.retrieval.encoder import inspect_encoder
from exam.retrieval.reranker import inspect_reranker


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder laid out like microsoft/deberta-v3-large."""
    return deberta_folder(tmp_path_factory.mktemp("published"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache for this test only."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    conversion._convert.cache_clear()


@pytest.fixture
def safe(published, tmp_path):
    """The same checkpoint with its weights as safetensors."""
    folder = shutil.copytree(published, tmp_path / "safe")
    convert_file(folder / "pytorch_model.bin", folder / "model.safetensors")
    (folder / "pytorch_model.bin").unlink()
    return folder


def reader_of(folder, **values):
    return Model(name="m", name_or_path=str(folder), max_length=64, **values)


def logits(folder, packing=Packing.none):
    model, tokenizer = load_model(reader_of(folder, packing=packing), seed=0)
    assert next(model.parameters()).dtype is torch.float32
    batch = tokenizer(
        ["10² m of H₂O"] * 2, ["½ cup", "the ﬁeld"], return_tensors="pt", padding=True
    )
    with torch.inference_mode():
        return model.eval()(**{name: ids[None] for name, ids in batch.items()}).logits


def change(folder, name, **changes):
    """Write a checkpoint's weights anew, with some of them replaced or left out (None)."""
    weights = load_file(folder / name) | changes
    save_file(
        {key: value for key, value in weights.items() if value is not None},
        folder / name,
        metadata={"format": "pt"},
    )


def test_a_pickled_checkpoint_answers_as_its_safetensors(published, safe):
    assert torch.equal(logits(published), logits(safe))


def test_a_head_for_another_task_is_replaced_and_named(safe, caplog):
    change(safe, "model.safetensors", **{"classifier.weight": torch.ones(3, 32)})
    caplog.set_level("DEBUG")
    model, _ = load_model(reader_of(safe), seed=0)
    assert model.classifier.weight.shape == (1, 32)
    (line,) = [m for m in caplog.messages if "newly initialised" in m]
    assert line == "reader: newly initialised: classifier, pooler.dense (not in the checkpoint)"


@pytest.mark.parametrize("packing", [Packing.none, Packing.options])
@pytest.mark.parametrize("replacement", [None, torch.ones(5, 5)])
def test_weights_of_another_network_are_refused(safe, packing, replacement):
    name = "deberta.encoder.layer.0.intermediate.dense.weight"
    change(safe, "model.safetensors", **{name: replacement})
    with pytest.raises(ExamError, match=r"1 weights of the deberta-v2 model are missing or of an"):
        check_reader(reader_of(safe, packing=packing))


def test_a_vocabulary_beyond_the_embeddings_is_refused(safe):
    name = "deberta.embeddings.word_embeddings.weight"
    rows = load_file(safe / "model.safetensors")[name][:100].clone()
    change(safe, "model.safetensors", **{name: rows})
    config = json.loads((safe / "config.json").read_text()) | {"vocab_size": 100}
    (safe / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExamError, match=r"its model has embeddings for 100\."):
        check_reader(reader_of(safe))


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "spm.model"])
def test_a_damaged_file_is_refused(safe, name):
    (safe / name).write_bytes(b"{")
    with pytest.raises(ExamError, match=str(safe)):
        check_reader(reader_of(safe))


@pytest.mark.parametrize("content", [b"", b"{", bytes(100)])
def test_damaged_safetensors_are_refused(safe, content):
    (safe / "model.safetensors").write_bytes(content)
    with pytest.raises(ExamError, match=rf"The reader {safe} cannot be loaded: "):
        check_reader(reader_of(safe))


def test_an_encoder_is_checked_like_a_reader(encoder, tmp_path):
    folder = shutil.copytree(encoder, tmp_path / "encoder")
    inspect_encoder(Encoder(name="e", name_or_path=str(folder), max_length=64))
    with pytest.raises(ExamError, match=r"encoder\.max_length=600 is more than the 512 tokens"):
        inspect_encoder(Encoder(name="e", name_or_path=str(folder), max_length=600))
    change(folder, "model.safetensors", **{"encoder.layer.0.output.dense.weight": None})
    with pytest.raises(ExamError, match=r"encoder\.name_or_path=.*: 1 weights of the bert model"):
        inspect_encoder(Encoder(name="e", name_or_path=str(folder), max_length=64))


def test_an_encoder_is_no_reranker(encoder):
    with pytest.raises(ExamError, match="has no head that scores passages"):
        inspect_reranker(Reranker(ckpt=str(encoder)))
    inspect_reranker(Reranker(ckpt=str(encoder)), trained=False)


def test_a_revision_of_a_folder_is_refused(published):
    with refuses("model.revision=main is for a hub id, and model.name_or"):
        check_reader(replace(reader_of(published), revision="main"))


def test_an_encoder_is_checked_only_where_it_is_used():
    train = compose_config("train", "retriever=bm25", "model=tiny")
    assert not uses_encoder(replace(train, data=replace(train.data, train=None)))
    assert uses_encoder(compose_config("train", "retriever=two_stage", "model=tiny"))
    assert uses_encoder(compose_config("retrieve", "retriever=hybrid"))
    assert uses_encoder(compose_config("generate"))
    assert not uses_encoder(compose_config("generate", "generator=llm"))


def test_folders_and_packages_need_no_revision(published):
    config = compose_config("train", "retriever=two_stage", f"model.name_or_path={published}")
    pinned = pin_revisions(config)
    assert (pinned.model.revision, pinned.encoder.revision) == (None, None)


def test_a_question_that_never_fits_is_refused_before_retrieval(tmp_path):
    make_place(tmp_path)
    row = kaggle_rows(1)[0]
    write_csv(
        tmp_path / "questions" / "train.csv",
        [*kaggle_rows(20, start=1), {**row, "id": "long", "prompt": "otter " * 600}],
    )
    done = exam("train", *setting(tmp_path, "retriever=bm25", "model=minilm"))
    assert done.returncode == 2
    assert "question 'long': prompt and longest option need 6" in done.stderr
    assert "the model reads 512." in done.stderr
    assert not list((tmp_path / "outputs").glob("*/*"))


def test_files_that_disagree_are_refused_before_retrieval(safe, tmp_path):
    make_place(tmp_path / "place")
    change(safe, "model.safetensors", **{"deberta.encoder.rel_embeddings.weight": None})
    overrides = ["retriever=bm25", "model=deberta_large", f"model.name_or_path={safe}"]
    done = exam("train", *setting(tmp_path / "place", *overrides, "trainer=cpu"))
    assert done.returncode == 2
    assert "config.json and weights are of different checkpoints" in done.stderr
    assert not list((tmp_path / "place" / "outputs").glob("*/*"))


def test_a_decoder_without_its_head_is_refused(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    from exam.readers.multiple_choice.model import tiny_tokenizer

    tokenizer = tiny_tokenizer(["the otter lives in the river"])
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=2, **shape)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = Model(name="m", kind=ReaderKind.causal_lm, name_or_path=str(tmp_path))
    assert check_reader(model) is None  # prompts are cut to its window
    change(tmp_path, "model.safetensors", **{"lm_head.weight": None})
    with pytest.raises(ExamError, match=r"first lm_head\.weight"):
        check_reader(model)


def test_checking_takes_no_memory_for_weights(safe):
    from exam.readers.base import inspect_checkpoint

    model, _ = inspect_checkpoint(reader_of(safe))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert np.prod(model.deberta.embeddings.word_embeddings.weight.shape) > 0


VOCABULARIES = {
    "spm.model", "vocab.txt", "vocab.json", "merges.txt", "tokenizer.json", "tokenizer.model",
    "sentencepiece.bpe.model",
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_missing_vocabulary_is_refused(name, tmp_path):
    files = {path: data for path, data in files_of_model(name).items() if path not in VOCABULARIES}
    with pytest.raises(ExamError, match=r"holds .*config\.json.*vocabulary is missing"):
        load_tokenizer(write(tmp_path, files))


def test_missing_merges_are_refused(tmp_path):
    files = dict(files_of_model("potsawee/longformer-large-4096-answering-race"))
    del files["merges.txt"]
    with pytest.raises(ExamError, match="vocabulary is missing"):
        load_tokenizer(write(tmp_path, files))
