"""Questions: every public form is read, every refusal says file, row and remedy."""

import csv
import json
from itertools import chain

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import kaggle_rows, write_csv
from omegaconf import OmegaConf

from exam.config import Data, Source
from exam.config.compose import conf_dir
from exam.core.errors import ExamError
from exam.data.questions import read
from exam.data.schema import parse
from exam.data.splits import fold_of, read_split, related

LETTERED = {c: c for c in ["id", "prompt", "answer", *"ABCDE"]}


def data(folder, **values) -> Data:
    return Data(name="mine", dir=str(folder), columns=dict(LETTERED), **values)


def refusal(folder, **values) -> str:
    with pytest.raises(ExamError) as caught:
        read(data(folder, **values), "q.csv")
    return str(caught.value).replace(str(folder), "")


ROW = {
    "id": "1",
    "prompt": "Which?",
    "A": "a",
    "B": "None",
    "C": "NA",
    "D": "d",
    "E": "e",
    "answer": "B",
}


def test_csv_keeps_none_and_na_as_texts(tmp_path):
    write_csv(tmp_path / "q.csv", [ROW])
    row = read(data(tmp_path), "q.csv")[0]
    assert row["options"] == ["a", "None", "NA", "d", "e"]
    assert row["label"] == 1


def test_parquet_and_jsonl_read_as_csv_does(tmp_path):
    rows = kaggle_rows(7)
    write_csv(tmp_path / "q.csv", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "q.parquet")
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    forms = [read(data(tmp_path), f"q.{form}").to_list() for form in ("csv", "parquet", "jsonl")]
    assert forms[0] == forms[1] == forms[2]
    assert len(forms[0]) == 7


def test_answer_column_is_optional(tmp_path):
    write_csv(tmp_path / "q.csv", [{k: v for k, v in ROW.items() if k != "answer"}])
    assert read(data(tmp_path), "q.csv")["label"][:] == [None]


def test_two_to_twenty_six_options(tmp_path):
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    row = {"id": "1", "prompt": "Which?", **{c: f"option {c}" for c in letters}, "answer": "Z"}
    write_csv(tmp_path / "q.csv", [row])
    assert read(data(tmp_path, options=letters), "q.csv")[0]["label"] == 25
    write_csv(tmp_path / "q.csv", [{c: row[c] for c in ("id", "prompt", "A", "B")}])
    assert read(data(tmp_path, options="AB"), "q.csv")[0]["options"] == ["option A", "option B"]


def test_several_files_keep_their_ids_apart(tmp_path):
    write_csv(tmp_path / "one.csv", kaggle_rows(2))
    write_csv(tmp_path / "two.csv", kaggle_rows(2))
    found = read(data(tmp_path), ["one.csv", "two.csv"])
    assert found["id"][:] == ["one:0", "one:1", "two:0", "two:1"]


def test_limit_takes_the_first(tmp_path):
    write_csv(tmp_path / "q.csv", kaggle_rows(5))
    assert read(data(tmp_path, limit=2), "q.csv")["id"][:] == ["0", "1"]


def test_qrels_beside_the_file_give_articles(tmp_path):
    write_csv(tmp_path / "q.csv", kaggle_rows(2))
    write_csv(tmp_path / "q_qrels.csv", [{"question": "1", "article": "a7"}])
    assert read(data(tmp_path), "q.csv")["article"][:] == [None, "a7"]


# Refusals, whole.


def test_missing_option_column(tmp_path):
    write_csv(tmp_path / "q.csv", [{k: v for k, v in ROW.items() if k not in "E answer"}])
    assert refusal(tmp_path) == (
        "/q.csv has columns id, prompt, A, B, C, D; option 'E' is missing.\n"
        "Every question needs the same options. Map another name with data.columns.E=<name>, "
        "or set data.options=ABCD."
    )


def test_several_missing_options_are_left_out_together(tmp_path):
    write_csv(tmp_path / "q.csv", [{k: v for k, v in ROW.items() if k not in "D E answer"}])
    assert refusal(tmp_path).endswith("or set data.options=ABC.")


def test_an_option_that_would_be_left_out_is_named(tmp_path):
    write_csv(tmp_path / "q.csv", [ROW])
    assert refusal(tmp_path, options="ABC") == (
        "/q.csv has columns id, prompt, A, B, C, D, E, answer; data.options=ABC leaves option D "
        "out.\nSet data.options=ABCD, or give that column another name."
    )
    write_csv(tmp_path / "q.csv", [{**ROW, "D": "", "E": ""}])
    assert read(data(tmp_path, options="ABC"), "q.csv")["options"][:] == [["a", "None", "NA"]]


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_a_spreadsheets_own_separator_is_read(tmp_path, delimiter):
    with (tmp_path / "q.csv").open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([ROW, {**ROW, "A": "a, b"}.values()])
    (question,) = read(data(tmp_path), "q.csv")
    assert question["options"] == ["a, b", "None", "NA", "d", "e"]


def test_missing_prompt_column(tmp_path):
    write_csv(tmp_path / "q.csv", [{k: v for k, v in ROW.items() if k != "prompt"}])
    assert refusal(tmp_path) == (
        "/q.csv has columns id, A, B, C, D, E, answer; prompt column 'prompt' is missing.\n"
        "Map another name with data.columns.prompt=<name>."
    )


def test_duplicate_columns(tmp_path):
    (tmp_path / "q.csv").write_text("id,prompt,A,A\n1,x,y,z\n")
    assert refusal(tmp_path) == ("/q.csv has 2 columns named 'A'.\nRename all but one of them.")


def test_duplicate_ids(tmp_path):
    write_csv(tmp_path / "q.csv", [ROW, {**ROW, "prompt": "Other?"}])
    assert refusal(tmp_path) == (
        "/q.csv, row 2 (id '1'): row 1 has the same id.\nGive every question an id of its own, "
        "or number them with data.columns.id=null."
    )


def test_empty_prompt(tmp_path):
    write_csv(tmp_path / "q.csv", [{**ROW, "prompt": "  "}])
    assert refusal(tmp_path) == (
        "/q.csv, row 1 (id '1'): the prompt is empty.\nFill it in, or delete the row."
    )


def test_empty_option(tmp_path):
    write_csv(tmp_path / "q.csv", [ROW, {**ROW, "id": "2", "D": ""}])
    assert refusal(tmp_path) == (
        "/q.csv, row 2 (id '2'): option D is empty.\nFill it in, or delete the row."
    )


def test_answer_that_is_no_label(tmp_path):
    write_csv(tmp_path / "q.csv", [{**ROW, "answer": "F"}])
    assert refusal(tmp_path) == (
        "/q.csv, row 1 (id '1'): answer 'F' is not among the labels A, B, C, D, E.\n"
        "Correct the row, or map another column with data.columns.answer=<name>."
    )


def test_equal_options_are_counted_or_refused(tmp_path, caplog):
    write_csv(tmp_path / "q.csv", [{**ROW, "E": "a"}, {**ROW, "id": "2"}])
    read(data(tmp_path), "q.csv")
    assert caplog.messages == [
        f"{tmp_path}/q.csv: 1 of 2 questions have two equal options (data.strict=true refuses them)"
    ]
    assert refusal(tmp_path, strict=True) == (
        "/q.csv, row 1 (id '1'): two options are equal ('a').\n"
        "Correct the row, or accept such rows with data.strict=false."
    )


def test_undecodable_bytes(tmp_path):
    (tmp_path / "q.csv").write_bytes(b"id,prompt\n1,caf\xe9\n")
    assert refusal(tmp_path) == (
        "/q.csv, line 2: byte 0xe9 is not UTF-8.\nSave the file as UTF-8 (in Excel: CSV UTF-8)."
    )


def test_empty_files(tmp_path):
    (tmp_path / "q.csv").write_text("")
    assert refusal(tmp_path) == (
        "/q.csv is empty.\nGive a file with a header and at least one row."
    )
    (tmp_path / "q.csv").write_text("id,prompt,A,B,C,D,E\n")
    assert refusal(tmp_path) == "/q.csv holds no question.\nGive a file with at least one row."


def test_a_cell_of_a_megabyte_is_read(tmp_path):
    write_csv(tmp_path / "q.csv", [{**ROW, "A": "a" * 2**20}])
    assert len(read(data(tmp_path), "q.csv")[0]["options"][0]) == 2**20


def test_row_of_another_width(tmp_path):
    (tmp_path / "q.csv").write_text("id,prompt,A,B\n1,x,y\n")
    assert refusal(tmp_path) == (
        "/q.csv, row 1 has 3 fields, the header 4.\n"
        "Quote fields that contain commas or line breaks."
    )


def test_missing_file(tmp_path):
    assert refusal(tmp_path) == (
        "/q.csv does not exist.\nGive its folder with data.dir=<folder> and its name with "
        "data.train=, data.valid= or data.test=<file>; without a valid file, data.valid=null "
        "data.valid_share=0.2 holds out a share of train."
    )


def test_truncated_parquet(tmp_path):
    pq.write_table(pa.Table.from_pylist(kaggle_rows(3)), tmp_path / "q.parquet")
    whole = (tmp_path / "q.parquet").read_bytes()
    (tmp_path / "q.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ExamError, match=r"q\.parquet is not a whole Parquet file: .*\nFetch it"):
        read(data(tmp_path), "q.parquet")


def split_refusal(folder, **values) -> str:
    with pytest.raises(ExamError) as caught:
        read_split(data(folder, fold=None, **values), None)
    return str(caught.value)


NO_ANSWER = (
    "1 of 2 {} questions have no answer (first: 2).\nTraining and scoring need all of them: map "
    "the column with data.columns.answer=<name>, or remove those rows."
)


def test_questions_without_answers_are_neither_trained_on_nor_scored(tmp_path):
    write_csv(tmp_path / "q.csv", [ROW, {**ROW, "id": "2", "answer": ""}])
    write_csv(tmp_path / "whole.csv", [ROW])
    assert split_refusal(tmp_path, train="q.csv", valid="whole.csv") == NO_ANSWER.format("train")
    assert split_refusal(tmp_path, train="whole.csv", valid="q.csv") == NO_ANSWER.format("valid")


def test_files_of_one_name_are_refused(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_csv(tmp_path / folder / "q.csv", [ROW])
    with pytest.raises(ExamError) as caught:
        read(data(tmp_path), ["one/q.csv", "two/q.csv"])
    assert str(caught.value) == (
        "one/q.csv, two/q.csv give 1 ids twice (first: 'q:1').\n"
        "Name each file once, and give the files different names."
    )


def test_leaks_between_training_and_reported_questions_are_counted(tmp_path, caplog):
    rows = kaggle_rows(12)
    write_csv(tmp_path / "t.csv", rows[:10])
    write_csv(tmp_path / "v.csv", [{**rows[0], "id": "copy"}, *rows[10:]])
    write_csv(tmp_path / "a.csv", kaggle_rows(3, start=9))
    named = {"train": "t.csv", "valid": "v.csv", "test": "a.csv", "fold": None}
    assert len(read_split(data(tmp_path, **named), None).train) == 10
    assert [m for m in caplog.messages if "nearly equal" in m] == [
        "questions: 1 of 3 valid questions nearly equal a training question "
        "or share an article with one: copy",
        "questions: 1 of 3 test questions nearly equal a training question "
        "or share an article with one: 9",
    ]
    with caplog.at_level("DEBUG"):
        split = read_split(data(tmp_path, **named, drop_leaks=True), None)
    assert split.train["id"][:] == [str(i) for i in range(1, 9)]
    assert len(split.pool) == 10
    assert "questions: 2 training questions left out (data.drop_leaks)" in caplog.messages
    assert "questions: 8 train, 3 valid" in caplog.messages
    (noise,) = [message for message in caplog.messages if message.startswith("With 3 ")]
    assert all(figure in noise for figure in ("0.419", "0.005", "21037"))
    assert "questions: 3 valid · right options A 67% B 33%" in caplog.messages


def test_extra_questions_do_not_repeat_those_that_choose_the_checkpoint(tmp_path, caplog):
    rows = kaggle_rows(10)
    write_csv(tmp_path / "t.csv", rows)
    write_csv(tmp_path / "e.csv", rows)
    write_csv(tmp_path / "v.csv", kaggle_rows(2, start=10))
    named = {"train": "t.csv", "valid": "v.csv", "extra": "e.csv", "folds": 5, "fold": 0}
    dev = read_split(data(tmp_path, **named), None).dev["id"][:]
    assert [m for m in caplog.messages if "nearly equal" in m] == [
        "questions: 2 of 2 dev questions nearly equal a training question "
        f"or share an article with one: {', '.join(dev)}"
    ]
    split = read_split(data(tmp_path, **named, drop_leaks=True), None)
    assert split.dev["id"][:] == dev
    learned = [row["id"] for row in rows if row["id"] not in dev]
    assert split.train["id"][:] == [*learned, *(f"extra:{key}" for key in learned)]


def test_qrels_of_another_file_are_refused(tmp_path):
    write_csv(tmp_path / "q.csv", [ROW])
    write_csv(tmp_path / "q_qrels.csv", [{"question": "x9", "article": "a7"}])
    assert refusal(tmp_path) == (
        "The qrels beside /q.csv name none of its questions ('x9' …).\n"
        "Their column `question` holds the questions' ids."
    )


def test_a_later_row_without_an_option_is_refused(tmp_path):
    rows = [ROW, {k: v for k, v in ROW.items() if k != "E"}]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ExamError, match="option 'E' is missing"):
        read(data(tmp_path), "q.jsonl")


def test_half_a_surrogate_pair_is_refused(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"id": "1", "prompt": "\\ud800"}\n')
    with pytest.raises(ExamError) as caught:
        read(data(tmp_path), "q.jsonl")
    assert str(caught.value) == (
        f"{tmp_path}/q.jsonl, line 1 holds half of a surrogate pair.\n"
        "Write characters as UTF-8, or as whole pairs."
    )


def test_number_labels_are_labels_before_they_are_places(tmp_path):
    row = {"id": "1", "prompt": "p", "1": "x", "2": "y", "3": "z", "answer": 1}
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    found = read(data(tmp_path, options="123"), "q.jsonl")
    assert (found[0]["options"], found[0]["label"]) == (["x", "y", "z"], 0)


# Public exams: rows in the shape that each hub data set has.

PUBLIC = {
    "arc": (
        {
            "id": "Mercury_7175875",
            "question": "Which one melts?",
            "choices": {"text": ["ice", "sand", "iron"], "label": ["1", "2", "3"]},
            "answerKey": "3",
        },
        (["ice", "sand", "iron"], 2),
    ),
    "openbookqa": (
        {
            "id": "7-980",
            "question_stem": "The sun is responsible for",
            "choices": {"text": ["puppies", "plants", "mud", "tin"], "label": ["A", "B", "C", "D"]},
            "answerKey": "B",
        },
        (["puppies", "plants", "mud", "tin"], 1),
    ),
    "mmlu": (
        {
            "question": "Find the degree.",
            "subject": "abstract_algebra",
            "choices": ["0", "4", "2", "6"],
            "answer": 1,
        },
        (["0", "4", "2", "6"], 1),
    ),
    "race": (
        {
            "example_id": "high19088.txt",
            "article": "Last week I talked to them.",
            "answer": "D",
            "question": "What happened?",
            "options": ["a", "b", "c", "d"],
        },
        (["a", "b", "c", "d"], 3),
    ),
    "medmcqa": (
        {
            "id": "e9ad821a",
            "question": "Chronic obstruction leads to",
            "opa": "w",
            "opb": "x",
            "opc": "y",
            "opd": "z",
            "cop": 2,
            "choice_type": "single",
            "exp": None,
        },
        (["w", "x", "y", "z"], 2),
    ),
}


def preset(name: str) -> Data:
    schema = OmegaConf.structured(Data)
    return OmegaConf.to_object(
        OmegaConf.merge(schema, OmegaConf.load(conf_dir() / "data" / f"{name}.yaml").data)
    )


@pytest.mark.parametrize("name", PUBLIC)
def test_public_exams(name):
    row, (options, label) = PUBLIC[name]
    config = preset(name)
    assert config.source is Source.hub
    found = parse([row], config, config.hub)[0]
    assert (found["options"], found["label"]) == (options, label)
    assert found["context"] == row.get("article")


def test_sciq_draws_an_order_and_keeps_the_right_text():
    rows = [
        {
            "question": f"What is {i}?",
            "correct_answer": "right",
            "distractor1": "w1",
            "distractor2": "w2",
            "distractor3": "w3",
            "support": "It is right.",
        }
        for i in range(40)
    ]
    found = parse(rows, preset("sciq"), "allenai/sciq")
    assert all(q["options"][q["label"]] == "right" for q in found)
    assert set(found["label"]) == {0, 1, 2, 3}
    assert found[0]["context"] == "It is right."


def test_withheld_answers_of_the_hub_are_unknown():
    row, _ = PUBLIC["medmcqa"]
    assert parse([{**row, "cop": -1}], preset("medmcqa"), "x")[0]["label"] is None


# Folds.


def test_near_duplicates_and_questions_of_one_article_share_a_fold(tmp_path):
    rows = kaggle_rows(30)
    rows.append({**rows[3], "id": "twin", "prompt": rows[3]["prompt"].replace("where", "Where")})
    write_csv(tmp_path / "q.csv", rows)
    qrels = [{"question": "5", "article": "x"}, {"question": "6", "article": "x"}]
    write_csv(tmp_path / "q_qrels.csv", qrels)
    found = read(data(tmp_path), "q.csv")
    groups = related(found)
    assert groups[3] == groups[30]
    assert groups[5] == groups[6]
    for seed in range(5):
        fold = fold_of(found, 4, seed)
        assert fold[3] == fold[30]
        assert fold[5] == fold[6]
        assert sorted(set(fold.tolist())) == [0, 1, 2, 3]


def test_more_folds_than_questions_are_refused(tmp_path):
    write_csv(tmp_path / "q.csv", kaggle_rows(8))
    with pytest.raises(ExamError) as caught:
        fold_of(read(data(tmp_path), "q.csv"), 10, 0)
    assert str(caught.value) == (
        "8 questions form 8 groups of their own, but 10 folds are asked for.\n"
        "Set data.folds=8 or less, or give more questions."
    )


def test_split_is_a_partition_and_depends_on_the_seed_alone(tmp_path):
    write_csv(tmp_path / "q.csv", kaggle_rows(40))
    config = data(tmp_path, train="q.csv", valid_share=0.2, folds=5)
    split = read_split(config, None)
    parts = [split.train["id"][:], split.dev["id"][:], split.valid["id"][:]]
    assert sorted(chain(*parts)) == sorted(split.pool["id"][:])
    assert len(parts[2]) == 8
    again = read_split(config, None)
    assert again.valid["id"][:] == parts[2]


def test_a_share_that_leaves_nothing_to_train_on_is_refused(tmp_path):
    write_csv(tmp_path / "q.csv", kaggle_rows(3))
    with pytest.raises(ExamError) as error:
        read_split(data(tmp_path, train="q.csv", valid_share=0.9), None)
    assert str(error.value) == (
        "data.valid_share=0.9 of 3 questions, 3 when related ones count once, leaves none to "
        "train on.\nSet a smaller share, bring more questions, or give a file: data.valid=<file>"
    )
