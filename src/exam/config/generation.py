"""The generator group: what writes questions."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from exam.config.values import Checkpoint


class QuestionKind(Enum):
    """What a generated question asks.

    Which statement holds of an article; what something is; which part a sentence lacks; which of
    several sentences, different in one part, is right.
    """

    statement = "statement"
    definition = "definition"
    detail = "detail"
    variant = "variant"


class GeneratorKind(Enum):
    """What writes questions."""

    rules = "rules"
    llm = "llm"


@dataclass
class Writer:
    """The language model that writes questions: at an OpenAI-compatible endpoint, or here.

    The endpoint's key is read from the environment variable OPENAI_API_KEY, and from nowhere else.
    """

    model: str = "gpt-4o-mini"  # the endpoint's name for it; with local: hub id or folder
    base_url: str | None = None  # null: OpenAI's own
    local: bool = False  # run the model on this machine
    revision: str | None = None  # with local: branch, tag or commit of a hub id; null: main
    gguf: str | None = None  # with local: the checkpoint's file, where it is a GGUF
    per_article: int = 1  # questions
    sentences: int = 7  # of an article's beginning
    min_sentences: int = 3  # shorter articles are left alone
    temperature: float = 0.8
    max_tokens: int = 1000  # of a reply
    attempts: int = 3  # replies to an article, until one is a question
    parallel: int = 4  # requests at a time
    timeout: float = 120.0  # seconds for one of them
    retries: int = 5  # of one that failed on the way, or was put off (429, 5xx)
    json_schema: bool = True  # have the endpoint hold to the form; not every model can
    price_in: float = 0.0  # of a million tokens, to say what it cost
    price_out: float = 0.0

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint to load; None where an endpoint writes."""
        if not self.local:
            return None
        return Checkpoint(
            "writer",
            "generator.writer.model",
            self.model,
            self.revision,
            gguf_file=self.gguf,
        )


@dataclass
class Generator:
    """What writes questions from articles: rules, or a language model."""

    name: str = MISSING
    kind: GeneratorKind = GeneratorKind.rules
    n: int = 1000
    kinds: list[QuestionKind] = field(default_factory=lambda: list(QuestionKind))  # rules: in turn
    options: int = 5
    seed: int = 0
    neighbours: int = 20  # rules: how many articles near in meaning lend their facts
    exclude: Any = None  # questions (files or `demo`) whose articles are left alone
    writer: Writer = field(default_factory=Writer)  # llm
