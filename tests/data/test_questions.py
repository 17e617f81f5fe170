"""Questions: every public format is read; every refusal names file, row and remedy."""

import csv
import json
import re
from dataclasses import replace
from itertools import chain

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from helpers import imported, kaggle_rows, refuses, write_csv
from omegaconf import OmegaConf

from exam.config import Data, Retrieve, Source, Train
from exam.config.compose import compose_config
from exam.config.values import conf_dir
from exam.core.errors import ExamError
from exam.data.files import check_paths
from exam.data.questions import read_questions
from exam.data.schema import parse_questions
from exam.data.splits import assign_folds, group_near_duplicates, read_split

LETTERED = {c: c for c in ["id", "prompt", "answer", *"ABCDE"]}


def data(folder, **values) -> Data:
    return Data(name="mine", dir=str(folder), columns=dict(LETTERED), **values)


def refusal(folder, **values) -> str:
    with pytest.raises(ExamError) as caught:
        read_questions(data(folder, **values), "q.csv")
    return str(caught.value).replace(str(folder), "")


ROW = {
    "id": "1", "prompt": "Which?", "A": "a", "B": "None", "C": "NA", "D": "d", "E": "e",
    "answer": "B",
}  # fmt: skip


def test_csv_keeps_none_and_na_as_texts(tmp_path):
    write_csv(tmp_path / "q.csv", [ROW])
    row = read_questions(data(tmp_path), "q.csv")[0]
    assert row["options"] == ["a", "None", "NA", "d", "e"]
    assert row["label"] == 1


def test_parquet_and_jsonl_read_as_csv_does(tmp_path):
    rows = kaggle_rows(7)
    write_csv(tmp_path / "q.csv", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "q.parquet")
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    first, *others = (
        read_questions(data(tmp_path), f"q.{form}").to_list()
        for form in ("csv", "parquet", "jsonl")
    )
    assert others == [first, first]
    assert len(first) == 7


def test_answer_column_is_optional(tmp_path):
    write_csv(tmp_path / "q.csv", [{k: v for k, v in ROW.items() if k != "answer"}])
    assert read_questions(data(tmp_path), "q.csv")["label"][:] == [None]


def test_two_to_twenty_six_options(tmp_path):
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    row = {"id": "1", "prompt": "Which?", **{c: f"option {c}" for c in letters}, "answer": "Z"}
    write_csv(tmp_path / "q.csv", [row])
    assert read_questions(data(tmp_path, options=letters), "q.csv")[0]["label"] == 25
    write_csv(tmp_path / "q.csv", [{c: row[c] for c in ("id", "prompt", "A", "B")}])
    assert read_questions(data(tmp_path, options="AB"), "q.csv")[0]["options"] == [
        "option A",
        "option B",
    ]


def test_several_files_keep_their_ids_apart(tmp_path):
    write_csv(tmp_path / "one.csv", kaggle_rows(2))
    write_csv(tmp_path / "two.csv", kaggle_rows(2))
    questions = read_questions(data(tmp_path), ["one.csv", "two.csv"])
    assert questions["id"][:] == ["one:0", "one:1", "two:0", "two:1"]


def test_limit_takes_the_first(tmp_path):
    write_csv(tmp_path / "q.csv", kaggle_rows(5))
    assert read_questions(data(tmp_path, limit=2), "q.csv")["id"][:] == ["0", "1"]


def test_qrels_beside_the_file_give_articles(tmp_path):
    write_csv(tmp_path / "q.csv", kaggle_rows(2))
    write_csv(tmp_path / "q_qrels.csv", [{"question": "1", "article": "a7"}])
    assert read_questions(data(tmp_path), "q.csv")["articles"][:] == [[], ["a7"]]


def without(*columns: str) -> dict[str, str]:
    return {name: value for name, value in ROW.items() if name not in columns}


@pytest.mark.parametrize(
    ("rows", "values", "observed", "remedy"),
    [
        ([without("E")], {}, "missing: option E", "Set data.options=ABCD, or "),
        ([without("D", "E")], {}, "option D (D), option E", "Set data.options=ABC, or "),
        ([ROW], {"options": "ABC"}, "leaves option D, E out", "Set data.options=ABCDE,"),
        ([without("prompt")], {}, "missing: prompt", "data.columns.prompt=<name>"),
        ([{"q": "p", "x": "a", "y": "b"}], {}, "missing: id (id), prompt (prompt), option A (A), ",
         "Set data.columns.id=null data.columns.prompt=<name> data.options=null data.columns."),
        ([without("id", "E")], {}, "missing: id (id), option E", "Set data.columns.id=null data."),
        ([ROW, ROW], {}, ", row 2 (id '1'): row 1 has the same id", "data.columns.id=null"),
        ([{**ROW, "prompt": "  "}], {}, ", row 1 (id '1'): the prompt is empty", "Fill it in"),
        ([ROW, {**ROW, "id": "2", "D": ""}], {}, ", row 2 (id '2'): option D is", "Fill it in"),
        ([{**ROW, "B": "", "C": "", "D": "", "E": ""}], {}, "with a text is 1", "2 to 26"),
        ([{**ROW, "E": "", "answer": "E"}], {}, "'E' is not among the labels A, B, C, D.", "label"),
        ([{**ROW, "answer": "F"}], {}, "'F' is not among the labels A, B, C, D, E", "answer="),
        ([{**ROW, "E": "a"}], {"strict": True}, "equal ('a')", "data.strict=false"),
        ([{**ROW, "D": "café", "E": "cafe\u0301"}], {"strict": True}, "equal ('café')", "=false"),
    ],
)  # fmt: skip
def test_rows_that_are_not_questions_are_refused(tmp_path, rows, values, observed, remedy):
    write_csv(tmp_path / "q.csv", rows)
    first, _, second = refusal(tmp_path, **values).partition("\n")
    assert first.startswith("/q.csv")
    assert observed in first
    assert remedy in second


@pytest.mark.parametrize(
    ("content", "observed", "remedy"),
    [
        (b"id,prompt,A,A\n1,x,y,z\n", "has 2 columns named 'A'", "Rename all but one"),
        (b"id,prompt\n1,caf\xe9\n", "line 2: byte 0xe9 is not UTF-8", "Save the file as UTF-8"),
        (b"", "is empty", "Give a file"),
        (b"id,prompt,A,B,C,D,E\n", "holds no question", "Give a file"),
        (b"id,prompt,A,B\n1,x,y\n", "row 1 has 3 fields, the header 4", "Quote fields"),
        (None, "does not exist", "Give its folder and its name: data.dir=<folder>"),
    ],
)
def test_files_that_are_not_tables_are_refused(tmp_path, content, observed, remedy):
    if content is not None:
        (tmp_path / "q.csv").write_bytes(content)
    message = refusal(tmp_path)
    assert message.startswith("/q.csv")
    assert observed in message
    assert f"\n{remedy}" in message


def test_a_whole_message(tmp_path):
    write_csv(tmp_path / "q.csv", [without("E", "answer")])
    assert refusal(tmp_path) == (
        "/q.csv has columns id, prompt, A, B, C, D; missing: option E (E).\n"
        "Set data.options=ABCD, or map the missing columns: data.columns.E=<name>\n"
        "See its rows: exam inspect /q.csv"
    )


def test_empty_columns_after_the_last_option_are_ignored(tmp_path):
    write_csv(tmp_path / "q.csv", [{**ROW, "D": "", "E": ""}])
    questions = read_questions(data(tmp_path, options="ABC"), "q.csv")
    assert questions["options"][:] == [["a", "None", "NA"]]


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_a_spreadsheets_delimiter_is_read(tmp_path, delimiter):
    with (tmp_path / "q.csv").open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([ROW, {**ROW, "A": "a, b"}.values()])
    (question,) = read_questions(data(tmp_path), "q.csv")
    assert question["options"] == ["a, b", "None", "NA", "d", "e"]


def test_equal_options_are_counted(tmp_path, caplog):
    rows = [
        {"E": "a"},
        {"D": "10²", "E": "102"},
        {"D": "Mg", "E": "mg"},
        {"A": "a\u200b", "B": "a"},
    ]
    write_csv(tmp_path / "q.csv", [{**ROW, "id": str(i), **row} for i, row in enumerate(rows)])
    read_questions(data(tmp_path), "q.csv")
    (message,) = caplog.messages
    assert "2 of 4 questions" in message
    assert "(first: 0, 3)" in message
    assert "data.strict=true" in message


def test_a_cell_of_a_megabyte_is_read(tmp_path):
    write_csv(tmp_path / "q.csv", [{**ROW, "A": "a" * 2**20}])
    assert len(read_questions(data(tmp_path), "q.csv")[0]["options"][0]) == 2**20


def test_truncated_parquet(tmp_path):
    pq.write_table(pa.Table.from_pylist(kaggle_rows(3)), tmp_path / "q.parquet")
    whole = (tmp_path / "q.parquet").read_bytes()
    (tmp_path / "q.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ExamError, match=r"q\.parquet is not a whole Parquet file: .*\nFetch it"):
        read_questions(data(tmp_path), "q.parquet")


@pytest.mark.parametrize("part", ["train", "valid"])
def test_questions_without_answers_are_neither_trained_on_nor_scored(tmp_path, part):
    write_csv(tmp_path / "q.csv", [ROW, {**ROW, "id": "2", "answer": ""}])
    write_csv(tmp_path / "whole.csv", [ROW])
    entries = {"train": "whole.csv", "valid": "whole.csv", part: "q.csv"}
    with refuses(f"1 of 2 {part} questions have no answer (first: 2)", "data.columns.answer="):
        read_split(data(tmp_path, fold=None, **entries), None)


def test_files_of_one_name_keep_their_folders_in_their_ids(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_csv(tmp_path / folder / "q.csv", [ROW])
    for entries in (["one/q.csv", "two/q.csv"], "*/q.csv", ["one", "two"]):
        assert read_questions(data(tmp_path), entries)["id"][:] == ["one/q:1", "two/q:1"]
    with refuses("one/q.csv is named twice", "Name each file once"):
        read_questions(data(tmp_path), ["one/q.csv", "one"])


def test_a_folder_or_a_pattern_names_the_tables_in_it(tmp_path, caplog):
    folder = tmp_path / "val"
    (folder / "more").mkdir(parents=True)
    write_csv(folder / "biology.csv", kaggle_rows(2))
    (folder / "physics.jsonl").write_text(json.dumps(kaggle_rows(1)[0]))
    write_csv(folder / "biology_qrels.csv", [{"question": "1", "article": "a7"}])
    (folder / "README.md").write_text("# Exams")
    (folder / ".DS_Store").write_bytes(b"\0")
    write_csv(folder / "more" / "art.csv", kaggle_rows(1))
    with caplog.at_level("INFO"):
        for entry in ("val", "val/*", str(folder)):
            questions = read_questions(data(tmp_path), entry)
            assert questions["id"][:] == ["biology:0", "biology:1", "physics:0"]
            assert questions["articles"][:] == [[], ["a7"], []]
    assert "2 files, without README.md, biology_qrels.csv" in caplog.text
    assert read_questions(data(tmp_path), "val/b*.csv")["id"][:] == ["0", "1"]
    assert len(read_questions(data(tmp_path), "val/**/*")) == 4
    with refuses("holds no table", "'./**/*' in place of ."):
        read_questions(data(tmp_path), ".")
    assert len(read_questions(data(tmp_path), "./**/*")) == 4


def test_a_saved_data_set_is_a_file_and_its_splits_are_files_of_its_folder(tmp_path):
    splits = {name: Dataset.from_list(kaggle_rows(n)) for n, name in ((3, "train"), (2, "test"))}
    DatasetDict(splits).save_to_disk(tmp_path / "saved")
    for folder, entry in ((tmp_path / "saved", "train"), (tmp_path, "saved/train")):
        assert read_questions(data(folder), entry)["id"][:] == ["0", "1", "2"]


def test_all_files_that_cannot_be_read_are_named(tmp_path):
    write_csv(tmp_path / "good.csv", [ROW])
    (tmp_path / "damaged.csv").write_bytes(b"\xd0\xcf\x11\xe0")
    write_csv(tmp_path / "late.csv", [ROW, {**ROW, "id": ""}])
    (tmp_path / "broken.csv").write_text("id,prompt\n1\n")
    entries = ["good.csv", "late.csv", "damaged.csv", "broken.csv", "none.csv"]
    config = Train(data=data(tmp_path, train=entries[:2], valid=entries[2:]))
    with pytest.raises(ExamError) as early:
        check_paths(config)
    with pytest.raises(ExamError) as late:
        read_questions(data(tmp_path), entries)
    for error, names in ((early, entries[2:]), (late, entries[1:])):
        first, *lines = str(error.value).splitlines()
        assert first == f"{len(names)} files cannot be read:"
        for name, line in zip(names, lines, strict=False):
            assert line.startswith(str(tmp_path / name))


def test_an_index_without_a_name_is_nobodys_article(tmp_path):
    (tmp_path / "q.csv").write_text(
        ",prompt,A,B,answer\n0,Who?,a,b,A\n1,Who else?,a,b,B\n2,Whose?,a,b,B\n"
    )
    columns = {"id": None, "prompt": "prompt", "answer": "answer"}
    config = Data(name="q", dir=str(tmp_path), options="AB", columns=columns)
    questions = read_questions(config, "q.csv")
    assert questions["context"][:] == [None] * 3
    assert questions["articles"][:] == [[]] * 3
    assert questions["label"][:] == [0, 1, 1]


def test_leaks_between_training_and_reported_questions_are_counted(tmp_path, caplog):
    rows = kaggle_rows(12)
    write_csv(tmp_path / "t.csv", rows[:10])
    write_csv(tmp_path / "v.csv", [{**rows[0], "id": "copy"}, *rows[10:]])
    write_csv(tmp_path / "a.csv", kaggle_rows(3, start=9))
    entries = {"train": "t.csv", "valid": "v.csv", "test": "a.csv", "fold": None}
    assert len(read_split(data(tmp_path, **entries), None).train) == 10
    assert [message for message in caplog.messages if "nearly equal" in message] == [
        "questions: 1 of 3 valid questions nearly equal a training question "
        "or share an article with one: copy",
        "questions: 1 of 3 test questions nearly equal a training question "
        "or share an article with one: 9",
    ]
    with caplog.at_level("DEBUG"):
        split = read_split(data(tmp_path, **entries, drop_leaks=True), None)
    assert split.train["id"][:] == [str(i) for i in range(1, 9)]
    assert len(split.all_train) == 10
    assert "questions: dropped 2 training questions (data.drop_leaks)" in caplog.messages
    assert "questions: 8 train, 3 valid" in caplog.messages
    (noise,) = [message for message in caplog.messages if message.startswith("With 3 ")]
    assert all(figure in noise for figure in ("0.419", "0.005", "21,037"))
    assert "questions: 3 valid · right options A 67% B 33%" in caplog.messages


def test_extra_questions_do_not_repeat_those_that_choose_the_checkpoint(tmp_path, caplog):
    rows = kaggle_rows(10)
    write_csv(tmp_path / "t.csv", rows)
    write_csv(tmp_path / "e.csv", rows)
    write_csv(tmp_path / "v.csv", kaggle_rows(2, start=10))
    entries = {"train": "t.csv", "valid": "v.csv", "extra_train": "e.csv", "folds": 5, "fold": 0}
    dev = read_split(data(tmp_path, **entries), None).dev["id"][:]
    (message,) = [message for message in caplog.messages if "nearly equal" in message]
    assert "2 of 2 dev questions" in message
    assert message.endswith(f": {', '.join(dev)}")
    split = read_split(data(tmp_path, **entries, drop_leaks=True), None)
    assert split.dev["id"][:] == dev
    learned = [row["id"] for row in rows if row["id"] not in dev]
    assert split.train["id"][:] == [*learned, *(f"extra:{key}" for key in learned)]


def test_qrels_of_another_file_are_refused(tmp_path):
    write_csv(tmp_path / "q.csv", [ROW])
    write_csv(tmp_path / "q_qrels.csv", [{"question": "x9", "article": "a7"}])
    observed, _, remedy = refusal(tmp_path).partition("\n")
    assert observed.startswith("The qrels beside /q.csv name none of its questions ('x9'")
    assert "`question`" in remedy


def test_a_later_line_is_refused(tmp_path):
    line = '{"id": "1", "prompt": "\\ud800"}'
    (tmp_path / "q.jsonl").write_text(f"{json.dumps(ROW)}\n{line}\n")
    with refuses("line 2 holds half of a surrogate pair", "whole pairs"):
        read_questions(data(tmp_path), "q.jsonl")


def test_a_number_is_a_label_before_it_is_an_index(tmp_path):
    row = {"id": "1", "prompt": "p", "1": "x", "2": "y", "3": "z", "answer": 1}
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    (question,) = read_questions(data(tmp_path, options="123"), "q.jsonl")
    assert (question["options"], question["label"]) == (["x", "y", "z"], 0)


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
    (question,) = parse_questions([row], config, config.hub)
    assert (question["options"], question["label"]) == (options, label)
    assert question["context"] == row.get("article")


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
    questions = parse_questions(rows, preset("sciq"), "allenai/sciq")
    assert all(q["options"][q["label"]] == "right" for q in questions)
    assert set(questions["label"]) == {0, 1, 2, 3}
    assert questions[0]["context"] == "It is right."


def test_withheld_answers_of_the_hub_are_unknown():
    row, _ = PUBLIC["medmcqa"]
    assert parse_questions([{**row, "cop": -1}], preset("medmcqa"), "x")[0]["label"] is None


def test_near_duplicates_and_questions_of_one_article_share_a_fold(tmp_path):
    rows = kaggle_rows(30)
    rows.append({**rows[3], "id": "twin", "prompt": rows[3]["prompt"].replace("where", "Where")})
    write_csv(tmp_path / "q.csv", rows)
    qrels = [{"question": "5", "article": "x"}, {"question": "6", "article": "x"}]
    write_csv(tmp_path / "q_qrels.csv", qrels)
    questions = read_questions(data(tmp_path), "q.csv")
    groups = group_near_duplicates(questions)
    assert groups[3] == groups[30]
    assert groups[5] == groups[6]
    for seed in range(5):
        fold = assign_folds(questions, 4, seed)
        assert fold[3] == fold[30]
        assert fold[5] == fold[6]
        assert sorted(set(fold.tolist())) == [0, 1, 2, 3]


def test_splits_without_enough_questions_are_refused(tmp_path):
    write_csv(tmp_path / "q.csv", kaggle_rows(8))
    with pytest.raises(ExamError, match=r"data\.folds=10\.\nSet data\.folds=8"):
        assign_folds(read_questions(data(tmp_path), "q.csv"), 10, 0)
    with refuses("data.valid_fraction=0.9 of 8", "Set a smaller fraction"):
        read_split(data(tmp_path, train="q.csv", valid_fraction=0.9), None)


def test_a_split_is_a_deterministic_partition(tmp_path):
    write_csv(tmp_path / "q.csv", kaggle_rows(40))
    config = data(tmp_path, train="q.csv", valid_fraction=0.2, folds=5)
    split = read_split(config, None)
    parts = [split.train["id"][:], split.dev["id"][:], split.valid["id"][:]]
    assert sorted(chain(*parts)) == sorted(split.all_train["id"][:])
    assert len(parts[2]) == 8
    assert read_split(config, None).valid["id"][:] == parts[2]


def test_columns_as_one_setting_read_like_single_ones():
    one = compose_config("retrieve", "data=csv", "data.columns={prompt: question, id: null, E: e}")
    single = [f"data.columns.{pair}" for pair in ("prompt=question", "id=null", "E=e")]
    assert one.data == compose_config("retrieve", "data=csv", *single).data
    assert one.data.columns == {"id": None, "prompt": "question", "answer": "answer", "E": "e"}


HEADERLESS = [
    ["Which planet has the largest mass?", "Mars", "Jupiter", "4", "4", "B"],
    ["What is 2 + 2?", "1", "2", "3", "4", "D"],
]


@pytest.mark.parametrize("numbered", [False, True])
def test_a_file_without_a_header_is_recognised_and_its_remedy_reads_it(tmp_path, numbered):
    for rows in (HEADERLESS, HEADERLESS[::-1]):
        lines = [[f"q{i}", *row] if numbered else row for i, row in enumerate(rows)]
        (tmp_path / "q.csv").write_text("\n".join(map(",".join, lines)))
        with refuses("q.csv has no header", rows[0][0], "data.header=[") as caught:
            check_paths(Retrieve(data=data(tmp_path, test="q.csv")))
        remedy = re.findall(r"data\.\S+", str(caught.value))
        given = ["data=csv", f"data.dir={tmp_path}", "data.test=q.csv"]
        config = compose_config("retrieve", *given, *remedy)
        check_paths(config)
        questions = read_questions(config.data, "q.csv")
        assert questions["prompt"][:] == [row[0] for row in rows]
        assert questions["options"][:] == [row[1:5] for row in rows]
        assert questions["label"][:] == ["ABCD".index(row[5]) for row in rows]
    assert questions["id"][:] == (["q0", "q1"] if numbered else ["q-1", "q-2"])


def test_a_header_in_the_file_is_not_a_question(tmp_path):
    write_csv(tmp_path / "q.csv", [ROW])
    with refuses("q.csv has a header: id, prompt, A", "data.header=null"):
        read_questions(data(tmp_path, header=list(ROW)), "q.csv")
    (tmp_path / "q.jsonl").write_text(json.dumps(ROW))
    with refuses("q.jsonl names its columns", "data.header=null"):
        read_questions(data(tmp_path, header=list(ROW)), "q.jsonl")


def test_a_hub_sets_configurations_and_splits_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder, names = tmp_path / "two", ("biology", "physics")
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "test.jsonl").write_text(json.dumps(ROW))
    files = [{"split": "test", "path": f"{name}/test.jsonl"} for name in names]
    configs = [{"config_name": n, "data_files": [f]} for n, f in zip(names, files, strict=True)]
    (folder / "README.md").write_text(f"---\n{json.dumps({'configs': configs})}\n---\n")
    hub = Data(name="h", source=Source.hub, hub=str(folder), test="test", valid="validation")
    for config in (hub, replace(hub, hub_config="chemistry")):
        with pytest.raises(
            ExamError, match=r"\n.*data\.hub_config=biology or data\.hub_config=physics$"
        ):
            read_questions(config, "test")
    with pytest.raises(ExamError, match=r"\nGive one of its splits: data\.valid=test$"):
        read_questions(replace(hub, hub_config="physics"), "validation")
    assert read_questions(replace(hub, hub_config="physics"), "test")["id"][:] == ["1"]


def test_a_saved_folder_is_read_as_a_hub_set(tmp_path):
    train, test = (Dataset.from_list(kaggle_rows(n)) for n in (3, 2))
    DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "splits")
    train.save_to_disk(tmp_path / "one")
    config = Data(name="h", source=Source.hub, hub=str(tmp_path / "splits"), valid="dev")
    assert read_questions(config, ["train", "test"])["id"][:] == [
        *("train:0", "train:1", "train:2", "test:0", "test:1")
    ]
    with refuses("(dev): it has no such split", "data.valid=test or data.valid=train"):
        read_questions(config, "dev")
    config = replace(config, hub=str(tmp_path / "one"), train="train")
    with refuses("one set of questions, without splits", "data=csv data.train="):
        read_questions(config, "train")
    assert len(read_questions(replace(config, valid=None), "train")) == 3


def test_questions_that_repeat_another_are_named(tmp_path, caplog):
    rows = kaggle_rows(12)
    swapped = {**rows[10], "id": "twin", "A": rows[10]["B"], "B": rows[10]["A"]}
    write_csv(tmp_path / "t.csv", rows[:10])
    write_csv(tmp_path / "v.csv", [*rows[10:], swapped, {**rows[10], "id": "other", "A": "sky"}])
    read_split(data(tmp_path, train="t.csv", valid="v.csv", fold=None), None)
    (message,) = [message for message in caplog.messages if "repeat an earlier one" in message]
    assert message.startswith("questions: 1 of 4 valid questions")
    assert message.endswith(": twin repeats 10")


def test_jmmlu_reads_its_subjects_without_headers(tmp_path):
    for subject in ("law", "physics"):
        (tmp_path / f"{subject}.csv").write_text(f"{subject}は?,東京,大阪,京都,奈良,C\n" * 2)
    config = preset("jmmlu")
    config.dir = str(tmp_path)
    questions = read_questions(config, config.train)
    assert questions["id"][:] == [
        "law:law-1",
        "law:law-2",
        "physics:physics-1",
        "physics:physics-2",
    ]
    assert questions["label"][:] == [2] * 4


def test_missing_columns_are_refused_before_heavy_imports(tmp_path):
    write_csv(tmp_path / "q.csv", [without("prompt")])
    code = (
        "from exam.cli import main\n"
        f"assert main(['train', 'data=csv', r'data.train={tmp_path / 'q.csv'}']) == 2"
    )
    assert imported(code, "torch", "transformers", "sentence_transformers") == set()


def test_the_case_of_a_column_does_not_matter_where_one_fits(tmp_path):
    row = {name.swapcase(): value for name, value in ROW.items()}
    write_csv(tmp_path / "q.csv", [row])
    write_csv(tmp_path / "p.csv", [ROW])
    check_paths(Retrieve(data=data(tmp_path, test="q.csv")))
    questions = read_questions(data(tmp_path), "q.csv")
    assert questions.to_list() == read_questions(data(tmp_path), "p.csv").to_list()
    write_csv(tmp_path / "q.csv", [{**row, "Id": "2"}])
    with refuses("q.csv has the columns 'ID', 'Id' for 'id'"):
        read_questions(data(tmp_path), "q.csv")


def test_a_file_of_a_similar_name_is_offered(tmp_path):
    (tmp_path / "val").mkdir()
    write_csv(tmp_path / "val" / "trains.csv", [ROW])
    with refuses("val/train.csv does not exist", "Did you mean val/trains.csv? Give its folder"):
        read_questions(data(tmp_path), "val/train.csv")
