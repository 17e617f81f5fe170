"""Training of rerankers and encoders: pairs, trained weights, resumption, the command."""

import json
import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from helpers import exam, make_place, refuses, run_exam, setting, write_csv
from torch import nn
from transformers import set_seed

from exam.config import Encoder, PairLoss, Query, Reranker, Target, TrainingPairs
from exam.config.compose import compose_config
from exam.core.checkpoints import checkpoint_fingerprint
from exam.core.errors import ExamError
from exam.data.files import check_paths
from exam.data.schema import FEATURES
from exam.data.splits import Split
from exam.retrieval.encoder import SentenceEncoder
from exam.retrieval.mining import mine_pairs, read_positives
from exam.retrieval.reranker import PairScorer, has_head, load_cross_encoder
from exam.retrieval.training import tune

IDF = dict.fromkeys(["river", "marsh", "pond", "deep", "cold"], 1.0)


def questions(n=1, article="a0"):
    return Dataset.from_list(
        [
            {
                "id": str(i), "prompt": f"Where {i}?", "options": ["deep river", "marsh"],
                "label": 0, "articles": [article], "context": None,
            }
            for i in range(n)
        ],
        features=FEATURES,
    )  # fmt: skip


def passage(rank, article, text):
    return {
        "question_id": "0", "rank": rank, "score": 10.0 - rank, "article_id": article,
        "passage_id": f"{article}:{rank}", "title": "T", "text": text, "source": "s",
    }  # fmt: skip


CONTEXTS = {
    "0": [
        passage(1, "a0", "a river"),
        passage(2, "a1", "deep cold river"),
        passage(3, "a0", "the deep river"),
        passage(4, "a2", "a marsh"),
        passage(5, "a3", "a pond"),
        passage(6, "a4", "a river again"),
    ]
}


def mined(**settings):
    (example,) = mine_pairs(
        questions(),
        CONTEXTS,
        IDF,
        TrainingPairs(**{"max_rank": 6, **settings}),
        Query.prompt_options,
        0,
    )
    return example


def test_binary_positives_belong_to_the_article_of_the_question():
    example = mined(target=Target.binary, num_positives=1, num_negatives=9)
    assert example.query == "Where 0? deep river marsh"
    assert example.passages[0] == "T. the deep river"  # its best by support, not by rank
    assert sorted(example.passages[1:]) == ["T. a marsh", "T. a pond"]  # "a river" supports half
    assert (example.labels, example.positives) == ([1.0, 0.0, 0.0], 1)


def test_graded_pairs_carry_the_right_options_support():
    example = mined(target=Target.support, num_positives=2, num_negatives=4)
    graded = dict(zip(example.passages, example.labels, strict=True))
    assert example.passages[:2] == ["T. deep cold river", "T. the deep river"]
    assert graded == {
        "T. deep cold river": 1.0, "T. the deep river": 1.0, "T. a river": 0.5,
        "T. a river again": 0.5, "T. a marsh": 0.0, "T. a pond": 0.0,
    }  # fmt: skip


def test_pairs_come_from_the_configured_ranks_and_are_seeded():
    settings = {"target": Target.support, "num_positives": 1, "num_negatives": 2}
    draws = {tuple(mined(**settings, min_rank=2, max_rank=5).passages) for _ in range(3)}
    assert len(draws) == 1
    assert not {"T. a river", "T. a river again"} & set(draws.pop())


def test_positives_from_a_file(tmp_path):
    rows = [
        {"question_id": "0", "passage_id": "a3:5", "gain": "0.5"},
        {"question_id": "0", "passage_id": "a2:4", "gain": "2.0"},
        {"question_id": "0", "passage_id": "a0:1", "gain": "-1.0"},
    ]
    path = write_csv(tmp_path / "p.csv", rows)
    assert [row["passage_id"] for row in read_positives(path)["0"]] == ["a2:4", "a3:5"]
    example = mined(target=Target.binary, positives=str(path), max_support=1.0)
    assert example.passages[: example.positives] == ["T. a marsh", "T. a pond"]
    text = write_csv(tmp_path / "t.csv", [{"question_id": "0", "text": "from elsewhere"}])
    assert mined(target=Target.binary, positives=str(text)).passages[0] == "from elsewhere"


def test_a_positives_file_of_another_form_is_refused(tmp_path):
    path = write_csv(tmp_path / "p.csv", [{"question": "0", "passage_id": "x"}])
    with refuses("question_id and passage_id or text", "training_pairs.reader=<run"):
        read_positives(path)


def test_training_without_any_pair_is_refused():
    pairs = TrainingPairs(target=Target.binary, max_rank=6)
    with refuses("None of 1 training questions has both", "among ranks 1 to 6"):
        mine_pairs(questions(article="a9"), CONTEXTS, IDF, pairs, Query.prompt, 0)


@pytest.fixture(scope="module")
def material():
    """Eight questions whose right passage says so, and their rankings."""
    rows = questions(8)
    contexts = {key: [{**row, "question_id": key} for row in CONTEXTS["0"]] for key in rows["id"]}
    return Split(rows, rows.select(range(6)), rows.select([6, 7]), rows, rows.select([])), contexts


def run_config(task, encoder, *overrides):
    return compose_config(
        "train", f"task={task}", f"encoder.name_or_path={encoder}", "reranker=cross_encoder",
        f"reranker.ckpt={encoder}", "reranker.max_length=32", "reranker.top_k=6",
        "training_pairs.max_rank=6", "training_pairs.num_negatives=2",
        "trainer.logging_steps=1", "trainer.num_train_epochs=2",
        "trainer.per_device_train_batch_size=4", "trainer.learning_rate=1e-2",
        "trainer.warmup_steps=0", *overrides,
    )  # fmt: skip


def weights(folder):
    from safetensors.numpy import load_file

    (path,) = folder.rglob("model.safetensors")
    return load_file(path)


@pytest.mark.parametrize("loss", PairLoss)
def test_training_moves_every_weight_of_the_reranker(material, encoder, tmp_path, loss):
    split, contexts = material
    config = run_config("reranker", encoder, f"training_pairs.loss={loss.name}")
    dev = tune(config, split, contexts, IDF, tmp_path)
    after = dict(
        load_cross_encoder(Reranker(ckpt=str(tmp_path)), {"dtype": "float32"}).named_parameters()
    )
    set_seed(config.seed)  # the head that training began with
    before = dict(load_cross_encoder(config.reranker, {"dtype": "float32"}).named_parameters())
    assert len(before) > 20
    assert [name for name, old in before.items() if torch.equal(old, after[name])] == []
    assert sorted(dev) == ["0.0", "0.25", "0.5", "0.75", "1.0"]
    assert set(dev["1.0"]) == {"support", "supported", "mrr"}
    assert has_head(Reranker(ckpt=str(tmp_path)))
    assert not list((tmp_path / "model").rglob("*.bin"))


def test_a_saved_reranker_scores_the_same(material, encoder, tmp_path):
    split, contexts = material
    config = run_config("reranker", encoder)
    tune(config, split, contexts, IDF, tmp_path)
    pairs = [("Where 0? deep river marsh", f"T. {text}") for text in ("a river", "a pond")]
    run = PairScorer(Reranker(ckpt=str(tmp_path), max_length=32)).scores(pairs)
    inside = PairScorer(Reranker(ckpt=str(tmp_path / "model"), max_length=32)).scores(pairs)
    assert run.tolist() == inside.tolist()
    assert run[0] != run[1]
    assert checkpoint_fingerprint(Reranker(ckpt=str(tmp_path)).checkpoint) == (
        checkpoint_fingerprint(Reranker(ckpt=str(tmp_path / "model")).checkpoint)
    )


def test_training_moves_every_weight_of_the_encoder(material, encoder, tmp_path):
    split, contexts = material
    tune(run_config("encoder", encoder), split, contexts, IDF, tmp_path)
    before, after = weights(encoder), weights(tmp_path / "model")
    still = [name for name, old in before.items() if np.array_equal(old, after[name])]
    assert [name for name in still if "pooler" not in name and "position_ids" not in name] == []
    vectors = SentenceEncoder(Encoder(name="x", name_or_path=str(tmp_path))).encode(["a river"])
    assert vectors.shape == (1, 32)


def test_stopped_and_resumed_training_equals_an_uninterrupted_one(
    material, encoder, tmp_path, monkeypatch
):
    from exam.core import trainer

    split, contexts = material
    config = run_config("reranker", encoder)
    tune(config, split, contexts, IDF, tmp_path / "whole")
    real = trainer.CheckpointCallback.on_save

    def killed(self, args, state, control, **kwargs):
        real(self, args, state, control, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer.CheckpointCallback, "on_save", killed)
    with pytest.raises(KeyboardInterrupt):
        tune(config, split, contexts, IDF, tmp_path / "cut")
    monkeypatch.setattr(trainer.CheckpointCallback, "on_save", real)
    tune(config, split, contexts, IDF, tmp_path / "cut")
    whole, resumed = weights(tmp_path / "whole" / "model"), weights(tmp_path / "cut" / "model")
    assert all(np.allclose(whole[name], resumed[name], atol=1e-6) for name in whole)
    states = [
        json.loads((tmp_path / name / "trainer_state.json").read_text())
        for name in ("whole", "cut")
    ]
    assert states[0]["global_step"] == states[1]["global_step"]


def test_a_missing_reader_of_pairs_is_refused_before_any_work():
    pairs = ["training_pairs.positives=reader", "training_pairs.reader=missing"]
    with pytest.raises(ExamError, match=r"^missing does not exist: it has no manifest\.json"):
        check_paths(compose_config("train", "task=reranker", *pairs))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, encoder):
    """A folder of tiny questions and articles, and the overrides that read them."""
    root = make_place(tmp_path_factory.mktemp("tuning"))
    rows = [{"question": str(i), "article": f"a{i % 10}"} for i in range(40)]
    write_csv(root / "questions" / "train_qrels.csv", rows)
    more = f"encoder.name_or_path={encoder}", "trainer.num_train_epochs=1"
    return root, setting(root, *more)


@pytest.mark.slow
def test_reranker_from_training_to_answers(workspace, encoder):
    root, overrides = workspace
    first = ["retriever=bm25", "retriever.top_k=6", "chunking.chunk_words=8"]
    trained = exam(
        "train", "task=reranker", f"reranker.ckpt={encoder}", "reranker.top_k=6",
        "training_pairs.max_rank=6", *first, *overrides,
    )  # fmt: skip
    (run,) = (root / "outputs" / "train").glob("kaggle-cross_encoder-bm25-*")
    results = json.loads((run / "results.json").read_text())
    after, before = [row["system"] for row in results["rows"]]
    assert after.startswith("kaggle-valid-bm25-cross_encoder-")
    assert before.startswith("kaggle-valid-bm25-")
    assert {"supported"} <= {pair["metric"] for pair in results["paired"]}
    assert set(results["dev"]) == {"0.0", "0.25", "0.5", "0.75", "1.0"}
    assert trained.stdout.endswith(f"{run / 'results.json'}\n")

    run_exam(
        "train", "model=tiny", "reranker=cross_encoder", f"reranker.ckpt={run}",
        "reranker.top_k=6", *first, *overrides,
    )  # fmt: skip
    (reader,) = (root / "outputs" / "train").glob("kaggle-tiny-bm25-*")
    run_exam("infer", f"ckpt={reader}", f"outputs={root / 'outputs'}")
    assert list((root / "outputs" / "contexts").glob("kaggle-test-bm25-cross_encoder-*"))

    wrong = exam("infer", f"ckpt={run}", f"outputs={root / 'outputs'}")
    assert wrong.returncode == 2
    assert wrong.stderr.endswith(
        f"{run} is a run of task=reranker, which does not answer questions.\n"
        "Use it to retrieve (reranker.ckpt=<folder>), and set the run of a reader here.\n"
    )

    run_exam(
        "train", "task=reranker", f"reranker.ckpt={run}", "reranker.top_k=6",
        "training_pairs=binary", "training_pairs.positives=reader", "training_pairs.max_rank=3",
        "training_pairs.max_support=1", f"training_pairs.reader={reader}",
        *first, *overrides,
    )  # fmt: skip
    (path,) = (root / "outputs" / "gains").glob("*/gains.parquet")
    rows = pq.read_table(path).to_pylist()
    assert len(rows) == 28 * 3  # the questions outside of the dev fold
    assert {row["rank"] for row in rows} == {1, 2, 3}
    assert len({row["gain"] for row in rows}) > 40
    results = [
        json.loads(p.read_text()) for p in (root / "outputs" / "train").glob("*bm25-*/results.json")
    ]
    assert max(len(r["rows"]) for r in results if "dev" in r) == 3  # also the checkpoint as it was


@pytest.mark.slow
def test_encoder_from_training_to_retrieval(workspace):
    root, overrides = workspace
    pairs = ["training_pairs.max_rank=6", "training_pairs.max_support=1"]
    run_exam("train", "task=encoder", *pairs, *overrides)
    (run,) = (root / "outputs" / "train").glob("kaggle-encoder-minilm-two_stage-*")
    assert len(json.loads((run / "results.json").read_text())["rows"]) == 2
    kept = [o for o in overrides if not o.startswith(("encoder.", "trainer.", "data.folds"))]
    retrieved = run_exam("retrieve", f"encoder.name_or_path={run}", "evaluate=false", *kept)
    # Ranked by the same weights during the report.
    assert re.search(r"Reused: .*contexts", retrieved.stderr)
    shutil.rmtree(run)


def test_training_drops_out_as_configured(encoder):
    models = {
        rate: [
            load_cross_encoder(Reranker(ckpt=str(encoder), dropout=rate), {"dtype": "float32"}),
            SentenceEncoder(Encoder(name="e", name_or_path=str(encoder), dropout=rate)).model,
        ]
        for rate in (None, 0.3)
    }
    for rate, loaded in models.items():
        dropouts = [m for model in loaded for m in model.modules() if isinstance(m, nn.Dropout)]
        assert {dropout.p for dropout in dropouts} == {0.1 if rate is None else rate}
        assert len(dropouts) > 6
