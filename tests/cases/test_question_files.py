"""Files of questions as people have them give the questions and answers that people mean."""

import json

import numpy as np
import pandas as pd
import pytest
from helpers import ROOT, kaggle_rows, refuses, write_csv

from exam.config.compose import compose_config
from exam.data.questions import read_questions
from exam.data.splits import group_near_duplicates, read_split
from exam.metrics import map_at_k
from exam.readers.multiple_choice.features import shuffle_options

CASES = ROOT / "tests" / "cases"


def read(case, file, *overrides, options="ABCD"):
    """The questions of a file, as a command reads them; `options=None` leaves the default."""
    words = [f"data.dir={CASES / case}", f"data.test={file}", *overrides]
    if options is not None:
        words.append(f"data.options={options}")
    config = compose_config("retrieve", "data=csv", *words)
    return read_questions(config.data, config.data.test)


def right_texts(questions):
    return [q["label"] if q["label"] is None else q["options"][q["label"]] for q in questions]


RIGHT = ["mercury", "Jupiter", "carbon dioxide", "the heart", "ampere", "electron", "acetic acid"]
RIGHT += ["igneous rock", "vitamin D", "stratosphere", "barometer", "mitochondrion"]


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("q.csv", [5, 4]),
        ("q.parquet", [5, 4]),
        ("q.jsonl", [5, 4]),
        ("all_e_empty.csv", [4, 4]),
    ],
)
def test_blanks_at_the_end_are_no_options(file, counts):
    questions = read("04-ragged-letters", file, options=None)
    assert [len(options) for options in questions["options"]] == counts * 6
    assert right_texts(questions) == RIGHT


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_numbers_without_the_last_one_are_not_guessed(ending):
    """Counted from 0, every answer would be the next option, and MAP@3 would fall by half."""
    file = f"from_one_no_four.{ending}"
    with refuses("'iron'", "'mercury'", "data.answer=index0 or data.answer=index1"):
        read("05-index-answers", file)
    questions = read("05-index-answers", file, "data.answer=index1")
    assert right_texts(questions) == RIGHT
    shifted = read("05-index-answers", file, "data.answer=index0")
    logits = np.array([[text in RIGHT for text in q["options"]] for q in questions], float)
    assert map_at_k(logits, np.array(questions["label"]), 3) == 1
    assert map_at_k(logits, np.array(shifted["label"]), 3) < 0.5


@pytest.mark.parametrize("file", ["from_one.csv", "from_one.parquet"])
def test_numbers_up_to_the_last_are_counted_from_one(file):
    assert right_texts(read("05-index-answers", file)) == RIGHT


@pytest.mark.parametrize("file", ["from_zero.csv", "from_zero.parquet"])
def test_numbers_with_a_zero_are_counted_from_zero(file):
    assert right_texts(read("05-index-answers", file)) == RIGHT


@pytest.mark.parametrize(
    ("file", "right"),
    [
        ("answer_double.csv", ["mercury"]),
        ("answer_double.jsonl", ["mercury"]),
        ("answer_double.parquet", ["mercury", "Jupiter", None]),
        ("answer_int8.parquet", ["mercury", "Jupiter"]),
        ("answer_dictionary.parquet", ["mercury", "Jupiter"]),
        ("large_string.parquet", ["mercury", "Jupiter"]),
    ],
)
def test_whole_floats_and_narrow_types_are_answers(file, right):
    assert right_texts(read("06-float-answer", file)) == right


def test_whole_floats_are_ids_and_meet_the_qrels():
    questions = read("06-float-answer", "id_double.parquet")
    assert questions["id"][:] == ["10", "11", "12"]
    assert questions["articles"][:] == [["mercury.txt"], [], ["co2.txt"]]


def test_true_is_no_answer_among_four_options():
    with refuses("answer True (bool)", "data.columns.answer=<name>"):
        read("06-float-answer", "answer_bool.parquet")


@pytest.mark.parametrize("kind", ["Int64", "float32", "uint8", "category", "str", "float16"])
def test_answers_of_every_type_that_pandas_writes(tmp_path, kind):
    rows = [{**row, "answer": "ABCDE".index(row["answer"])} for row in kaggle_rows(5)]
    frame = pd.DataFrame(rows).astype({"answer": kind, "id": "float64"})
    frame.to_parquet(tmp_path / "q.parquet")
    questions = read(tmp_path, "q.parquet", options=None)
    assert questions["label"][:] == [0, 1, 2, 3, 4]
    assert questions["id"][:] == ["0", "1", "2", "3", "4"]


LISTS = {
    "json_list.csv": [],
    "python_list.csv": [],
    "list_of_dicts.jsonl": ["data.columns.answer=answerKey"],
    "list_of_structs.parquet": [],
    "labels_and_texts.jsonl": [
        "data.columns.prompt=question.stem",
        "data.columns.options=question.choices",
        "data.columns.answer=answerKey",
    ],
    "letter_dictionary.jsonl": [
        "data.columns.id=null",
        "data.columns.prompt=question",
        "data.columns.options=options",
        "data.columns.answer=answer_idx",
    ],
    "mc1_targets.jsonl": [
        "data.columns.id=null",
        "data.columns.prompt=question",
        "data.columns.options=mc1_targets",
    ],
}


@pytest.mark.parametrize("file", LISTS)
def test_options_in_one_column(file):
    words = ["data.columns.options=choices", *LISTS[file]]
    questions = read("07-option-shapes", file, *words, options="null")
    assert [sorted(options) for options in questions["options"]] == [
        ["copper", "iron", "mercury", "tin"],
        ["Jupiter", "Mars", "Saturn", "Venus"],
    ]
    assert right_texts(questions) == RIGHT[:2]


@pytest.mark.parametrize("file", ["q.csv", "Q2.CSV", "q.tsv", "q.json", "q.csv.gz"])
def test_every_ending(file):
    assert right_texts(read("15-corpus-endings", file, options="ABC")) == ["heart", "mercury"]


@pytest.mark.parametrize(
    ("file", "more", "number"),
    [
        ("blank_row.csv", [], 2),
        ("capitals.csv", [], 3),
        ("empty_columns.csv", [], 3),
        ("sep_line.csv", [], 3),
        ("spaces_in_header.csv", [], 3),
        ("unnamed_index.csv", ["data.columns.id=null"], 3),
    ],
)
def test_files_that_a_spreadsheet_saved(file, more, number):
    questions = read("17-excel-csv", file, *more, options=None)
    assert right_texts(questions) == RIGHT[:number]
    assert questions["context"][:] == [None] * number
    assert questions["articles"][:] == [[]] * number


@pytest.mark.parametrize(
    ("entry", "ids"),
    [
        ("val", ["biology:0", "biology:1", "physics:0", "physics:1"]),
        ("val/*.csv", ["biology:0", "biology:1", "physics:0", "physics:1"]),
        ("[val/physics.csv,dev/physics.csv]", ["val/physics:0", "val/physics:1", "dev/physics:0"]),
    ],
)
def test_folders_and_patterns_of_subjects(entry, ids):
    questions = read("18-subject-folders", entry, "data.columns.prompt=question")
    assert questions["id"][:] == ids
    assert right_texts(questions)[-1] in ("electron", "Jupiter")


def test_cmmlu_and_a_row_of_too_few_fields():
    words = ["data.columns.id=null", "data.columns.prompt=Question"]
    assert right_texts(read("18-subject-folders", "cmmlu.csv", *words)) == [
        *("Jupiter", "ampere", "electron")
    ]
    with refuses("line 3: row 2 has 6 fields, the header 7"):
        read("18-subject-folders", "one_field_less.csv")


def test_options_that_refer_to_others_stay_and_the_answer_stays_right():
    questions = read("19-meta-options", "q.csv")
    for seed in range(3):
        shuffled = shuffle_options(questions, seed)
        assert shuffled["options"][:] == questions["options"][:]
        assert shuffled["label"][:] == [2] * 10 + [3, 1]


AS_WRITTEN = [
    "brackets.csv", "dot.csv", "list.jsonl", "lower.csv", "option_c.csv", "spaces.csv", "text.csv",
    "text_case.csv", "wide.csv", "with_text.csv",
]  # fmt: skip


@pytest.mark.parametrize("file", AS_WRITTEN)
def test_answers_as_people_write_them(file):
    assert right_texts(read("32-answers-as-people-write-them", file)) == ["carbon dioxide"]


@pytest.mark.parametrize("file", ["two_bars.csv", "two_commas.csv"])
def test_several_answers_are_not_one(file):
    with refuses("names several options"):
        read("32-answers-as-people-write-them", file)


def test_a_hub_sets_configurations_are_named_and_read(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path))
    words = ["data=hub", f"data.hub={CASES / '29-hub-config' / 'two'}", "data.options=null"]
    words += ["data.columns.prompt=question", "data.columns.options=choices", "data.test=test"]
    config = compose_config("retrieve", *words)
    with refuses("data.hub_config=biology or data.hub_config=physics"):
        read_questions(config.data, config.data.test)
    config = compose_config("retrieve", *words, "data.hub_config=physics")
    assert right_texts(read_questions(config.data, config.data.test)) == ["ampere", "electron"]


def test_an_index_of_pandas_makes_no_question_a_leak(tmp_path):
    """Taken for an article, the index would make leaks of the rows with a number of valid's."""
    for name, rows in (("t", kaggle_rows(20)), ("v", kaggle_rows(10, start=20))):
        frame = pd.DataFrame(rows).drop(columns="id")
        frame.to_csv(tmp_path / f"{name}.csv")
        frame.to_csv(tmp_path / f"{name}.csv.gz", compression="gzip")
    for ending in ("csv", "csv.gz"):
        words = [f"data.dir={tmp_path}", f"data.train=t.{ending}", f"data.valid=v.{ending}"]
        words += ["data.columns.id=null", "data.drop_leaks=true", "data.fold=null"]
        words += ["trainer.eval_strategy=no", "trainer.load_best_model_at_end=false"]
        split = read_split(compose_config("train", "data=csv", *words).data, None)
        assert (len(split.train), len(split.valid)) == (20, 10)
        assert not any(split.train["articles"])
        assert not any(split.train["context"])


def test_decomposed_copies_share_a_fold():
    both = []
    for form in ("nfc", "nfd"):
        questions = read("09-combining-marks", f"{form}.csv")
        both += [{**question, "id": f"{form}-{question['id']}"} for question in questions]
    groups = group_near_duplicates(questions.from_list(both, features=questions.features)).tolist()
    assert groups[:4] == groups[4:]
    assert len(set(groups)) == 4
    with refuses("two options are equal ('café')", "data.strict=false"):
        read("09-combining-marks", "equal_options.csv", "data.strict=true")


@pytest.mark.parametrize(
    "name", ["train (1).csv", "données.csv", "it's.csv", "a=b.csv", "题目.csv"]
)
def test_names_that_people_give_to_files(tmp_path, name):
    write_csv(tmp_path / name, kaggle_rows(2))
    assert len(read(tmp_path, name, options=None)) == 2
    (tmp_path / f"{name}.jsonl").write_text(json.dumps(kaggle_rows(1)[0]))
    assert len(read(tmp_path, f"[{name},{name}.jsonl]", options=None)) == 3
