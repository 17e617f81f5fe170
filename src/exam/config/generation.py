"""The generator group: how questions are written."""

from dataclasses import dataclass
from enum import Enum
from typing import Any
from urllib.parse import urlsplit

from omegaconf import MISSING

from exam.config.values import setting
from exam.core.checkpoints import Checkpoint
from exam.core.errors import ExamError


class QuestionKind(Enum):
    """The kind of a generated question."""

    statement = "statement"  # which statement is true of an article
    definition = "definition"  # what something is
    detail = "detail"  # which part is missing from a sentence
    variant = "variant"  # which of several sentences, different in one part, is right


class GeneratorKind(Enum):
    """The source of generated questions."""

    rules = "rules"
    llm = "llm"


@dataclass
class LanguageModel:
    """The language model that writes questions: behind an OpenAI-compatible endpoint, or local.

    The endpoint's key is read from the environment variable OPENAI_API_KEY only.
    """

    model: str = setting("gpt-4o-mini", "The endpoint's model; with local: hub id or folder.")
    base_url: str | None = setting(None, "Address of the endpoint; null: OpenAI's.")
    local: bool = setting(False, "Run the model on this machine.")
    revision: str | None = setting(None, "local: branch, tag or commit of a hub id; null: main.")
    gguf_file: str | None = setting(None, "local: file of a GGUF checkpoint.")
    per_article: int = setting(1, "Questions for each article.", minimum=1)
    sentences: int = setting(7, "Sentences of an article that the model reads.", minimum=1)
    min_sentences: int = setting(3, "Skip articles with fewer sentences.")
    temperature: float = setting(0.8, "Sampling temperature.", minimum=0)
    max_tokens: int = setting(1000, "Tokens of a reply, at most.", minimum=1)
    attempts: int = setting(3, "Replies to try for each article.", minimum=1)
    concurrency: int = setting(4, "Requests at a time.", minimum=1)
    timeout: float = setting(120.0, "Seconds to wait for a reply.")
    retries: int = setting(5, "Retries of a request that failed or was deferred (429, 5xx).")
    json_schema: bool = setting(True, "Have the endpoint enforce the form of a reply.")
    usd_per_million_input_tokens: float = setting(0.0, "US dollars for a million input tokens.")
    usd_per_million_output_tokens: float = setting(0.0, "US dollars for a million output tokens.")

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint to load; None where an endpoint writes."""
        if not self.local:
            return None
        return Checkpoint(
            "writer", "generator.llm.model", self.model, self.revision, gguf_file=self.gguf_file
        )

    def validate(self) -> None:
        """Refuse an address that holds a secret: every value is saved."""
        url = urlsplit(self.base_url or "")
        if url.username or url.password or url.query:
            raise ExamError(
                "generator.llm.base_url contains a user, a password or a query, which would be "
                "saved.\nGive the address only; the key is read from OPENAI_API_KEY."
            )


@dataclass
class Generator:
    """Generation of questions from articles, by rules or by a language model."""

    name: str = setting(MISSING, "Name in messages and reports.")
    kind: GeneratorKind = setting(GeneratorKind.rules, "Rules or a language model.")
    num_questions: int = setting(1000, "Questions to write.", minimum=1)
    kinds: list[QuestionKind] = setting(
        lambda: list(QuestionKind), "rules: kinds of questions, in turn."
    )
    options: int = setting(5, "Options of a question.", minimum=2, maximum=26)
    seed: int = setting(0, "Seed of the draws.")
    num_neighbors: int = setting(
        20, "rules: similar articles that distractors come from.", minimum=1
    )
    exclude: Any = setting(None, "Questions (files or demo) whose articles are left out.")
    llm: LanguageModel = setting(LanguageModel, "llm: the language model.")
