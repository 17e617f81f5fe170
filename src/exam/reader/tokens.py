"""Token ids of texts that are parts of a sequence."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedTokenizerBase

from exam.files import digest
from exam.runtime import progress

PARALLEL = "TOKENIZERS_PARALLELISM"
TEXTS_AT_ONCE = 8192


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Ids of texts without special tokens, also where a text contains their names."""
    if not texts:
        return []
    ids: list[list[int]] = []
    with _all_processors(), progress("tokenised", len(texts), "texts") as bar:
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            block = texts[start : start + TEXTS_AT_ONCE]
            ids += tokenizer(
                block,
                add_special_tokens=False,
                split_special_tokens=True,
                truncation=False,
                verbose=False,
            )["input_ids"]
            bar.update(len(block))
    return ids


@contextmanager
def _all_processors() -> Iterator[None]:
    """Let the tokenizer use them; afterwards no more, so that processes can be forked safely."""
    before = os.environ.get(PARALLEL)
    os.environ[PARALLEL] = "true"
    try:
        yield
    finally:
        del os.environ[PARALLEL]
        if before is not None:
            os.environ[PARALLEL] = before


def prefix_space(tokenizer: PreTrainedTokenizerBase) -> str:
    """What stands before a text that goes on behind another.

    Byte-level vocabularies (RoBERTa's, ModernBERT's, most decoders') tell the beginning of a word
    by the space in front; others do without.
    """
    whole, first, spaced, plain = token_ids(tokenizer, ["a b", "a", " b", "b"])
    return " " if whole == first + spaced and whole != first + plain else ""


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of what makes the ids; not of truncation and padding, which calls leave behind."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return digest([type(tokenizer).__name__, tokenizer.get_vocab()])
    made = json.loads(backend.to_str())
    return digest({k: v for k, v in made.items() if k not in ("truncation", "padding")})
