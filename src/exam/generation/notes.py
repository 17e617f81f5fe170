"""What can be asked about an article: its statements, definitions and replaceable details."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from exam.data.articles import Article
from exam.data.sentences import sentence_offsets

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


def notes_of(article: Article) -> Notes:
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
