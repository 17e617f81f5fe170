"""Write multiple-choice questions by rules, without a language model.

Letters are balanced, and the right option is the longest no more often than chance. Every
sentence of the corpus gives at most one question.
"""

import re
from collections.abc import Callable, Iterator
from itertools import chain, count
from random import Random
from typing import NamedTuple, TypeVar

from exam.config import Generator, QuestionKind
from exam.data.articles import Article
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
SKIPPED = 3  # nearest neighbours, whose sentences may state the same fact
BLOCK = 256  # articles read at a time, with their neighbours
CACHE_SIZE = 30_000  # articles
T = TypeVar("T")
STATEMENT_CHARS = (40, 180)
MAX_SENTENCE_CHARS = 300
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
NOT_TERMS = {
    *("It", "This", "That", "These", "Those", "They", "There", "He", "She", "In", "One", "What")
}
STOPWORDS = (
    r"a|an|the|of|by|for|with|in|from|as|or|and|to|on|at|into|through|between|that|which|who|"
    r"whose|where|when|is|are|was|were|be|been|has|have|had|can|may|its|their|his|her|it|they|this"
)
WORD = rf"(?!(?:{STOPWORDS})\b)[a-z][a-z-]{{2,}}"
DETAILS = {
    "year": re.compile(r"(?<![\d,.–-])(?:1\d{3}|20[0-2]\d)(?![\d,.–-]*\d)(?!s)"),
    "number": re.compile(r"(?<![\w,.–-])\d{1,3}(?:,\d{3})*(?:\.\d+)?(?![\w–-])(?!,\d)"),
    "name": re.compile(
        r"(?<=[a-z,] )[A-Z][\w'’-]+(?: (?:(?:of|the|de|van|von) )*[A-Z][\w'’-]+){0,3}(?!\w)"
    ),
    "phrase": re.compile(
        rf"(?<=\b)(?P<before>a|an|the|of|by|for|with|in|from|as) (?P<text>{WORD}(?: {WORD}){{0,2}})"
        rf"(?=[,.;:)]| (?:{STOPWORDS})\b)"
    ),
}


class Statement(NamedTuple):
    """A sentence's claim about its article's subject, which the text does not name."""

    sentence: str
    text: str


class Definition(NamedTuple):
    """A sentence's definition of a term."""

    sentence: str
    term: str
    verb: str
    text: str


class Detail(NamedTuple):
    """A part of a sentence that other texts of its kind could replace."""

    sentence: str
    start: int
    kind: str
    text: str

    def replace(self, text: str) -> str:
        """Return the sentence with another text in the part's place."""
        return f"{self.sentence[: self.start]}{text}{self.sentence[self.start + len(self.text) :]}"


class Facts(NamedTuple):
    """An article, and the facts that questions can be about."""

    article: Article
    statements: list[Statement]
    definitions: list[Definition]
    details: list[Detail]


class Draft(NamedTuple):
    """A question with its right option and candidates for wrong ones, the best first."""

    sentence: str
    prompt: str
    right: str
    wrong: list[str]


def generate_questions(
    index: ArticleIndex, generator: Generator, excluded: set[str]
) -> Iterator[dict[str, str]]:
    """Yield questions about articles in a seeded order, until there are enough or no more facts."""
    random = Random(generator.seed)
    order = list(range(len(index)))
    random.shuffle(order)
    labels = [i % generator.options for i in range(generator.num_questions)]
    random.shuffle(labels)
    number, used, cache = 0, set[str](), dict[int, Facts]()
    for turn in count():
        before = number
        pages = _iter_facts(index, order, generator.num_neighbors, cache)
        for i, (facts, near) in enumerate(pages):
            if number == generator.num_questions:
                return
            if {facts.article.id, facts.article.title} & excluded:
                continue
            kind = generator.kinds[(turn + i) % len(generator.kinds)]
            drafts = DRAFTS[kind](facts, near, random)
            draft = next((draft for draft in drafts if draft.sentence not in used), None)
            longer = number % generator.options
            wrong = draft and _choose_wrong(draft, longer, generator.options - 1)
            if draft is None or wrong is None:
                continue
            random.shuffle(wrong)
            used.add(draft.sentence)
            label = labels[number]
            options = [*wrong[:label], draft.right, *wrong[label:]]
            yield {
                "id": f"rules-{number:05d}",
                "prompt": draft.prompt,
                **dict(zip(LETTERS, options, strict=False)),
                "answer": LETTERS[label],
                "article": facts.article.id,
            }
            number += 1
        if number == before and turn >= len(generator.kinds):
            return


def _iter_facts(
    index: ArticleIndex, order: list[int], num_neighbors: int, cache: dict[int, Facts]
) -> Iterator[tuple[Facts, list[Facts]]]:
    """Yield each article's facts and those of its neighbours, nearest first."""
    for start in range(0, len(order), BLOCK):
        block = order[start : start + BLOCK]
        near = {row: index.find_neighbors(row, num_neighbors + SKIPPED)[SKIPPED:] for row in block}
        if len(cache) > CACHE_SIZE:
            cache.clear()
        missing = {*block, *chain.from_iterable(near.values())} - cache.keys()
        articles = index.get_articles(sorted(missing))
        cache |= {row: extract_facts(article) for row, article in articles}
        for row in block:
            yield cache[row], [cache[neighbor] for neighbor in near[row]]


def _draft_statements(facts: Facts, near: list[Facts], random: Random) -> Iterator[Draft]:
    """Ask which statement is about the article; no option names its subject."""
    article, words = facts.article, title_words(facts.article.title)
    wrong = [
        statement.text
        for neighbor in near
        for statement in neighbor.statements
        if statement.sentence not in article.text and not shares_word(words, statement.text)
    ]
    for statement in _shuffle(facts.statements, random) if article.title else ():
        prompt = random.choice(ABOUT).format(article.title)
        yield Draft(statement.sentence, prompt, statement.text, _shuffle(wrong, random))


def _draft_definitions(facts: Facts, near: list[Facts], random: Random) -> Iterator[Draft]:
    """Ask for the definition of a term among definitions of others."""
    for definition in _shuffle(facts.definitions, random):
        words = title_words(definition.term)
        wrong = [
            other.text
            for article in (facts, *near)
            for other in article.definitions
            if other.term != definition.term
            and not shares_word(words, f"{other.term} {other.text}")
        ]
        prompt = random.choice(DEFINED).format(definition.verb, definition.term)
        yield Draft(definition.sentence, prompt, definition.text, _shuffle(wrong, random))


def _draft_gaps(facts: Facts, near: list[Facts], random: Random) -> Iterator[Draft]:
    """Ask for a missing part of a sentence."""
    for detail in _shuffle(facts.details, random):
        prompts = GAPS.get(detail.kind.split()[0], GAP)
        prompt = random.choice(prompts).format(detail.replace("_____"))
        wrong = _similar_texts(detail, facts, near, random)
        yield Draft(detail.sentence, prompt, detail.text, wrong)


def _draft_variants(facts: Facts, near: list[Facts], random: Random) -> Iterator[Draft]:
    """Ask for the true sentence among variants that differ in one part."""
    title = facts.article.title
    prompts = [prompt.format(title) for prompt in ABOUT] if title else UNTITLED
    for detail in _shuffle(facts.details, random):
        wrong = [detail.replace(text) for text in _similar_texts(detail, facts, near, random)]
        yield Draft(detail.sentence, random.choice(prompts), detail.sentence, wrong)


DRAFTS: dict[QuestionKind, Callable[[Facts, list[Facts], Random], Iterator[Draft]]] = {
    QuestionKind.statement: _draft_statements,
    QuestionKind.definition: _draft_definitions,
    QuestionKind.detail: _draft_gaps,
    QuestionKind.variant: _draft_variants,
}


def _similar_texts(detail: Detail, facts: Facts, near: list[Facts], random: Random) -> list[str]:
    """Return texts of a detail's kind, those of its article first."""
    candidates = []
    for articles in ([facts], near):
        texts = {d.text for article in articles for d in article.details if d.kind == detail.kind}
        candidates += _shuffle(sorted(texts), random)
    sentence = detail.sentence.lower()
    return [text for text in candidates if text.lower() not in sentence]


def _choose_wrong(draft: Draft, longer: int, number: int) -> list[str] | None:
    """Choose `number` wrong options of similar length, `longer` of them longer than the right one.

    Where all texts are about as long, as years are, length gives nothing away and is ignored.
    """
    length = len(draft.right)
    similar = [
        text
        for text in dict.fromkeys(draft.wrong)
        if 0.6 < len(text) / length < 1.7 and text != draft.right
    ]
    if all(abs(len(text) - length) <= 1 for text in similar):
        chosen = similar[:number]
    else:
        chosen = [text for text in similar if len(text) > length][:longer]
        chosen += [text for text in similar if len(text) <= length][: number - longer]
    return chosen if len(chosen) == number else None


def _shuffle(values: list[T], random: Random) -> list[T]:
    return random.sample(values, len(values))


def extract_facts(article: Article) -> Facts:
    """Extract the facts of an article's sentences, without their parentheses."""
    offsets = sentence_offsets(article.text, STATEMENT_CHARS[0])
    sentences = [re.sub(r"\s*\([^)]*\)", "", article.text[a:b]).strip() for a, b in offsets]
    complete = [
        s for s in sentences if len(s) <= MAX_SENTENCE_CHARS and s[-1:] == "." and "\n" not in s
    ]
    return Facts(
        article,
        list(_extract_statements(article.title, sentences)),
        list(_extract_definitions(complete)),
        [detail for sentence in complete for detail in _extract_details(sentence)],
    )


def _extract_statements(title: str, sentences: list[str]) -> Iterator[Statement]:
    """Yield statements about the title, whose subject is replaced by "It" or "They".

    Drop those that contain a word of the title, which would give the answer away.
    """
    words = title_words(title)
    for sentence in sentences:
        match = FACT.match(_replace_subject(sentence, title))
        if match is None:
            continue
        statement = match[1].strip()
        subject = "They" if statement.split()[0].lower() in PLURAL else "It"
        text = f"{subject} {statement}"
        if _fits(text) and not shares_word(words, text):
            yield Statement(sentence, text)


def _fits(text: str) -> bool:
    return STATEMENT_CHARS[0] <= len(text) <= STATEMENT_CHARS[1]


def _replace_subject(sentence: str, title: str) -> str:
    """Replace the title at the start of a sentence by "It"."""
    bare = re.sub(r"^(?:the|an?) ", "", sentence, flags=re.IGNORECASE)
    if title and bare.lower().startswith(title.lower()):
        return f"It{bare[len(title) :]}"
    return sentence


def _extract_definitions(sentences: list[str]) -> Iterator[Definition]:
    for sentence in sentences:
        match = DEFINITION.match(sentence)
        if match is None or match["term"].split()[0] in NOT_TERMS:
            continue
        term = re.sub(r"^(?:The|An?) ", lambda article: article[0].lower(), match["term"])
        text = match["what"][0].upper() + match["what"][1:]
        if _fits(text) and not shares_word(title_words(term), text):
            yield Definition(sentence, term, match["verb"], text)


def _extract_details(sentence: str) -> Iterator[Detail]:
    """Yield years, numbers, names and phrases.

    A phrase's kind holds the word before it, its length and its ending, so that a replacement
    fits the grammar of the sentence.
    """
    for kind, pattern in DETAILS.items():
        for match in pattern.finditer(sentence):
            group = "text" if kind == "phrase" else 0
            text = match[group]
            if kind == "name":
                subkind = f"name {' ' in text}"
            elif kind == "phrase":
                subkind = f"{match['before']} {text.count(' ')} {text.endswith('s')}"
            else:
                subkind = kind
            yield Detail(sentence, match.start(group), subkind, text)


def title_words(title: str) -> set[str]:
    """Return the words of a title that would give it away."""
    return {word for word in re.findall(r"\w+", title.lower()) if len(word) > 3}


def shares_word(words: set[str], text: str) -> bool:
    """Tell whether a text has one of the words, or one that begins like it (a plural)."""
    return any(w.startswith(n[:6]) for n in words for w in re.findall(r"\w+", text.lower()))
