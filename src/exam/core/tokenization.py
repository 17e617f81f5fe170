"""Load tokenizers as their checkpoints publish them, and turn texts into token ids.

transformers rebuilds a tokenizer from its class and may lose settings of the checkpoint's files.
DeBERTa's normalises by NFC although `spm.model` requires NFKC, so that `10²`, `½` and full-width
letters become unknown. This module follows the published file.
"""

import json
import logging
import os
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from tokenizers import Tokenizer
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.tokenization_python import Trie
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from exam.core.artifacts import KEY
from exam.core.errors import ExamError
from exam.core.files import digest, read_object
from exam.core.logging import progress_bar

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, SentenceTransformer

log = logging.getLogger(__name__)

PARALLEL = "TOKENIZERS_PARALLELISM"
TEXTS_AT_ONCE = 8192
TOKENIZER = "tokenizer.json"
DEBERTA = "deberta-v2"  # the model type of DeBERTa-v3, too
DEBERTA_MODEL = "spm.model"
SENTENCEPIECE_MODELS = ("sentencepiece.bpe.model", "tokenizer.model", "spiece.model")
SPECIAL_TOKENS = {
    "bos_token": "[CLS]",
    "eos_token": "[SEP]",
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
# In lower case and without accents, which some families remove before sentencepiece.
PROBES = ("two words", "10² m", "h₂o", "½ cup", "the ﬁeld", "ｆｕｌｌ　ｗｉｄｔｈ", "no\u00a0break")


class DebertaV2Tokenizer(SentencePieceBackend):
    """DeBERTa's tokenizer with sentencepiece's pieces.

    The class is named after transformers' own, which can therefore load a saved tokenizer.
    """

    vocab_files_names = {"vocab_file": DEBERTA_MODEL}  # noqa: RUF012 as in the library's classes
    model_input_names = ["input_ids", "token_type_ids", "attention_mask"]  # noqa: RUF012

    def __init__(
        self,
        vocab_file: str,
        do_lower_case: bool = False,
        split_by_punct: bool = False,
        **kwargs: Any,
    ) -> None:
        """Load an `spm.model`; refuse `split_by_punct`, which no published DeBERTa needs."""
        if split_by_punct:
            raise ExamError(
                f"{vocab_file}: tokenizer_config.json sets split_by_punct=true, which is not "
                "supported.\nChoose a checkpoint without it, such as model=deberta_base"
            )
        self.do_lower_case = do_lower_case
        for name in ("sp_model_kwargs", "legacy"):  # would change the pieces
            kwargs.pop(name, None)
        kwargs = {**SPECIAL_TOKENS, **kwargs, "special_tokens_pattern": "cls_sep"}
        super().__init__(  # type: ignore[no-untyped-call]
            vocab_file=vocab_file, do_lower_case=do_lower_case, **kwargs
        )

    def text_ids(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of texts; names of special tokens count as text."""
        if self.do_lower_case:
            texts = [text.lower() for text in texts]
        added = {token.content for token in self.added_tokens_decoder.values() if not token.special}
        if not added:
            ids: list[list[int]] = self.sp_model.encode(texts, num_threads=1)
            return ids
        trie = Trie(added)  # type: ignore[no-untyped-call]
        encoder = self.added_tokens_encoder
        return [
            [
                i
                for part in trie.split(text)
                for i in ([encoder[part]] if part in added else self.sp_model.encode(part))
            ]
            for text in texts
        ]

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        """Return the pieces of a text; unknown ones are `[UNK]`, never a token of their text."""
        if self.do_lower_case:
            text = text.lower()
        pieces: list[str] = self.sp_model.id_to_piece(self.sp_model.encode(text))
        return pieces


def load_tokenizer(
    folder: str | Path, *, trust_remote_code: bool = False, **options: Any
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint's folder as its files describe it.

    A run's tokenizer loads as the run saved it. `options` are those of `from_pretrained`, such as
    `gguf_file`.

    Raises:
        ExamError: the vocabulary is missing; or there is no tokenizer.json, and transformers splits
            texts differently from the checkpoint's sentencepiece model.
    """
    folder = Path(folder)
    options["trust_remote_code"] = trust_remote_code
    published = folder / TOKENIZER
    if published.is_file() and (folder.parent / KEY).is_file():
        return _load(PreTrainedTokenizerFast, folder, options)
    if "gguf_file" in options:
        return _load(AutoTokenizer, folder, options)
    if (folder / DEBERTA_MODEL).is_file():
        return _load_deberta(folder, options)
    config = folder / "config.json"
    is_deberta = config.is_file() and read_object(config).get("model_type") == DEBERTA
    if published.is_file() and is_deberta:  # its tokenizer.json lacks inputs and special tokens
        tokenizer = _load(PreTrainedTokenizerFast, folder, options)
        tokenizer.model_input_names = DebertaV2Tokenizer.model_input_names
        for name, token in SPECIAL_TOKENS.items():
            if getattr(tokenizer, name) is None:
                setattr(tokenizer, name, token)
        return tokenizer
    has_words, has_merges = ((folder / name).is_file() for name in ("vocab.json", "merges.txt"))
    if has_words != has_merges and not published.is_file():
        raise _missing_vocabulary(folder)
    tokenizer = _load(AutoTokenizer, folder, options)
    check_complete(tokenizer, folder)
    for model in filter(Path.is_file, map(folder.joinpath, SENTENCEPIECE_MODELS)):
        if published.is_file() and tokenizer.is_fast:  # normalise and split as the file says
            source, target = Tokenizer.from_file(str(published)), tokenizer.backend_tokenizer
            target.normalizer, target.pre_tokenizer = source.normalizer, source.pre_tokenizer
        else:
            _check_agrees(tokenizer, model)
    return tokenizer


def check_complete(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Refuse a tokenizer without words, which transformers builds if files are missing."""
    words = tokenizer.get_vocab().keys() - {*tokenizer.all_special_tokens}
    if not any(character.isalnum() for word in words for character in word):
        raise _missing_vocabulary(folder)


def _missing_vocabulary(folder: Path) -> ExamError:
    files = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_file()))
    return ExamError(
        f"{folder} holds {files}; the tokenizer's vocabulary is missing ({TOKENIZER}, "
        f"{DEBERTA_MODEL}, vocab.txt, or vocab.json with merges.txt).\n"
        "Copy all files of the checkpoint, or choose another one."
    )


def adopt_tokenizer(model: "SentenceTransformer | CrossEncoder") -> None:
    """Give a loaded DeBERTa of sentence-transformers its checkpoint's published tokenizer.

    The new tokenizer keeps the settings that the library changed.
    """
    module: Any = model[0]
    loaded = getattr(module, "processor", None)
    if not isinstance(loaded, transformers.DebertaV2Tokenizer):
        return
    file = getattr(loaded, "vocab_file", None)
    tokenizer = load_tokenizer(Path(file).parent if file else loaded.name_or_path)
    for name in ("model_input_names", "model_max_length", "padding_side", "truncation_side"):
        setattr(tokenizer, name, getattr(loaded, name))
    module.processor = module.input_formatter.processor = tokenizer


def _check_agrees(tokenizer: PreTrainedTokenizerBase, model: Path) -> None:
    """Refuse a tokenizer that splits a text differently from its checkpoint's `model`."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    unknown = processor.id_to_piece(processor.unk_id())
    for text in PROBES:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        tokens: Any = tokenizer.convert_ids_to_tokens(ids)
        pieces = [unknown if token == tokenizer.unk_token else token for token in tokens]
        expected: list[str] = processor.id_to_piece(processor.encode(text))
        if pieces != expected:
            raise ExamError(
                f"{model.parent}: transformers splits {text!r} into {' '.join(pieces)}, "
                f"{model.name} into {' '.join(expected)}.\nThe checkpoint was trained on the "
                f"latter. Add its {TOKENIZER} to the folder."
            )


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, model: Any) -> None:
    """Refuse a tokenizer that gives ids for which a model has no embedding."""
    try:
        rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    except NotImplementedError:  # embeddings of characters, as CANINE's
        return
    largest = max(tokenizer.get_vocab().values())
    if rows is not None and largest >= rows:
        raise ExamError(
            f"The tokenizer of {tokenizer.name_or_path} gives ids up to {largest:,}, its model has "
            f"embeddings for {rows:,}.\nTokenizer and weights are of different checkpoints: copy "
            "all files of one."
        )


def _load_deberta(folder: Path, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    if find_spec("sentencepiece") is None:
        raise ExamError(
            f"{folder} has its tokenizer in {DEBERTA_MODEL}, and sentencepiece is not installed.\n"
            "Install it: pip install sentencepiece"
        )
    try:
        return _load(DebertaV2Tokenizer, folder, options)
    except (OSError, RuntimeError) as error:  # of a file that sentencepiece cannot parse
        raise ExamError(
            f"{folder / DEBERTA_MODEL} is not a sentencepiece model, or is damaged.\n"
            "Copy it again from the checkpoint."
        ) from error


def _load(kind: Any, folder: Path, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    try:
        tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(str(folder), **options)
    except ValueError as error:
        if "Couldn't instantiate the backend tokenizer" not in str(error):
            raise
        raise _missing_vocabulary(folder) from None
    return tokenizer


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Return the ids of texts without special tokens, even if a text contains their names."""
    ids: list[list[int]] = []
    before = os.environ.get(PARALLEL)
    os.environ[PARALLEL] = "true"  # for these calls only: forking is safe only without threads
    try:
        with progress_bar("tokenised", len(texts), "texts") as bar:
            for start in range(0, len(texts), TEXTS_AT_ONCE):
                block = texts[start : start + TEXTS_AT_ONCE]
                ids += _block_ids(tokenizer, block)
                bar.update(len(block))
    finally:
        del os.environ[PARALLEL]
        if before is not None:
            os.environ[PARALLEL] = before
    return ids


def _block_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    if isinstance(tokenizer, DebertaV2Tokenizer):
        return tokenizer.text_ids(texts)
    ids: list[list[int]] = tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=True,
        truncation=False,
        verbose=False,
    )["input_ids"]
    return ids


def prefix_space(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the space to put before a text that continues another, or an empty string.

    Byte-level vocabularies (RoBERTa's, ModernBERT's, most decoders') mark the beginning of a word
    by the space before it; others do not.
    """
    whole, first, spaced, plain = token_ids(tokenizer, ["a b", "a", " b", "b"])
    return " " if whole == first + spaced and whole != first + plain else ""


def unknown_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id of unknown tokens, or None if the vocabulary covers every text.

    Tokenizers like GPT-2's split any text into bytes, and name the end of a text as unknown.
    """
    unknown: int | None = tokenizer.unk_token_id
    return None if unknown == tokenizer.eos_token_id else unknown


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash the settings that determine the ids, without truncation and padding."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str())
        return digest({k: v for k, v in content.items() if k not in ("truncation", "padding")})
    vocabulary = [type(tokenizer).__name__, tokenizer.get_vocab()]
    model = getattr(tokenizer, "sp_model", None)
    if model is None:
        return digest(vocabulary)
    lower = getattr(tokenizer, "do_lower_case", False)
    return digest([*vocabulary, lower, sha256(model.serialized_model_proto()).hexdigest()])
