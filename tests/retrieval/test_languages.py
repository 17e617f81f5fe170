"""Seven languages, ten made-up questions and articles each: search and support find them."""

import json
from unicodedata import normalize

import pytest
from datasets import Dataset
from helpers import ROOT, jsonl_corpus

from exam.config import Chunking, Encoder, Index, Retriever, RetrieverKind
from exam.config.compose import compose_config
from exam.data.schema import FEATURES
from exam.retrieval.contexts import read_contexts, read_support
from exam.retrieval.retriever import Retrieval

LANGUAGES = json.loads((ROOT / "tests/cases/languages.json").read_text(encoding="utf-8"))


NO_ENCODER = Encoder(name="none", name_or_path="none")
MINILM = Encoder(name="minilm", name_or_path="sentence-transformers/all-MiniLM-L6-v2")


def retrieve(language, retriever, folder, encoder=NO_ENCODER):
    """The contexts of a language's questions; Vietnamese ones are decomposed, its articles not."""
    form = "NFD" if language == "Vietnamese" else "NFC"
    rows = LANGUAGES[language]
    path = folder / "articles.jsonl"
    articles = [
        {"id": f"a{i}", "title": row["title"], "text": row["text"]} for i, row in enumerate(rows)
    ]
    path.write_text("".join(json.dumps(article) + "\n" for article in articles))
    questions = Dataset.from_list(
        [
            {
                "id": f"q{i}",
                "prompt": normalize(form, row["prompt"]),
                "options": [normalize(form, row[name]) for name in ("right", "wrong")],
                "label": 0,
                "context": None,
                "articles": [f"a{i}"],
            }
            for i, row in enumerate(rows)
        ],
        features=FEATURES,
    )
    retrieval = Retrieval(
        jsonl_corpus(path),
        encoder,
        Chunking(),
        retriever,
        Index(),
        folder / "outputs",
    )
    return retrieval.contexts(questions, "q")


def count_first(stage):
    """The number of the ten questions whose article comes first."""
    contexts = read_contexts(stage)
    first = [contexts[f"q{i}"][0]["article_id"] for i in range(10)]
    return sum(article == f"a{i}" for i, article in enumerate(first))


@pytest.mark.parametrize("kind", [RetrieverKind.bm25, RetrieverKind.tfidf])
@pytest.mark.parametrize("language", LANGUAGES)
def test_search_finds_the_article_and_support_its_words(language, kind, tmp_path):
    stage = retrieve(language, Retriever(name=kind.value, kind=kind), tmp_path)
    assert count_first(stage) >= 9
    support = read_support(stage, [f"q{i}" for i in range(10)])
    assert sum(right > wrong for right, wrong in support) >= 9, support
    assert stage.metadata["scores"]["supported"]["value"] >= 0.9
    assert stage.metadata["without_passages"] == []


@pytest.mark.slow
@pytest.mark.parametrize("language", ["English", "German"])
@pytest.mark.parametrize("name", ["two_stage", "passages", "hybrid"])
def test_an_encoder_that_knows_the_language_finds_the_article(language, name, tmp_path, caplog):
    retriever = compose_config("retrieve", f"retriever={name}").retriever
    assert count_first(retrieve(language, retriever, tmp_path, MINILM)) >= 9
    assert not warnings_of(caplog)


@pytest.mark.slow
@pytest.mark.parametrize("language", ["Chinese", "Japanese", "Hindi", "Arabic"])
def test_an_encoder_that_does_not_know_the_script_is_named(language, tmp_path, caplog):
    retriever = Retriever(name="passages", kind=RetrieverKind.passages)
    retrieve(language, retriever, tmp_path, MINILM)
    assert ["% of the tokens are" in message for message in warnings_of(caplog)] == [True, True]
    assert all("encoder.name_or_path=" in message for message in warnings_of(caplog))


def warnings_of(caplog):
    return [record.message for record in caplog.records if record.levelname == "WARNING"]
