"""Weights & Biases, simulated: one run for each training, and what its variables change."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import make_place, refuses, setting

from exam.config import Tracker, TrackerMode
from exam.config.compose import compose_config
from exam.pipelines.tracking import find_mode
from exam.pipelines.train import run_train

ONLINE, OFFLINE = Tracker(mode=TrackerMode.online), Tracker(mode=TrackerMode.offline)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in ("MODE", "DISABLED", "PROJECT", "NAME", "ENTITY", "DIR", "RUN_GROUP", "SWEEP_ID"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)


@pytest.mark.parametrize(
    ("variables", "tracker", "mode"),
    [
        ({}, ONLINE, "online"),
        ({}, OFFLINE, "offline"),
        ({}, Tracker(), None),
        ({"MODE": ""}, ONLINE, "online"),
        ({"MODE": "offline"}, ONLINE, "offline"),
        ({"MODE": "dryrun"}, ONLINE, "offline"),
        ({"MODE": "online"}, OFFLINE, "offline"),
        ({"MODE": "disabled"}, OFFLINE, None),
        ({"DISABLED": "true"}, ONLINE, None),
        ({"DISABLED": "false"}, ONLINE, "online"),
        ({"MODE": "nonsense"}, Tracker(), None),
    ],
)
def test_the_environment_sends_less_never_more(variables, tracker, mode, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    assert find_mode(tracker) == mode


def test_a_wrong_mode_is_refused(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    with refuses("WANDB_MODE=nonsense", "online, offline or disabled"):
        find_mode(OFFLINE)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("tracking") / "place")


@pytest.fixture
def runs(monkeypatch):
    """The runs that were opened, each with its summary."""
    opened = []

    def init(**settings):
        wandb.run = SimpleNamespace(summary={}, **settings)
        opened.append(wandb.run)

    def finish(exit_code):
        wandb.run.exit_code = exit_code
        wandb.run = None

    wandb = SimpleNamespace(
        run=None, init=init, finish=finish, Error=RuntimeError, Settings=SimpleNamespace
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return opened


def train(place, outputs, *more):
    words = ["retriever=bm25", "model=lexical", "tracker=wandb_offline", f"outputs={outputs}"]
    return run_train(compose_config("train", *setting(place), *words, *more))


def test_each_training_is_a_run_and_a_finished_one_opens_none(place, tmp_path, runs, monkeypatch):
    run = train(place, tmp_path)
    (opened,) = runs
    assert opened.id == run.stage.hash[:16]
    assert (opened.resume, opened.group, opened.exit_code) == ("allow", None, 0)
    assert (opened.project, opened.name) == ("exam", "kaggle-lexical-bm25")
    assert opened.summary["map_at_3"] == pytest.approx(run.systems[-1].scores.mean())
    train(place, tmp_path)
    assert len(runs) == 1
    train(place, tmp_path, "resume=never")
    assert runs[1].id == f"{opened.id}-2"
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_NAME", "x")
    train(place, tmp_path, "data.limit=30")
    assert (runs[2].project, runs[2].name) == ("mine", "x")
    assert runs[2].id not in (runs[0].id, runs[1].id)
    train(place, tmp_path, "data.limit=29", "tracker.project=theirs")
    assert runs[3].project == "theirs"


def test_a_name_that_the_user_sets_goes_before_the_variable(place, tmp_path, runs, monkeypatch):
    monkeypatch.setenv("WANDB_NAME", "variable")
    train(place, tmp_path, "name=mine")
    train(place, tmp_path)
    assert [run.name for run in runs] == ["mine", "variable"]


def test_folds_are_runs_of_one_group(place, tmp_path, runs):
    train(place, tmp_path, "data.cross_validate=true", "data.folds=2")
    assert len({run.id for run in runs}) == 2
    (group,) = {run.group for run in runs}
    assert group.startswith("kaggle-lexical-bm25-")
    train(place, tmp_path, "data.cross_validate=true", "data.folds=3")
    assert len(runs) == 5
    assert runs[-1].group != group


def test_an_agent_gets_the_figures_of_a_finished_run(place, tmp_path, runs, monkeypatch):
    train(place, tmp_path)
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    run = train(place, tmp_path)
    assert run.stage.reused
    assert runs[1].summary["map_at_3"] == pytest.approx(run.systems[-1].scores.mean())
    assert not hasattr(runs[1], "id")  # the agent's


@pytest.mark.parametrize("reported", ["tensorboard", "nonsense"])
def test_a_tracker_that_is_not_installed_is_refused_before_retrieval(
    place, tmp_path, monkeypatch, reported
):
    import transformers.integrations.integration_utils as integrations

    monkeypatch.setattr(integrations, "is_tensorboard_available", lambda: False)
    with refuses(f"trainer.report_to=['{reported}']", "leave trainer.report_to out"):
        train(place, tmp_path, f"trainer.report_to=[{reported}]", "tracker=none")
    assert list(Path(tmp_path).iterdir()) == []
