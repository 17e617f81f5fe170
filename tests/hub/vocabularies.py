"""Small tokenizers, trained in memory, as the files that repositories hold."""

import io
import json
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers.pre_tokenizers import PreTokenizer

DEMO = Path(__file__).parents[2] / "src" / "exam" / "data" / "demo" / "questions.csv"
ANIMALS = "otter heron badger newt falcon mole trout beetle lynx toad animal number question"
PLACES = "river marsh forest pond cliff meadow stream log mountain well lives where does the in"
SYMBOLS = [*map(chr, range(33, 127)), "⁄", "°"]
Files = dict[str, bytes]


@cache
def sentences() -> tuple[str, ...]:
    """What every tokenizer here is trained on: questions, and each symbol of ASCII."""
    places = [(animal, place) for animal in ANIMALS.split() for place in PLACES.split()]
    lives = [f"The {animal} lives in the {place}." for animal, place in places]
    demo = DEMO.read_text(encoding="utf-8").splitlines()
    return (*demo, *lives, " ".join(SYMBOLS * 2), *(["yes", "no", "xyes xno"] * 40))


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


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's files, and how many tokens it knows."""

    files: Files
    tokens: int

    def id(self, token: str) -> int:
        """A token's id."""
        tokenizer = Tokenizer.from_str(self.files["tokenizer.json"].decode())
        return int(tokenizer.token_to_id(token))


def words_of(*, is_cased: bool) -> list[str]:
    """Characters, their continuations, and the 400 most frequent words."""
    normalizer = normalizers.BertNormalizer(lowercase=not is_cased)
    splitter = pre_tokenizers.BertPreTokenizer()
    words = Counter(
        word
        for sentence in sentences()
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(sentence))
    )
    characters = sorted(set("".join(words)))
    frequent = sorted(words, key=lambda word: (-words[word], word))[:400]
    return list(dict.fromkeys([*characters, *(f"##{c}" for c in characters), *frequent]))


@cache
def bert(*, is_cased: bool) -> Vocabulary:
    """BERT's `vocab.txt` and `tokenizer.json`: [UNK] 100, [CLS] 101, [SEP] 102, [MASK] 103."""
    unused = [f"[unused{i}]" for i in range(1, 100)]
    special = ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = ["[PAD]", *unused, *special, *words_of(is_cased=is_cased)]
    return word_pieces(tokens, ["[PAD]", *special], "[CLS]", "[SEP]", is_cased=is_cased)


@cache
def mpnet() -> Vocabulary:
    """MPNet's: <s> and its like in front, [UNK] 104, <mask> last."""
    front = ["<s>", "<pad>", "</s>", "<unk>", "[PAD]", *(f"[unused{i}]" for i in range(99))]
    special = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
    tokens = [*front, "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words_of(is_cased=False), "<mask>"]
    return word_pieces(tokens, special, "<s>", "</s>", is_cased=False)


def word_pieces(
    tokens: list[str], special: list[str], start: str, end: str, *, is_cased: bool
) -> Vocabulary:
    """A WordPiece tokenizer's files."""
    ids = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=not is_cased)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(special)
    kind = processors.RobertaProcessing if start == "<s>" else processors.BertProcessing
    tokenizer.post_processor = kind((end, ids[end]), (start, ids[start]))
    files = {"vocab.txt": "\n".join([*tokens, ""]).encode(), "tokenizer.json": saved(tokenizer)}
    return Vocabulary(files, len(tokens))


def cut_and_padded(vocabulary: Vocabulary, length: int) -> Vocabulary:
    """The same, with a length in its `tokenizer.json` to which every text is cut and padded."""
    tokenizer = Tokenizer.from_str(vocabulary.files["tokenizer.json"].decode())
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    return Vocabulary(vocabulary.files | {"tokenizer.json": saved(tokenizer)}, vocabulary.tokens)


def saved(tokenizer: Tokenizer) -> bytes:
    return tokenizer.to_str(pretty=True).encode()


def byte_pairs(front: list[str], back: list[str], pre: PreTokenizer | None = None) -> Tokenizer:
    """A byte-level BPE tokenizer with special tokens in front of the others and behind them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=front, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(sentences(), trainer)
    tokenizer.add_special_tokens(back)
    return tokenizer


def vocab_and_merges(tokenizer: Tokenizer, *, with_added: bool) -> Files:
    """A BPE tokenizer's `vocab.json` and `merges.txt`."""
    model = json.loads(tokenizer.to_str())["model"]
    ids = tokenizer.get_vocab() if with_added else model["vocab"]
    ordered = dict(sorted(ids.items(), key=lambda item: item[1]))
    merges = ["#version: 0.2", *(" ".join(merge) for merge in model["merges"]), ""]
    return {"vocab.json": text(ordered), "merges.txt": "\n".join(merges).encode()}


@cache
def roberta() -> Vocabulary:
    """RoBERTa's `vocab.json`, `merges.txt` and `tokenizer.json`: <mask> is the last token."""
    tokenizer = byte_pairs(["<s>", "<pad>", "</s>", "<unk>"], ["<mask>"])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    files = vocab_and_merges(tokenizer, with_added=True)
    return Vocabulary(files | {"tokenizer.json": saved(tokenizer)}, tokenizer.get_vocab_size())


@cache
def modernbert() -> Vocabulary:
    """ModernBERT's `tokenizer.json`: special tokens behind all others."""
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    tokenizer = byte_pairs([], special)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in special[1:3]],
    )
    return Vocabulary({"tokenizer.json": saved(tokenizer)}, tokenizer.get_vocab_size())


QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@cache
def qwen() -> Vocabulary:
    """Qwen's: no token for the start or for the unknown; special tokens behind all others."""
    splits = pre_tokenizers.Split(Regex(QWEN_WORDS), behavior="isolated")
    levels = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = byte_pairs([], QWEN_SPECIAL, pre_tokenizers.Sequence([splits, levels]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    files = vocab_and_merges(tokenizer, with_added=False)
    return Vocabulary(files | {"tokenizer.json": saved(tokenizer)}, tokenizer.get_vocab_size())


@cache
def llama() -> Vocabulary:
    """Llama's `tokenizer.model` and `tokenizer.json`: <unk> 0, <s> 1, </s> 2, bytes, no padding."""
    from transformers.convert_slow_tokenizer import generate_merges

    spm = trained_spm(
        model_type="bpe", vocab_size=800, byte_fallback=True, normalization_rule_name="identity"
    )
    pieces = pieces_of(spm)
    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
    merges = generate_merges(ids, pieces, skip_tokens=["<unk>", "<s>", "</s>"])
    tokenizer = Tokenizer(
        models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    spaces = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(spaces)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return Vocabulary({"tokenizer.model": spm, "tokenizer.json": saved(tokenizer)}, len(pieces))


@cache
def xlm_roberta() -> Vocabulary:
    """XLM-RoBERTa's: ids of `tokenizer.json` are one above `sentencepiece.bpe.model`'s."""
    from sentencepiece import sentencepiece_model_pb2

    spm = trained_spm(model_type="unigram", vocab_size=600, normalization_rule_name="nmt_nfkc")
    special = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces = [*special, *pieces_of(spm)[3:], ("<mask>", 0.0)]
    proto = sentencepiece_model_pb2.ModelProto.FromString(spm)
    charsmap = proto.normalizer_spec.precompiled_charsmap
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    tokenizer.normalizer = normalizers.Precompiled(charsmap)
    marks = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), marks])
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([*(piece for piece, _ in special), "<mask>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    files = {"sentencepiece.bpe.model": spm, "tokenizer.json": saved(tokenizer)}
    return Vocabulary(files, len(pieces))
