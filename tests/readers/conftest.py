"""What tests of readers share."""

import pytest
from helpers import kaggle_rows
from tiny_encoders import as_questions

from exam.readers.multiple_choice.model import tiny_tokenizer


@pytest.fixture(scope="session")
def questions():
    return as_questions(kaggle_rows(12))


@pytest.fixture(scope="session")
def small():
    """A tokenizer of seven words, and their ids."""
    tokenizer = tiny_tokenizer(["a b c d e f g"])
    return tokenizer, {c: tokenizer.convert_tokens_to_ids(c) for c in "abcdefg"}
