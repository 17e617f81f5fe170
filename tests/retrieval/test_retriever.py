"""Retrieval: two-stage search against its definition; its contexts, scores and resumption."""

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
from helpers import ANIMALS, jsonl_corpus, kaggle_rows, read_csv, refuses, write_csv

from exam.config import Chunking, Encoder, Index, Query, Retriever, RetrieverKind, Search
from exam.core.artifacts import log_reused
from exam.data.articles import title_and_first_sentence
from exam.data.corpus import list_articles
from exam.data.schema import FEATURES
from exam.data.sentences import sentence_offsets
from exam.data.words import split_words
from exam.retrieval import encoder as encoder_module
from exam.retrieval import idf
from exam.retrieval import index as index_module
from exam.retrieval import two_stage as two_stage_module
from exam.retrieval.chunking import build_passages
from exam.retrieval.contexts import option_support, question_scores, read_contexts, read_support
from exam.retrieval.encoder import SentenceEncoder, fingerprint_texts
from exam.retrieval.idf import build_document_frequencies, take_words
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
def questions(tmp_path):
    rows = [{"question": str(i), "article": f"a{i % 10}"} for i in range(12)]
    write_csv(tmp_path / "q_qrels.csv", rows)
    return read_csv(tmp_path / "q.csv", kaggle_rows(12))


def brute_force(question, retrieval, texts):
    """Rank articles by first sentence and prompt, then their sentences by the full query."""
    encode = retrieval.sentence_encoder.encode
    leads = encode(["p: " + title_and_first_sentence(a) for a in texts])
    prompt = encode(["query: " + question["prompt"]])[0]
    best = np.argsort(-(leads @ prompt), kind="stable")[:2]
    sentences = {}
    for i in best:
        for a, b in sentence_offsets(texts[i].text, 4):
            sentences.setdefault(texts[i].text[a:b], f"{texts[i].id}:{a}-{b}")
    query = encode(["query: " + " ".join([question["prompt"], *question["options"]])])[0]
    scores = encode(["p: " + text for text in sentences]) @ query
    order = np.argsort(-scores, kind="stable")[:3]
    return [list(sentences.values())[i] for i in order]


def test_two_stage_equals_its_definition(retrieval, questions, articles):
    from exam.data.articles import Article

    texts = [Article(**json.loads(line)) for line in articles.read_text().splitlines()]
    contexts = read_contexts(retrieval.contexts(questions, "q"), top_k=3)
    for question in questions:
        ids = [p["passage_id"] for p in contexts[question["id"]]]
        assert ids == brute_force(question, retrieval, texts)


def test_contexts_file_keeps_its_contract(retrieval, questions):
    stage = retrieval.contexts(questions, "q")
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
    assert set(manifest["key"]) == {
        "format", "questions", "words", "sentences", "kind", "retriever", "article_index",
    }  # fmt: skip


def test_the_same_request_reuses_contexts_and_logs_it(retrieval, questions, caplog):
    first = retrieval.contexts(questions, "q")
    caplog.clear()
    with caplog.at_level("INFO", logger="exam"):
        second = retrieval.contexts(questions, "q")
        assert caplog.messages == []
        log_reused([second, second])
    assert second.reused
    assert second.folder == first.folder
    assert caplog.messages == ["Reused: contexts"]


def test_reused_contexts_open_the_stages_that_a_bundle_includes(retrieval, questions):
    retrieval.contexts(questions, "q")
    again = replace(retrieval)
    assert again.contexts(questions, "q").reused
    assert {stage.kind for stage in again.opened_stages} == {
        "articles",
        "index",
        "contexts",
        "words",
    }


def test_changed_request_is_redone_and_the_key_named(retrieval, questions, caplog):
    retrieval.contexts(questions, "q")
    retrieval.retriever.top_k = 2
    with caplog.at_level("INFO", logger="exam"):
        again = retrieval.contexts(questions, "q")
    assert not again.reused
    pattern = (
        r"contexts done: 12 questions · .* s · changed: retriever\.top_k \(3 → 2\) · .* before"
    )
    assert [message for message in caplog.messages if re.fullmatch(pattern, message)]


@pytest.mark.parametrize("kind", ["two_stage", "bm25", "tfidf"])
def test_only_new_questions_are_ranked(retrieval, questions, kind, monkeypatch, tmp_path, caplog):
    retrieval.retriever.kind = RetrieverKind[kind]
    rows = questions.to_list()
    rows[3]["prompt"] = "Where does the lynx live?"
    changed = Dataset.from_list(rows[::-1], features=questions.features)
    whole = replace(retrieval, outputs=tmp_path / "whole").contexts(changed, "q")
    retrieval.contexts(questions, "q")
    ranked = []
    retriever = RETRIEVERS[RetrieverKind[kind]]
    real = retriever.rank

    def spied(self, questions, *rest):
        ranked.extend(questions["id"])
        return real(self, questions, *rest)

    monkeypatch.setattr(retriever, "rank", spied)
    with caplog.at_level("DEBUG", logger="exam"):
        stage = retrieval.contexts(changed, "another")
    # The vocabulary of TF-IDF depends on all questions, so one changes every ranking.
    assert ranked == (changed["id"][:] if kind == "tfidf" else ["3"])
    assert read_contexts(stage) == read_contexts(whole)
    assert read_support(stage, changed["id"]) == read_support(whole, changed["id"])
    assert stage.metadata == whole.metadata
    if kind != "tfidf":
        assert "contexts: 11 of 12 questions are cached" in caplog.messages
    assert not list(stage.folder.glob("sentences-*"))
    ranked.clear()
    retrieval.contexts(changed, "another", resume="never")
    assert len(ranked) == 12


def test_a_hybrid_reuses_the_rankings_of_its_members(retrieval, questions):
    alone = retrieval.contexts(questions, "q")
    member = {f.name: getattr(retrieval.retriever, f.name) for f in fields(Search)}
    members = {
        "two_stage": Search(**member),
        "bm25": Search(name="bm25", kind=RetrieverKind.bm25, top_k=3),
    }
    hybrid = replace(
        retrieval, retriever=Retriever(name="h", kind=RetrieverKind.hybrid, members=members)
    )
    hybrid.contexts(questions, "q")
    assert (
        hybrid.open_retriever(hybrid.retriever).prepare(questions, "q", "auto")[0].folder
        == alone.folder
    )
    weighted = replace(hybrid, retriever=replace(hybrid.retriever, weights={"two_stage": 2.0}))
    assert not weighted.contexts(questions, "q").reused


def test_a_damaged_earlier_ranking_is_not_reused(retrieval, questions, caplog):
    first = retrieval.contexts(questions, "q")
    path = first.folder / "contexts.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with caplog.at_level("DEBUG", logger="exam"):
        stage = retrieval.contexts(questions.select(range(6)), "q")
    assert not stage.reused
    assert f"contexts: not reused: {path} is not the file that was written." in caplog.messages
    assert "contexts: 0 of 6 questions are cached" in caplog.messages


def test_changed_corpus_is_indexed_anew(retrieval, questions, articles):
    first = retrieval.contexts(questions, "q")
    articles.write_text(articles.read_text().replace("lives", "dwells"))
    fresh = replace(retrieval)
    second = fresh.contexts(questions, "q")
    assert second.folder != first.folder
    assert "dwells" in str(read_contexts(second, 3))


@pytest.fixture
def encoded(monkeypatch):
    """The texts that are encoded from now on."""
    seen = []
    real = SentenceEncoder.encode
    monkeypatch.setattr(
        SentenceEncoder, "encode", lambda self, texts: seen.extend(texts) or real(self, texts)
    )
    return seen


@pytest.mark.parametrize("after", range(1, 7))
def test_interrupted_retrieval_continues_and_equals_a_whole_one(
    retrieval, questions, after, monkeypatch, tmp_path
):
    """Encoding calls: three index shards, prompts, sentence shards, queries."""
    monkeypatch.setattr(encoder_module, "TEXTS_PER_SHARD", 12)
    calls = []
    real = SentenceEncoder.encode

    def counted(self, texts):
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(len(texts))
        return real(self, texts)

    monkeypatch.setattr(SentenceEncoder, "encode", counted)
    with pytest.raises(KeyboardInterrupt):
        retrieval.contexts(questions, "q")
    done = list(calls)
    monkeypatch.setattr(SentenceEncoder, "encode", real)
    again = []
    monkeypatch.setattr(
        SentenceEncoder, "encode", lambda self, texts: again.append(len(texts)) or real(self, texts)
    )
    resumed = pq.read_table(retrieval.contexts(questions, "q").folder / "contexts.parquet")
    whole = replace(retrieval, outputs=tmp_path / "o2")
    expected = pq.read_table(whole.contexts(questions, "q").folder / "contexts.parquet")
    assert resumed.equals(expected)
    kept = [n for n in done[:3] if n in (4, 2)]  # whole index shards are not encoded again
    assert again[: 3 - len(kept)] == [4, 4, 2][len(kept) :]


def test_damaged_sentences_of_an_interrupted_retrieval_are_split_again(
    retrieval, questions, monkeypatch, tmp_path
):
    def cut(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(two_stage_module, "_passages", cut)
        with pytest.raises(KeyboardInterrupt):
            retrieval.contexts(questions, "q")
    sentences = list((tmp_path / "outputs").glob("contexts/*/sentences-*.arrow"))
    assert sentences
    for path in sentences:
        whole = path.read_bytes()
        path.write_bytes(whole.replace(b"lives", b"loves"))
        assert path.read_bytes() != whole
    table = pq.read_table(retrieval.contexts(questions, "q").folder / "contexts.parquet")
    assert not [text for text in table["text"].to_pylist() if "loves" in text]


def test_each_sentence_is_encoded_once(retrieval, questions, encoded, monkeypatch):
    monkeypatch.setattr(encoder_module, "TEXTS_PER_SHARD", 2)
    retrieval.contexts(questions, "q")
    seen = [t for t in encoded if t.startswith("p: ") and t.endswith(".")]
    assert len(seen) == len(set(seen)) > 10


def test_another_depth_and_query_encode_nothing_twice(retrieval, questions, encoded):
    retrieval.contexts(questions, "q")
    del encoded[:]
    retrieval.retriever.top_k = 2
    retrieval.contexts(questions, "q")
    assert encoded == []
    retrieval.retriever.query = Query.prompt  # what the articles were searched by
    retrieval.contexts(questions, "q")
    assert encoded == []


def test_one_changed_question_encodes_only_its_texts(retrieval, questions, encoded):
    retrieval.contexts(questions, "q")
    del encoded[:]
    rows = questions.to_list()
    rows[3]["prompt"] = "Where does the toad dwell?"
    retrieval.contexts(Dataset.from_list(rows, features=FEATURES), "q")
    queries = [text for text in encoded if text.startswith("query: ")]
    full = " ".join([rows[3]["prompt"], *rows[3]["options"]])
    assert queries == ["query: " + rows[3]["prompt"], "query: " + full]
    assert len(encoded) <= 2 + 3 * retrieval.retriever.articles


def test_with_room_for_every_sentence_the_prefilter_changes_nothing(retrieval, questions):
    exact = read_contexts(retrieval.contexts(questions, "q"))
    retrieval.retriever.prefilter_k = 6
    assert read_contexts(retrieval.contexts(questions, "q")) == exact


def test_sentences_beyond_the_prefilter_follow_in_lexical_order(retrieval, questions, encoded):
    retrieval.retriever.top_k = 6
    every = read_contexts(retrieval.contexts(questions, "q"))
    shutil.rmtree(retrieval.outputs / "embeddings")
    retrieval = replace(retrieval)
    retrieval.retriever.prefilter_k = 2
    del encoded[:]
    for key, passages in read_contexts(retrieval.contexts(questions, "q")).items():
        assert {p["text"] for p in passages} == {p["text"] for p in every[key]}
        scores = [p["score"] for p in passages]
        assert scores == sorted(scores, reverse=True)
        assert [s < -1 for s in scores] == [False] * 2 + [True] * (len(scores) - 2)
    sentences = {text for text in encoded if text.startswith("p: ")}
    assert 0 < len(sentences) < len({p["text"] for passages in every.values() for p in passages})


def test_the_prefilter_prefers_rare_words_of_the_question():
    question = {"prompt": "Where does the otter live?", "options": ["river", "marsh"]}
    texts = [
        "The otter is here.", "The river is here.", "The mole is here.", "The otter, a river.",
        "The otter and the river that it does live in, or not.",
    ]  # fmt: skip

    def parted(articles, most):
        columns = {"text": pa.array(texts, pa.large_string()), "article": pa.array(articles)}
        return prefilter(question, np.arange(5), fingerprint_texts(texts), pa.table(columns), most)

    chosen, rest, scores = parted([0] * 5, 1)
    # log(6 / n) for a word of n of these sentences, by the root of a sentence's words
    the, rare, live = np.log(6 / 5), np.log(6 / 3), np.log(6)
    total = the + 2 * rare + 2 * live
    share = np.array([the + rare, the + rare, the, the + 2 * rare, total])
    expected = share / total / np.sqrt([4, 4, 4, 4, 12])
    order = np.argsort(-expected, kind="stable")
    assert [*chosen, *rest] == order.tolist()
    assert order[0] == 4
    np.testing.assert_allclose(scores, expected[order[1:]] - 2, rtol=1e-6)
    assert parted([0, 0, 1, 0, 0], 2)[0].tolist() == [2, 4]  # each article's best
    assert parted([0, 0, 1, 0, 0], 2)[1].tolist() == [3, 0, 1]


def test_per_option_queries_take_each_sentences_best(retrieval, questions):
    retrieval.retriever.query = Query.per_option
    contexts = read_contexts(retrieval.contexts(questions, "q"))
    encode = retrieval.sentence_encoder.encode
    for question in questions.select(range(3)):
        options = [f"query: {question['prompt']} {option}" for option in question["options"]]
        rows = contexts[question["id"]]
        scores = encode(["p: " + row["text"] for row in rows]) @ encode(options).T
        np.testing.assert_allclose([r["score"] for r in rows], scores.max(axis=1), atol=1e-5)


def test_articles_of_several_queries_by_their_best_ranks(retrieval, questions):
    retrieval.retriever.article_query = Query.per_option
    contexts = read_contexts(retrieval.contexts(questions, "q"))
    assert {len({p["article_id"] for p in rows}) for rows in contexts.values()} <= {1, 2}


def test_a_changed_checkpoint_is_another_encoder(retrieval, questions, encoder, tmp_path):
    shutil.copytree(encoder, tmp_path / "copy")
    retrieval.encoder.name_or_path = str(tmp_path / "copy")
    first = retrieval.contexts(questions, "q")
    (tmp_path / "copy" / "README.md").write_text("trained further")
    fresh = replace(retrieval)
    assert fresh.contexts(questions, "q").folder != first.folder


def test_given_contexts_are_refused_if_all_are_missing(retrieval, questions):
    retrieval.retriever.kind = RetrieverKind.provided
    with refuses("none has one.", "Map its column with data.columns.context"):
        retrieval.contexts(questions, "q")


def test_recall_is_not_scored_beyond_the_stored_depth(retrieval, questions):
    stage = retrieval.contexts(questions, "q")
    recalls = {name for name in stage.metadata["scores"] if name.startswith("recall")}
    assert recalls == {"recall_at_1", "recall_at_3"}


def test_given_contexts_pass_through(retrieval, questions):
    retrieval.retriever.kind = RetrieverKind.provided
    rows = [{**q, "context": f"text of {q['id']}" if q["id"] != "3" else None} for q in questions]
    stage = retrieval.contexts(Dataset.from_list(rows, features=FEATURES), "q")
    contexts = read_contexts(stage, 1)
    assert contexts["2"][0]["text"] == "text of 2"
    assert "3" not in contexts


def test_closed_book_retrieves_nothing_and_needs_no_corpus(retrieval, questions):
    retrieval.retriever.kind = RetrieverKind.none
    retrieval.corpus.dir = "/nowhere"
    stage = retrieval.contexts(questions, "q")
    assert read_contexts(stage, 5) == {}
    assert read_support(stage, questions["id"][:]) is None


def passage(rank, article, text):
    return {"rank": rank, "article_id": article, "text": text}


def question(options, label, article):
    return {
        "id": "q",
        "prompt": "Where is the cat?",
        "options": options,
        "label": label,
        "context": None,
        "articles": [article],
    }


def test_support_is_the_idf_share_of_new_words():
    questions = Dataset.from_list([question(["the red mat", "a cat"], 0, "x")], features=FEATURES)
    contexts = {"q": [passage(1, "x", "A mat.")]}
    idf = {"red": 1.0, "mat": 3.0, "a": 0.5, "the": 0.1, "cat": 1.0}
    assert option_support(questions, contexts, idf) == [
        [0.75, 1.0]
    ]  # "the", "cat" stand in the prompt
    assert question_scores(questions, contexts, [[0.75, 1.0]])["supported"].tolist() == [1.0]


def test_recall_and_mrr_by_hand():
    questions = Dataset.from_list([question(["x", "y"], 0, "right")], features=FEATURES)
    contexts = {"q": [passage(1, "wrong", "t"), passage(2, "right", "t"), passage(3, "right", "t")]}
    scores = question_scores(questions, contexts, [[0.0, 0.0]])
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


def test_memory_holds_a_shard_not_the_corpus(retrieval, questions, monkeypatch):
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
    retrieval.contexts(questions, "q")
    assert sizes[:3] == [4, 8, len(ANIMALS)]


def test_document_frequencies_are_counted_once_per_corpus(tmp_path, monkeypatch):
    rows = [("Red cat", "the cat sat"), ("", "The dog"), ("", "a dog, a dog"), ("x", "y")]
    texts = [json.dumps({"id": str(i), "title": a, "text": b}) for i, (a, b) in enumerate(rows)]
    (tmp_path / "c.jsonl").write_text("\n".join(texts))
    corpus = list_articles(jsonl_corpus(tmp_path / "c.jsonl"), tmp_path / "o")
    table = build_passages(corpus, Chunking(), tmp_path / "o")
    frequencies = build_document_frequencies(table.stage, table.files, "c", tmp_path / "o")
    expected = {"cat": math.log(4 / 2), "dog": math.log(4 / 3), "owl": math.log(4)}
    assert frequencies.idf({"dog", "owl", "cat"}) == pytest.approx(expected)
    assert build_document_frequencies(table.stage, table.files, "c", tmp_path / "o").stage.reused
    monkeypatch.setattr(idf, "SAMPLE", 2)  # articles 0 and 2
    sampled = build_document_frequencies(table.stage, table.files, "c", tmp_path / "o")
    assert not sampled.stage.reused
    assert sampled.idf({"cat", "dog"}) == pytest.approx(
        dict.fromkeys(["cat", "dog"], math.log(1.5))
    )


def test_support_tells_options_apart_in_a_corpus_of_one_article(tmp_path):
    row = {
        "id": "m",
        "title": "Mercury",
        "text": "Mercury is a liquid metal. It was in thermometers.",
    }
    (tmp_path / "c.jsonl").write_text(json.dumps(row))
    question = {
        "id": "q", "prompt": "Which metal is liquid?", "label": 0, "context": None,
        "articles": ["m"], "options": ["Mercury", "Iron", "Mercury ore"],
    }  # fmt: skip
    retrieval = Retrieval(
        jsonl_corpus(tmp_path / "c.jsonl"),
        Encoder(name="none", name_or_path="none"),
        Chunking(),
        Retriever(name="bm25", kind=RetrieverKind.bm25),
        Index(),
        tmp_path / "o",
    )
    stage = retrieval.contexts(Dataset.from_list([question], features=FEATURES), "q")
    assert read_support(stage, ["q"]) == [pytest.approx([1.0, 0.0, 0.5])]


@pytest.mark.parametrize("kind", [RetrieverKind.bm25, RetrieverKind.tfidf, RetrieverKind.provided])
def test_questions_without_passages_are_counted_and_named(retrieval, questions, kind, caplog):
    def change(question):
        is_lost = question["id"] in ("3", "7")
        words = {"prompt": "zzz?", "options": ["yyy", "xxx"], "label": 0} if is_lost else {}
        return {**words, "context": None if is_lost else "The otter."}

    retrieval = replace(retrieval, retriever=Retriever(name=kind.value, kind=kind))
    changed = questions.map(change)
    for _ in range(2):  # also when the contexts are reused
        caplog.clear()
        retrieval.contexts(changed, "q")
        (line,) = [m for m in caplog.messages if "no passage" in m]
        assert f"2 of 12 questions have no passage by retriever={kind.value} (first: 3, 7)" in line


def test_a_text_without_stops_is_cut_to_pieces_that_the_encoder_reads_whole(
    encoder, questions, tmp_path, caplog
):
    lines = [f"the {a} lives in the {p}" for a, p in zip(ANIMALS, ANIMALS[::-1], strict=True)]
    text = " ".join(lines * 20)
    rows = [{"id": "a0", "title": "", "text": text}, {"id": "b", "title": "", "text": "a toad"}]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    retrieval = Retrieval(
        jsonl_corpus(tmp_path / "long.jsonl"),
        Encoder(name="tiny", name_or_path=str(encoder), max_length=32),
        Chunking(),
        Retriever(name="two_stage", kind=RetrieverKind.two_stage, top_k=500),
        Index(),
        tmp_path / "o",
    )
    with caplog.at_level("INFO", logger="exam"):
        ranked = read_contexts(retrieval.contexts(questions, "q"))["0"]
    texts = [p["text"] for p in ranked if p["article_id"] == "a0"]
    lengths = retrieval.sentence_encoder.count_tokens(texts)
    assert lengths.max() <= 32
    assert all(text.startswith(t) or f" {t}" in text for t in texts)  # whole words
    assert set(" ".join(texts).split()) == set(text.split())
    assert any("cut 1 sentences longer than encoder.max_length=32" in m for m in caplog.messages)
    assert any("texts are longer than encoder.max_length=32" in m for m in caplog.messages)
