"""Small tokenizers, trained in memory, as the files that repositories hold."""

import io
import json
from functools import cache
from pathlib import Path

DEMO = Path(__file__).parents[2] / "src" / "exam" / "demo" / "questions.csv"
ANIMALS = "otter heron badger newt falcon mole trout beetle lynx toad animal number question"
PLACES = "river marsh forest pond cliff meadow stream log mountain well lives where does the in"
SYMBOLS = [*map(chr, range(33, 127)), "⁄", "°"]
Files = dict[str, bytes]


@cache
def sentences() -> tuple[str, ...]:
    """What every tokenizer here is trained on: questions, and each symbol of ASCII."""
    words = [
        f"The {animal} lives in the {place}."
        for animal in ANIMALS.split()
        for place in PLACES.split()
    ]
    return (*DEMO.read_text(encoding="utf-8").splitlines(), *words, " ".join(SYMBOLS * 2))


def text(value: object, indent: int | None = None, end: str = "") -> bytes:
    """JSON as repositories hold it: with its own indent and end of file."""
    return (json.dumps(value, indent=indent, ensure_ascii=False) + end).encode()


def trained_spm(**options: object) -> bytes:
    """A sentencepiece model."""
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(sentences()),
        model_writer=model,
        character_coverage=1.0,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


@cache
def deberta_spm() -> bytes:
    """DeBERTa-v3's `spm.model`: its normalisation, its special pieces and their ids."""
    return trained_spm(
        model_type="unigram",
        vocab_size=600,
        normalization_rule_name="nmt_nfkc",
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_piece="[PAD]",
        bos_piece="[CLS]",
        eos_piece="[SEP]",
        unk_piece="[UNK]",
    )


def pieces_of(spm: bytes) -> list[tuple[str, float]]:
    """A sentencepiece model's pieces and their scores."""
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_proto=spm)
    return [(model.id_to_piece(i), model.get_score(i)) for i in range(model.get_piece_size())]
