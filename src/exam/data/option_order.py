"""Options that refer to others ("Both A and B", "None of the above") give their order a meaning."""

import re
from collections.abc import Iterable
from typing import Any
from unicodedata import normalize

from exam.core.files import digest

# "All of the above" and its like, wherever they stand in an option.
PHRASES = {
    "Arabic": r"(?:كل|جميع|لا شيء|ليس) (?:مما|ما) سبق",
    "Dutch": r"\b(?:alle|geen|beide)(?: van)?(?: de)? (?:boven\w+|genoemde)\b",
    "Chinese": r"(?:以上|上述|前述)(?:選項)?(?:都|全|皆|均|所|各|选|答|说|两|三|四|任)",
    "English": r"\b(?:all|none|any|both|neither|either|each|two|three|one|more|some|most)(?: \w+)?"
    r" (?:of )?the (?:above|preceding|foregoing|previous|listed|mentioned|given|others|\w+ options|"
    r"options (?:given|listed|above)|"
    r"(?:other |given )?(?:answers|choices))\b|\bno correct answer\b",
    "French": r"\b(?:toutes|tous|aucune?) (?:de )?(?:ces |les |des )réponses\b|ci-dessus\b",
    "German": r"\b(?:alle[sr]?|kein\w*|beide) (?:\w+ )*(?:genannten?|obigen?)\b"
    r"|\b(?:alle|keine|beide) (?:der )?(?:anderen )?antworten\b",
    "Hebrew": r"כל התשובות|אף תשובה|כל הנ[\"״]ל",
    "Hindi": r"उपरोक्त|उपर्युक्त|इनमें",
    "Indonesian": r"\bsemua (?:benar|salah|jawaban)\b|\b(?:semua|bukan|tidak ada)\b.* di atas\b",
    "Italian": r"\b(?:tutt[ei]|nessun\w*) (?:\w+ )+(?:precedenti|risposte)\b",
    "Japanese": r"(?:以上|上記|上述)の?(?:す|全|い|ど)|(?:いずれ|どれ)(?:も|でも)"
    r"|(?:すべて|全て)正し",
    "Korean": r"(?:위|보기|상기)(?:의|에서)?(?: \w+)? ?모두|모두 (?:맞|옳|틀|정답)|정답이? ?없",
    "Persian": r"همه موارد|هیچ ?کدام|هیچ‌کدام",
    "Polish": r"\b(?:wszystkie|żadn\w+)(?: \w+)* (?:powyższ\w+|wymienion\w+)",
    "Russian": r"\b(?:вс[её]|ничего|ни одно|ни один)\b.*(?:перечисленн|указанн|названн)"
    r"|\b(?:все ответы|(?:ни один|нет) (?:из )?(?:ответ|вариант))",
    "Spanish": r"\b(?:tod[oa]s|ningun[oa]|nenhum\w*) (?:\w+ )+(?:anteriores|acima)\b"
    r"|\b(?:tod[oa]s|ningun[oa]|nenhum\w*) (?:\w+ )*(?:respuestas|respostas)\b",
    "Swedish": r"\b(?:alla|alle|ingen|inga|inget) (?:av )?(?:de )?ovan\w+",
    "Thai": r"(?:ถูก|ผิด)ทุกข้อ|ทุกข้อ(?:ถูก|ผิด)|ไม่มีข้อ",
    "Turkish": r"^(?:hepsi|hiçbiri)\b|\byukarıdaki",
    "Vietnamese": r"\b(?:tất cả|cả|không)\b.*\b(?:đều đúng|đều sai|ở trên|kể trên|nào đúng)\b"
    r"|\btất cả\b.* trên$",
}
QUANTIFIERS_OF = {
    "Chinese": "皆 都",
    "English": "all any both either neither none",
    "French": "tous toutes aucun aucune",
    "German": "alle beide keine",
}
MARKERS_OF = {  # with them, a number or one letter names another option
    "English": "alone answer answers both but choice choices either except just neither nor not"
    " only option options",
    "French": "réponse réponses seulement",
    "German": "antwort antworten nur",
}
WORDS_OF = {  # an option of nothing but words of these tables and labels refers to others
    "Arabic": "أو فقط كل كلا من و",
    "Chinese": "不 与 且 也 仅 全 均 和 及 只 或 是 正 的 皆 确 對 错 錯 误 誤 都 对 與 两 兩 確",
    "English": "above and apply are correct false incorrect is of one or right statement statements"
    " the them these those three true two wrong",
    "French": "correctes deux et les ni ou sont",
    "Dutch and Swedish": "en och",
    "German": "als auch davon falsch noch oder richtig sind sowohl und weder",
    "Hindi": "और केवल दोनों या",
    "Indonesian": "atau benar dan saja",
    "Italian and Portuguese": "ambas entrambi nem o ou sia",
    "Japanese": "い か し と に の は も 両 方",
    "Korean": "과 다 두 둘 만 모 및 와",
    "Polish": "i lub oraz",
    "Russian": "верно верны и или ни оба только",
    "Spanish": "ambos o solo son u y",
    "Thai": "กับ ข้อ ถูก ทั้ง และ หรือ",
    "Turkish": "ve veya yalnız",
    "Vietnamese": "chỉ cả hoặc sai và đều đúng",
}
DENIALS_OF = {  # an option that refers to others with one of these says that they are wrong
    "Arabic and Hebrew": "ليس لا אף לא",
    "Chinese": "不 无 没 沒 無 非",
    "English": "neither no none nor not",
    "French": "aucun aucune ni",
    "German": "kein keine keiner keines keins weder",
    "Italian and Portuguese": "nem nenhum nenhuma nessun nessuna nessuno",
    "Polish and Turkish": "hiçbiri żaden żadna żadne",
    "Russian": "не ни ничего",
    "Spanish": "ni ningun ninguna ninguno",
    "Swedish": "inga ingen inget",
    "Vietnamese": "không",
}
PHRASE = re.compile("|".join(PHRASES.values()))
LABELS = {*"abcdefghij", *"абвгд", *"أبجد", *"कखगघ", *"กขคงจ"}
QUANTIFIERS, MARKERS, OTHER_WORDS, DENIALS = (
    {word for words in table.values() for word in words.split()}
    for table in (QUANTIFIERS_OF, MARKERS_OF, WORDS_OF, DENIALS_OF)
)
WORDS = QUANTIFIERS | MARKERS | OTHER_WORDS
IDEOGRAPH = re.compile("([\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3])")  # no blank separates these
SEPARATOR = re.compile(r"[\s,;:./&+()\[\]\"'“”„«»、。，（）-]+")


def has_fixed_order(options: list[str]) -> bool:
    """Tell whether the order of options has a meaning: some refer to others, or are letters."""
    words = [_split(option) for option in options]
    labels = {*"abcdefghij"[: len(options)]}
    letters = sum(len(w) == 1 and w[0] in labels for w in words)
    return letters > 1 or any(map(_refers_to_others, options, words))


def classify_reference(option: str) -> tuple[bool, bool]:
    """Tell whether an option says that others are right, and whether it says that they are wrong.

    "All of the above" gives (True, False), "None of the above" (False, True).
    """
    words = _split(option)
    refers, denies = _refers_to_others(option, words), not DENIALS.isdisjoint(words)
    return refers and not denies, refers and denies


def choose_order(options: list[str], order: list[int]) -> list[int]:
    """Return `order`, or the present order if that has a meaning."""
    return list(range(len(options))) if has_fixed_order(options) else order


def find_fixed_orders(options: Iterable[list[str]]) -> list[int]:
    """Return the positions of the questions whose options have a fixed order."""
    return [row for row, texts in enumerate(options) if has_fixed_order(texts)]


def fixed_orders_key(options: Iterable[list[str]]) -> dict[str, Any]:
    """Return the part of a stage's key that tells where the order is fixed; empty without any."""
    rows = find_fixed_orders(options)
    return {"fixed_orders": digest(rows)} if rows else {}


def _split(option: str) -> list[str]:
    text = IDEOGRAPH.sub(r" \1 ", normalize("NFKC", option).casefold())
    return [word for word in SEPARATOR.split(text) if word]


def _refers_to_others(option: str, words: list[str]) -> bool:
    if PHRASE.search(normalize("NFKC", option).casefold()):
        return True
    is_marked = not MARKERS.isdisjoint(words)
    labels = [w for w in words if w in LABELS or (is_marked and w in "123456789")]
    if not WORDS.issuperset(word for word in words if word not in labels):
        return False
    if len(labels) > 1 or (is_marked and labels) or words in (["both"], ["neither"]):
        return True
    return len(words) > 1 and not QUANTIFIERS.isdisjoint(words)
