"""Reranking: against its definition; its artefact, resumption, refusals."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from helpers import (
    ANIMALS,
    PLACES,
    exam,
    jsonl_corpus,
    kaggle_rows,
    read_csv,
    refuses,
)

from exam.config import Chunking, Dtype, Encoder, Index, Query, Reranker, Retriever, RetrieverKind
from exam.retrieval import reranker as rerank_module
from exam.retrieval.contexts import read_contexts
from exam.retrieval.reranker import (
    PairScorer,
    count_truncated,
    inspect_reranker,
    reorder,
    standardize,
)
from exam.retrieval.retriever import Retrieval


@pytest.fixture
def retrieval(articles, cross_encoder, tmp_path):
    return Retrieval(
        jsonl_corpus(articles),
        Encoder(name="none", name_or_path="none"),
        Chunking(chunk_words=8),
        Retriever(name="bm25", kind=RetrieverKind.bm25, top_k=6),
        Index(),
        tmp_path / "outputs",
        Reranker(
            name="cross_encoder", ckpt=str(cross_encoder), top_k=5, weight=1.0, dtype=Dtype.float32
        ),
    )


@pytest.fixture
def questions(tmp_path):
    return read_csv(tmp_path / "q.csv", kaggle_rows(7))


def brute_force(question, passages, folder, query):
    """Each pair scored alone by transformers; the best query of each passage; sorted."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    texts = {
        Query.prompt: [question["prompt"]],
        Query.prompt_options: [" ".join([question["prompt"], *question["options"]])],
        Query.per_option: [f"{question['prompt']} {o}" for o in question["options"]],
    }[query]
    scores = []
    for p in passages:
        rows = [tokenizer(t, f"{p['title']}. {p['text']}", return_tensors="pt") for t in texts]
        with torch.no_grad():
            scores.append(max(model(**row).logits.item() for row in rows))
    order = np.argsort(-np.array(scores), kind="stable")
    return [passages[i]["passage_id"] for i in order], scores


@pytest.mark.parametrize("query", Query)
def test_reranking_equals_its_definition(retrieval, questions, cross_encoder, query):
    retrieval.reranker.query = query
    first = read_contexts(retrieval.first_contexts(questions, "q"))
    reranked = read_contexts(retrieval.contexts(questions, "q"))
    changed = 0
    for question in questions:
        best = first[question["id"]][:5]
        expected, scores = brute_force(question, best, cross_encoder, query)
        ids = [p["passage_id"] for p in reranked[question["id"]]]
        assert ids == expected
        assert [p["rank"] for p in reranked[question["id"]]] == [1, 2, 3, 4, 5][: len(best)]
        np.testing.assert_allclose(
            [p["score"] for p in reranked[question["id"]]],
            sorted(standardize(np.array(scores)), reverse=True),
            atol=1e-3,
        )
        changed += ids != [p["passage_id"] for p in best]
    assert changed


def test_blend_is_a_weighted_sum_of_standardised_scores():
    passages = [{"passage_id": n, "score": s} for n, s in (("a", 3.0), ("b", 2.0), ("c", 1.0))]
    scores = np.array([0.0, 1.0, 2.0])
    spread = np.sqrt(2 / 3)

    def ranking(weight):
        rows = reorder(passages, scores, weight)
        assert [row["rank"] for row in rows] == [1, 2, 3]
        return [(row["passage_id"], round(row["score"], 6)) for row in rows]

    top = round(1 / spread, 6)
    assert ranking(1.0) == [("c", top), ("b", 0.0), ("a", -top)]
    assert ranking(0.25) == [("a", round(top / 2, 6)), ("b", 0.0), ("c", round(-top / 2, 6))]
    assert ranking(0.5) == [("a", 0.0), ("b", 0.0), ("c", 0.0)]  # ties keep the first order


def test_scores_without_a_difference_are_zero():
    assert standardize(np.array([2.0, 2.0])).tolist() == [0.0, 0.0]
    assert standardize(np.array([])).tolist() == []


@pytest.mark.parametrize("after", [0, 1, 2])
def test_interrupted_scoring_continues_and_equals_a_whole_one(
    retrieval, questions, after, monkeypatch, tmp_path
):
    monkeypatch.setattr(rerank_module, "PAIRS_PER_SHARD", 12)
    retrieval.first_contexts(questions, "q")
    real, calls = PairScorer.scores, []

    def counted(self, pairs):
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(list(pairs))
        return real(self, pairs)

    monkeypatch.setattr(PairScorer, "scores", counted)
    with pytest.raises(KeyboardInterrupt):
        retrieval.contexts(questions, "q")
    again = []
    monkeypatch.setattr(
        PairScorer, "scores", lambda self, pairs: again.append(list(pairs)) or real(self, pairs)
    )
    stage = retrieval.contexts(questions, "q")
    resumed = pq.read_table(stage.folder / "contexts.parquet")
    pairs = [pair for shard in [*calls, *again] for pair in shard]
    assert len(calls) == after
    assert len(pairs) == len(set(pairs)) == 7 * 5  # no pair is scored twice
    assert not list(stage.folder.glob("scores-*"))
    whole = replace(retrieval, outputs=tmp_path / "o2")
    assert resumed.equals(pq.read_table(whole.contexts(questions, "q").folder / "contexts.parquet"))


def test_damaged_scores_are_made_again(cross_encoder, tmp_path):
    scorer = PairScorer(Reranker(ckpt=str(cross_encoder)))
    pairs = list(zip(ANIMALS, PLACES, strict=True))
    scores = rerank_module._score(pairs, scorer, tmp_path)
    (path,) = tmp_path.glob("scores-*.npy")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert np.array_equal(rerank_module._score(pairs, scorer, tmp_path), scores)


def test_only_pairs_of_new_questions_are_scored(retrieval, questions, monkeypatch, tmp_path):
    rows = questions.to_list()
    rows[3]["prompt"] = "Where does the lynx live?"
    changed = Dataset.from_list(rows, features=questions.features)
    whole = replace(retrieval, outputs=tmp_path / "whole").contexts(changed, "q")
    retrieval.contexts(questions, "q")
    scored, real = [], PairScorer.scores
    monkeypatch.setattr(
        PairScorer, "scores", lambda self, pairs: scored.extend(pairs) or real(self, pairs)
    )
    stage = retrieval.contexts(changed, "q")
    assert len(scored) == 5
    assert all(query.startswith("Where does the lynx live?") for query, _ in scored)
    expected = read_contexts(whole)
    for key, passages in read_contexts(stage).items():
        assert [p["passage_id"] for p in passages] == [p["passage_id"] for p in expected[key]]


def test_key_names_what_determines_the_order(retrieval, questions, caplog):
    stage = retrieval.contexts(questions, "q")
    manifest = json.loads((stage.folder / "manifest.json").read_text())
    assert set(manifest["key"]) == {"format", "questions", "words", "first", "reranker"}
    assert set(manifest["key"]["reranker"]) == {
        "checkpoint", "depth", "max_length", "query", "weight", "dtype",
    }  # fmt: skip
    assert "model.safetensors" in manifest["key"]["reranker"]["checkpoint"]
    assert stage.folder.name.startswith("q-bm25-cross_encoder-")
    retrieval.reranker.weight = 0.5
    with caplog.at_level("INFO", logger="exam"):
        assert retrieval.contexts(questions, "q").folder != stage.folder
    assert any("reranker.weight (1.0 → 0.5)" in m for m in caplog.messages)


def test_truncated_pairs_are_counted(cross_encoder):
    scorer = PairScorer(Reranker(ckpt=str(cross_encoder), max_length=8))
    pairs = [(ANIMALS[0], PLACES[0]), (" ".join(ANIMALS[:4]), " ".join(PLACES[:5]))]
    # [CLS] 4 [SEP] 5 [SEP] = 12 tokens, where every word is one
    assert count_truncated(pairs, scorer.model, 8) == (1, 4)
    assert scorer.scores(pairs).shape == (2,)


def test_a_checkpoint_without_a_head_is_refused(encoder):
    with refuses(f"reranker.ckpt={encoder} has no head", "exam train task=reranker reranker.ckpt="):
        inspect_reranker(Reranker(ckpt=str(encoder)))


def test_an_unreachable_checkpoint_is_refused_before_anything_is_retrieved(tmp_path):
    done = exam(
        "retrieve", "reranker=cross_encoder", "reranker.ckpt=/no/such", f"outputs={tmp_path}"
    )
    assert done.returncode == 2
    observed, way_out = done.stderr.splitlines()[-2:]
    assert observed.startswith("reranker.ckpt=/no/such does not exist; / holds ")
    assert way_out == "Give a folder or a hub id (owner/name): reranker.ckpt=<folder or id>"
    assert list(tmp_path.iterdir()) == []


def test_several_scores_a_pair_are_refused(cross_encoder, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(
        cross_encoder, num_labels=3, ignore_mismatched_sizes=True
    )
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(cross_encoder).save_pretrained(tmp_path)
    with refuses(f"reranker.ckpt={tmp_path} gives 3 scores", "Choose another checkpoint"):
        _ = PairScorer(Reranker(ckpt=str(tmp_path))).model
