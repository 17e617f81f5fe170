"""Split texts into sentences: by lines, by full stops of all scripts, and by blingfire's rules."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import version
from itertools import accumulate, groupby, pairwise

import regex

from exam.core.errors import ExamError

log = logging.getLogger(__name__)

SENTENCES_VERSION = 1  # raise it when any text gets other sentences
# blingfire does not end sentences at these: danda, and the stops of Khmer, Burmese and others.
STOP = regex.compile(r"(?V1)[\p{Sentence_Terminal}--[.!?。]]+[\p{Pe}\p{Pf}\"']*")
MIN_WRAP = 50  # characters of a wrapped line, at least; shorter lines are those of a list
Split = Callable[[str], tuple[str, list[tuple[int, int]]]]
# Package, module and function, in order of preference. The second also has wheels for arm64.
BUILDS = (
    ("blingfire", "blingfire", "text_to_sentences_and_offsets"),
    ("livekit-blingfire", "livekit.blingfire", "text_to_sentences_with_offsets"),
)


@dataclass(frozen=True)
class Splitter:
    """A loaded sentence splitter, and why each preferred one failed to load."""

    package: str
    split: Split
    failures: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The package and its version."""
        return f"{self.package} {version(self.package)}"

    @property
    def key(self) -> dict[str, str]:
        """The splitter's part of a stage's key; empty for the preferred one."""
        return {"splitter": self.name} if self.failures else {}


@cache
def splitter() -> Splitter:
    """Load the first splitter that this machine can load, and log a fall-back.

    Raises:
        ExamError: none loads.
    """
    failures: list[str] = []
    for package, module, function in BUILDS:
        try:
            split = getattr(import_module(module), function)
        except (ImportError, OSError) as error:  # OSError: a library for another processor
            failures.append(f"{package} does not load ({str(error).splitlines()[0]})")
            continue
        loaded = Splitter(package, split, tuple(failures))
        if failures:
            log.info("sentences: %s; using %s", "; ".join(failures), loaded.name)
        return loaded
    raise ExamError(
        f"No sentence splitter loads on this machine: {'; '.join(failures)}.\n"
        f"Install one of them: pip install {BUILDS[1][0]}"
    )


def sentence_offsets(text: str, min_chars: int) -> list[tuple[int, int]]:
    """Return start and end of each sentence of at least `min_chars` characters.

    A line break ends a sentence, unless the text is wrapped at a fixed width.
    """
    return [
        (start, end)
        for block_start, block_end in _blocks(text)
        for start, end in _split(text, block_start, block_end)
        if end - start >= min_chars
    ]


def first_sentence(text: str) -> str:
    """Return the first sentence of a text by blingfire's rules, across line breaks."""
    return next((text[start:end] for start, end in _split(text, 0, len(text))), "")


def _split(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield start and end of the sentences of a part of a text, by blingfire's rules."""
    part = text[start:end].rstrip()
    if part:
        yield from ((start + a, start + b) for a, b in splitter().split(part)[1])


def _blocks(text: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of the parts of a text that no sentence crosses."""
    cuts = {0, len(text), *_line_starts(text)}
    if not text.isascii():
        cuts.update(match.end() for match in STOP.finditer(text))
    yield from pairwise(sorted(cuts))


def _line_starts(text: str) -> Iterator[int]:
    """Yield the starts of the lines that begin a sentence."""
    lines = text.splitlines(keepends=True)
    numbered = zip(accumulate(map(len, lines), initial=0), lines, strict=False)
    for is_blank, group in groupby(numbered, key=lambda pair: pair[1].isspace()):
        if is_blank:
            continue
        paragraph = [(start, line.strip()) for start, line in group]
        width = max(len(line) for _, line in paragraph)
        yield paragraph[0][0]
        for (_, line), (start, following) in pairwise(paragraph):
            if not _is_wrapped(line, following, width):
                yield start


def _is_wrapped(line: str, following: str, width: int) -> bool:
    """Tell whether a line continues in the next one, whose first word did not fit its width."""
    is_full = len(line) + 1 + len(following.split(maxsplit=1)[0]) > width >= MIN_WRAP
    return is_full and following[0].islower()
