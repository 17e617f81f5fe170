"""Five-option questions from any corpus, by rules, without a language model.

The right option is a fact its article states; the wrong ones are facts of articles near in
meaning. Options never name their subject, right letters are balanced, and the right option is
the longest no more often than chance.
"""

import csv
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from random import Random

from exam.artefacts import Stage, atomic, open_stage
from exam.config import Data, Generator, names
from exam.corpus import iter_articles, sentence_offsets
from exam.errors import ExamError
from exam.questions import DEMO, LETTERS, read_qrels
from exam.retrieval.index import ArticleIndex
from exam.retrieval.retrieval import Retrieval
from exam.tables import read_rows

QUESTIONS = "questions.csv"
PROMPTS = (
    "Which of the following statements about {} is correct?",
    "What is true of {}?",
    "Which statement accurately describes {}?",
    "Which of the following applies to {}?",
    "What do encyclopaedias state about {}?",
)
SUBJECTS = r"it|they|he|she|this|these|its [a-z]+|their [a-z]+|the [a-z]+(?: [a-z]+)?"
VERBS = (
    r"is|are|was|were|has|have|had|can|may|will|would|does|do|did|became|occurs?|contains?|"
    r"consists?|includes?|refers?|uses?|forms?|produces?|provides?|makes?|involves?|requires?|"
    r"describes?|causes?|allows?|states?|lives?|grows?|belongs?|began|developed|won|wrote"
)
FACT = re.compile(
    rf"^(?:{SUBJECTS}),? (?:also |often |usually )?((?:{VERBS}) .+)$", re.IGNORECASE | re.DOTALL
)
PLURAL = {"are", "were", "have", "do"}
LENGTH = (40, 180)  # characters of an option
NEAREST_LEFT_OUT = 3


@dataclass(frozen=True)
class Fact:
    """A statement about an article's subject that does not name it."""

    article: int
    text: str


def is_asked_for(data: Data) -> bool:
    """Whether generated questions are among those that the data name."""
    entries = (data.train, data.valid, data.test, data.extra)
    return any("generated" in names(entry) for entry in entries)


def generated(data: Data, retrieval: Retrieval, generator: Generator) -> Stage | None:
    """The generated questions, where the data name them."""
    return generate(retrieval, generator) if is_asked_for(data) else None


def generate(retrieval: Retrieval, generator: Generator, resume: str = "auto") -> Stage:
    """Write `questions.csv`: Kaggle's columns and `article`.

    Raises:
        ExamError: the corpus states too few facts for `generator.n` questions.
    """
    left_out = _left_out(generator)
    key = {
        "index": retrieval.article_index.stage.hash,
        "generator": asdict(generator),
        "left_out": sorted(left_out),
    }
    label = f"{generator.name}-{retrieval.corpus.name}"
    with open_stage(retrieval.outputs, "generate", label, key, resume) as stage:
        if not stage.reused:
            questions = list(_questions(retrieval.article_index, generator, left_out))
            _check(questions, generator)
            _write(stage.folder / QUESTIONS, questions)
            longest = sum(map(_longest_is_right, questions))
            stage.finish([QUESTIONS], questions=len(questions), longest_is_right=longest)
    return stage


def _left_out(generator: Generator) -> set[str]:
    """Ids and titles of the articles that the excluded questions rest on.

    Raises:
        ExamError: a file names no articles, so that nothing could be left out.
    """
    left_out: set[str] = set()
    for name in names(generator.exclude):
        path = DEMO if name == "demo" else Path(name)
        articles = {row["article"] for row in read_rows(path) if row.get("article")}
        articles |= set(read_qrels(path.with_name(f"{path.stem}_qrels.csv")).values())
        if not articles:
            raise ExamError(
                f"generator.exclude={name} names no articles.\nIt needs a column `article`, or "
                f"{path.stem}_qrels.csv (question,article) beside it."
            )
        left_out |= articles
    return left_out


def _questions(
    index: ArticleIndex, generator: Generator, left_out: set[str]
) -> Iterator[dict[str, str]]:
    """Questions in a seeded order of articles, until there are `n`."""
    random = Random(generator.seed)
    facts = _facts(index)
    order = sorted(facts)
    random.shuffle(order)
    ids, titles = index.table["id"].to_pylist(), index.table["title"].to_pylist()
    allowed = [a for a in order if not {ids[a], titles[a]} & left_out]
    letters = [i % generator.options for i in range(generator.n)]
    random.shuffle(letters)
    made = 0
    for article in allowed:
        if made == generator.n:
            return
        # The nearest articles' sentences may stand among the question's own contexts.
        near = index.near(article, generator.neighbours + NEAREST_LEFT_OUT)[NEAREST_LEFT_OUT:]
        pool = [f for other in near for f in facts.get(other, [])]
        question = _question(index, facts[article], pool, letters[made], made, random, generator)
        if question is not None:
            made += 1
            yield question


def _facts(index: ArticleIndex) -> dict[int, list[Fact]]:
    """Facts of every article that states any, by its row; the corpus passes as a stream."""
    stream = chain.from_iterable(map(iter_articles, index.files))
    found = {
        row: [Fact(row, text) for text in facts_of(article.title, article.text)]
        for row, article in enumerate(stream)
    }
    return {row: facts for row, facts in found.items() if facts}


def facts_of(title: str, text: str) -> list[str]:
    """Statements of a text about its subject, with the subject replaced by "It" or left out.

    A statement that still contains a word of the title is dropped: it would give itself away.
    """
    name = _name(title)
    facts = []
    for start, end in sentence_offsets(text, LENGTH[0]):
        match = FACT.match(_subject_first(text[start:end], title))
        if match is None:
            continue
        statement = match[1].strip()
        plural = statement.split()[0].lower() in PLURAL
        fact = f"{'They' if plural else 'It'} {statement}"
        if LENGTH[0] <= len(fact) <= LENGTH[1] and not _shares(name, fact):
            facts.append(fact)
    return facts


def _subject_first(sentence: str, title: str) -> str:
    """The sentence without parentheses, its subject "It" where it starts with the title."""
    plain = re.sub(r"\s*\([^)]*\)", "", sentence).strip()
    bare = re.sub(r"^(?:the|an?) ", "", plain, flags=re.IGNORECASE)
    if title and bare.lower().startswith(title.lower()):
        return f"It{bare[len(title) :]}"
    return plain


def _name(title: str) -> set[str]:
    """The words of a title that would give it away."""
    return {w for w in re.findall(r"\w+", title.lower()) if len(w) > 3}


def _shares(name: set[str], text: str) -> bool:
    """Whether a text contains a word of the title, or one that starts like it (a plural)."""
    return any(w.startswith(n[:6]) for n in name for w in re.findall(r"\w+", text.lower()))


def _question(
    index: ArticleIndex,
    own: list[Fact],
    pool: list[Fact],
    letter: int,
    number: int,
    random: Random,
    generator: Generator,
) -> dict[str, str] | None:
    """One question, or None when the neighbours lend too few facts of fitting length."""
    title = index.table["title"][own[0].article].as_py()
    if not title:
        return None
    right = random.choice(own).text
    name = _name(title)
    wrong = {f.text for f in pool if not _shares(name, f.text)}
    chosen = _of_length(right, sorted(wrong), number % generator.options, generator, random)
    if chosen is None:
        return None
    options = [*chosen[:letter], right, *chosen[letter:]]
    prompt = PROMPTS[number % len(PROMPTS)].format(title)
    return {
        "id": f"rules-{number:05d}",
        "prompt": prompt,
        **dict(zip(LETTERS, options, strict=False)),
        "answer": LETTERS[letter],
        "article": index.table["id"][own[0].article].as_py(),
    }


def _of_length(
    right: str, wrong: list[str], longer: int, generator: Generator, random: Random
) -> list[str] | None:
    """Wrong options of similar length, `longer` of them longer than the right one."""
    random.shuffle(wrong)
    near = [w for w in wrong if 0.6 < len(w) / len(right) < 1.7]
    above = [w for w in near if len(w) > len(right)]
    below = [w for w in near if len(w) <= len(right)]
    chosen = above[:longer] + below[: generator.options - 1 - longer]
    if len(chosen) < generator.options - 1:
        return None
    random.shuffle(chosen)
    return chosen


def _longest_is_right(question: dict[str, str]) -> bool:
    options = {c: question[c] for c in LETTERS if c in question}
    return max(options, key=lambda c: len(options[c])) == question["answer"]


def _check(questions: list[dict[str, str]], generator: Generator) -> None:
    """Refuse a set that is too small or that gives its answers away by their length."""
    if len(questions) < generator.n:
        raise ExamError(
            f"The corpus states facts for {len(questions)} questions; generator.n={generator.n} "
            f"are asked for.\nSet generator.n={max(1, len(questions))}, a larger "
            "generator.neighbours, or a larger corpus."
        )
    longest = sum(map(_longest_is_right, questions))
    chance = len(questions) / generator.options
    if longest > chance + 3 * chance**0.5:
        raise AssertionError(f"the longest option is right in {longest} of {len(questions)}")


def _write(path: Path, questions: list[dict[str, str]]) -> None:
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, questions[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(questions)
