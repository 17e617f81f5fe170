"""Fixtures that several test files share."""

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers import ANIMALS, PLACES, ROOT, make_articles

if TYPE_CHECKING:  # a GPU machine without them collects the tests, and says what it lacks
    from hub.bench import Bench

# A shell that starts tests in the background leaves Ctrl-C ignored, here and in what is started.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(os.environ.get("EXAM_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(autouse=True)
def logging_as_it_was():
    """A command that a test runs in this process leaves the log lines where they were."""
    logger = logging.getLogger("exam")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real questions and articles, where this machine has it."""
    if not (SHARED / "exam" / "train.csv").is_file():
        pytest.skip("the real data are not on this machine (set EXAM_DATA to their folder)")
    return SHARED


@pytest.fixture
def articles(tmp_path: Path) -> Path:
    """A JSONL corpus of ten articles."""
    return make_articles(tmp_path / "articles.jsonl")


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random sentence encoder of two small layers, saved as a folder."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertConfig, BertModel

    from exam.readers.multiple_choice.model import tiny_tokenizer

    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = tiny_tokenizer([" ".join([*ANIMALS, *PLACES, "the lives in where does it is an"])])
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    BertModel(config).save_pretrained(folder / "plain")
    tokenizer.save_pretrained(folder / "plain")
    module = Transformer(str(folder / "plain"))
    SentenceTransformer(modules=[module, Pooling(32)]).save(str(folder / "st"))
    return folder / "st"


@pytest.fixture(scope="session")
def cross_encoder(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder's weights with a random scoring head, saved as a folder."""
    import torch
    from sentence_transformers import CrossEncoder

    folder = tmp_path_factory.mktemp("cross_encoder")
    torch.manual_seed(1)
    model = CrossEncoder(str(encoder.parent / "plain"), num_labels=1, device="cpu")
    for weights in model.parameters():  # the library's own, near zero, score all pairs the same
        if weights.ndim == 2:
            torch.nn.init.normal_(weights, std=0.3)
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Bench"]:
    """A local hub with everything published, and commands that use it."""
    from hub.bench import bench_in

    with bench_in(tmp_path_factory.mktemp("bench")) as bench:
        yield bench
