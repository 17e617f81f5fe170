"""Five-option questions by rules, without a language model.

Letters are balanced, and the right option is the longest no more often than chance. Every
sentence of the corpus is asked about once at most.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import TypeVar

from exam.config import Generator, QuestionKind
from exam.data.schema import LETTERS
from exam.generation.notes import Detail, Notes, name_words, notes_of, shares
from exam.retrieval.index import ArticleIndex

ABOUT = (
    "Which of the following statements about {} is correct?",
    "What is true of {}?",
    "Which statement accurately describes {}?",
    "Which of the following applies to {}?",
    "What do encyclopaedias state about {}?",
)
UNTITLED = ("Which of the following statements is correct?", "Which of these is true?")
DEFINED = ("What {} {}?", "How {} {} defined?", "Which of the following best says what {} {}?")
GAP = ("Which of the following completes the statement: {}", "What belongs in the gap: {}")
GAPS = {
    "year": ("In which year: {}", "Which year is missing: {}"),
    "number": ("How many: {}", "Which number is missing: {}"),
    "name": ("Which name is missing: {}", "Who or which: {}"),
}
NEAREST_LEFT_OUT = 3
BLOCK = 256  # articles that are read together with their neighbours
KEPT = 30_000  # articles whose notes are kept
T = TypeVar("T")


@dataclass(frozen=True)
class Draft:
    """A question without its wrong options: what could become one, the best first."""

    sentence: str
    prompt: str
    right: str
    wrong: list[str]


def questions(
    index: ArticleIndex, generator: Generator, left_out: set[str]
) -> Iterator[dict[str, str]]:
    """Questions in a seeded order of articles, until there are `n` or no more can be made."""
    random = Random(generator.seed)
    order = list(range(len(index)))
    random.shuffle(order)
    letters = [i % generator.options for i in range(generator.n)]
    random.shuffle(letters)
    made, asked, notebook = 0, set[str](), NotesCache(index)
    for turn in count():
        before = made
        for place, (own, near) in enumerate(notebook.pages(order, generator.neighbours)):
            if made == generator.n:
                return
            if {own.id, own.title} & left_out:
                continue
            kind = generator.kinds[(turn + place) % len(generator.kinds)]
            drafts = DRAFTS[kind](own, near, random)
            draft = next((d for d in drafts if d.sentence not in asked), None)
            if draft is None:
                continue
            wrong = _wrong(draft, made % generator.options, generator.options - 1)
            if wrong is None:
                continue
            random.shuffle(wrong)
            asked.add(draft.sentence)
            options = [*wrong[: letters[made]], draft.right, *wrong[letters[made] :]]
            yield {
                "id": f"rules-{made:05d}",
                "prompt": draft.prompt,
                **dict(zip(LETTERS, options, strict=False)),
                "answer": LETTERS[letters[made]],
                "article": own.id,
            }
            made += 1
        if made == before and turn >= len(generator.kinds):
            return


class NotesCache:
    """Notes of articles and of those near them in meaning, read a block at a time."""

    def __init__(self, index: ArticleIndex) -> None:
        """Take the articles."""
        self.index = index
        self.found: dict[int, Notes] = {}

    def pages(self, order: list[int], neighbours: int) -> Iterator[tuple[Notes, list[Notes]]]:
        """Each article's notes, and those of its neighbours, nearest first.

        The very nearest are left out: their sentences may say the same of the same thing.
        """
        for start in range(0, len(order), BLOCK):
            block = order[start : start + BLOCK]
            near = {
                row: self.index.find_neighbors(row, neighbours + NEAREST_LEFT_OUT)[
                    NEAREST_LEFT_OUT:
                ]
                for row in block
            }
            self._read({*block, *(other for rows in near.values() for other in rows)})
            for row in block:
                yield self.found[row], [self.found[other] for other in near[row]]

    def _read(self, rows: set[int]) -> None:
        if len(self.found) > KEPT:
            self.found.clear()
        missing = sorted(rows - self.found.keys())
        self.found |= {row: notes_of(article) for row, article in self.index.get_articles(missing)}


def _statement(own: Notes, near: list[Notes], random: Random) -> Iterator[Draft]:
    """A fact of the article among facts of others; no option names its subject."""
    name = name_words(own.title)
    wrong = [
        s.text
        for other in near
        for s in other.statements
        if s.sentence not in own.text and not shares(name, s.text)
    ]
    for statement in _shuffled(own.statements, random) if own.title else ():
        prompt = random.choice(ABOUT).format(own.title)
        yield Draft(statement.sentence, prompt, statement.text, _shuffled(wrong, random))


def _definition(own: Notes, near: list[Notes], random: Random) -> Iterator[Draft]:
    """What something is, among what other things are."""
    for definition in _shuffled(own.definitions, random):
        name = name_words(definition.term)
        wrong = [
            d.text
            for other in (own, *near)
            for d in other.definitions
            if d.term != definition.term and not shares(name, f"{d.term} {d.text}")
        ]
        prompt = random.choice(DEFINED).format(definition.verb, definition.term)
        yield Draft(definition.sentence, prompt, definition.text, _shuffled(wrong, random))


def _detail(own: Notes, near: list[Notes], random: Random) -> Iterator[Draft]:
    """A part of a sentence, among parts of its kind that the article or its neighbours have."""
    for detail in _shuffled(own.details, random):
        prompts = GAPS.get(detail.kind.split()[0], GAP)
        prompt = random.choice(prompts).format(detail.replaced("_____"))
        wrong = _alike(detail, own, near, random)
        yield Draft(detail.sentence, prompt, detail.text, wrong)


def _variant(own: Notes, near: list[Notes], random: Random) -> Iterator[Draft]:
    """A sentence among others that differ from it in one part."""
    prompts = [prompt.format(own.title) for prompt in ABOUT] if own.title else UNTITLED
    for detail in _shuffled(own.details, random):
        wrong = [detail.replaced(by) for by in _alike(detail, own, near, random)]
        yield Draft(detail.sentence, random.choice(prompts), detail.sentence, wrong)


DRAFTS: dict[QuestionKind, Callable[[Notes, list[Notes], Random], Iterator[Draft]]] = {
    QuestionKind.statement: _statement,
    QuestionKind.definition: _definition,
    QuestionKind.detail: _detail,
    QuestionKind.variant: _variant,
}


def _alike(detail: Detail, own: Notes, near: list[Notes], random: Random) -> list[str]:
    """Texts that could stand for a detail: of its article first, then of others."""
    found = []
    for notes in ([own], near):
        texts = {d.text for page in notes for d in page.details if d.kind == detail.kind}
        found += _shuffled(sorted(texts), random)
    sentence = detail.sentence.lower()
    return [text for text in found if text.lower() not in sentence]


def _wrong(draft: Draft, longer: int, number: int) -> list[str] | None:
    """Wrong options of similar length, `longer` of them longer than the right one.

    Where all have about the same length, as years have, length tells nothing and is left alone.
    """
    right = draft.right
    near = [
        text
        for text in dict.fromkeys(draft.wrong)
        if 0.6 < len(text) / len(right) < 1.7 and text != right
    ]
    if all(abs(len(text) - len(right)) <= 1 for text in near):
        chosen = near[:number]
    else:
        above = [text for text in near if len(text) > len(right)]
        chosen = above[:longer] + [t for t in near if len(t) <= len(right)][: number - longer]
    return chosen if len(chosen) == number else None


def _shuffled(values: list[T], random: Random) -> list[T]:
    return random.sample(values, len(values))
