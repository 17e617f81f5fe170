"""Every configured id as it is published: from the hub, from the cache alone, and from a copy."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers import ROOT, python
from hub.bench import Bench, contexts, logits, stage
from hub.layouts import deberta_folder
from hub.weights import safetensors_of, state_in

pytestmark = pytest.mark.slow

SHORT = [
    *["retriever=none", "data.limit=4", "data.fold=null", "model.max_length=64"],
    *["trainer.per_device_train_batch_size=4", "trainer.max_steps=1"],
    *["trainer.eval_strategy=no", "trainer.save_strategy=no"],
    *["trainer.load_best_model_at_end=false"],
]
ANSWERS = [*SHORT[:3], "model.max_length=512", "trainer=zero_shot", "trainer.use_cpu=true"]
REVISION = "model.revision=main"
SETTINGS = {"config.json", "tokenizer_config.json"}
BERT = SETTINGS | {"vocab.txt", "tokenizer.json", "special_tokens_map.json", "model.safetensors"}
DEBERTA = SETTINGS | {"spm.model", "pytorch_model.bin"}
QWEN = SETTINGS | {"vocab.json", "merges.txt", "tokenizer.json", "generation_config.json"}
LLAMA = SETTINGS | {"tokenizer.model", "tokenizer.json", "special_tokens_map.json"}
LLAMA |= {"generation_config.json", "model.safetensors.index.json"}
SENTENCES = BERT | {"modules.json", "1_Pooling/config.json"}
SENTENCES |= {"sentence_bert_config.json", "config_sentence_transformers.json"}
SCORE = QWEN | {"modules.json", "1_LogitScore/config.json", "sentence_bert_config.json"}
SCORE |= {"config_sentence_transformers.json", "model.safetensors"}


def shards(count: int) -> set[str]:
    return {f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)}


# Of each reader the id, more overrides, and the files that are needed of its repository. A revision
# keeps from an installed package that carries a checkpoint.
READERS = {
    **{
        f"deberta_{size}": (f"microsoft/deberta-v3-{size}", SHORT, DEBERTA)
        for size in ("xsmall", "small", "base", "large")
    },
    "bert_base": ("google-bert/bert-base-cased", SHORT, BERT - {"special_tokens_map.json"}),
    "longformer": (
        "allenai/longformer-base-4096",
        SHORT,
        {"config.json", "vocab.json", "merges.txt", "tokenizer.json", "pytorch_model.bin"},
    ),
    "published/longformer_race": (
        "potsawee/longformer-large-4096-answering-race",
        SHORT,
        SETTINGS | {"vocab.json", "merges.txt", "special_tokens_map.json", "pytorch_model.bin"},
    ),
    "modernbert": (
        "answerdotai/ModernBERT-base",
        SHORT,
        SETTINGS | {"tokenizer.json", "special_tokens_map.json", "model.safetensors"},
    ),
    "minilm": ("sentence-transformers/all-MiniLM-L6-v2", [*SHORT, REVISION], SENTENCES),
    "mpnet": ("sentence-transformers/all-mpnet-base-v2", [*SHORT, REVISION], SENTENCES),
    "mistral_7b": (
        "mistralai/Mistral-7B-v0.1",
        [*SHORT, "model.dtype=float32"],
        LLAMA | shards(2),
    ),
    "qwen_7b": (
        "Qwen/Qwen2.5-7B-Instruct",
        ANSWERS,
        QWEN | {"model.safetensors.index.json"} | shards(4),
    ),
    "published/platypus2_70b": (
        "garage-bAInd/Platypus2-70B-instruct",
        ANSWERS,
        LLAMA | shards(15),
    ),
}
ENCODERS = {
    "bge_small": ([], "BAAI/bge-small-en-v1.5", SENTENCES),
    "gte_base": ([], "thenlper/gte-base", SENTENCES),
    "e5_base": ([], "intfloat/e5-base-v2", SENTENCES),
    "minilm": (["encoder.revision=main"], "sentence-transformers/all-MiniLM-L6-v2", SENTENCES),
    "mpnet": (["encoder.revision=main"], "sentence-transformers/all-mpnet-base-v2", SENTENCES),
    "qwen3": (
        ["encoder.name_or_path=Qwen/Qwen3-Embedding-0.6B", "encoder.max_length=256"],
        "Qwen/Qwen3-Embedding-0.6B",
        QWEN
        | {"modules.json", "1_Pooling/config.json", "config_sentence_transformers.json"}
        | {"model.safetensors"},
    ),
}
RERANKERS = {
    "cross-encoder/ms-marco-MiniLM-L6-v2": BERT,
    "BAAI/bge-reranker-v2-m3": SETTINGS
    | {"sentencepiece.bpe.model", "tokenizer.json", "special_tokens_map.json", "model.safetensors"},
    "Qwen/Qwen3-Reranker-0.6B": SCORE,
    "mixedbread-ai/mxbai-rerank-base-v2": SCORE,
}
WITHHELD = ["medmcqa", "commonsense_qa", "hellaswag", "qasc"]  # answers of the test
DATA_SETS = {  # questions and answers of train, valid and test
    **{name: [(24, 24), (8, 8), (8, 8)] for name in ("race", "mmlu", "sciq", "openbookqa", "arc")},
    **{name: [(24, 24), (8, 8), (8, 0)] for name in WITHHELD},
    **{name: [(24, 24), (8, 8)] for name in ("mmlu_pro", "medqa")},
    "ceval": [(5, 5), (8, 8), (8, 0)],
}


def answers(bench: Bench, outputs: Path, *, offline: bool = False) -> list[dict]:
    """What a run predicts for the test questions; it fetches nothing."""
    assert bench.infer(outputs, offline=offline).fetched == {}
    folder = stage(outputs, "infer")
    assert len((folder / "submission.csv").read_text().splitlines()) == 7
    return logits(folder)


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_learns_and_answers(bench, tmp_path, reader):
    name, overrides, needed = READERS[reader]
    overrides = [*overrides, f"model={reader}"]
    hub, cache, copy = (bench.outputs(Path(reader).name) for _ in range(3))

    done = bench.run("train", *bench.setting(hub, *overrides)).check()
    assert not [r.path for r in done.requests if "discussions" in r.path or "refs" in r.path]
    published = answers(bench, hub)
    assert len(published) == 6 * 5  # options

    done = bench.run("train", *bench.setting(cache, *overrides), offline=True).check()
    assert done.requests == []
    assert stage(cache, "train").name == stage(hub, "train").name
    assert logits(stage(cache, "train")) == logits(stage(hub, "train"))
    assert answers(bench, cache, offline=True) == published

    folder = bench.copy(name, bench.hub.get(name).main.sha, tmp_path / "copy")
    local = [o for o in overrides if o != REVISION]
    setting = bench.setting(copy, *local, f"model.name_or_path={folder}")
    done = bench.run("train", *setting, offline=True).check()
    assert logits(stage(copy, "train")) == logits(stage(hub, "train"))
    assert answers(bench, copy, offline=True) == published
    assert bench.fetched(name) == dict.fromkeys(needed, 1)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_an_encoder_finds_passages(bench, tmp_path, encoder):
    overrides, name, needed = ENCODERS[encoder]
    group = [f"encoder={encoder}"] if encoder != "qwen3" else []
    overrides = ["retriever=two_stage", "data.limit=4", "evaluate=false", *group, *overrides]
    hub, cache, copy = (bench.outputs(encoder) for _ in range(3))

    done = bench.run("retrieve", *bench.setting(hub, *overrides)).check()
    assert bench.fetched(name) == dict.fromkeys(needed, 1)
    assert contexts(hub, "kaggle-train")

    done = bench.run("retrieve", *bench.setting(cache, *overrides), offline=True).check()
    assert done.requests == []
    assert {path.name for path in (cache / "contexts").iterdir()} == {
        path.name for path in (hub / "contexts").iterdir()
    }
    assert contexts(cache, "kaggle-train") == contexts(hub, "kaggle-train")

    folder = bench.copy(name, bench.hub.get(name).main.sha, tmp_path / "copy")
    local = [o for o in overrides if "revision" not in o and "name_or_path" not in o]
    setting = bench.setting(copy, *local, f"encoder.name_or_path={folder}")
    bench.run("retrieve", *setting, offline=True).check()
    assert contexts(copy, "kaggle-train") == contexts(hub, "kaggle-train")


@pytest.mark.parametrize("name", RERANKERS)
def test_a_reranker_orders_passages(bench, tmp_path, name):
    base = ["retriever=bm25", "reranker=cross_encoder", "data.limit=4", "evaluate=false"]
    overrides = [*base, f"reranker.ckpt={name}"]
    hub, cache, copy = (bench.outputs("reranker") for _ in range(3))

    done = bench.run("retrieve", *bench.setting(hub, *overrides)).check()
    assert bench.fetched(name) == dict.fromkeys(RERANKERS[name], 1)
    reordered = contexts(hub, "kaggle-train-bm25-cross_encoder-")
    assert len({row["score"] for row in reordered}) > 6

    done = bench.run("retrieve", *bench.setting(cache, *overrides), offline=True).check()
    assert done.requests == []
    assert contexts(cache, "kaggle-train-bm25-cross_encoder-") == reordered

    folder = bench.copy(name, bench.hub.get(name).main.sha, tmp_path / "copy")
    setting = bench.setting(copy, *base, f"reranker.ckpt={folder}")
    bench.run("retrieve", *setting, offline=True).check()
    assert contexts(copy, "kaggle-train-bm25-cross_encoder-") == reordered


@pytest.mark.parametrize("name", DATA_SETS)
def test_a_data_set_is_read(bench, name):
    hub, cache = (bench.outputs(name) for _ in range(2))
    overrides = [f"data={name}", "retriever=none", "evaluate=false"]
    bench.run("retrieve", *overrides, f"outputs={hub}").check()
    parts = ["train", "valid", "test"][: len(DATA_SETS[name])]
    for part, (number, answered) in zip(parts, DATA_SETS[name], strict=True):
        rows = questions_of(hub, f"{name}-{part}")
        assert (len(rows), sum(row["label"] is not None for row in rows)) == (number, answered)
    done = bench.run("retrieve", *overrides, f"outputs={cache}", offline=True).check()
    assert done.requests == []
    names = {path.name for path in (hub / "contexts").iterdir()}
    assert names == {path.name for path in (cache / "contexts").iterdir()}


def questions_of(outputs: Path, start: str) -> list[dict]:
    folder = stage(outputs, "contexts", start)
    return pq.read_table(folder / "questions.parquet").to_pylist()


def test_pickled_and_safe_weights_answer_alike(bench, tmp_path):
    """A folder as it is published, and the same one with its weights in the other form."""
    pickled = deberta_folder(tmp_path / "pickled")
    safe = Path(shutil.copytree(pickled, tmp_path / "safe"))
    state = state_in((pickled / "pytorch_model.bin").read_bytes())
    (safe / "model.safetensors").write_bytes(safetensors_of(state))
    (safe / "pytorch_model.bin").unlink()
    runs = []
    for folder in (pickled, safe):
        outputs = bench.outputs("form")
        more = ["model=deberta_large", f"model.name_or_path={folder}", "data.limit=40"]
        setting = bench.setting(outputs, *SHORT, *more)
        assert bench.run("train", *setting).check().requests == []
        runs.append((logits(stage(outputs, "train")), answers(bench, outputs)))
    assert runs[0] == runs[1]


def test_offline_asks_nothing_in_a_new_process(bench):
    """Without the environment that the commands above start with."""
    name = "BAAI/bge-small-en-v1.5"
    overrides = ["encoder=bge_small", "retriever=two_stage", "data.limit=4", "evaluate=false"]
    bench.run("retrieve", *bench.setting(bench.outputs("new"), *overrides)).check()
    setting = bench.setting(bench.outputs("new"), *overrides, "offline=true")
    with bench.hub.recording() as requests:
        process = python(
            str(ROOT / "retrieve.py"),
            *setting,
            cwd=bench.home,
            **bench.hub.environment(bench.home),
        )
    assert process.returncode == 0, process.stderr
    assert name in process.stderr
    assert requests == []
