"""Two-stage retrieval: against its definition; its artefact, scores and resumption."""

import json
import math
import re
import shutil
from dataclasses import fields, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from helpers import ANIMALS, jsonl_corpus, kaggle_rows, read_csv, write_csv

from exam.config import Chunking, Encoder, Index, Query, Retriever, RetrieverKind, Search
from exam.core.artifacts import log_reused
from exam.core.errors import ExamError
from exam.data.corpus import title_and_first_sentence
from exam.data.schema import FEATURES
from exam.data.sentences import sentence_offsets
from exam.retrieval import idf
from exam.retrieval import index as index_module
from exam.retrieval import two_stage as search_module
from exam.retrieval.chunking import build_passages
from exam.retrieval.contexts import read_contexts, read_support
from exam.retrieval.embeddings import fingerprints
from exam.retrieval.encoder import SentenceEncoder
from exam.retrieval.evaluation import option_support, question_scores
from exam.retrieval.idf import build_document_frequencies, split_words, take_words
from exam.retrieval.retriever import RETRIEVERS, Retrieval
from exam.retrieval.two_stage import prefilter


@pytest.fixture
def retrieval(articles, encoder, tmp_path):
    return Retrieval(
        jsonl_corpus(articles),
        Encoder(
            name="tiny", name_or_path=str(encoder), query_prefix="query: ", passage_prefix="p: "
        ),
        Chunking(chunk_words=8, overlap_sentences=1),
        Retriever(name="two_stage", kind=RetrieverKind.two_stage, articles=2, top_k=3),
        Index(shard_size=4),
        tmp_path / "outputs",
    )


@pytest.fixture
def asked(tmp_path):
    rows = [{"question": str(i), "article": f"a{i % 10}"} for i in range(12)]
    write_csv(tmp_path / "q_qrels.csv", rows)
    return read_csv(tmp_path / "q.csv", kaggle_rows(12))


def brute_force(question, retrieval, texts):
    """The definition: best articles by lead and prompt, then their sentences by full query."""
    encode = retrieval.sentence_encoder.encode
    leads = encode(["p: " + title_and_first_sentence(a) for a in texts])
    prompt = encode(["query: " + question["prompt"]])[0]
    best = np.argsort(-(leads @ prompt), kind="stable")[:2]
    found = {}
    for i in best:
        for a, b in sentence_offsets(texts[i].text, 4):
            found.setdefault(texts[i].text[a:b], f"{texts[i].id}:{a}-{b}")
    query = encode(["query: " + " ".join([question["prompt"], *question["options"]])])[0]
    scores = encode(["p: " + text for text in found]) @ query
    order = np.argsort(-scores, kind="stable")[:3]
    return [list(found.values())[i] for i in order]


def test_two_stage_equals_its_definition(retrieval, asked, articles):
    from exam.data.corpus import Article

    texts = [Article(**json.loads(line)) for line in articles.read_text().splitlines()]
    contexts = read_contexts(retrieval.contexts(asked, "q"), top_k=3)
    for question in asked:
        found = [p["passage_id"] for p in contexts[question["id"]]]
        assert found == brute_force(question, retrieval, texts)


def test_contexts_file_keeps_its_contract(retrieval, asked):
    stage = retrieval.contexts(asked, "q")
    table = pq.read_table(stage.folder / "contexts.parquet")
    assert table.column_names == [
        "question_id", "rank", "score", "article_id", "passage_id", "title", "text", "source",
    ]  # fmt: skip
    rows = table.to_pylist()
    assert [r["rank"] for r in rows if r["question_id"] == "0"] == [1, 2, 3]
    scores = [r["score"] for r in rows if r["question_id"] == "0"]
    assert scores == sorted(scores, reverse=True)
    assert {r["source"] for r in rows} == {"articles.jsonl"}
    manifest = json.loads((stage.folder / "manifest.json").read_text())
    assert set(manifest["key"]) == {"format", "questions", "kind", "retriever", "article_index"}


def test_same_request_reuses_and_says_so(retrieval, asked, caplog):
    first = retrieval.contexts(asked, "q")
    with caplog.at_level("INFO", logger="exam"):
        second = retrieval.contexts(asked, "q")
        assert caplog.messages == []
        log_reused([second, second])
    assert second.reused
    assert second.folder == first.folder
    assert caplog.messages == ["Reused: contexts"]


def test_what_a_bundle_carries_is_opened_where_contexts_are_reused(retrieval, asked):
    retrieval.contexts(asked, "q")
    again = replace(retrieval)
    assert again.contexts(asked, "q").reused
    assert {stage.kind for stage in again.opened} == {"index", "contexts", "words"}


def test_changed_request_is_redone_and_the_key_named(retrieval, asked, caplog):
    retrieval.contexts(asked, "q")
    retrieval.retriever.top_k = 2
    with caplog.at_level("INFO", logger="exam"):
        again = retrieval.contexts(asked, "q")
    assert not again.reused
    pattern = (
        r"contexts done: 12 questions · .* s · changed: retriever\.top_k \(3 → 2\) · .* before"
    )
    assert [message for message in caplog.messages if re.fullmatch(pattern, message)]


@pytest.mark.parametrize("kind", ["two_stage", "bm25", "tfidf"])
def test_only_new_questions_are_ranked(retrieval, asked, kind, monkeypatch, tmp_path, caplog):
    retrieval.retriever.kind = RetrieverKind[kind]
    rows = asked.to_list()
    rows[3]["prompt"] = "Where does the lynx live?"
    changed = Dataset.from_list(rows[::-1], features=asked.features)
    whole = replace(retrieval, outputs=tmp_path / "whole").contexts(changed, "q")
    retrieval.contexts(asked, "q")
    ranked = []
    retriever = RETRIEVERS[RetrieverKind[kind]]
    real = retriever.rank

    def spied(self, questions, *rest):
        ranked.extend(questions["id"])
        return real(self, questions, *rest)

    monkeypatch.setattr(retriever, "rank", spied)
    with caplog.at_level("DEBUG", logger="exam"):
        stage = retrieval.contexts(changed, "another")
    # TF-IDF's vocabulary is that of all questions, so one changes the others' ranking.
    assert ranked == (changed["id"][:] if kind == "tfidf" else ["3"])
    assert read_contexts(stage) == read_contexts(whole)
    assert read_support(stage, changed["id"]) == read_support(whole, changed["id"])
    assert stage.metadata == whole.metadata
    if kind != "tfidf":
        assert "contexts: 11 of 12 questions are ranked already" in caplog.messages
    assert not list(stage.folder.glob("sentences-*"))
    ranked.clear()
    retrieval.contexts(changed, "another", resume="never")
    assert len(ranked) == 12


def test_a_hybrid_reuses_what_its_members_ranked_alone(retrieval, asked):
    alone = retrieval.contexts(asked, "q")
    member = {f.name: getattr(retrieval.retriever, f.name) for f in fields(Search)}
    members = {
        "two_stage": Search(**member),
        "bm25": Search(name="bm25", kind=RetrieverKind.bm25, top_k=3),
    }
    hybrid = replace(
        retrieval, retriever=Retriever(name="h", kind=RetrieverKind.hybrid, members=members)
    )
    hybrid.contexts(asked, "q")
    assert (
        hybrid.open_retriever(hybrid.retriever).prepare(asked, "q", "auto")[0].folder
        == alone.folder
    )
    weighted = replace(hybrid, retriever=replace(hybrid.retriever, weights={"two_stage": 2.0}))
    assert not weighted.contexts(asked, "q").reused


def test_a_damaged_earlier_ranking_is_not_reused(retrieval, asked, caplog):
    first = retrieval.contexts(asked, "q")
    path = first.folder / "contexts.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with caplog.at_level("DEBUG", logger="exam"):
        stage = retrieval.contexts(asked.select(range(6)), "q")
    assert not stage.reused
    assert f"contexts: not reused: {path} is not the file that was written." in caplog.messages
    assert "contexts: 0 of 6 questions are ranked already" in caplog.messages


def test_changed_corpus_is_indexed_anew(retrieval, asked, articles):
    first = retrieval.contexts(asked, "q")
    articles.write_text(articles.read_text().replace("lives", "dwells"))
    fresh = replace(retrieval)
    second = fresh.contexts(asked, "q")
    assert second.folder != first.folder
    assert "dwells" in str(read_contexts(second, 3))


def test_broken_artefact_is_refused_by_name(retrieval, asked):
    stage = retrieval.contexts(asked, "q")
    path = stage.folder / "contexts.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ExamError) as caught:
        retrieval.contexts(asked, "q")
    assert str(caught.value) == (
        f"{path} is not the file that was written.\n"
        f"Delete the folder {stage.folder} and run the command again."
    )


class Cut(Exception):
    """Stands for a process that is killed."""


@pytest.mark.parametrize("after", range(1, 7))
def test_interrupted_retrieval_continues_and_equals_a_whole_one(
    retrieval, asked, after, monkeypatch, tmp_path
):
    """Encoding calls: three index shards, prompts, sentence shards, queries."""
    monkeypatch.setattr(search_module, "TEXTS_PER_SHARD", 12)
    calls = []
    real = SentenceEncoder.encode

    def counted(self, texts):
        if len(calls) == after:
            raise Cut
        calls.append(len(texts))
        return real(self, texts)

    monkeypatch.setattr(SentenceEncoder, "encode", counted)
    with pytest.raises(Cut):
        retrieval.contexts(asked, "q")
    done = list(calls)
    monkeypatch.setattr(SentenceEncoder, "encode", real)
    again = []
    monkeypatch.setattr(
        SentenceEncoder, "encode", lambda self, texts: again.append(len(texts)) or real(self, texts)
    )
    resumed = pq.read_table(retrieval.contexts(asked, "q").folder / "contexts.parquet")
    whole = replace(retrieval, outputs=tmp_path / "o2")
    expected = pq.read_table(whole.contexts(asked, "q").folder / "contexts.parquet")
    assert resumed.equals(expected)
    kept = [n for n in done[:3] if n in (4, 2)]  # whole index shards are not encoded again
    assert again[: 3 - len(kept)] == [4, 4, 2][len(kept) :]


def test_damaged_sentences_of_an_interrupted_retrieval_are_cut_again(
    retrieval, asked, monkeypatch, tmp_path
):
    def cut(*_):
        raise Cut

    with monkeypatch.context() as patched:
        patched.setattr(search_module, "_passages", cut)
        with pytest.raises(Cut):
            retrieval.contexts(asked, "q")
    sentences = list((tmp_path / "outputs").glob("contexts/*/sentences-*.arrow"))
    assert sentences
    for path in sentences:
        whole = path.read_bytes()
        path.write_bytes(whole.replace(b"lives", b"loves"))
        assert path.read_bytes() != whole
    found = pq.read_table(retrieval.contexts(asked, "q").folder / "contexts.parquet")
    assert not [text for text in found["text"].to_pylist() if "loves" in text]


def test_each_sentence_is_encoded_once(retrieval, asked, monkeypatch):
    monkeypatch.setattr(search_module, "TEXTS_PER_SHARD", 2)
    seen = []
    real = SentenceEncoder.encode

    def spy(self, texts):
        seen.extend(t for t in texts if t.startswith("p: ") and t.endswith("."))
        return real(self, texts)

    monkeypatch.setattr(SentenceEncoder, "encode", spy)
    retrieval.contexts(asked, "q")
    assert len(seen) == len(set(seen)) > 10


@pytest.fixture
def encoded(monkeypatch):
    """The texts that are encoded from now on."""
    seen = []
    real = SentenceEncoder.encode
    monkeypatch.setattr(
        SentenceEncoder, "encode", lambda self, texts: seen.extend(texts) or real(self, texts)
    )
    return seen


def test_another_depth_and_query_encode_nothing_twice(retrieval, asked, encoded):
    retrieval.contexts(asked, "q")
    del encoded[:]
    retrieval.retriever.top_k = 2
    retrieval.contexts(asked, "q")
    assert encoded == []
    retrieval.retriever.query = Query.prompt  # what the articles were searched by
    retrieval.contexts(asked, "q")
    assert encoded == []


def test_one_changed_question_encodes_its_own_texts_alone(retrieval, asked, encoded):
    retrieval.contexts(asked, "q")
    del encoded[:]
    rows = asked.to_list()
    rows[3]["prompt"] = "Where does the toad dwell?"
    retrieval.contexts(Dataset.from_list(rows, features=FEATURES), "q")
    queries = [text for text in encoded if text.startswith("query: ")]
    full = " ".join([rows[3]["prompt"], *rows[3]["options"]])
    assert queries == ["query: " + rows[3]["prompt"], "query: " + full]
    assert len(encoded) <= 2 + 3 * retrieval.retriever.articles


def test_with_room_for_every_sentence_the_prefilter_changes_nothing(retrieval, asked):
    exact = read_contexts(retrieval.contexts(asked, "q"))
    retrieval.retriever.prefilter_k = 6
    assert read_contexts(retrieval.contexts(asked, "q")) == exact


def test_sentences_beyond_the_prefilter_follow_in_lexical_order(retrieval, asked, encoded):
    retrieval.retriever.top_k = 6
    every = read_contexts(retrieval.contexts(asked, "q"))
    shutil.rmtree(retrieval.outputs / "embeddings")
    retrieval = replace(retrieval)
    retrieval.retriever.prefilter_k = 2
    del encoded[:]
    for key, found in read_contexts(retrieval.contexts(asked, "q")).items():
        assert {p["text"] for p in found} == {p["text"] for p in every[key]}
        scores = [p["score"] for p in found]
        assert scores == sorted(scores, reverse=True)
        assert [s < -1 for s in scores] == [False] * 2 + [True] * (len(scores) - 2)
    sentences = {text for text in encoded if text.startswith("p: ")}
    assert 0 < len(sentences) < len({p["text"] for found in every.values() for p in found})


def test_the_prefilter_prefers_rare_words_of_the_question():
    question = {"prompt": "Where does the otter live?", "options": ["river", "marsh"]}
    texts = [
        "The otter is here.", "The river is here.", "The mole is here.", "The otter, a river.",
        "The otter and the river that it does live in, or not.",
    ]  # fmt: skip

    def parted(articles, most):
        columns = {"text": pa.array(texts, pa.large_string()), "article": pa.array(articles)}
        return prefilter(question, np.arange(5), fingerprints(texts), pa.table(columns), most)

    near, others, scores = parted([0] * 5, 1)
    # log(6 / n) for a word of n of these sentences, by the root of a sentence's words
    the, rare, live = np.log(6 / 5), np.log(6 / 3), np.log(6)
    total = the + 2 * rare + 2 * live
    share = np.array([the + rare, the + rare, the, the + 2 * rare, total])
    expected = share / total / np.sqrt([4, 4, 4, 4, 12])
    order = np.argsort(-expected, kind="stable")
    assert [*near, *others] == order.tolist()
    assert order[0] == 4
    np.testing.assert_allclose(scores, expected[order[1:]] - 2, rtol=1e-6)
    assert parted([0, 0, 1, 0, 0], 2)[0].tolist() == [2, 4]  # each article's best
    assert parted([0, 0, 1, 0, 0], 2)[1].tolist() == [3, 0, 1]


def test_per_option_queries_take_each_sentences_best(retrieval, asked):
    retrieval.retriever.query = Query.per_option
    found = read_contexts(retrieval.contexts(asked, "q"))
    encode = retrieval.sentence_encoder.encode
    for question in asked.select(range(3)):
        options = [f"query: {question['prompt']} {option}" for option in question["options"]]
        rows = found[question["id"]]
        scores = encode(["p: " + row["text"] for row in rows]) @ encode(options).T
        np.testing.assert_allclose([r["score"] for r in rows], scores.max(axis=1), atol=1e-5)


def test_articles_of_several_queries_by_their_best_ranks(retrieval, asked):
    retrieval.retriever.article_query = Query.per_option
    found = read_contexts(retrieval.contexts(asked, "q"))
    assert {len({p["article_id"] for p in rows}) for rows in found.values()} <= {1, 2}


@pytest.mark.parametrize(
    ("id_", "state"), [("null", "no id"), ('"a0"', "the id 'a0' of an earlier one")]
)
def test_articles_without_an_id_of_their_own_are_refused(retrieval, asked, articles, id_, state):
    with articles.open("a") as file:
        file.write(f'{{"id": {id_}, "title": "Twin", "text": "It lives."}}\n')
    with pytest.raises(ExamError) as caught:
        retrieval.contexts(asked, "q")
    assert str(caught.value) == (
        f"{articles}: article 11 has {state}.\nGive every article an id of its own; map the "
        "column with corpus.columns.id=<name>."
    )


def test_an_encoder_changed_in_its_folder_is_another_encoder(retrieval, asked, encoder, tmp_path):
    shutil.copytree(encoder, tmp_path / "own")
    retrieval.encoder.name_or_path = str(tmp_path / "own")
    first = retrieval.contexts(asked, "q")
    (tmp_path / "own" / "README.md").write_text("trained further")
    fresh = replace(retrieval)
    assert fresh.contexts(asked, "q").folder != first.folder


def test_given_contexts_that_all_lack_are_refused(retrieval, asked):
    retrieval.retriever.kind = RetrieverKind.provided
    with pytest.raises(
        ExamError, match=r"none has one\.\nMap its column with data\.columns\.context"
    ):
        retrieval.contexts(asked, "q")


def test_recall_is_not_given_beyond_the_stored_depth(retrieval, asked):
    stage = retrieval.contexts(asked, "q")
    assert [k for k in stage.metadata["scores"] if k.startswith("recall")] == [
        "recall_at_1",
        "recall_at_3",
    ]


def test_given_contexts_pass_through(retrieval, asked):
    retrieval.retriever.kind = RetrieverKind.provided
    rows = [{**q, "context": f"text of {q['id']}" if q["id"] != "3" else None} for q in asked]
    stage = retrieval.contexts(Dataset.from_list(rows, features=FEATURES), "q")
    contexts = read_contexts(stage, 1)
    assert contexts["2"][0]["text"] == "text of 2"
    assert "3" not in contexts


def test_closed_book_retrieves_nothing_and_needs_no_corpus(retrieval, asked):
    retrieval.retriever.kind = RetrieverKind.none
    retrieval.corpus.dir = "/nowhere"
    stage = retrieval.contexts(asked, "q")
    assert read_contexts(stage, 5) == {}
    assert read_support(stage, asked["id"][:]) is None


# Scores, by hand.


def passage(rank, article, text):
    return {"rank": rank, "article_id": article, "text": text}


def question(options, label, article):
    return {
        "id": "q",
        "prompt": "Where is the cat?",
        "options": options,
        "label": label,
        "context": None,
        "article": article,
    }


def test_support_is_the_idf_share_of_new_words():
    asked = Dataset.from_list([question(["the red mat", "a cat"], 0, "x")], features=FEATURES)
    contexts = {"q": [passage(1, "x", "A mat.")]}
    idf = {"red": 1.0, "mat": 3.0, "a": 0.5, "the": 0.1, "cat": 1.0}
    assert option_support(asked, contexts, idf) == [[0.75, 1.0]]  # "the", "cat" stand in the prompt
    assert question_scores(asked, contexts, [[0.75, 1.0]])["supported"].tolist() == [1.0]


def test_recall_and_mrr_by_hand():
    asked = Dataset.from_list([question(["x", "y"], 0, "own")], features=FEATURES)
    contexts = {"q": [passage(1, "other", "t"), passage(2, "own", "t"), passage(3, "own", "t")]}
    scores = question_scores(asked, contexts, [[0.0, 0.0]])
    assert {name: values.tolist() for name, values in scores.items()} == {
        "recall_at_1": [0.0],
        "recall_at_3": [1.0],
        "mrr": [0.5],
        "supported": [0.0],
    }


def test_word_budget_takes_whole_passages_but_at_least_one():
    long, short = "w " * 400, "v " * 100
    assert take_words([{"text": long}, {"text": short}]) == [["w"] * 400]
    assert take_words([{"text": "w " * 600}]) == [["w"] * 450]
    assert take_words([{"text": "a b"}, {"text": "c"}, {"text": "d"}], 3) == [["a", "b"], ["c"]]
    assert split_words("It's α-helix_2") == ["it", "s", "α", "helix", "2"]


def test_memory_holds_a_shard_not_the_corpus(retrieval, asked, monkeypatch):
    """The stream is never read ahead of the shard that is encoded."""
    produced = []
    real = index_module.iter_articles
    monkeypatch.setattr(
        index_module,
        "iter_articles",
        lambda file: (produced.append(a.id) or a for a in real(file)),
    )
    sizes = []
    encode = SentenceEncoder.encode
    monkeypatch.setattr(
        SentenceEncoder, "encode", lambda self, t: sizes.append(len(produced)) or encode(self, t)
    )
    retrieval.contexts(asked, "q")
    assert sizes[:3] == [4, 8, len(ANIMALS)]


def test_document_frequencies_are_counted_once_per_corpus(tmp_path, monkeypatch):
    rows = [("Red cat", "the cat sat"), ("", "The dog"), ("", "a dog, a dog"), ("x", "y")]
    texts = [json.dumps({"id": str(i), "title": a, "text": b}) for i, (a, b) in enumerate(rows)]
    (tmp_path / "c.jsonl").write_text("\n".join(texts))
    corpus = jsonl_corpus(tmp_path / "c.jsonl")
    table = build_passages(corpus, Chunking(), tmp_path / "o")
    found = build_document_frequencies(table.stage, table.files, "c", tmp_path / "o")
    expected = {"cat": math.log(4 / 2), "dog": math.log(4 / 3), "owl": math.log(4)}
    assert found.idf({"dog", "owl", "cat"}) == pytest.approx(expected)
    assert build_document_frequencies(table.stage, table.files, "c", tmp_path / "o").stage.reused
    monkeypatch.setattr(idf, "SAMPLE", 2)  # articles 0 and 2
    sampled = build_document_frequencies(table.stage, table.files, "c", tmp_path / "o")
    assert not sampled.stage.reused
    assert sampled.idf({"cat", "dog"}) == pytest.approx({"cat": 0.0, "dog": 0.0})
