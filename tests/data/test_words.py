"""Words of all scripts, their number, and the pieces that passages are measured in."""

import re
import unicodedata

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from exam.data.schema import FEATURES
from exam.data.splits import group_near_duplicates
from exam.data.words import count_words, split_words, visible_text, word_spans
from exam.readers.lexical import _warn_of_equal_options


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's α-helix_2", ["it", "s", "α", "helix", "2"]),
        ("Straße STRASSE", ["strasse", "strasse"]),
        ("ｆｕｌｌ ﬁeld H₂O", ["full", "field", "h2o"]),
        ("10² 1½ 20º", ["10", "2", "1", "1", "2", "20", "o"]),
        ("M\u200bg co\u00adop", ["mg", "coop"]),
        ("الزِّئْبَقُ القلـــب", ["الزئبق", "القلب"]),
        ("כַּסְפִּית İSTANBUL", ["כספית", "istanbul"]),
        ("पानी द्रव है।", ["पानी", "द्रव", "है"]),
        ("光合作用", ["光", "光合", "合", "合作", "作", "作用", "用"]),
        ("水", ["水"]),
        ("B细胞", ["b", "细", "细胞", "胞"]),
        ("コーヒーは", ["コー", "ーヒ", "ヒー", "ーは"]),
        ("ｶﾞｽ", ["ガス"]),
        ("เหล็ก", ["เห", "หล็", "ล็ก"]),
        ("광합성은 식물", ["광합", "합성", "성은", "식물"]),
        ("— … ?", []),
    ],
)
def test_words_of_a_text(text, words):
    assert split_words(text) == words


@given(st.text(max_size=60))
def test_composed_and_decomposed_texts_have_the_same_words(text):
    forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
    first, second = map(split_words, forms)
    assert first == second
    assert visible_text(forms[0]) == visible_text(forms[1])


@given(st.text(st.characters(max_codepoint=127)))
def test_plain_english_has_its_plain_words(text):
    assert split_words(text) == re.findall(r"[^\W_]+", text.lower())
    assert count_words(text) == len(split_words(text))
    assert word_spans(text) == [match.span() for match in re.finditer(r"\S+", text)]


@given(st.text(max_size=60))
def test_pieces_hold_all_but_blanks(text):
    spans = word_spans(text)
    held = "".join(text[a:b] for a, b in spans)
    assert held == re.sub(r"\s", "", text)
    assert all(a < b for a, b in spans)


def test_without_blanks_two_characters_count_as_one_word():
    assert count_words("光合作用是植物的过程。") == 5
    assert [end - start for start, end in word_spans("光合作用是植物的过程。")] == [2, 2, 2, 2, 3]
    assert count_words("DNA分子") == 2


def test_texts_that_look_the_same_are_equal_and_others_are_not():
    assert visible_text("cafe\u0301\u200b  noir ") == visible_text("café noir")
    for one, other in [("10²", "102"), ("Mg", "mg"), ("½", "1/2")]:
        assert visible_text(one) != visible_text(other)
    assert visible_text("\u200b\u2060\ufeff") == ""


def test_copies_in_another_form_are_near_duplicates_and_texts_of_signs_are_compared():
    texts = [
        ("Hành tinh nào lớn nhất trong hệ Mặt Trời?", ["Sao Mộc", "Sao Hỏa"]),
        ("Đại dương nào rộng nhất trên Trái Đất?", ["Thái Bình Dương", "Đại Tây Dương"]),
        ("太阳系里最大的行星是哪一颗？", ["木星", "火星"]),
        ("哪种金属在室温下是液体？", ["水银", "铅"]),
        ("≤ ?", ["+", "−"]),
        ("≥ ?", ["×", "÷"]),
    ]
    rows = [
        {
            "id": f"{form}-{number}",
            "prompt": unicodedata.normalize(form, prompt),
            "options": [unicodedata.normalize(form, option) for option in options],
            "label": 0,
            "context": None,
            "articles": [],
        }
        for form in ("NFC", "NFD")
        for number, (prompt, options) in enumerate(texts)
    ]
    groups = group_near_duplicates(Dataset.from_list(rows, features=FEATURES)).tolist()
    assert groups[:6] == groups[6:]
    assert len(set(groups)) == 6


def test_a_lexical_reader_names_questions_whose_options_have_equal_words(caplog):
    texts = [["the cats", "The  cats!"], ["10²", "102"], ["+", "−"], ["a", "b"]]
    rows = {"id": list("wxyz"), "options": texts}
    _warn_of_equal_options(Dataset.from_dict(rows))
    (line,) = caplog.messages
    assert "2 of 4 questions" in line
    assert "(first: w, y)" in line
