"""Clients for language models: an OpenAI-compatible endpoint, or a model on this machine."""

import os
from typing import Any, NamedTuple

from exam.config import LanguageModel, Model, ReaderKind
from exam.core.devices import compute_device
from exam.core.errors import ExamError
from exam.generation.prompts import response_format

KEY = "OPENAI_API_KEY"
OPENAI = "https://api.openai.com/v1"
PLACEHOLDER = "[[request]]"
MAX_FAILURES = 10  # unusable replies in a row, after which the address is not an endpoint


class Reply(NamedTuple):
    """The text of a reply, and the tokens that it cost."""

    text: str
    tokens_read: int
    tokens_written: int


def open_llm(llm: LanguageModel, seed: int) -> "Local | Endpoint":
    """Connect to the configured endpoint, or load the local model."""
    return Local(llm, seed) if llm.local else Endpoint(llm)


def check_llm(llm: LanguageModel) -> None:
    """Refuse a language model that cannot be used.

    Raises:
        ExamError: its checkpoint cannot be loaded, or its endpoint has no client or no key.
    """
    if not llm.local:
        Endpoint(llm)
        return
    from exam.readers.causal_lm.load import inspect_decoder

    inspect_decoder(_local_model(llm))


def _local_model(llm: LanguageModel) -> Model:
    return Model(
        name="writer",
        kind=ReaderKind.causal_lm,
        name_or_path=llm.model,
        revision=llm.revision,
        gguf_file=llm.gguf_file,
    )


class Endpoint:
    """An OpenAI-compatible endpoint; the client retries failed requests."""

    def __init__(self, llm: LanguageModel) -> None:
        """Create the client with the key of the environment.

        Raises:
            ExamError: the client is not installed, or OpenAI's endpoint has no key.
        """
        try:
            from openai import OpenAI
        except ImportError:
            raise ExamError(
                "generator.kind=llm needs the openai client.\n"
                "Install it: pip install 'openbook-exam[llm]'"
            ) from None
        key = os.environ.get(KEY)
        if not key and llm.base_url is None:
            raise ExamError(
                f"generator.llm.model={llm.model} is OpenAI's, and {KEY} is not set.\nSet it in "
                "the environment, or give another endpoint: generator.llm.base_url=<url>"
            )
        self.client: Any = OpenAI(
            api_key=key or "none",
            base_url=llm.base_url or OPENAI,  # not OPENAI_BASE_URL, which no stage key would hold
            timeout=llm.timeout,
            max_retries=llm.retries,
        )
        self.llm, self.failures = llm, 0

    def reply(self, messages: list[dict[str, str]]) -> Reply:
        """Return one reply.

        Raises:
            ExamError: the endpoint cannot be reached, refuses, or sends nothing usable for long.
            ValueError: it refused this request, or did not send a chat completion.
        """
        from openai import APIConnectionError, APIStatusError, BadRequestError

        llm = self.llm
        try:
            completion = self.client.chat.completions.create(
                model=llm.model,
                messages=messages,
                temperature=llm.temperature,
                max_tokens=llm.max_tokens,
                **({"response_format": response_format()} if llm.json_schema else {}),
            )
            text = "" + (completion.choices[0].message.content or "")
        except APIStatusError as error:
            self.failures += 1
            if isinstance(error, BadRequestError) and self.failures < MAX_FAILURES:
                # It may concern this request only: a content filter, or too many tokens.
                raise ValueError(f"HTTP {error.status_code}") from None
            reason = error.message.splitlines()[0][:200].replace(self.client.api_key, "…")
            raise ExamError(
                f"The endpoint refused generator.llm.model={llm.model}: HTTP "
                f"{error.status_code}, {reason}\nReplies so far are kept: correct the model, the "
                f"key ({KEY}), your quota or generator.llm.json_schema, and run again."
            ) from None
        except APIConnectionError:
            raise ExamError(
                f"The endpoint {self.client.base_url.host} cannot be reached.\n"
                "Replies so far are kept: set generator.llm.base_url=<url>, or run again later."
            ) from None
        except (ValueError, AttributeError, LookupError, TypeError):  # not JSON, or of another form
            self.failures += 1
            if self.failures < MAX_FAILURES:
                raise ValueError("no chat completion") from None
            raise ExamError(
                f"The last {MAX_FAILURES} replies of {self.client.base_url.host} are not chat "
                "completions.\nReplies so far are kept: give the address of the API, such as "
                "generator.llm.base_url=http://localhost:8000/v1, and run again."
            ) from None
        self.failures = 0
        counts = (getattr(completion.usage, f"{k}_tokens", 0) for k in ("prompt", "completion"))
        return Reply(text, *(count if isinstance(count, int) else 0 for count in counts))


class Local:
    """A causal language model on this machine, which serves one request at a time."""

    def __init__(self, llm: LanguageModel, seed: int) -> None:
        """Load the checkpoint, and seed the sampling."""
        from transformers import set_seed

        from exam.core.precision import default_half_dtype
        from exam.readers.causal_lm.load import load_causal_lm

        set_seed(seed)
        model, tokenizer = load_causal_lm(_local_model(llm), default_half_dtype())
        self.tokenizer: Any = tokenizer
        self.device = compute_device()
        self.model, self.llm = model.to(self.device).eval(), llm

    def reply(self, messages: list[dict[str, str]]) -> Reply:
        """Return one reply; texts of articles never become special tokens."""
        import torch

        from exam.core.tokenization import token_ids
        from exam.readers.causal_lm.prompts import apply_chat_template

        system, user = (message["content"] for message in messages)
        template = apply_chat_template(
            self.tokenizer,
            [{"role": "system", "content": system}, {"role": "user", "content": PLACEHOLDER}],
        )
        prefix, suffix = (
            self.tokenizer(part, add_special_tokens=False)["input_ids"]
            for part in template.split(PLACEHOLDER)
        )
        ids = [*prefix, *token_ids(self.tokenizer, [user])[0], *suffix]
        temperature = self.llm.temperature
        with torch.inference_mode():
            new_ids = self.model.generate(
                torch.tensor([ids], device=self.device),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=self.device),
                max_new_tokens=self.llm.max_tokens,
                do_sample=temperature > 0,
                **({"temperature": temperature} if temperature > 0 else {}),
                pad_token_id=self.tokenizer.pad_token_id,
            )[0, len(ids) :]
        text = self.tokenizer.decode(new_ids, skip_special_tokens=True)
        return Reply(text, len(ids), len(new_ids))
