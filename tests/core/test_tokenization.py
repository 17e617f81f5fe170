"""Tokenizers as checkpoints publish them: the pieces that sentencepiece gives."""

import io
import json
import pickle
import random
import re
import shutil
import sys
import unicodedata
from types import SimpleNamespace

import pytest
import sentencepiece
import torch
from datasets import Dataset
from helpers import ANIMALS, PLACES, make_place, refuses, run_exam, setting, tiny
from tiny_encoders import TINY
from transformers import (
    AutoTokenizer,
    BertConfig,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DebertaV2Model,
)
from transformers import DebertaV2Tokenizer as LibraryTokenizer

from exam.core.errors import ExamError
from exam.core.tokenization import (
    DebertaV2Tokenizer,
    adopt_tokenizer,
    check_vocabulary,
    load_tokenizer,
    prefix_space,
    token_ids,
    tokenizer_digest,
    unknown_id,
)
from exam.readers.multiple_choice.features import SpecialTokens, TokenCounts, build_features

SENTENCES = [
    f"The {animal} lives in the {place} number {i}, a field of 102 m: H2O, 1 / 2 é."
    for i, (animal, place) in enumerate(zip(ANIMALS * 20, PLACES * 20, strict=True))
]
DEBERTA = {
    "normalization_rule_name": "nmt_nfkc", "pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3,
    "pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]",
}  # fmt: skip
CONFIG = {**TINY, "vocab_size": 512, "pos_att_type": "p2c|c2p", "max_relative_positions": -1}


def sentencepiece_model(**options):
    """The bytes of a small sentencepiece model."""
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=writer,
        **{"vocab_size": 200, "hard_vocab_limit": False, "minloglevel": 2, **options},
    )
    return writer.getvalue()


def write_folder(folder, model, file="spm.model", config=None, tokenizer_config=None):
    """A checkpoint's folder without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(model)
    (folder / "config.json").write_text(json.dumps(config or CONFIG))
    published = tokenizer_config or {"do_lower_case": False, "vocab_type": "spm"}
    (folder / "tokenizer_config.json").write_text(json.dumps(published))
    return folder


@pytest.fixture(scope="module")
def model():
    return sentencepiece_model(**DEBERTA)


@pytest.fixture(scope="module")
def processor(model):
    return sentencepiece.SentencePieceProcessor(model_proto=model)


@pytest.fixture(scope="module")
def deberta(model, tmp_path_factory):
    """A folder laid out as microsoft/deberta-v3-large's."""
    return write_folder(tmp_path_factory.mktemp("deberta") / "checkpoint", model)


@pytest.fixture(scope="module")
def tokenizer(deberta):
    return load_tokenizer(deberta)


def joined(tokenizer, text):
    return "".join(tokenizer.convert_ids_to_tokens(token_ids(tokenizer, [text])[0]))


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("10² m", "▁102▁m"),
        ("H₂O", "▁H2O"),
        ("½", "▁1[UNK]2"),  # with a fraction slash, which the model has never seen
        ("the ﬁeld", "▁the▁field"),
        ("ｔｈｅ　ｆｉｅｌｄ", "▁the▁field"),
        ("e\u0301", "▁é"),
        ("ｅ\u0301", "▁é"),  # full width and decomposed: two characters that become one
        ("the\u00a0field", "▁the▁field"),
        ("the\u200bfield", "▁the▁field"),
        (" the  \t\nfield \r\n", "▁the▁field"),
        ("▁the▁field", "▁the▁field"),
        ("", ""),
        (" \t\n\u3000\u200b", ""),
        ("the\0field", "▁the[UNK]field"),
        ("the [MASK] [CLS]", "▁the▁[UNK]▁[UNK]"),
    ],
)
def test_pieces_are_those_of_the_normalised_text(tokenizer, text, pieces):
    assert joined(tokenizer, text) == pieces


BLOCKS = [
    (0x00, 0x20),  # control characters
    (0x20, 0x7F),
    (0x80, 0x250),
    (0x300, 0x370),  # combining marks
    (0x5D0, 0x5EB),  # Hebrew
    (0x600, 0x700),  # Arabic
    (0x900, 0x980),  # Devanagari
    (0x1100, 0x1200),  # Hangul jamo
    (0x2000, 0x2070),  # spaces, joiners, direction marks
    (0x2070, 0x20A0),  # superscripts and subscripts
    (0x2100, 0x2190),  # letterlike, fractions
    (0x2460, 0x2500),  # enclosed
    (0x3000, 0x30FF),
    (0x3300, 0x3400),  # squared words
    (0x4E00, 0x4F00),
    (0xAC00, 0xAD00),  # Hangul syllables
    (0xF900, 0xFB50),  # compatibility ideographs, ligatures
    (0xFE00, 0xFE10),  # variation selectors
    (0xFF00, 0xFFF0),  # full and half width
    (0x1D400, 0x1D500),  # mathematical letters
    (0x1F300, 0x1F650),  # emoji
    (0xE0000, 0xE0080),  # tags
]
WHOLE = ["👩‍👩‍👧", "🏳️‍🌈", "ﷺ", "①", "é", "각", "▁", "[MASK]", "[CLS]", "  ", "the field", "\ufeff"]


def strings(number, seed=0):
    """Texts of characters from all over Unicode, some of them decomposed."""
    draw = random.Random(seed)
    for _ in range(number):
        parts = [
            draw.choice(WHOLE) if draw.random() < 0.2 else chr(draw.randrange(*draw.choice(BLOCKS)))
            for _ in range(draw.randrange(30))
        ]
        text = "".join(parts)
        yield unicodedata.normalize("NFD", text) if draw.random() < 0.3 else text


def test_ids_equal_sentencepieces_on_any_text(tokenizer, processor):
    texts = [*strings(10_000), "the field " * 20_000, "a" * 100_000]
    expected = [processor.encode(text) for text in texts]
    assert token_ids(tokenizer, texts) == expected
    called = tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)
    assert called["input_ids"] == expected
    assert sum(len(ids) for ids in expected) > 100_000
    assert {0, 1, 2}.isdisjoint(i for ids in expected for i in ids)


def test_special_tokens_have_the_published_ids_and_places(tokenizer, processor):
    the, field = processor.encode("the"), processor.encode("field")
    assert tokenizer.mask_token_id == len(processor) == len(tokenizer) - 1
    assert {**tokenizer.special_tokens_map} == {
        "bos_token": "[CLS]",
        "eos_token": "[SEP]",
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    }
    pair = tokenizer("the", "field", return_special_tokens_mask=True)
    first, second = len(the) + 2, len(field) + 1
    assert pair["input_ids"] == [1, *the, 2, *field, 2]
    assert pair["token_type_ids"] == [0] * first + [1] * second
    assert pair["special_tokens_mask"] == [1, *[0] * len(the), 1, *[0] * len(field), 1]
    assert SpecialTokens.from_tokenizer(tokenizer, pair=True) == SpecialTokens(
        [1], [2], [2], (0, 1)
    )
    assert SpecialTokens.from_tokenizer(tokenizer, pair=False) == SpecialTokens(
        [1], [], [2], (0, 0)
    )
    assert tokenizer("the [MASK]")["input_ids"] == [1, *the, tokenizer.mask_token_id, 2]
    assert (prefix_space(tokenizer), unknown_id(tokenizer)) == ("", 3)


def test_a_batch_is_padded_and_cut_as_other_tokenizers_do(tokenizer, processor):
    batch = tokenizer(
        ["the field", "the"], padding=True, truncation=True, max_length=6, return_tensors="pt"
    )
    the, whole = processor.encode("the"), processor.encode("the field")
    assert batch["input_ids"].tolist() == [
        [1, *whole[:4], 2],
        [1, *the, 2, *[0] * (4 - len(the))],
    ]
    assert batch["attention_mask"].sum(dim=1).tolist() == [6, len(the) + 2]
    assert tokenizer.decode(batch["input_ids"][1], skip_special_tokens=True) == "the"


def test_a_saved_tokenizer_gives_the_same_ids(tokenizer, tmp_path):
    texts = list(strings(200, seed=1))
    expected = token_ids(tokenizer, texts)
    tokenizer.save_pretrained(tmp_path / "run" / "model")
    (tmp_path / "run" / "key.json").write_text("{}")
    again = load_tokenizer(tmp_path / "run" / "model")
    again.save_pretrained(tmp_path / "third")
    third = load_tokenizer(tmp_path / "third")
    for loaded in (again, third, pickle.loads(pickle.dumps(tokenizer))):
        assert token_ids(loaded, texts) == expected
        assert tokenizer_digest(loaded) == tokenizer_digest(tokenizer)
        assert loaded("the", "field") == tokenizer("the", "field")


def test_transformers_opens_what_is_saved(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    library = AutoTokenizer.from_pretrained(tmp_path)
    assert type(library) is LibraryTokenizer
    assert library("the", "field")["input_ids"] == tokenizer("the", "field")["input_ids"]
    assert library.mask_token_id == tokenizer.mask_token_id


def test_a_run_trained_with_ids_of_the_library_keeps_them(deberta, tmp_path):
    library = AutoTokenizer.from_pretrained(deberta)
    library.save_pretrained(tmp_path / "model")
    shutil.copy(deberta / "config.json", tmp_path / "model")
    shutil.copy(deberta / "spm.model", tmp_path / "model")
    (tmp_path / "key.json").write_text("{}")
    loaded = load_tokenizer(tmp_path / "model")
    assert joined(loaded, "the ﬁeld") == "▁the▁[UNK]eld"
    assert loaded("10²", "½")["input_ids"] == library("10²", "½")["input_ids"]


def published_json(model, folder, **special):
    """The `tokenizer.json` that transformers 4 wrote for DeBERTa."""
    from sentencepiece.sentencepiece_model_pb2 import ModelProto
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    proto = ModelProto.FromString(model)
    unigram = models.Unigram([(p.piece, p.score) for p in proto.pieces], unk_id=3)
    tokenizer = Tokenizer(unigram)
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Strip(),
            normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap),
            normalizers.Replace(" {2,}", " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def test_a_folder_with_a_tokenizer_json_alone_keeps_its_normaliser(model, tmp_path):
    folder = write_folder(tmp_path, model)
    published = published_json(model, folder)
    (folder / "spm.model").unlink()
    loaded = load_tokenizer(folder)
    assert joined(loaded, "the ﬁeld 10²") == "▁the▁field▁102"
    assert loaded.pad_token_id == 0
    assert loaded("the ﬁeld", "½")["input_ids"] == published.encode("the ﬁeld", "½").ids
    assert loaded("the", "field")["token_type_ids"][-1] == 1
    loaded.save_pretrained(tmp_path / "run" / "model")
    (tmp_path / "run" / "key.json").write_text("{}")
    assert joined(load_tokenizer(tmp_path / "run" / "model"), "the ﬁeld") == "▁the▁field"


def test_the_sentencepiece_model_counts_where_both_are_there(model, tmp_path):
    folder = write_folder(tmp_path, model)
    published_json(model, folder)
    loaded = load_tokenizer(folder)
    assert type(loaded) is DebertaV2Tokenizer
    assert loaded.mask_token_id == len(loaded) - 1
    assert joined(loaded, "ｅ\u0301") == "▁é"  # the tokenizer.json loses the accent


def test_tokens_that_a_user_added_stay_whole(deberta, tmp_path):
    changed = load_tokenizer(deberta)
    assert changed.add_tokens(["\n", "otterfield"]) == 2
    changed.save_pretrained(tmp_path)
    loaded, mask = load_tokenizer(tmp_path), changed.mask_token_id
    the, field = token_ids(load_tokenizer(deberta), ["the", "field"])
    ids = [*the, mask + 1, *field, mask + 2, *the]
    assert token_ids(loaded, ["the\nfield otterfield the"]) == [ids]
    assert loaded("the\nfield otterfield the", add_special_tokens=False)["input_ids"] == ids
    assert tokenizer_digest(loaded) != tokenizer_digest(load_tokenizer(deberta))


def test_lower_case_is_honoured(model, tmp_path):
    folder = write_folder(tmp_path, model, tokenizer_config={"do_lower_case": True})
    loaded = load_tokenizer(folder)
    assert joined(loaded, "ＴＨＥ FIELD") == "▁the▁field"
    assert loaded("THE Field")["input_ids"] == loaded("the field")["input_ids"]


def test_options_of_a_folder_cannot_change_the_pieces(model, processor, tmp_path):
    sampled = {"sp_model_kwargs": {"enable_sampling": True, "alpha": 0.1, "nbest_size": -1}}
    folder = write_folder(tmp_path, model, tokenizer_config={**sampled, "legacy": False})
    text = "the field of the river " * 20
    assert token_ids(load_tokenizer(folder), [text]) == [processor.encode(text)]


def test_the_digest_covers_the_normaliser(model, tokenizer, tmp_path):
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    proto = ModelProto.FromString(model)
    proto.normalizer_spec.precompiled_charsmap = b""
    other = load_tokenizer(write_folder(tmp_path, proto.SerializeToString()))
    assert other.get_vocab() == tokenizer.get_vocab()
    assert tokenizer_digest(other) != tokenizer_digest(tokenizer)


def test_splitting_by_punctuation_is_refused(model, tmp_path):
    folder = write_folder(tmp_path, model, tokenizer_config={"split_by_punct": True})
    with pytest.raises(ExamError, match=r"split_by_punct=true.*\n.*model=deberta_base"):
        load_tokenizer(folder)


def test_a_missing_sentencepiece_is_one_message(deberta, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ExamError, match=r"spm\.model.*\n.*pip install sentencepiece"):
        load_tokenizer(deberta)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_file_that_is_no_sentencepiece_model_is_one_message(tmp_path, content):
    folder = write_folder(tmp_path, content)
    with refuses("spm.model is not a sentencepiece model", "Copy it again"):
        load_tokenizer(folder)


def test_ids_without_an_embedding_are_refused(tokenizer):
    def model(rows):
        return SimpleNamespace(get_input_embeddings=lambda: torch.nn.Embedding(rows, 1))

    check_vocabulary(tokenizer, model(len(tokenizer)))
    largest = len(tokenizer) - 1
    with refuses(tokenizer.name_or_path, f"ids up to {largest}", "embeddings for 90", "copy all"):
        check_vocabulary(tokenizer, model(90))


LLAMA = {"model_type": "bpe", "normalization_rule_name": "identity", "byte_fallback": True}
LLAMA |= {"remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True}
LLAMA |= {"vocab_size": 360}


@pytest.mark.parametrize(
    ("kind", "file"),
    [("xlm-roberta", "sentencepiece.bpe.model"), ("t5", "spiece.model")],
)
def test_families_that_keep_their_normaliser_load_as_they_are(tmp_path, kind, file):
    t5 = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1} if kind == "t5" else {}
    model = sentencepiece_model(normalization_rule_name="nmt_nfkc", **t5)
    config = {"model_type": kind, "vocab_size": 200}
    loaded = load_tokenizer(write_folder(tmp_path, model, file, config, {"extra_ids": 0}))
    assert joined(loaded, "the ﬁeld 10²") == "▁the▁field▁102"


def llama_json(folder):
    """The `tokenizer.json` that transformers 4 wrote for Llama."""
    from tokenizers import Tokenizer, normalizers

    library = AutoTokenizer.from_pretrained(folder).backend_tokenizer
    written = Tokenizer.from_str(library.to_str())
    written.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    written.pre_tokenizer = None
    written.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_a_published_tokenizer_json_decides_how_llamas_split(tmp_path, kind):
    model = sentencepiece_model(**LLAMA)
    config = {"model_type": kind, "vocab_size": 360}
    declared = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": True}
    folder = write_folder(tmp_path, model, "tokenizer.model", config, declared)
    llama_json(folder)
    loaded = load_tokenizer(folder)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    for text in ("the field", " the field", "  a", "▁the", "10² m", ""):
        assert token_ids(loaded, [text]) == [processor.encode(text)], text
    assert loaded("the")["input_ids"] == [1, *processor.encode("the")]


def test_a_tokenizer_that_splits_otherwise_than_its_model_is_refused(tmp_path):
    config = {"model_type": "mistral", "vocab_size": 360}
    declared = {"tokenizer_class": "LlamaTokenizer"}
    model = sentencepiece_model(**LLAMA)
    folder = write_folder(tmp_path, model, "tokenizer.model", config, declared)
    with refuses(f"{folder}: transformers splits 'two words' into", "Add its tokenizer.json"):
        load_tokenizer(folder)
    llama_json(folder)
    load_tokenizer(folder)  # the remedy works


def test_unknown_tokens_and_equal_options_are_counted(tokenizer, caplog):
    rows = [
        {"id": "a", "prompt": "the field", "options": ["102", "10²"], "label": 0},
        {"id": "b", "prompt": "the 日本", "options": ["the", "field"], "label": 1},
    ]
    contexts = {"a": [{"text": "½"}, {"text": "日"}]}
    caplog.set_level("DEBUG", logger="exam")
    _, stats = build_features(Dataset.from_list(rows), contexts, tokenizer, 64, 512)
    length = {text: len(token_ids(tokenizer, [text])[0]) for text in ("the", "field", "102")}
    in_questions = 3 * length["the"] + 2 * length["field"] + 2 * length["102"] + 2
    assert stats.tokens == TokenCounts(in_questions, 1, 5, 2, 1, ["a"], 2)
    figures = f"questions {1 / in_questions:.2%}, passages 40.00%"
    assert f"unknown tokens {figures}" in caplog.messages[-1]


def test_what_a_model_cannot_read_is_warned_of(caplog):
    counts = TokenCounts(1000, 10, 1000, 11)
    for key in "abcd":
        counts.add(key, [], [[5], [6], [5]], [], 3)
    counts.add("e", [], [[5], [6]], [], 3)
    counts.warn("features")
    assert caplog.messages == [
        "features: 1.1 % of the tokens in passages are unknown to the model's tokenizer; a "
        "checkpoint trained on such texts may read them better",
        "features: 4 of 5 questions have options of equal tokens, which the model cannot tell "
        "apart (first: a, b, c); 10 tokens of the questions are unknown. Another checkpoint's "
        "tokenizer may tell them apart, such as a cased one: model=deberta_base",
    ]


def encoder_folder(deberta, folder, kind=DebertaV2Model, **config):
    shutil.copytree(deberta, folder)
    torch.manual_seed(0)
    kind(DebertaV2Config(**{**CONFIG, **config})).save_pretrained(folder)
    return folder


def test_a_sentence_encoder_reads_sentencepieces_ids(deberta, processor, tmp_path):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(encoder_folder(deberta, tmp_path / "e")), device="cpu")
    model.max_seq_length = 100
    adopt_tokenizer(model)
    assert type(model.tokenizer) is DebertaV2Tokenizer
    assert model.max_seq_length == 100
    assert model.preprocess(["the ﬁeld"])["input_ids"].tolist() == [
        [1, *processor.encode("the field"), 2]
    ]
    assert (model.encode("the ﬁeld 10²") == model.encode("the field 102")).all()
    model.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    again = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    adopt_tokenizer(again)
    assert (again.encode("½ H₂O") == model.encode("½ H₂O")).all()
    assert again.max_seq_length == 100


def test_a_reranker_reads_sentencepieces_ids(deberta, processor, tmp_path):
    from exam.config import Reranker
    from exam.retrieval.reranker import count_truncated, load_cross_encoder

    folder = encoder_folder(
        deberta, tmp_path / "r", DebertaV2ForSequenceClassification, num_labels=1
    )
    model = load_cross_encoder(Reranker(ckpt=str(folder), max_length=16), {"dtype": "float32"})
    assert type(model.tokenizer) is DebertaV2Tokenizer
    assert model.predict([("½", "the ﬁeld")]) == model.predict([("1⁄2", "the field")])
    tokens = len(processor.encode("the field")) * 2 + 3
    assert count_truncated([("the ﬁeld", "the field")], model, tokens - 2) == (1, 2)


def test_other_encoders_keep_their_tokenizer(encoder):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(encoder), device="cpu")
    before = model.tokenizer
    adopt_tokenizer(model)
    assert model.tokenizer is before
    assert BertConfig.model_type == model[0].config.model_type


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("deberta_runs") / "place")


@pytest.mark.slow
def test_a_reader_trains_is_saved_and_answers_with_the_same_ids(root, deberta, tmp_path):
    folder = encoder_folder(deberta, tmp_path / "reader")
    setup = tiny(root, "model=deberta_small", f"model.name_or_path={folder}", "data.limit=20")
    trained = run_exam("train", *setup, "model.max_length=64", "model.config=null")
    assert re.search(r"tokens in \w+ are unknown", trained.stderr)
    (run,) = (root / "outputs" / "train").glob("kaggle-deberta_small-bm25-????????")
    assert (run / "model" / "spm.model").read_bytes() == (folder / "spm.model").read_bytes()
    assert not (run / "model" / "tokenizer.json").exists()
    digests = {tokenizer_digest(load_tokenizer(path)) for path in (folder, run / "model")}
    assert len(digests) == 1
    page = (run / "report.html").read_text(encoding="utf-8")
    facts = dict(re.findall(r"<dt>(.+?)</dt><dd>(.+?)</dd>", page))
    assert re.fullmatch(r"questions \d+\.\d\d%, passages \d+\.\d\d%", facts["unknown tokens"])
    assert facts["questions with options of equal tokens"] == "0"
    run_exam("infer", f"ckpt={run}", f"outputs={root / 'outputs'}")
    assert [*(root / "outputs" / "infer").glob("*/submission.csv")]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["encoder", "reranker"])
def test_encoders_and_rerankers_train_and_keep_their_tokenizer(root, deberta, tmp_path, task):
    head = {"kind": DebertaV2ForSequenceClassification, "num_labels": 1}
    folder = encoder_folder(deberta, tmp_path / task, **(head if task == "reranker" else {}))
    settings = {
        "encoder": ["retriever=two_stage", f"encoder.name_or_path={folder}"],
        "reranker": ["retriever=bm25", f"reranker.ckpt={folder}", "reranker.top_k=6"],
    }[task]
    run_exam(
        "train",
        *setting(root, f"task={task}", "trainer.num_train_epochs=1", *settings[:1]),
        "retriever.top_k=6", "chunking.chunk_words=8", "training_pairs.max_rank=6",
        "training_pairs.max_support=1",
        f"name={task}_of_deberta", *settings[1:],
    )  # fmt: skip
    (run,) = (root / "outputs" / "train").glob(f"{task}_of_deberta-????????")
    assert (run / "model" / "spm.model").read_bytes() == (folder / "spm.model").read_bytes()
    assert tokenizer_digest(load_tokenizer(run / "model")) == tokenizer_digest(
        load_tokenizer(folder)
    )
