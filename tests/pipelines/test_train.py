"""Runs over folds, seeds, processes and published recipes, on tiny data."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import (
    ROOT,
    exam,
    kaggle_rows,
    make_place,
    python,
    read_losses,
    run_exam,
    run_script,
    setting,
    tiny,
)
from hub.layouts import MODELS
from safetensors.torch import load_file
from tiny_encoders import CPU, as_questions, features_of, model_of, texts
from transformers import TrainerCallback

from exam.config.compose import compose_config
from exam.config.values import conf_dir
from exam.core.trainer import fit
from exam.data.splits import PAIRED_STD
from exam.evaluation.predictions import read_predictions
from exam.metrics import count_questions_for
from exam.pipelines.infer import run_infer
from exam.pipelines.train import train_reader
from exam.readers.multiple_choice.reader import MultipleChoiceReader
from exam.readers.trainer import ReaderTrainer

EXPERIMENTS = sorted(p.stem for p in (conf_dir() / "experiment").glob("*.yaml"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with questions and articles; tests share the retrieved passages."""
    return make_place(tmp_path_factory.mktemp("runs"))


def infer(place, run, *overrides):
    """Answer the test questions with a run."""
    words = ["data=kaggle", f"data.dir={place / 'questions'}", f"outputs={place / 'outputs'}"]
    return run_infer(compose_config("infer", f"ckpt={run}", *words, *overrides)).stage.folder


def read_results(run):
    return json.loads((run.stage.folder / "results.json").read_text())


@pytest.mark.slow
def test_each_fold_is_predicted_by_a_reader_of_the_others(place):
    overrides = tiny(place, "data.cross_validate=true", "name=folds")
    run = train_reader(compose_config("train", *overrides))
    predictions = read_predictions(run.stage.folder / "predictions.parquet")
    assert sorted(predictions.ids, key=int) == [str(i) for i in range(40)]
    folders = sorted((place / "outputs" / "train").glob("folds-fold*"))
    assert len(folders) == 4
    parts = [read_predictions(folder / "predictions.parquet") for folder in folders]
    assert sum(len(part.ids) for part in parts) == 40
    row_of = {key: i for i, key in enumerate(predictions.ids)}
    for part in parts:
        assert np.array_equal(part.logits, predictions.logits[[row_of[key] for key in part.ids]])
    assert read_results(run)["rows"][-1]["n"] == 40
    assert run.selection_score == pytest.approx(read_results(run)["rows"][-1]["map_at_3"])
    again = train_reader(compose_config("train", *overrides))
    assert again.stage.reused
    assert (infer(place, folders[0]) / "submission.csv").is_file()


@pytest.mark.slow
def test_several_seeds_give_their_mean_and_spread(place):
    run = train_reader(compose_config("train", *tiny(place, "seed=[1,2,3]", "name=seeds")))
    results = read_results(run)
    scores = [row["map_at_3"] for row in results["rows"][-4:-1]]
    groups, runs = (results["seeds"].pop(name) for name in ("groups", "runs"))
    assert len(groups) == 10
    assert len(runs) == 3
    assert results["seeds"] == {
        "seeds": [1, 2, 3],
        "map_at_3": pytest.approx(scores),
        "mean": pytest.approx(np.mean(scores)),
        "sd": pytest.approx(np.std(scores, ddof=1)),
    }
    assert results["rows"][-1]["system"] == "mean of 3 seeds"
    assert results["rows"][-1]["map_at_3"] == pytest.approx(np.mean(scores))
    low, high = results["rows"][-1]["ci"]
    assert low < min(scores) < max(scores) < high  # over seeds, too
    assert len(results["warnings"]) == 3  # one epoch of a tiny reader teaches it nothing
    assert len(set(scores)) > 1
    states = (place / "outputs" / "train").glob("seeds-*/trainer_state.json")
    dev_scores = [json.loads(path.read_text())["best_metric"] for path in states]
    assert run.selection_score == pytest.approx(
        np.mean(dev_scores)
    )  # not of the reported questions


@pytest.mark.slow
def test_training_reads_fewer_passages_than_inference(place):
    overrides = tiny(
        place, "context.train_num_passages=0", "context.eval_num_passages=2", "name=depths"
    )
    train_reader(compose_config("train", *overrides))
    keys = [json.loads(p.read_text()) for p in (place / "outputs/features").glob("*/key.json")]
    read = {key["top_k"] for key in keys}
    assert {0, 2} <= read


@pytest.mark.slow
def test_a_trained_run_is_trained_further_with_adapters_and_merged(place):
    first = train_reader(compose_config("train", *tiny(place, "name=first")))
    further = [f"model.name_or_path={first.stage.folder}", "tuning=lora", "name=further"]
    run = train_reader(compose_config("train", *tiny(place, *further)))
    assert (run.stage.folder / "model" / "adapter_model.safetensors").is_file()
    trained = read_predictions(run.stage.folder / "predictions.parquet").logits
    for merge in ("false", "true"):
        merging = f"merge_adapters={merge}"
        folder = infer(place, run.stage.folder, "data.test=valid.csv", merging)
        logits = read_predictions(folder / "predictions.parquet").logits
        assert logits == pytest.approx(trained, abs=1e-4)
        assert (folder / "model" / "model.safetensors").is_file() == (merge == "true")


@pytest.mark.slow
def test_what_is_left_of_a_checkpoint_without_training(place):
    first = train_reader(compose_config("train", *tiny(place, "name=first")))
    untrained = [f"model.name_or_path={first.stage.folder}", "name=untrained"]
    untrained += ["trainer=zero_shot", "trainer.num_train_epochs=0"]
    run = train_reader(compose_config("train", *tiny(place, *untrained)))
    one, other = (
        read_predictions(r.stage.folder / "predictions.parquet").logits for r in (first, run)
    )
    assert one == pytest.approx(other, abs=1e-5)


def test_how_many_questions_a_difference_takes():
    assert count_questions_for(0.005, PAIRED_STD) == 21037
    assert count_questions_for(0.05, PAIRED_STD) == 210


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ["model.packing=options"],
        ["model.packing=options", "tuning=lora", "tuning.awp_lr=0.1", "tuning.awp_start_epoch=0"],
        ["tuning=frozen", "trainer.activation_checkpointing=true", "model.batch_by=questions"],
    ],
    ids=["packed", "lora-awp", "frozen-checkpointed"],
)
def test_two_processes_train_what_one_does_with_twice_the_accumulation(place, tmp_path, more):
    losses, logits = [], []
    common = [
        "trainer.logging_steps=1",
        "trainer.per_device_train_batch_size=4",
        "trainer.bf16=false",
        "++trainer.ddp_find_unused_parameters=false",
        *more,
    ]
    base = train_reader(compose_config("train", *tiny(place, "name=first"), *more[:1])).stage.folder
    common += [f"model.name_or_path={base}"] if "tuning=lora" in more else []
    for name, processes, steps in (("one", 1, 2), ("two", 2, 1)):
        overrides = [*tiny(place), *common, f"trainer.gradient_accumulation_steps={steps}"]
        overrides += [f"outputs={tmp_path / name}", "name=r", "model.dropout=0"]
        process = run_exam("train", *overrides, cwd=tmp_path, processes=processes)
        (run,) = (tmp_path / name / "train").glob("r-????????")
        losses.append(read_losses(run))
        logits.append(read_predictions(run / "predictions.parquet").logits)
        assert process.stdout.count("95 % interval") == 1
        assert process.stderr.count("train done") == 1
    assert len(losses[0]) > 2
    # Each process shifts the weights by the gradient of its own batch.
    tolerance = 1e-2 if "tuning.awp_lr=0.1" in more else 1e-4
    assert losses[0] == pytest.approx(losses[1], rel=tolerance)
    if "tuning.awp_lr=0.1" not in more:
        assert logits[0] == pytest.approx(logits[1], abs=1e-3)


RESUMED = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from helpers import kaggle_rows
from tiny_encoders import model_of
from tiny_encoders import CPU, as_questions, features_of, texts
from transformers import TrainerCallback
from exam.core.trainer import fit
from exam.readers.multiple_choice.reader import MultipleChoiceReader
stop, folder = int(sys.argv[1]), Path.cwd() / "c"
questions = as_questions(kaggle_rows(24))
values = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 2}
values |= {"per_device_train_batch_size": 2, "save_total_limit": 2}
model, texts = model_of("bert"), texts(questions)
reader = MultipleChoiceReader.build(model, {**CPU, **values}, folder, 0, texts)
features = features_of(reader, questions)
trainer = reader.build_trainer(features, None, 5)
class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == stop:
            sys.exit(0)
trainer.add_callback(Stop())
fit(trainer)
if trainer.args.process_index == 0:
    trainer.state.save_to_json("process.json")
"""


@pytest.mark.slow
def test_processes_that_resume_within_an_epoch_go_on_with_its_batches(tmp_path):
    (tmp_path / "run.py").write_text(RESUMED)
    losses = {}
    for name, stops in {"uninterrupted": ["-1"], "resumed": ["9", "-1"]}.items():
        folder = tmp_path / name
        folder.mkdir()
        for stop in stops:
            path = [str(ROOT / "tests"), str(ROOT / "src")]
            process = run_script(tmp_path / "run.py", stop, *path, cwd=folder, processes=2)
            assert process.returncode == 0, process.stderr
        history = json.loads((folder / "process.json").read_text())["log_history"]
        losses[name] = {log["step"]: log["loss"] for log in history if "loss" in log}
    assert len(losses["uninterrupted"]) == 18
    assert losses["resumed"] == pytest.approx(losses["uninterrupted"], rel=1e-5)


class Interrupted(Exception):
    pass


class Interrupt(TrainerCallback):
    """End a training after it saved a step."""

    def __init__(self, step):
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Interrupted


def train_six_steps(folder, interrupt_at=None, **more):
    """Train a small reader whose first evaluation is its best; return it and the figures."""
    questions = as_questions(kaggle_rows(12))
    values = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": 2,
        "save_steps": 2,
        "eval_steps": 2,
    }
    values |= {"eval_strategy": "steps", "save_strategy": "steps", "learning_rate": 0.01}
    values |= {"load_best_model_at_end": True, **more}
    model, read = model_of("bert"), texts(questions)
    reader = MultipleChoiceReader.build(model, {**CPU, **values}, folder / "c", 0, read)
    features = features_of(reader, questions)
    trainer = reader.build_trainer(features, features, 5)
    trainer.compute_metrics = lambda _: {"map_at_3": 1 / (1 + trainer.state.global_step)}
    trainer.add_callback(Interrupt(interrupt_at))
    return trainer, fit(trainer)


def read_weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def test_a_moved_training_ends_with_its_best_checkpoint(tmp_path):
    whole, _ = train_six_steps(tmp_path / "whole")
    for copies in (False, True):
        with pytest.raises(Interrupted):
            train_six_steps(tmp_path / "a", interrupt_at=6)
        if copies:  # the checkpoints of the copy answer, not the original's
            shutil.copytree(tmp_path / "a", tmp_path / "b")
            shutil.rmtree(tmp_path / "a/c/checkpoint-2")
            (tmp_path / "a/c/checkpoint-2").mkdir()
        else:
            (tmp_path / "a").rename(tmp_path / "b")
        trainer, figures = train_six_steps(tmp_path / "b")
        assert (figures["steps"], figures["best"]) == (6, pytest.approx(1 / 3))
        best, last = (
            load_file(tmp_path / f"b/c/checkpoint-{step}/model.safetensors") for step in (2, 6)
        )
        weights, expected = read_weights(trainer), read_weights(whole)
        name = next(name for name in best if not torch.equal(best[name], last[name]))
        assert torch.equal(weights[name], best[name])
        assert all(torch.equal(weights[key], value) for key, value in expected.items())
        state = json.loads((tmp_path / "b/trainer_state.json").read_text())
        assert state["best_model_checkpoint"] == "c/checkpoint-2"
        shutil.rmtree(tmp_path / "b")


def test_a_training_without_saved_optimizer_starts_over(tmp_path, caplog):
    whole, _ = train_six_steps(tmp_path / "whole", save_only_model=True)
    with pytest.raises(Interrupted):
        train_six_steps(tmp_path / "a", interrupt_at=4, save_only_model=True)
    trainer, _ = train_six_steps(tmp_path / "a", save_only_model=True)
    assert "starting over: with trainer.save_only_model=true" in caplog.text
    weights, expected = read_weights(trainer), read_weights(whole)
    assert all(torch.equal(weights[key], value) for key, value in expected.items())


def test_the_size_of_a_step_is_logged_again_when_a_smaller_batch_is_tried(
    tmp_path, caplog, monkeypatch
):
    def step(self, model, inputs, *more, real=ReaderTrainer.training_step):
        if len(inputs["labels"]) > 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
        return real(self, model, inputs, *more)

    monkeypatch.setattr(ReaderTrainer, "training_step", step)
    with caplog.at_level("INFO", "exam"):
        _, figures = train_six_steps(tmp_path, auto_find_batch_size=True)
    sizes = re.findall(r"train: (\d+) examples a step: \1 at a time · fp32 on cpu", caplog.text)
    assert sizes == ["2", "1"]
    assert figures["batch_size"] == 1


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_name_their_checkpoints_command_and_score(name):
    config = compose_config("train", f"experiment={name}")
    assert config.model.name_or_path in MODELS
    assert config.name == name
    head = (conf_dir() / "experiment" / f"{name}.yaml").read_text()
    for part in ("# System ", f" experiment={name}", "# Published: .", "# Known: "):
        assert part in head
    assert "Chosen: " in head or name == "how_to_train_open_book"


def test_a_group_chosen_on_the_command_line_wins_over_the_experiment():
    config = compose_config(
        "train", "experiment=how_to_train_open_book", "trainer=cpu", "model=minilm"
    )
    assert config.trainer.learning_rate == 1e-4
    assert config.model.name_or_path == "sentence-transformers/all-MiniLM-L6-v2"
    assert config.tuning.freeze_layers == 0.75


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_run_with_small_weights_of_their_architecture(place, encoder, name):
    overrides = [f"experiment={name}", "debug=smoke", f"outputs={place / 'smoke'}"]
    overrides += [f"encoder.name_or_path={encoder}"]
    config = compose_config("train", *overrides)
    run = train_reader(config)
    saved = json.loads((run.stage.folder / "model" / "config.json").read_text())
    assert saved["model_type"] == config.model.architecture
    assert np.isfinite(read_predictions(run.stage.folder / "predictions.parquet").logits).all()


@pytest.mark.slow
def test_a_multirun_survives_a_failed_job_and_names_it(place, tmp_path):
    overrides = [*tiny(place), f"outputs={tmp_path}", "tracker=wandb_offline"]
    process = exam("train", *overrides, "-m", "context.num_passages=0,99,3", cwd=tmp_path)
    assert process.returncode == 2
    (failed,) = [line for line in process.stderr.splitlines() if line.startswith("Job ")]
    assert list((tmp_path / "outputs" / "multirun").glob("jobs-*")) == []
    assert failed.startswith("Job 1 (")
    assert "context.num_passages=99): context.num_passages=99 exceeds retriever.top_k" in failed
    assert process.stderr.count("contexts done") == 2  # train and valid, once for both jobs
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 2
    (folder,) = (tmp_path / "sweeps").iterdir()
    results = json.loads((folder / "results.json").read_text())
    scores = {row["system"]: row["selection_score"] for row in results["rows"]}
    assert scores.keys() == {"context.num_passages=0", "context.num_passages=3"}
    assert [*scores.values()] == sorted(scores.values(), reverse=True)
    assert results["paired"][0]["a"] == results["rows"][0]["system"]
    assert (folder / "map_at_3.png").read_bytes().startswith(b"\x89PNG")
    assert str(folder / "results.json") in process.stdout


FORKING = """
import os
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
class ForkingLauncher(BasicLauncher):
    def launch(self, job_overrides, initial_job_idx):
        if pid := os.fork():
            os.waitpid(pid, 0)
            return []
        super().launch(job_overrides, initial_job_idx)
        os._exit(0)
target = {"_target_": "hydra_plugins.forking.ForkingLauncher"}
ConfigStore.instance().store(group="hydra/launcher", name="forking", node=target)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("values", "code"), [("5,6", 0), ("5,99,6", 2)])
def test_jobs_in_other_processes_give_one_table_and_the_exit_code(place, tmp_path, values, code):
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins" / "forking.py").write_text(FORKING)
    words = setting(place, "retriever=bm25", "model=lexical", f"outputs={tmp_path / 'out'}")
    words += ["-m", "hydra/launcher=forking", f"context.num_passages={values}"]
    path = os.pathsep.join([str(ROOT / "src"), str(tmp_path)])
    process = python("-m", "exam", "train", *words, cwd=tmp_path, PYTHONPATH=path)
    assert process.returncode == code, process.stderr
    (results,) = (tmp_path / "out" / "sweeps").glob("*/results.json")
    rows = json.loads(results.read_text())["rows"]
    assert [row["values"]["context.num_passages"] for row in rows] == ["5", "6"]
    assert process.stderr.count("Job 1 (") == code // 2


@pytest.mark.slow
def test_optuna_maximises_the_dev_score(place, tmp_path):
    pytest.importorskip(
        "hydra_plugins.hydra_optuna_sweeper", reason="pip install 'openbook-exam[optuna]'"
    )
    overrides = [*tiny(place), f"outputs={tmp_path}", "hydra/sweeper=optuna"]
    overrides += ["hydra.sweeper.direction=maximize", "hydra.sweeper.n_trials=2"]
    rate = "trainer.learning_rate=tag(log, interval(1e-5, 1e-3))"
    run_exam("train", *overrides, "hydra.sweeper.n_jobs=1", "-m", rate, cwd=tmp_path)
    path = tmp_path / "outputs" / "multirun" / "optimization_results.yaml"
    best = yaml.safe_load(path.read_text())["best_value"]
    states = (tmp_path / "train").glob("*/trainer_state.json")
    dev_scores = [json.loads(state.read_text())["best_metric"] for state in states]
    assert len(dev_scores) == 2
    assert best == pytest.approx(max(dev_scores))


@pytest.mark.slow
def test_sweep_files_make_working_commands(place, tmp_path):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep = yaml.safe_load((ROOT / "sweeps" / "retrieval_depth.yaml").read_text())
    values = sweep["parameters"]["context.num_passages"]["values"]
    assert values == [0, 1, 3, 5, 10, 20]
    arguments = create_sweep_command_args({"args": {"context.num_passages": {"value": values[1]}}})
    macros = {
        "${env}": ["/usr/bin/env"],
        "${program}": [str(ROOT / sweep["program"])],
        "${args_no_hyphens}": arguments["args_no_hyphens"],
    }
    command = [
        word for part in create_sweep_command(sweep["command"]) for word in macros.get(part, [part])
    ]
    assert command[-2:] == ["tracker=wandb", "context.num_passages=1"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "WANDB_MODE": "offline"}
    more = [*tiny(place), f"outputs={tmp_path}"]
    subprocess.run([*command, *more], cwd=tmp_path, env=environment, check=True)
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "sweeps").glob("*.yaml")))
def test_sweep_files_set_known_values(name):
    sweep = yaml.safe_load((ROOT / "sweeps" / f"{name}.yaml").read_text())
    assert sweep["command"][-1] == "${args_no_hyphens}"
    first = [
        f"{key}={setting['values'][0] if 'values' in setting else setting['min']}"
        for key, setting in sweep["parameters"].items()
    ]
    compose_config("train", *first)
