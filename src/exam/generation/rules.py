"""Five-option questions by rules, without a language model.

Letters are balanced, and the right option is the longest no more often than chance. Every
sentence of the corpus is asked about once at most.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import TypeVar

from exam.config import Generator, QuestionKind
from exam.data.corpus import Article
from exam.data.schema import LETTERS
from exam.data.sentences import sentence_offsets
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
LENGTH = (40, 180)  # characters of a statement
LONGEST = 300  # characters of a sentence that is asked about
SUBJECTS = r"it|they|he|she|this|these|its [a-z]+|their [a-z]+|the [a-z]+(?: [a-z]+)?"
VERBS = (
    r"is|are|was|were|has|have|had|can|may|will|would|does|do|did|became|occurs?|contains?|"
    r"consists?|includes?|refers?|uses?|forms?|produces?|provides?|makes?|involves?|requires?|"
    r"describes?|causes?|allows?|states?|lives?|grows?|belongs?|began|developed|won|wrote"
)
FACT = re.compile(
    rf"^(?:{SUBJECTS}),? (?:also |often |usually )?((?:{VERBS}) .+)$", re.IGNORECASE | re.DOTALL
)
DEFINITION = re.compile(
    r"^(?P<term>(?:The |An? )?[\w'’-]+(?: [\w'’-]+){0,4}),? (?P<verb>is|are|was|were) "
    r"(?:also |usually |generally )?(?P<what>(?:an?|the|any|one of) .+)$"
)
PLURAL = {"are", "were", "have", "do"}
NO_TERM = {
    "It",
    "This",
    "That",
    "These",
    "Those",
    "They",
    "There",
    "He",
    "She",
    "In",
    "One",
    "What",
}
LITTLE = (
    r"a|an|the|of|by|for|with|in|from|as|or|and|to|on|at|into|through|between|that|which|who|"
    r"whose|where|when|is|are|was|were|be|been|has|have|had|can|may|its|their|his|her|it|they|this"
)
WORD = rf"(?!(?:{LITTLE})\b)[a-z][a-z-]{{2,}}"
DETAILS = {
    "year": re.compile(r"(?<![\d,.–-])(?:1\d{3}|20[0-2]\d)(?![\d,.–-]*\d)(?!s)"),
    "number": re.compile(r"(?<![\w,.–-])\d{1,3}(?:,\d{3})*(?:\.\d+)?(?![\w–-])(?!,\d)"),
    "name": re.compile(
        r"(?<=[a-z,] )[A-Z][\w'’-]+(?: (?:(?:of|the|de|van|von) )*[A-Z][\w'’-]+){0,3}(?!\w)"
    ),
    "phrase": re.compile(
        rf"(?<=\b)(?P<before>a|an|the|of|by|for|with|in|from|as) (?P<own>{WORD}(?: {WORD}){{0,2}})"
        rf"(?=[,.;:)]| (?:{LITTLE})\b)"
    ),
}


@dataclass(frozen=True)
class Statement:
    """What a sentence says about its article's subject, which it does not name."""

    sentence: str
    text: str


@dataclass(frozen=True)
class Definition:
    """What a sentence says that something is."""

    sentence: str
    term: str
    verb: str
    text: str


@dataclass(frozen=True)
class Detail:
    """A part of a sentence, in whose place others of its kind could stand."""

    sentence: str
    start: int
    kind: str
    text: str

    def replaced(self, by: str) -> str:
        """The sentence with something else in the part's place."""
        return f"{self.sentence[: self.start]}{by}{self.sentence[self.start + len(self.text) :]}"


@dataclass(frozen=True)
class Notes:
    """What an article offers to questions about it."""

    id: str
    title: str
    text: str
    statements: list[Statement]
    definitions: list[Definition]
    details: list[Detail]


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
    letters = [i % generator.options for i in range(generator.num_questions)]
    random.shuffle(letters)
    made, asked, notebook = 0, set[str](), NotesCache(index)
    for turn in count():
        before = made
        for place, (own, near) in enumerate(notebook.pages(order, generator.num_neighbors)):
            if made == generator.num_questions:
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
        self.found |= {
            row: extract_facts(article) for row, article in self.index.get_articles(missing)
        }


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


def extract_facts(article: Article) -> Notes:
    """Read an article for what can be asked about it."""
    sentences = [article.text[a:b] for a, b in sentence_offsets(article.text, LENGTH[0])]
    plain = [re.sub(r"\s*\([^)]*\)", "", sentence).strip() for sentence in sentences]
    whole = [s for s in plain if len(s) <= LONGEST and s[-1:] == "." and "\n" not in s]
    return Notes(
        article.id,
        article.title,
        article.text,
        list(_statements(article.title, plain)),
        list(_definitions(whole)),
        [detail for sentence in whole for detail in _details(sentence)],
    )


def _statements(title: str, sentences: list[str]) -> Iterator[Statement]:
    """Statements about the title, with the subject replaced by "It" or left out.

    A statement that still contains a word of the title is dropped: it would give itself away.
    """
    name = name_words(title)
    for sentence in sentences:
        match = FACT.match(_subject_first(sentence, title))
        if match is None:
            continue
        statement = match[1].strip()
        plural = statement.split()[0].lower() in PLURAL
        text = f"{'They' if plural else 'It'} {statement}"
        if LENGTH[0] <= len(text) <= LENGTH[1] and not shares(name, text):
            yield Statement(sentence, text)


def _subject_first(sentence: str, title: str) -> str:
    """The sentence, its subject "It" where it starts with the title."""
    bare = re.sub(r"^(?:the|an?) ", "", sentence, flags=re.IGNORECASE)
    if title and bare.lower().startswith(title.lower()):
        return f"It{bare[len(title) :]}"
    return sentence


def _definitions(sentences: list[str]) -> Iterator[Definition]:
    for sentence in sentences:
        match = DEFINITION.match(sentence)
        if match is None or match["term"].split()[0] in NO_TERM:
            continue
        term = re.sub(r"^(?:The|An?) ", lambda article: article[0].lower(), match["term"])
        text = match["what"][0].upper() + match["what"][1:]
        if LENGTH[0] <= len(text) <= LENGTH[1] and not shares(name_words(term), text):
            yield Definition(sentence, term, match["verb"], text)


def _details(sentence: str) -> Iterator[Detail]:
    """Years, numbers, names and phrases; a phrase's kind tells what stands before it, and its end.

    So that what replaces it fits the grammar of the sentence.
    """
    for kind, pattern in DETAILS.items():
        for match in pattern.finditer(sentence):
            group = "own" if kind == "phrase" else 0
            text = match[group]
            if kind == "name":
                detailed = f"name {text.count(' ') > 0}"
            elif kind == "phrase":
                detailed = f"{match['before']} {text.count(' ')} {text.endswith('s')}"
            else:
                detailed = kind
            yield Detail(sentence, match.start(group), detailed, text)


def name_words(title: str) -> set[str]:
    """The words of a title that would give it away."""
    return {w for w in re.findall(r"\w+", title.lower()) if len(w) > 3}


def shares(name: set[str], text: str) -> bool:
    """Whether a text contains a word of the title, or one that starts like it (a plural)."""
    return any(w.startswith(n[:6]) for n in name for w in re.findall(r"\w+", text.lower()))
