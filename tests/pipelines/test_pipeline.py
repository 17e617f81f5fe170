"""Commands on tiny data, one after the other: retrieve, train, infer."""

import csv
import json
import re
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers import exam, make_place, read_losses, refuses, run_exam, setting, write_csv
from processes import start

from exam.config.compose import compose_config
from exam.pipelines.infer import run_infer

TINY = ["model=tiny", "trainer.num_train_epochs=1", "context.num_passages=2"]


@dataclass(frozen=True)
class Place:
    """A folder with questions, articles and outputs, and the overrides that name them."""

    folder: Path
    encoder: Path

    @property
    def outputs(self) -> Path:
        return self.folder / "outputs"

    @property
    def out(self) -> str:
        return f"outputs={self.outputs}"

    @property
    def questions(self) -> str:
        return f"data.dir={self.folder / 'questions'}"

    @property
    def setting(self) -> list[str]:
        """Overrides of a run that takes seconds."""
        return setting(self.folder, f"encoder.name_or_path={self.encoder}")

    def find(self, pattern: str) -> Path:
        (path,) = sorted(self.outputs.glob(pattern))
        return path

    @property
    def run(self) -> Path:
        return self.find("train/kaggle-tiny-two_stage-????????")

    def infer_overrides(self) -> list[str]:
        """Overrides of `exam infer` for the six questions without answers."""
        return [f"ckpt={self.run}", "data=kaggle_test", self.questions, self.out]


@pytest.fixture
def place(tmp_path, encoder) -> Place:
    return Place(make_place(tmp_path / "place"), encoder)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory, encoder) -> tuple[Place, str]:
    """A place with a trained run, and the output of training."""
    place = Place(make_place(tmp_path_factory.mktemp("trained") / "place"), encoder)
    return place, run_exam("train", *place.setting, *TINY).stdout


@pytest.fixture
def trained(finished_run, tmp_path) -> Place:
    """A copy of the trained place that a test may change."""
    place, _ = finished_run
    shutil.copytree(place.folder, tmp_path / "place")
    return Place(tmp_path / "place", place.encoder)


def test_a_run_folder_has_its_files(finished_run):
    place, printed = finished_run
    names = {p.name for p in place.run.iterdir() if not p.name.startswith(".")}
    assert names == {
        "README.md", "config.yaml", "environment.json", "key.json", "manifest.json",
        "report.html", "model", "learned.parquet", "predictions.parquet", "results.json",
        "trainer_state.json", "training.json",
    }  # fmt: skip
    assert not list(place.run.rglob("*.bin"))  # no pickle is kept
    results = json.loads((place.run / "results.json").read_text())
    assert [row["system"] for row in results["rows"]] == [
        "random order (expected)",
        "constant order (A, B, C)",
        "longest option first",
        "lexical (word overlap with the passages)",
        place.run.name,
    ]
    assert all(row["n"] == 10 for row in results["rows"])
    assert "95 % interval" in printed


def test_submission_has_every_id_once_in_order(trained):
    run_exam("infer", *trained.infer_overrides())
    submission = trained.find("infer/*/submission.csv")
    with submission.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["id", "prediction"]
    assert [row[0] for row in rows] == [str(i) for i in range(50, 56)]
    assert all(len(set(row[1].split())) == 3 for row in rows)
    assert not (submission.parent / "results.json").exists()  # no answers, no score


def test_infer_repeats_the_scores_of_training_in_another_folder(trained):
    overrides = setting(trained.folder, "data.test=valid.csv")
    run_infer(compose_config("infer", f"ckpt={trained.run}", *overrides))
    again = trained.find("infer/kaggle-tiny-*")
    tables = [pq.read_table(p / "predictions.parquet") for p in (trained.run, again)]
    before, after = (t["logit"].to_numpy() for t in tables)
    assert after == pytest.approx(before, abs=1e-6)
    scores = [json.loads((p / "results.json").read_text())["rows"] for p in (trained.run, again)]
    assert scores[0][-1]["map_at_3"] == scores[1][-1]["map_at_3"]


def test_a_second_run_reuses_all_stages(finished_run):
    place, _ = finished_run
    again = run_exam("train", *place.setting, *TINY)
    (line,) = [line for line in again.stderr.splitlines() if "Reused" in line]
    assert line.endswith("Reused: articles, index, words, 2 contexts, train")
    assert " done: " not in again.stderr
    numbered = run_exam("train", *place.setting, *TINY, "resume=never")
    assert numbered.stderr.count(" done: ") == 1
    second = place.run.with_name(f"{place.run.name}-2")
    same = [pq.read_table(p / "predictions.parquet").to_pylist() for p in (place.run, second)]
    assert same[0] == same[1]


@pytest.mark.slow
def test_resume_refuses_another_configuration(trained):
    again = run_exam("train", *trained.setting, *TINY, f"resume={trained.run}")
    assert re.search(r"Reused: .*, train$", again.stderr, re.MULTILINE)
    other = exam("train", *trained.setting, *TINY, "seed=1", f"resume={trained.run}")
    assert (other.returncode, other.stderr.splitlines()[-2:]) == (
        2,
        [
            f"resume={trained.run} is a run of another configuration: seed (42 → 1).",
            "Give that configuration, or resume=auto",
        ],
    )
    missing = exam("train", *trained.setting, *TINY, "resume=nowhere")
    assert missing.stderr.splitlines()[-2:] == [
        "resume=nowhere does not exist.",
        "Give a run folder, or resume=auto",
    ]


def test_overrides_of_a_run_are_logged_and_wrong_ones_refused(trained, caplog):
    caplog.set_level("INFO")
    run_infer(compose_config("infer", *trained.infer_overrides(), "run.context.num_passages=1"))
    assert "run.context.num_passages: 2 → 1" in caplog.messages
    refused = exam("infer", *trained.infer_overrides(), "run.context.topk=1")
    assert refused.returncode == 2
    assert refused.stderr == (
        "run: Key 'topk' not in 'Context'\n"
        f"Override a setting of {trained.run}/config.yaml: run.<key>=<value>\n"
    )


def test_changed_or_unfinished_run_is_refused(trained):
    run = trained.run
    weights = run / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    infer = compose_config("infer", *trained.infer_overrides())
    with refuses(f"{weights} is not the file that was written", f"Delete the folder {run}"):
        run_infer(infer)
    (run / "manifest.json").unlink()
    with refuses(f"{run} is unfinished: it has no manifest.json", "Give a finished run folder"):
        run_infer(infer)


@pytest.mark.parametrize(
    ("override", "observed", "remedy"),
    [
        ("ckpt={contexts}", "{contexts} is not a run of exam train", "outputs/train"),
        ("data=csv", "data=csv has no questions", "data.test=<file>"),
        ("++run.data.limit=2", "run.data.limit belongs to the command", "data.limit=<value>"),
        ("++run.model.name_or_path=x", "run.model.name_or_path is fixed", "ckpt=<folder>"),
    ],
)
def test_infer_refuses_wrong_runs_and_settings(finished_run, override, observed, remedy):
    place, _ = finished_run
    contexts = place.find("contexts/kaggle-valid-*")
    run = [] if override.startswith("ckpt") else [f"ckpt={place.run}"]
    with refuses(observed.format(contexts=contexts), remedy):
        run_infer(compose_config("infer", *run, override.format(contexts=contexts)))


def test_retrieve_scores_itself_when_articles_are_known(trained):
    rows = [{"question": str(i), "article": f"a{i % 10}"} for i in range(40, 50)]
    write_csv(trained.folder / "questions" / "valid_qrels.csv", rows)
    process = run_exam("retrieve", *trained.setting, "data.train=null", "data.test=null")
    assert re.search(r"valid contexts: .*recall_at_5 .*mrr .*supported ", process.stderr)


STEPS = ["trainer.num_train_epochs=2", "trainer.logging_steps=1", "index.shard_size=4"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, encoder) -> Place:
    """A place with a run that nothing interrupted."""
    place = Place(make_place(tmp_path_factory.mktemp("uninterrupted") / "place"), encoder)
    run_exam("train", *place.setting, *TINY, *STEPS)
    return place


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    ["index: encoded 4 ", "contexts: encoded", "train: step 4 ", "train: train_runtime"],
)
def test_killed_and_repeated_equals_uninterrupted(place, uninterrupted, moment):
    command = start(place.folder, "train", *place.setting, *TINY, *STEPS, "log_level=debug")
    command.wait_for(moment)
    command.send(signal.SIGKILL)
    assert command.wait() == -signal.SIGKILL  # it was still at work
    assert not list(place.outputs.glob("train/*/manifest.json"))
    resumed = run_exam("train", *place.setting, *TINY, *STEPS)
    if moment.startswith("train: step"):
        assert "train: resuming at step 4 of 8" in resumed.stderr or "step 1 of 8" in resumed.stderr
    runs = [place.run, uninterrupted.run]
    losses = [read_losses(run) for run in runs]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 8
    tables = [pq.read_table(p / "predictions.parquet") for p in runs]
    assert tables[0].equals(tables[1])
