"""Six languages, ten made-up questions and articles each: search finds them, support sees them."""

import json
from unicodedata import normalize

import pytest
from datasets import Dataset
from helpers import ROOT, jsonl_corpus

from exam.config import Chunking, Encoder, Index, Retriever, RetrieverKind
from exam.data.schema import FEATURES
from exam.retrieval.contexts import read_contexts, read_support
from exam.retrieval.retriever import Retrieval

LANGUAGES = json.loads((ROOT / "tests/cases/languages.json").read_text(encoding="utf-8"))


def retrieve(language, kind, folder):
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
        Encoder(name="none", name_or_path="none"),
        Chunking(),
        Retriever(name=kind.value, kind=kind),
        Index(),
        folder / "outputs",
    )
    return retrieval.contexts(questions, "q")


@pytest.mark.parametrize("kind", [RetrieverKind.bm25, RetrieverKind.tfidf])
@pytest.mark.parametrize("language", LANGUAGES)
def test_search_finds_the_article_and_support_its_words(language, kind, tmp_path):
    stage = retrieve(language, kind, tmp_path)
    contexts = read_contexts(stage)
    first = [contexts[f"q{i}"][0]["article_id"] for i in range(10)]
    assert sum(article == f"a{i}" for i, article in enumerate(first)) >= 9, first
    support = read_support(stage, [f"q{i}" for i in range(10)])
    assert sum(right > wrong for right, wrong in support) >= 9, support
    assert stage.metadata["scores"]["supported"]["value"] >= 0.9
    assert stage.metadata["without_passages"] == []
