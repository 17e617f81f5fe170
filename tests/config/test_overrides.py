"""Values as people write them, which Hydra's grammar does not read as text."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import refuses

import exam as package
from exam.config import Train
from exam.config.compose import compose_config
from exam.config.overrides import complete_smoke, prepare_override
from exam.config.values import expand_home

TEXTS = [
    "train (1).csv", "train (1, 2).csv", "données.csv", "it's.csv", "a=b.csv", "runs/epoch=3",
    "choice[0]", "题目", "backup(1)", "x]", "[a][b]", '"é', "C:\\x (1)\\", "#1&2!.csv", "(old) é",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("key", ["data.train", "data.columns.prompt"])
def test_a_name_is_read_as_it_is_written(key, text):
    data = compose_config("train", "data=csv", f"{key}={text}").data
    assert (data.train if key == "data.train" else data.columns["prompt"]) == text


@pytest.mark.parametrize("text", TEXTS)
def test_a_value_of_a_run_is_read_as_it_is_written(text):
    config = compose_config("infer", "ckpt=run", f"run.model.name_or_path={text}")
    assert config.run == {"model": {"name_or_path": text}}


@pytest.mark.parametrize(
    ("value", "prepared"),
    [
        ("[train (1).csv,b.csv]", '["train (1).csv",b.csv]'),
        ("[a (1),[é,'b,c'],5]", '["a (1)",["é",\'b,c\'],5]'),
        ("train (1).csv, é.csv", '"train (1).csv", "é.csv"'),  # a sweep
        ("choice(é.csv,b.csv)", 'choice("é.csv",b.csv)'),
        ("{A: choice[0], id: null}", '{A: "choice[0]", id: null}'),
        ("a\\,b é", '"a,b é"'),
        ("${oc.env:HOME}/é", '"${oc.env:HOME}/é"'),
        *((text, text) for text in ("a,b", "[1,2]", "range(1,3)", "'é'", "tag(log,interval(1,2))")),
        *((text, text) for text in ("", "null", "a b.csv", "a\\,b")),
    ],
)
def test_what_hydra_reads_keeps_its_meaning(value, prepared):
    assert prepare_override(f"data.train={value}") == f"data.train={prepared}"


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("seed=[0,1,2", "Close every bracket"),
        ("data.train=[a (1).csv,]", "leave no item empty"),
        ("data.train=a (1),,b", "'data.train=\"a (1),,b\"'"),
    ],
)
def test_brackets_and_commas_that_do_not_match_are_refused(override, remedy):
    with refuses("cannot be read", remedy):
        prepare_override(override)


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("data.train=train (1), 2.csv", "'data.train=\"train (1), 2.csv\"'"),
        ("data.train=a.csv,b (1).csv", "'data.train=[a.csv,\"b (1).csv\"]'"),
        ("model=minilm,tiny", "add -m"),
        ("é=3", "é is not a setting"),
    ],
)
def test_a_refusal_spells_what_works(override, remedy):
    with refuses(remedy):
        compose_config("train", "data=csv", override)


@pytest.mark.parametrize("override", ["outputs=~/x", 'outputs="~/x"', "outputs='~/x'"])
def test_the_home_folder_is_expanded(override, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compose_config("train", override).outputs == f"{tmp_path}/x"


def test_the_home_folder_is_expanded_in_lists_runs_and_python(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = compose_config("infer", "ckpt=[~/a,~/b]", "run.corpus.dir=~/c", "data=csv")
    assert config.ckpt == [f"{tmp_path}/a", f"{tmp_path}/b"]
    assert config.run == {"corpus": {"dir": f"{tmp_path}/c"}}
    train = compose_config("train", "data=csv", "data.train=[a.csv,~/b.csv]", "data.dir=~")
    assert (train.data.train, train.data.dir) == (["a.csv", f"{tmp_path}/b.csv"], str(tmp_path))
    assert expand_home(Train(outputs="~/x", resume="~x y")).outputs == f"{tmp_path}/x"
    with refuses(f"{tmp_path / 'run'} does not exist"):
        package.load("~/run")


def test_a_path_of_a_command_without_a_configuration_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    command = [sys.executable, "-P", "-m", "exam", "compare", "~/nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert str(tmp_path / "nowhere") in done.stderr


def test_smoke_brings_what_the_command_does_not_name():
    smoke = ["data=smoke", "corpus=smoke", "encoder=minilm"]
    assert complete_smoke(["experiment=awp", "debug=smoke"])[2:] == smoke
    assert complete_smoke(["debug=smoke", "data.dir=x", "encoder=bge_small"])[3:] == smoke[1:2]
    assert complete_smoke(["experiment=awp"]) == ["experiment=awp"]
    config = compose_config("train", "experiment=platypus2_70b_rag", "debug=smoke")
    assert Path(config.data.dir, config.data.train).is_file()
    assert Path(config.corpus.dir, config.corpus.files).is_file()
    own = compose_config("train", "experiment=deberta_6k", "debug=smoke", "data.dir=x")
    assert (own.data.name, own.corpus.name) == ("radek_6k", "towns")
