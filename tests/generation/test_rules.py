"""Generated questions: facts, leaks, balance, determinism."""

import csv
import json
from collections import Counter
from itertools import takewhile

import pytest
from helpers import jsonl_corpus, refuses

from exam.config import Chunking, Encoder, Generator, Index, QuestionKind, Retriever, RetrieverKind
from exam.data.articles import Article
from exam.generation.generate import generate
from exam.generation.rules import Definition, extract_facts
from exam.retrieval.retriever import Retrieval

KINDS = ["bird", "fish", "insect", "mammal", "plant", "mineral", "river", "mountain"]
TRAITS = [
    "is known for its bright colours and its slow movements in shallow water",
    "was first described by travellers who crossed the northern highlands",
    "has a hard outer layer that protects it from frost and from strong winds",
    "contains several rare compounds that are used in medicine and in dyes",
    "can be found on every continent except those that are covered by ice",
    "is considered a symbol of patience in the folklore of the coastal towns",
    "forms large groups in autumn, which break apart again in early spring",
    "was thought to be extinct until a small population was seen near a lake",
]


def test_statements_replace_the_subject_and_drop_what_names_it():
    text = (
        "The red kite (Milvus milvus) is a medium-large bird of prey in its family. "
        "It was once common in the towns of western Europe. "
        "Kites are often seen over the farmland of central Wales. "
        "They have a forked tail that they twist as they turn in flight. "
        "In Wales its numbers grew after the protection of its nests. "
        "It is small."
    )
    assert [s.text for s in extract_facts(Article("1", "Red kite", text)).statements] == [
        "It is a medium-large bird of prey in its family.",
        "It was once common in the towns of western Europe.",
        "They have a forked tail that they twist as they turn in flight.",
    ]


def test_definitions_say_what_something_is_without_naming_it():
    text = (
        "The red kite (Milvus milvus) is a medium-large bird of prey in its family. "
        "Thermal resistivity is a property of every solid that opposes a flow of heat. "
        "It is a property of solids that everybody learns about in school. "
        "Heat flow is the flow of energy that is caused by a difference in warmth."
    )
    kite, heat = extract_facts(Article("1", "", text)).definitions
    assert kite == Definition(
        "The red kite is a medium-large bird of prey in its family.",
        "the red kite",
        "is",
        "A medium-large bird of prey in its family.",
    )
    assert (heat.term, heat.text) == (
        "Thermal resistivity",
        "A property of every solid that opposes a flow of heat.",
    )


def test_details_are_whole_and_their_kind_tells_what_may_replace_them():
    sentence = "In 1878 the Danish chemist Hans Jensen weighed 2,500 samples of a heavy metal."
    details = extract_facts(Article("1", "", f"{sentence} Short one.")).details
    assert [(d.kind, d.text) for d in details] == [
        ("year", "1878"),
        ("number", "2,500"),
        ("name False", "Danish"),
        ("name True", "Hans Jensen"),
        ("a 1 False", "heavy metal"),
    ]
    assert all(sentence[d.start :].startswith(d.text) for d in details)
    assert details[1].replace("7") == sentence.replace("2,500", "7")


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    with path.open("w") as file:
        for i in range(64):
            name = f"Zor{'abcdefgh'[i % 8]}{'klmnprst'[i // 8]}"
            kind = KINDS[i % 8]
            facts = [TRAITS[(i + j * 3) % 8] for j in range(2)]
            ending = [f"near the {w} of region {i}" for w in ("shore", "hills")]
            text = f"{name} is a {kind} of the old country number {i} in the east. " + " ".join(
                f"It {fact} {end}." for fact, end in zip(facts, ending, strict=True)
            )
            file.write(json.dumps({"id": f"a{i}", "title": name, "text": text}) + "\n")
    return path


@pytest.fixture
def retrieval(corpus, encoder, tmp_path):
    return retrieval_of(corpus, encoder, tmp_path)


def retrieval_of(corpus, encoder, tmp_path):
    return Retrieval(
        jsonl_corpus(corpus),
        Encoder(name="tiny", name_or_path=str(encoder)),
        Chunking(),
        Retriever(name="none", kind=RetrieverKind.none),
        Index(),
        tmp_path / "outputs",
    )


def rules(number, **settings):
    return Generator(name="rules", num_questions=number, num_neighbors=60, **settings)


def read_rows(stage):
    with (stage.folder / "questions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def is_balanced(rows):
    """Every letter is right equally often, and the longest option no more often than chance."""
    longest = sum(max("ABCDE", key=lambda c: len(row[c])) == row["answer"] for row in rows)
    return Counter(r["answer"] for r in rows) == dict.fromkeys("ABCDE", len(rows) // 5) and (
        longest <= len(rows) / 5 + 3 * (len(rows) / 5) ** 0.5
    )


def generate_kind(retrieval, corpus, kind, n):
    """Generated questions of one kind: prompt, right and wrong options, and the article."""
    articles = {a["id"]: a for a in map(json.loads, corpus.read_text().splitlines())}
    rows = read_rows(generate(retrieval, rules(n, kinds=[QuestionKind(kind)])))
    assert len(rows) == n
    for row in rows:
        options = {c: row[c] for c in "ABCDE"}
        assert len(set(options.values())) == 5
        right = options.pop(row["answer"])
        yield row["prompt"], right, list(options.values()), articles[row["article"]]
    assert is_balanced(rows)


def test_statements_are_the_articles_own_and_do_not_name_it(retrieval, corpus):
    for prompt, right, wrong, article in generate_kind(retrieval, corpus, "statement", 40):
        assert article["title"] in prompt
        assert not any(article["title"].lower() in o.lower() for o in [right, *wrong])
        assert right.removeprefix("It ") in article["text"]
        assert not any(o.removeprefix("It ") in article["text"] for o in wrong)


def test_definitions_are_of_what_is_asked_about(retrieval, corpus):
    for prompt, right, wrong, article in generate_kind(retrieval, corpus, "definition", 40):
        assert article["title"] in prompt
        assert f"is {right[0].lower()}{right[1:]}" in article["text"]
        assert all(o[1:] not in article["text"] for o in wrong)


def test_a_gap_is_filled_by_what_the_article_says(retrieval, corpus):
    for prompt, right, wrong, article in generate_kind(retrieval, corpus, "detail", 40):
        sentence = prompt.partition(": ")[2]
        assert sentence.count("_____") == 1
        assert sentence.replace("_____", right) in article["text"]
        assert not any(sentence.replace("_____", o) in article["text"] for o in wrong)


def count_shared(a, b):
    """How many words two sentences begin with, and then end with, alike."""
    same = sum(takewhile(bool, (x == y for x, y in zip(a, b, strict=False))))
    pairs = zip(reversed(a[same:]), reversed(b[same:]), strict=False)
    return same, sum(takewhile(bool, (x == y for x, y in pairs)))


def test_variants_differ_from_what_the_article_says_in_one_part(retrieval, corpus):
    for prompt, right, wrong, article in generate_kind(retrieval, corpus, "variant", 40):
        assert article["title"] in prompt
        assert right in article["text"]
        for option in wrong:
            assert option not in article["text"]
            same, rest = count_shared(right.split(), option.split())
            assert 0 < len(right.split()) - same - rest <= 4


def test_no_sentence_is_asked_about_twice(retrieval):
    rows = read_rows(generate(retrieval, rules(120)))
    assert len({r["article"] for r in rows}) <= 64 < len(rows)
    right = [r[r["answer"]] for r in rows if "_____" not in r["prompt"]]
    assert len(set(right)) == len(right)
    assert is_balanced(rows)


def test_a_seed_gives_the_same_bytes_and_another_seed_others(retrieval, tmp_path):
    first = generate(retrieval, rules(20))
    again = generate(retrieval, rules(20), resume="never")
    assert again.folder.name == f"{first.folder.name}-2"
    bytes_of = [(s.folder / "questions.csv").read_bytes() for s in (first, again)]
    assert bytes_of[0] == bytes_of[1]
    other = generate(retrieval, rules(20, seed=1))
    assert (other.folder / "questions.csv").read_bytes() != bytes_of[0]


def test_excluded_articles_give_no_questions(retrieval, tmp_path):
    first = read_rows(generate(retrieval, rules(20)))
    (path,) = tmp_path.glob("outputs/generate/*/questions.csv")
    (tmp_path / "exam.csv").write_bytes(path.read_bytes())
    second = read_rows(generate(retrieval, rules(20, exclude=str(tmp_path / "exam.csv"))))
    assert not {r["article"] for r in first} & {r["article"] for r in second}


def test_exclusion_that_excludes_nothing_is_refused(retrieval, tmp_path):
    (tmp_path / "exam.csv").write_text("id,prompt,A,B\n1,p,x,y\n")
    with refuses(f"generator.exclude={tmp_path}/exam.csv names no articles", "exam_qrels.csv"):
        generate(retrieval, Generator(name="r", num_questions=5, exclude=f"{tmp_path}/exam.csv"))


def test_a_small_corpus_gives_the_questions_it_can(retrieval, caplog):
    written = len(read_rows(generate(retrieval, rules(500))))
    assert 20 < written < 500
    generate(retrieval, rules(500))  # reused, and warns again
    assert caplog.text.count(f"{written} of 500 questions") == 2
    assert f"{500 - written} are missing" in caplog.text


def test_a_corpus_without_any_question_is_refused(encoder, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "a", "title": "A", "text": "Short."}\n')
    with refuses("no question", "larger corpus", "generator.num_neighbors"):
        generate(retrieval_of(path, encoder, tmp_path), rules(5))
