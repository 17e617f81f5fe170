"""Options that refer to others keep their order wherever exam changes orders."""

import logging

import numpy as np
import pytest
from helpers import write_csv

from exam.config import Data
from exam.core.logging import quiet_libraries
from exam.data.articles import Article
from exam.data.option_order import (
    choose_order,
    classify_reference,
    fixed_orders_key,
    has_fixed_order,
)
from exam.data.questions import read_questions
from exam.generation.llm import Request, _format_questions
from exam.pipelines.infer import _rotation
from exam.pipelines.stress import PERTURBATIONS, _change_questions, _flip_rate
from exam.readers.multiple_choice.features import shuffle_options

REFERRING = """None of the options given; None of the options listed
Keine der Antworten ist richtig
Aucune des réponses; Todas las respuestas son correctas; Tutte le risposte; Все ответы верны
Ни один из вариантов; All of the above; none of the above.; Both A and B; Neither A nor B
both a and b
A and C; A, B, and C; All of these; None of these; All the above; Options A and B; (a) and (b)
Both (A) and (B); None of the other answers; A & B; A/B; Only A; A and B only; A but not C
All except C; All are correct; More than one of the above; Both; Neither; Answers 1 and 2
Both 1 and 2; 1 and 3 only; Both statements are true; 以上都对; 以上都不是; A和B; A 和 B 都对
Alle genannten; Keine der oben genannten Antworten; Sowohl A als auch B; A et B; Tous les deux
Toutes les réponses ci-dessus; Todas las anteriores; Nenhuma das anteriores; A y B
Tutte le precedenti; Всё вышеперечисленное; Tất cả các đáp án trên đều đúng; Cả A và B
上記のすべて; AとBの両方; उपरोक्त सभी; A और B दोनों; كل ما سبق; أ و ب
None of the mentioned; None of the listed options; None of the answers given; No correct answer
都不是; 都对; 위의 모두; 모두 맞다; 정답 없음; A와 B; A, B 모두; ถูกทุกข้อ; ไม่มีข้อใดถูก; ข้อ ก และ ข
Wszystkie powyższe; Żadne z powyższych; Hepsi; Hiçbiri; Yukarıdakilerin hepsi; A ve B; A en B
Alle bovenstaande; Geen van de bovenstaande; Alla ovanstående; Inget av ovanstående; A och B
Semua benar; Semua jawaban di atas; A dan B; Keine davon; Tất cả các đáp án trên; いずれでもない
すべて正しい; همه موارد; هیچکدام; כל התשובות נכונות"""
ORDINARY = """iron; Both iron and copper; True; False; Vitamins A and D; Hepatitis A and B; 60岁以上
B12 and D3; 2 and 3; None; E. coli; above the sea; I and II; All living things; none at all; A
x and y
A and B cells; alle Vögel; toutes les fleurs; 水和氧; 正确; both of them died in 1912; Not true
都城; 두 개의 별; 다; ข้อมูล; alle boven de tien; alla ovaler; semua ikan; i; yukarı; いずれ
none the wiser"""
META = [
    {
        "id": f"m{i}",
        "prompt": f"Which of these does number {i} avoid?",
        "A": f"iron {i}",
        "B": f"copper {i}",
        "C": "Both A and B",
        "D": "Neither A nor B",
        "answer": "C",
    }
    for i in range(10)
]
PLAIN = [{**row, "id": f"p{row['id']}", "C": "tin", "D": "zinc", "answer": "A"} for row in META]


def split(text):
    return [option.strip() for line in text.splitlines() for option in line.split(";")]


@pytest.mark.parametrize("option", split(REFERRING))
def test_an_option_that_refers_to_others_fixes_the_order(option):
    assert has_fixed_order(["iron", "copper", option])


@pytest.mark.parametrize("option", split(ORDINARY))
def test_other_options_may_move(option):
    assert not has_fixed_order(["iron", "copper", option])


def test_options_that_are_letters_keep_their_order():
    assert has_fixed_order(["B", "A", "D", "C"])
    assert not has_fixed_order(["P", "Q", "R", "S"])  # name no option
    assert choose_order(["B", "A"], [1, 0]) == [0, 1]
    assert choose_order(["x", "y"], [1, 0]) == [1, 0]


@pytest.fixture
def questions(tmp_path):
    return read(tmp_path, META + PLAIN)


def read(folder, rows, **settings):
    write_csv(folder / "q.csv", rows)
    columns = {c: c for c in ["id", "prompt", "answer", *"ABCD"]}
    data = Data(name="q", dir=str(folder), columns=columns, options="ABCD", **settings)
    return read_questions(data, "q.csv")


def accuracy_of_first_place(questions, place):
    """The accuracy of a reader that always chooses one place."""
    return np.mean([q["label"] == place for q in questions])


def test_training_and_shuffled_data_keep_the_right_answer_right(questions, tmp_path):
    by_data = read(tmp_path, META + PLAIN, shuffle_options=True)
    for changed in (shuffle_options(questions, seed=42), by_data):
        meta, plain = changed.select(range(10)), changed.select(range(10, 20))
        assert [q["options"] for q in meta] == [q["options"] for q in questions][:10]
        assert accuracy_of_first_place(meta, 2) == 1
        assert accuracy_of_first_place(plain, 0) < 1


def test_fixed_orders_are_counted_when_questions_are_read(questions, tmp_path, caplog):
    quiet_libraries()
    with caplog.at_level(logging.INFO, logger="exam"):
        read(tmp_path, META + PLAIN)
    assert "10 of 20 in q.csv" in caplog.text
    assert "m0" in caplog.text
    assert fixed_orders_key(questions["options"]) != fixed_orders_key(questions["options"][:5])
    assert fixed_orders_key(questions["options"][10:]) == {}  # stages without any stay valid


def test_rotations_move_other_options_only():
    assert _rotation(["iron", "tin", "zinc"], 1) == [1, 2, 0]
    assert _rotation(["iron", "tin", "None of the above"], 1) == [0, 1, 2]


def test_stress_leaves_referring_options(questions):
    before = questions.to_list()
    for perturbation in PERTURBATIONS:
        after = _change_questions(perturbation, questions, seed=0).to_list()
        assert after[:10] == before[:10]
        assert perturbation.question is None or after[10:] != before[10:]


def test_flips_are_counted_among_the_options_that_move(questions):
    asked = {"as given": questions, "options in another order": questions}
    first, second = np.tile([1.0, 0, 0, 0], (20, 1)), np.tile([0, 1.0, 0, 0], (20, 1))
    answers = dict(zip(asked, [(questions, first), (questions, second)], strict=True))
    assert _flip_rate(answers) == 1
    only_meta = {name: (q.select(range(10)), x[:10]) for name, (q, x) in answers.items()}
    assert _flip_rate(only_meta) is None


def test_questions_of_a_language_model_keep_a_meaningful_order():
    options = [["iron", "copper", "Both A and B"], ["iron", "copper", "tin"]]
    replies = [{"question": "Which?", "options": texts, "answer": 2} for texts in options]
    request = Request(Article("a", "T", "text"), [], "k")
    rows = [
        row for seed in range(9) for row in _format_questions(request, {"questions": replies}, seed)
    ]
    assert {row["answer"] for row in rows[::2]} == {"C"}
    assert len({row["answer"] for row in rows[1::2]}) > 1


@pytest.mark.parametrize(
    ("option", "reference"),
    [
        ("All of the above", (True, False)),
        ("Both A and B", (True, False)),
        ("None of the above", (False, True)),
        ("Neither A nor B", (False, True)),
        ("Alle genannten", (True, False)),
        ("Keine der genannten", (False, True)),
        ("以上都不对", (False, True)),
        ("以上都对", (True, False)),
        ("None", (False, False)),
        ("All cats", (False, False)),
    ],
)
def test_a_reference_affirms_or_denies_other_options(option, reference):
    assert classify_reference(option) == reference
