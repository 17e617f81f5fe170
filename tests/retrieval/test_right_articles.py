"""Scores of the right articles that a table of qrels names, and its check against the corpus."""

import csv
import json
import logging
from dataclasses import replace

import pytest
from helpers import refuses

from exam.config import (
    Chunking,
    Corpus,
    CorpusFormat,
    Data,
    Encoder,
    Index,
    Query,
    RetrieverKind,
    Target,
    TrainingPairs,
)
from exam.config import Retriever as RetrieverConfig
from exam.data.questions import read_questions
from exam.data.splits import group_near_duplicates
from exam.retrieval.contexts import ContextSet, read_contexts, score_some
from exam.retrieval.contexts import read_questions as read_scored
from exam.retrieval.mining import mine_pairs
from exam.retrieval.retriever import Retrieval

MERCURY = "Mercury is a metal that is liquid at room temperature. Thermometers once held mercury."
HEART = "The heart pumps blood through the body. It has four chambers."
LIVER = "The liver makes bile. It is the largest gland."
PROMPTS = ["Which organ pumps blood through the body?", "Which metal is liquid?"]
# The words of the first question, whose article is on the heart, are nearer to mercury's.
NEAR = "Which organ, once thought to hold a liquid metal at room temperature, has four chambers?"


def write_questions(folder, prompts, qrels=()):
    """Write questions of three options, and their qrels; return the questions."""
    rows = [["id", "prompt", "A", "B", "C", "answer"]]
    rows += [[f"q{n}", prompt, "heart", "mercury", "tin", "A"] for n, prompt in enumerate(prompts)]
    for name, table in (("q.csv", rows), ("q_qrels.csv", qrels)):
        if table:
            with (folder / name).open("w", newline="") as file:
                csv.writer(file).writerows(table)
    return read_questions(Data(name="q", dir=str(folder), options="ABC"), "q.csv")


def write_corpus(folder, **texts):
    rows = [{"id": key[1:], "title": text.split()[0], "text": text} for key, text in texts.items()]
    (folder / "wiki.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Corpus(name="c", format=CorpusFormat.jsonl, dir=str(folder))


def retrieve(corpus, folder):
    return Retrieval(
        corpus,
        Encoder(name="none", name_or_path="none"),
        Chunking(),
        RetrieverConfig(name="bm25", kind=RetrieverKind.bm25, top_k=2),
        Index(),
        folder / "outputs",
    )


def score(corpus, questions, folder):
    """Recall at 1 and MRR of BM25."""
    scores = ContextSet(retrieve(corpus, folder).contexts(questions, "q")).scores
    return scores["recall_at_1"].value, scores["mrr"].value


def test_files_of_one_name_are_different_articles(tmp_path):
    for name, text in (("a", MERCURY), ("b", HEART)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text(text)
    corpus = Corpus(name="c", format=CorpusFormat.text, dir=str(tmp_path), files="**/*.txt")
    qrels = [["question", "article"], ["q0", "b/notes.txt"], ["q1", "a/notes.txt"]]
    questions = write_questions(tmp_path, [NEAR, PROMPTS[1]], qrels)
    assert score(corpus, questions, tmp_path) == (0.5, 0.75)


def test_ids_of_two_files_are_different_articles(tmp_path):
    for name, rows in (("en", [MERCURY, HEART]), ("more", [HEART, LIVER])):
        lines = [json.dumps({"id": str(n), "title": "", "text": t}) for n, t in enumerate(rows)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    qrels = [["question", "article"], ["q0", "more.jsonl:2"], ["q1", "en.jsonl:1"]]
    questions = write_questions(tmp_path, ["Which gland is liquid metal?", PROMPTS[1]], qrels)
    corpus = Corpus(name="c", format=CorpusFormat.jsonl, dir=str(tmp_path))
    with refuses("more.jsonl: article 1 has the id '0'", "corpus.columns.id=null"):
        score(corpus, questions, tmp_path)
    numbered = replace(corpus, columns={**corpus.columns, "id": None})
    assert score(numbered, questions, tmp_path) == (0.5, 0.75)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([["q0", "8"], ["q1", "7"]], (1.0, 1.0)),
        ([["q0", "7"], ["q1", "8"]], (0.0, 0.5)),
        ([["q0", "8.0"], ["q1", "7.0"]], (1.0, 1.0)),
        ([["q0", " 8 "], ["q1", ""], ["q2", "7"]], (1.0, 1.0)),
        ([["q0", "7"], ["q0", "8"], ["q1", "7"]], (1.0, 1.0)),
        ([["q0", "9"], ["q0", "8"], ["q1", "8"]], (0.5, 0.75)),
    ],
)
def test_any_of_the_right_articles_counts(tmp_path, rows, expected):
    questions = write_questions(tmp_path, PROMPTS, [["question", "article"], *rows])
    assert score(write_corpus(tmp_path, _7=MERCURY, _8=HEART), questions, tmp_path) == expected


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        ("question,article,relevance", ["q0,7,0", "q0,8,1", "q1,8,-1", "q1,7,2"]),
        ("query-id,corpus-id,score", ["q0,7,0.0", "q0,8,1.0", "q1,8,0", "q1,7,1"]),
        ("Question,Article,Relevance", ["q0,8,1", "q1,7,1", "q1,8,0"]),
    ],
)
def test_articles_of_relevance_zero_are_not_right(tmp_path, header, rows):
    table = [line.split(",") for line in (header, *rows)]
    questions = write_questions(tmp_path, PROMPTS, table)
    assert questions["articles"][:] == [["8"], ["7"]]
    assert score(write_corpus(tmp_path, _7=MERCURY, _8=HEART), questions, tmp_path) == (1.0, 1.0)


@pytest.mark.parametrize("articles", [["008", "007"], ["x", "y"]])
def test_qrels_of_another_corpus_are_refused_before_any_work(tmp_path, articles):
    rows = [["question", "article"], *([f"q{n}", key] for n, key in enumerate(articles))]
    questions = write_questions(tmp_path, PROMPTS, rows)
    corpus = write_corpus(tmp_path, _7=MERCURY, _8=HEART)
    with refuses(f"none of the 2 right articles ('{articles[0]}'", "ids are '7'", "qrels"):
        score(corpus, questions, tmp_path)
    assert {path.name for path in (tmp_path / "outputs").iterdir()} == {"articles"}


def test_qrels_by_title_are_refused_and_the_remedy_works(tmp_path):
    qrels = [["question", "article"], ["q0", "The"], ["q1", "Mercury"]]
    questions = write_questions(tmp_path, PROMPTS, qrels)
    corpus = write_corpus(tmp_path, _7=MERCURY, _8=HEART)
    with refuses("none of the 2 right articles", "corpus.columns.id=title"):
        score(corpus, questions, tmp_path)
    by_title = replace(corpus, columns={**corpus.columns, "id": "title"})
    assert score(by_title, questions, tmp_path) == (1.0, 1.0)


def test_articles_that_the_corpus_lacks_are_counted(tmp_path, caplog):
    qrels = [["question", "article"], ["q0", "8"], ["q1", "gone"]]
    questions = write_questions(tmp_path, PROMPTS, qrels)
    assert score(write_corpus(tmp_path, _7=MERCURY, _8=HEART), questions, tmp_path) == (0.5, 0.5)
    assert "1 of 2 right articles are not in the corpus" in caplog.text
    assert "'gone'" in caplog.text


def test_questions_of_the_demo_go_with_any_corpus(tmp_path, caplog):
    demo = read_questions(Data(name="demo"), "demo")
    corpus = write_corpus(tmp_path, _7=MERCURY, _8=HEART)
    retrieve(corpus, tmp_path).contexts(demo.select(range(2)), "q")
    assert "2 of 2 right articles are not in the corpus" in caplog.text


def test_scored_questions_keep_all_their_articles(tmp_path):
    qrels = [["question", "article"], ["q0", "7"], ["q0", "8"]]
    questions = write_questions(tmp_path, PROMPTS, qrels)
    corpus = write_corpus(tmp_path, _7=MERCURY, _8=HEART)
    stage = retrieve(corpus, tmp_path).contexts(questions, "q")
    assert read_scored(stage).to_list() == questions.to_list()
    assert stage.metadata["scores"]["mrr"]["n"] == 1
    assert {row["source"] for rows in read_contexts(stage).values() for row in rows} == {
        "wiki.jsonl"
    }


@pytest.mark.parametrize("ending", ["csv", "tsv", "CSV", "jsonl"])
def test_qrels_have_any_ending(tmp_path, ending):
    rows = [{"question": "q0", "article": 8}, {"question": "q1", "article": 7}]
    write_questions(tmp_path, PROMPTS)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if ending != "jsonl":
        text = "question,article\nq0,8\nq1,7\n".replace(",", "\t" if ending == "tsv" else ",")
    (tmp_path / f"q_qrels.{ending}").write_text(text)
    data = Data(name="q", dir=str(tmp_path), options="ABC")
    assert read_questions(data, "q.csv")["articles"][:] == [["8"], ["7"]]
    (tmp_path / "q_qrels.json").write_text("[]")
    with refuses("two tables of qrels", "q_qrels.json", "Keep one"):
        read_questions(data, "q.csv")


@pytest.mark.parametrize(
    ("qrels", "observed", "remedy"),
    [
        ("query,doc\nq0,8\n", "columns query, doc", "question and article"),
        ("question,article,relevance\nq0,8,high\n", "relevance 'high'", "1 or 0"),
        ("question,article,relevance\nq0,8,0\n", "names no right article", "question,article"),
        ("question,article\nq9,8\n", "none of its questions ('q9'", "`question`"),
    ],
)
def test_damaged_qrels_are_refused(tmp_path, qrels, observed, remedy):
    write_questions(tmp_path, PROMPTS)
    (tmp_path / "q_qrels.csv").write_text(qrels)
    with refuses(observed, remedy):
        read_questions(Data(name="q", dir=str(tmp_path), options="ABC"), "q.csv")


def test_qrels_of_other_questions_are_counted(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "exam")
    write_questions(tmp_path, PROMPTS, [["question", "article"], ["q0", "8"], ["q9", "7"]])
    assert "1 of 2 questions of q_qrels.csv are not in q.csv (first: 'q9')" in caplog.text


def test_scores_of_some_questions_leave_the_others_out(tmp_path):
    qrels = [["question", "article"], ["q0", "8"], ["q1", "8"]]
    questions = write_questions(tmp_path, PROMPTS, qrels)
    stage = retrieve(write_corpus(tmp_path, _7=MERCURY, _8=HEART), tmp_path).contexts(
        questions, "q"
    )
    assert stage.metadata["scores"]["recall_at_1"]["value"] == 0.5
    scores = score_some(stage, questions.select([0]))
    assert (scores["recall_at_1"]["n"], scores["recall_at_1"]["value"]) == (1, 1.0)


def test_positives_belong_to_any_and_negatives_to_none_of_the_right_articles(tmp_path):
    qrels = [["question", "article"], ["q0", "1"], ["q0", "2"]]
    questions = write_questions(tmp_path, PROMPTS[:1], qrels)
    rows = [
        {"rank": n, "article_id": str(n), "title": "", "text": text, "passage_id": str(n)}
        for n, text in enumerate(["The heart pumps.", "A heart beats.", "Tin is a metal."], 1)
    ]
    pairs = TrainingPairs(target=Target.binary, max_rank=3, max_support=1.0)
    (example,) = mine_pairs(questions, {"q0": rows}, {"heart": 1.0}, pairs, Query.prompt, 0)
    assert set(example.passages[: example.positives]) == {"The heart pumps.", "A heart beats."}
    assert example.passages[example.positives :] == ["Tin is a metal."]


def test_questions_that_share_any_right_article_stay_together(tmp_path):
    qrels = [["question", "article"], ["q0", "1"], ["q0", "2"], ["q1", "2"], ["q2", "3"]]
    questions = write_questions(tmp_path, [*PROMPTS, "Which gland makes bile?"], qrels)
    first, second, third = group_near_duplicates(questions)
    assert first == second != third
