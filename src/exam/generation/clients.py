"""Language models that write: an OpenAI-compatible endpoint, or a model on this machine."""

import os
from dataclasses import dataclass
from typing import Any, Protocol

from exam.config import LanguageModel, Model, ReaderKind
from exam.core.devices import compute_device
from exam.core.errors import ExamError
from exam.generation.prompts import schema

KEY = "OPENAI_API_KEY"
OPENAI = "https://api.openai.com/v1"
MARK = "[[request]]"
BROKEN = 10  # replies in a row: the address is no such endpoint


@dataclass(frozen=True)
class Completion:
    """A reply, and how many tokens were read and written for it."""

    text: str
    read: int
    written: int


class ChatModel(Protocol):
    """What replies to messages."""

    def reply(self, messages: list[dict[str, str]]) -> Completion:
        """One reply.

        Raises:
            ValueError: what came back is none.
        """


def open_llm(writer: LanguageModel, seed: int) -> ChatModel:
    """The configured one."""
    return Local(writer, seed) if writer.local else Endpoint(writer)


def check_llm(writer: LanguageModel) -> None:
    """Refuse a language model that cannot be asked.

    Raises:
        ExamError: its checkpoint cannot be loaded, or its endpoint has no client or no key.
    """
    if not writer.local:
        Endpoint(writer)
        return
    from exam.readers.causal_lm.load import inspect_decoder

    inspect_decoder(_local_model(writer))


def _local_model(writer: LanguageModel) -> Model:
    return Model(
        name="writer",
        kind=ReaderKind.causal_lm,
        name_or_path=writer.model,
        revision=writer.revision,
        gguf_file=writer.gguf_file,
    )


class Endpoint:
    """An OpenAI-compatible endpoint; the client repeats what failed on the way."""

    def __init__(self, writer: LanguageModel) -> None:
        """Find the key.

        Raises:
            ExamError: the client is not installed, or OpenAI's own endpoint has no key.
        """
        try:
            from openai import OpenAI
        except ImportError:
            raise ExamError(
                "generator.kind=llm needs the openai client.\n"
                "Install it: pip install 'openbook-exam[llm]'"
            ) from None
        key = os.environ.get(KEY)
        if not key and writer.base_url is None:
            raise ExamError(
                f"generator={writer.model} is asked at OpenAI, and {KEY} is not set.\n"
                f"Set it in the environment, or give your own endpoint: "
                "generator.llm.base_url=<url>"
            )
        url = writer.base_url or OPENAI  # not what the environment names, which no key would tell
        self.client: Any = OpenAI(
            api_key=key or "none",
            base_url=url,
            timeout=writer.timeout,
            max_retries=writer.retries,
        )
        self.writer, self.broken = writer, 0

    def reply(self, messages: list[dict[str, str]]) -> Completion:
        """One reply.

        Raises:
            ExamError: the endpoint is out of reach, or refuses, or has long sent nothing usable.
            ValueError: what it sent is no chat completion.
        """
        from openai import APIConnectionError, APIStatusError, BadRequestError

        own = self.writer
        try:
            found = self.client.chat.completions.create(
                model=own.model,
                messages=messages,
                temperature=own.temperature,
                max_tokens=own.max_tokens,
                **({"response_format": schema()} if own.json_schema else {}),
            )
        except APIStatusError as error:
            self.broken += 1
            if isinstance(error, BadRequestError) and self.broken < BROKEN:
                # This request alone, perhaps: refused by a filter, or too long.
                raise ValueError(f"HTTP {error.status_code}") from None
            said = error.message.splitlines()[0][:200].replace(self.client.api_key, "…")
            raise ExamError(
                f"The endpoint refused generator.llm.model={own.model}: HTTP "
                f"{error.status_code}, {said}\nWhat is written is kept: correct the model, the "
                f"key ({KEY}), your quota or generator.llm.json_schema, and run again."
            ) from None
        except APIConnectionError:
            raise ExamError(
                f"The endpoint {self.client.base_url.host} cannot be reached.\n"
                "What is written is kept: set generator.llm.base_url=<url>, or run again later."
            ) from None
        except ValueError:  # no JSON
            found = None
        try:
            text = "" + (found.choices[0].message.content or "")
        except (AttributeError, LookupError, TypeError):
            self._count_broken()
            raise ValueError("no chat completion") from None
        self.broken = 0
        used = (getattr(found.usage, f"{part}_tokens", 0) for part in ("prompt", "completion"))
        return Completion(text, *(n if isinstance(n, int) else 0 for n in used))

    def _count_broken(self) -> None:
        """One more reply that is none.

        Raises:
            ExamError: there were too many in a row.
        """
        self.broken += 1
        if self.broken >= BROKEN:
            raise ExamError(
                f"The last {BROKEN} replies of {self.client.base_url.host} are no chat completions."
                "\nWhat is written is kept: give the address of the API, such as "
                "generator.llm.base_url=http://localhost:8000/v1, and run again."
            )


class Local:
    """A causal language model on this machine, one request at a time."""

    def __init__(self, writer: LanguageModel, seed: int) -> None:
        """Load it."""
        from transformers import set_seed

        from exam.core.precision import default_half_dtype
        from exam.readers.causal_lm.load import load_causal_lm

        set_seed(seed)
        model, tokenizer = load_causal_lm(_local_model(writer), default_half_dtype())
        self.tokenizer: Any = tokenizer
        self.device = compute_device()
        self.model, self.writer = model.to(self.device).eval(), writer

    def reply(self, messages: list[dict[str, str]]) -> Completion:
        """One reply; no text of an article becomes a special token."""
        import torch

        from exam.core.tokenization import token_ids
        from exam.readers.causal_lm.prompts import apply_chat_template

        system, user = (message["content"] for message in messages)
        framed = apply_chat_template(
            self.tokenizer,
            [{"role": "system", "content": system}, {"role": "user", "content": MARK}],
        )
        before, after = (
            self.tokenizer(part, add_special_tokens=False)["input_ids"]
            for part in framed.split(MARK)
        )
        ids = [*before, *token_ids(self.tokenizer, [user])[0], *after]
        own = self.writer
        with torch.inference_mode():
            found = self.model.generate(
                torch.tensor([ids], device=self.device),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=self.device),
                max_new_tokens=own.max_tokens,
                do_sample=own.temperature > 0,
                **({"temperature": own.temperature} if own.temperature > 0 else {}),
                pad_token_id=self.tokenizer.pad_token_id,
            )[0, len(ids) :]
        text = self.tokenizer.decode(found, skip_special_tokens=True)
        return Completion(text, len(ids), len(found))
