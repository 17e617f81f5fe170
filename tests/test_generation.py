"""Generated questions: facts, leaks, balance, determinism."""

import csv
import json
from collections import Counter

import pytest
from conftest import jsonl_corpus

from exam.config import (
    Encoder,
    Generator,
    Index,
    Passages,
    Retriever,
    RetrieverKind,
)
from exam.errors import ExamError
from exam.generation import facts_of, generate
from exam.retrieval.retrieval import Retrieval

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


def test_facts_replace_the_subject_and_drop_what_names_it():
    text = (
        "The red kite (Milvus milvus) is a medium-large bird of prey in its family. "
        "It was once common in the towns of western Europe. "
        "Kites are often seen over the farmland of central Wales. "
        "They have a forked tail that they twist as they turn in flight. "
        "In Wales its numbers grew after the protection of its nests. "
        "It is small."
    )
    assert facts_of("Red kite", text) == [
        "It is a medium-large bird of prey in its family.",
        "It was once common in the towns of western Europe.",
        "They have a forked tail that they twist as they turn in flight.",
    ]


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
    return Retrieval(
        jsonl_corpus(corpus),
        Encoder(name="tiny", name_or_path=str(encoder)),
        Passages(),
        Retriever(name="none", kind=RetrieverKind.none),
        Index(),
        tmp_path / "outputs",
    )


def written(stage):
    with (stage.folder / "questions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_questions_keep_their_promises(retrieval, corpus):
    articles = {a["id"]: a for a in map(json.loads, corpus.read_text().splitlines())}
    rows = written(generate(retrieval, Generator(name="rules", n=40, neighbours=60)))
    assert len(rows) == 40
    assert Counter(r["answer"] for r in rows) == dict.fromkeys("ABCDE", 8)
    longest = 0
    for row in rows:
        article = articles[row["article"]]
        options = {c: row[c] for c in "ABCDE"}
        assert article["title"] in row["prompt"]
        assert len(set(options.values())) == 5
        assert not any(article["title"].lower() in o.lower() for o in options.values())
        right = options[row["answer"]].removeprefix("It ")
        assert right in article["text"]
        wrong = [o for c, o in options.items() if c != row["answer"]]
        assert not any(o.removeprefix("It ") in article["text"] for o in wrong)
        longest += len(options[row["answer"]]) == max(map(len, options.values()))
    assert longest <= 40 / 5 + 3 * (40 / 5) ** 0.5


def test_a_seed_gives_the_same_bytes_and_another_seed_others(retrieval, tmp_path):
    first = generate(retrieval, Generator(name="rules", n=20, neighbours=60))
    again = generate(retrieval, Generator(name="rules", n=20, neighbours=60), resume="never")
    assert again.folder.name == f"{first.folder.name}-2"
    bytes_of = [(s.folder / "questions.csv").read_bytes() for s in (first, again)]
    assert bytes_of[0] == bytes_of[1]
    other = generate(retrieval, Generator(name="rules", n=20, seed=1, neighbours=60))
    assert (other.folder / "questions.csv").read_bytes() != bytes_of[0]


def test_excluded_articles_are_left_alone(retrieval, tmp_path):
    first = written(generate(retrieval, Generator(name="rules", n=20, neighbours=60)))
    (tmp_path / "exam.csv").write_bytes(
        (tmp_path / "outputs" / "generate").rglob("questions.csv").__next__().read_bytes()
    )
    config = Generator(name="rules", n=20, neighbours=60, exclude=str(tmp_path / "exam.csv"))
    second = written(generate(retrieval, config))
    assert not {r["article"] for r in first} & {r["article"] for r in second}


def test_exclusion_that_excludes_nothing_is_refused(retrieval, tmp_path):
    (tmp_path / "exam.csv").write_text("id,prompt,A,B\n1,p,x,y\n")
    with pytest.raises(ExamError) as caught:
        generate(retrieval, Generator(name="r", n=5, exclude=str(tmp_path / "exam.csv")))
    assert str(caught.value) == (
        f"generator.exclude={tmp_path}/exam.csv names no articles.\nIt needs a column `article`, "
        "or exam_qrels.csv (question,article) beside it."
    )


def test_too_small_a_corpus_is_refused(retrieval):
    with pytest.raises(ExamError) as caught:
        generate(retrieval, Generator(name="rules", n=500, neighbours=60))
    message = str(caught.value)
    assert message.startswith("The corpus states facts for ")
    assert "generator.n=500 are asked for.\nSet generator.n=" in message
