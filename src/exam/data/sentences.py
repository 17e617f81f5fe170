"""Split texts into sentences by blingfire's rules."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import version

from exam.core.errors import ExamError

log = logging.getLogger(__name__)

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
    """Return start and end of each sentence of at least `min_chars` characters."""
    if not text.strip():
        return []
    _, offsets = splitter().split(text)
    return [(start, end) for start, end in offsets if end - start >= min_chars]
