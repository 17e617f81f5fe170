"""Words: one definition for search, measures, near-duplicates and the lengths of passages.

Words are runs of letters, digits and combining marks in compatibility form (NFKC), case-folded and
without invisible characters and the points that Arabic and Hebrew may leave out. Scripts without
blanks have no such runs. There every pair of neighbouring characters is a word, and so is every
single Chinese character. Korean is among them, because its particles join the words before them.
"""

import re
import unicodedata
from itertools import pairwise

import regex

WORDS_VERSION = 2  # raise it when any text gets other words or another length
UNSPACED = r"[ー[\p{L}&&[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Bopomofo}\p{Yi}\p{Tangut}"
UNSPACED += r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}"
UNSPACED += r"\p{Tai_Viet}\p{Javanese}\p{Balinese}]]]"
MARKS = r"[\p{Mn}\p{Mc}]*"
# Scripts with blanks and without marks, for which Python's own expressions do, at a fifth the time.
PLAIN = re.compile(
    r"[\x00-\u02ff\u0370-\u0482\u048a-\u058f\u1e00-\u1fff\u2010-\u205e\u2070-\u20cf\u2100-\u2bff]*"
)
PLAIN_WORD = re.compile(r"[^\W_]+")
RUN = regex.compile(rf"(?V1){UNSPACED}")
CHARACTER = regex.compile(rf"(?V1){UNSPACED}{MARKS}")
WORD = regex.compile(
    rf"(?V1)(?:{UNSPACED}{MARKS})+|[[\p{{L}}\p{{N}}\p{{Mn}}\p{{Mc}}]--{UNSPACED}]+"
)
PIECE = regex.compile(
    rf"(?V1)(?:{UNSPACED}{MARKS}){{1,2}}[^\w\s\x1c-\x1f]*|[[^\s\x1c-\x1f]--{UNSPACED}]+"
)
HAN = regex.compile(r"\p{Han}")
INVISIBLE = regex.compile(r"\p{Default_Ignorable_Code_Point}+")
# Vowel points, accents of chants, and strokes that lengthen a word; the dot of a folded İ.
POINTS = regex.compile(
    r"[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u0640\u064b-\u0652\u0670"
    r"\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed]|(?<=i)\u0307"
)
# Compatibility form would join them to the digit before: 10² is not 102, and 1½ is not 11/2.
AFTER_DIGIT = re.compile(r"(?<=\d)(?=[²³¹ºª¼-¾⁰-₉⅐-⅞①-⑳])")
BLANKS = re.compile(r"\s+")


def split_words(text: str) -> list[str]:
    """Return the words of a text in order."""
    normal = _normalize(text)
    if PLAIN.fullmatch(normal):
        return PLAIN_WORD.findall(normal)
    words: list[str] = []
    for run in WORD.findall(normal):
        words += _split_run(run) if RUN.match(run) else [run]
    return words


def count_words(text: str) -> int:
    """Count the words of a text; without blanks, two characters count as one."""
    normal = _normalize(text)
    if PLAIN.fullmatch(normal):
        return len(PLAIN_WORD.findall(normal))
    runs: list[str] = WORD.findall(normal)
    return sum((len(CHARACTER.findall(run)) + 1) // 2 if RUN.match(run) else 1 for run in runs)


def word_spans(text: str) -> list[tuple[int, int]]:
    """Return start and end of the pieces that a passage is measured in and split between.

    They stand between blanks, with their punctuation; without blanks, they are two characters long.
    """
    pattern = re.compile(r"\S+") if text.isascii() else PIECE
    return [match.span() for match in pattern.finditer(text)]


def visible_text(text: str) -> str:
    """Return what a reader sees of a text: composed, with single blanks, nothing invisible.

    Two texts with equal visible texts look the same. `10²` and `102`, or `Mg` and `mg`, do not.
    """
    return BLANKS.sub(" ", INVISIBLE.sub("", unicodedata.normalize("NFC", text))).strip()


def _normalize(text: str) -> str:
    if text.isascii():
        return text.lower()
    apart = AFTER_DIGIT.sub(" ", INVISIBLE.sub("", text))
    folded = unicodedata.normalize("NFKC", apart).casefold()
    return unicodedata.normalize("NFKC", POINTS.sub("", folded))


def _split_run(run: str) -> list[str]:
    """Return the words of a run of characters without blanks, in order."""
    characters: list[str] = CHARACTER.findall(run)
    if len(characters) == 1:
        return characters
    words = []
    for first, second in pairwise(characters):
        words += [first, first + second] if HAN.match(first) else [first + second]
    return [*words, characters[-1]] if HAN.match(characters[-1]) else words
