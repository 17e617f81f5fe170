"""Several processes without `torchrun`: their number, their results and their ends."""

import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import ROOT, exam, make_place, read_losses, refuses, run_script, tiny

from exam.config import Infer
from exam.config.compose import compose_config
from exam.core.errors import ExamError
from exam.core.trainer import SingleDeviceArguments
from exam.evaluation.predictions import read_predictions
from exam.pipelines.launch import Workload, _report, count_processes, workload_of
from exam.pipelines.train import train_reader

READER = Workload(reader=True, retrieval=True)
GPU = ["trainer=gpu", "model=tiny"]


@pytest.mark.parametrize(
    ("launch", "work", "gpus", "processes"),
    [
        ("auto", READER, 0, 1),
        ("auto", READER, 1, 1),
        ("auto", READER, 4, 4),
        ("single", READER, 2, 1),
        (1, READER, 2, 1),
        (2, READER, 4, 2),
        (3, READER, 0, 3),
        ("auto", Workload(False, True), 2, 1),
        ("auto", Workload(True, True, "task=encoder"), 2, 1),
        ("single", Workload(True, True, "task=encoder"), 2, 1),
    ],
)
def test_each_gpu_gets_a_process_if_several_can_share_the_work(launch, work, gpus, processes):
    assert count_processes(launch, work, gpus) == processes


@pytest.mark.parametrize(
    ("launch", "work", "multirun", "remedy"),
    [
        ("single", READER, False, "launch=single). Leave launch out to use all."),
        ("auto", READER, True, "-m). Leave -m out to use all."),
        (
            "auto",
            Workload(True, True, "task=encoder"),
            False,
            "task=encoder). Put CUDA_VISIBLE_DEVICES=1 before another command to give it the "
            "second.",
        ),
        (
            "single",
            Workload(False, True, "exam retrieve"),
            False,
            "exam retrieve). Run torchrun --nproc-per-node 2 -m exam retrieve … to use all.",
        ),
        (
            "auto",
            Workload(False, True),
            False,
            "trainer.use_cpu=true). Set trainer=gpu to use all.",
        ),
        ("auto", Workload(True, True, "model=qwen_7b", spreads=True), False, None),
    ],
)
def test_the_log_names_idle_gpus(caplog, launch, work, multirun, remedy):
    caplog.set_level(logging.INFO)
    assert count_processes(launch, work, 2, multirun=multirun) == 1
    lines = [] if remedy is None else [f"launch: using one of 2 GPUs ({remedy}"]
    assert caplog.messages == lines
    caplog.clear()
    assert count_processes(launch, work, 1, multirun=multirun) == 1
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("work", "gpus", "multirun", "reason", "remedy"),
    [
        (Workload(True, True, "model=lexical"), 0, False, "model=lexical", "Leave launch out."),
        (READER, 0, True, "-m", "Leave launch out."),
        (READER, 2, False, "2 are visible", "Set launch=2, or leave it out."),
    ],
)
def test_too_large_a_number_is_refused(work, gpus, multirun, reason, remedy):
    with refuses("launch=3", f"{reason}", remedy):
        count_processes(3, work, gpus, multirun=multirun)


@pytest.mark.parametrize("launch", ["two", "0", "-1", "true", "null", "1.5"])
def test_launch_is_auto_single_or_a_number(launch):
    with pytest.raises(ExamError, match=r"launch must be auto, single or a number"):
        compose_config("train", f"launch={launch}")
    with pytest.raises(ExamError, match=r"launch must be auto, single or a number"):
        compose_config("infer", "ckpt=a", f"launch={launch}")


@pytest.mark.parametrize(
    ("overrides", "work"),
    [
        (["retriever=bm25", "data.train=train.csv"], Workload(False, False)),  # use_cpu: true
        (["retriever=two_stage", "data.train=train.csv"], Workload(False, True)),
        (["retriever=hybrid", "data.train=train.csv"], Workload(False, True)),
        (["retriever=bm25"], Workload(False, True)),  # rules write the demo's questions
        ([*GPU, "retriever=none", "data.train=train.csv"], Workload(True, False)),
        (
            ["model=lexical", "retriever=bm25", "data.train=train.csv"],
            Workload(False, False, "model=lexical"),
        ),
        (
            ["task=encoder", "retriever=two_stage", "data.train=train.csv"],
            Workload(True, True, "task=encoder"),
        ),
        (
            ["model=qwen_7b", "retriever=none", "trainer=zero_shot", "data.train=train.csv"],
            Workload(True, False, "model=qwen_7b without training"),
        ),
    ],
)
def test_a_training_has_a_workload(overrides, work):
    assert workload_of(compose_config("train", *overrides)) == work


def test_other_commands_have_a_workload(tmp_path):
    bm25 = compose_config("retrieve", "retriever=bm25", "data=kaggle")
    assert workload_of(bm25) == Workload(False, False, "exam retrieve")
    ranked = compose_config("retrieve", "retriever=bm25", "data=kaggle", "reranker=cross_encoder")
    assert workload_of(ranked).retrieval
    assert workload_of(compose_config("generate")) == Workload(False, True, "exam generate")
    assert not workload_of(compose_config("generate", "generator=llm")).uses_gpu
    saved = Infer(predictions=[str(tmp_path / "a.parquet")])
    assert workload_of(saved) == Workload(False, False, "predictions=")


def test_a_process_trains_on_one_of_two_gpus(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    arguments = SingleDeviceArguments(output_dir=str(tmp_path), per_device_train_batch_size=4)
    assert arguments._n_gpu == 2  # the library would use DataParallel
    assert (arguments.n_gpu, arguments.train_batch_size) == (1, 4)


TWO_GPUS = """
import sys
import torch
torch.cuda.is_available = lambda: True  # the processes that it starts find none
torch.cuda.device_count = lambda: 2
torch.cuda.get_arch_list = lambda: ["sm_75"]
torch.cuda.get_device_capability = lambda device: (7, 5)
from exam.cli import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("launch") / "place")


def overrides_of(place, outputs):
    return [*tiny(place), "trainer=gpu", "trainer.num_train_epochs=1", f"outputs={outputs}"]


def read_run(outputs):
    (run,) = (outputs / "train").glob("*-????????")
    return run, read_losses(run), read_predictions(run / "predictions.parquet").logits


@pytest.mark.slow
def test_two_gpus_give_the_results_of_torchrun(place, tmp_path):
    (tmp_path / "two_gpus.py").write_text(TWO_GPUS)
    runs, more = {}, ["trainer.bf16=false", "trainer.logging_steps=1", "name=r", "log_level=debug"]
    more += ["trainer.gradient_accumulation_steps=1", "trainer.per_device_train_batch_size=4"]
    for name in ("torchrun", "number", "gpus", "single"):
        overrides = [*overrides_of(place, tmp_path / name), *more]
        if name == "torchrun":
            process = exam("train", *overrides, cwd=tmp_path, processes=2)
        elif name == "gpus":
            process = run_script(tmp_path / "two_gpus.py", "train", *overrides, cwd=tmp_path)
        else:
            launch = "single" if name == "single" else "2"
            process = exam("train", *overrides, f"launch={launch}", cwd=tmp_path)
        assert process.returncode == 0, process.stderr
        assert process.stdout.count("95 % interval") == process.stderr.count("train done") == 1
        step = "4 examples a step: 4 at a time · fp32 on cpu"
        if name != "single":
            step = "8 examples a step: 4 at a time × 2 processes · fp32 on cpu"
        assert re.findall(r"train: (.* examples a step.*)", process.stderr) == [step]
        started = re.findall(r"launch: .*", process.stderr)
        assert started == {
            "number": ["launch: 2 processes, each on the processor"],
            "gpus": ["launch: 2 processes, each on a GPU"],
        }.get(name, [])
        runs[name] = read_run(tmp_path / name)
    run, losses, logits = runs["torchrun"]
    for name in ("number", "gpus"):
        assert runs[name][0].name == run.name
        assert runs[name][1] == losses
        assert (runs[name][2] == logits).all()
    assert runs["single"][0].name != run.name  # half as many questions a step


@pytest.mark.slow
def test_two_processes_give_the_answers_of_one_with_any_character(place, tmp_path):
    base = train_reader(compose_config("train", *tiny(place), f"outputs={tmp_path}")).stage.folder
    data = ["data=kaggle", f"data.dir={place / 'questions'}", "data.test=test.csv"]
    overrides = [f"ckpt={base}", *data]
    logits = []
    for launch in ("single", "2"):
        outputs = tmp_path / f"out $$ {launch}"
        process = exam(
            "infer", *overrides, f"launch={launch}", f"outputs='{outputs}'", cwd=tmp_path
        )
        assert process.returncode == 0, process.stderr
        (saved,) = outputs.glob("infer/*/predictions.parquet")
        logits.append(read_predictions(saved).logits)
    assert logits[0] == pytest.approx(logits[1], abs=1e-5)


LONG = ["trainer.num_train_epochs=300", "trainer.logging_steps=1", "launch=2", "log_level=debug"]


class CommandProcess:
    """A command in a new session, as in a terminal, and the processes that it started."""

    def __init__(self, *overrides):
        command = [sys.executable, str(ROOT / "train.py"), *overrides]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def workers(self):
        pids = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
        return sorted(pid for pid in pids if parent_of(pid) == self.process.pid)

    def wait_for(self, text):
        lines = []
        for line in self.process.stderr:
            lines.append(line)
            if text in line:
                return
        raise AssertionError("".join(lines))

    def end(self):
        """Return the exit code and the messages, without the log."""
        lines = [line for line in self.process.stderr.read().splitlines() if line[2:3] != ":"]
        return self.process.wait(30), lines


def parent_of(pid):
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def wait_until_gone(pids, limit=10):
    end = time.monotonic() + limit
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < end, pids
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("number", "code", "message"),
    [
        (signal.SIGTERM, 143, "Terminated. The same command continues from what is finished."),
        (signal.SIGINT, 130, "Interrupted. The same command continues from what is finished."),
    ],
)
def test_a_signal_ends_all_processes_with_one_message(place, tmp_path, number, code, message):
    command = CommandProcess(*overrides_of(place, tmp_path), *LONG)
    command.wait_for("train: step 3 ")
    workers, start = command.workers(), time.monotonic()
    os.killpg(command.process.pid, number)  # as a terminal's Ctrl-C does
    assert command.end() == (code, [message])
    assert time.monotonic() - start < 20  # torchrun kills what has not ended after 30 s
    assert len(workers) == 2
    wait_until_gone(workers, 0)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("victim", ["worker", "parent"])
def test_no_process_outlives_a_killed_one(place, tmp_path, victim):
    command = CommandProcess(*overrides_of(place, tmp_path), *LONG)
    command.wait_for("train: step 3 ")
    workers = command.workers()
    os.kill(workers[1] if victim == "worker" else command.process.pid, signal.SIGKILL)
    code, messages = command.end()
    wait_until_gone(workers)
    if victim == "parent":
        assert (code, messages) == (-9, [])
    else:
        assert code == 137
        assert messages == [
            "SIGKILL ended process 1, often for lack of memory. "
            "The same command continues from what is finished."
        ]


@pytest.mark.slow
def test_a_mistake_in_every_process_is_one_message(place, tmp_path):
    overrides = [*overrides_of(place, tmp_path), "launch=2", "log_level=warning"]
    for override, code, message in (
        (f"resume={tmp_path / 'none'}", 2, f"resume={tmp_path / 'none'} does not exist."),
        ("trainer.optim=foo", 2, "trainer.optim must be one of"),
        (f"model.name_or_path={tmp_path / 'none'}", 2, f"{tmp_path / 'none'} does not exist;"),
    ):
        process = exam("train", *overrides, override, cwd=tmp_path)
        assert process.returncode == code
        assert process.stderr.count(message) == 1
        assert len(process.stderr.splitlines()) <= 2
        assert "Traceback" not in process.stderr


@pytest.mark.parametrize(
    ("codes", "reports", "code", "message"),
    [
        ({0: 2, 1: -15}, {0: "a mistake"}, 2, "a mistake"),
        ({0: -15, 1: 2}, {1: "a mistake"}, 2, "a mistake"),
        ({0: 143, 1: 2}, {1: "a mistake", 0: "Terminated."}, 2, "a mistake"),
        ({0: 1, 1: 2}, {0: "Connection closed", 1: "a mistake"}, 2, "a mistake"),
        ({0: 2, 1: -6}, {0: "a mistake"}, 2, "a mistake"),  # torch aborts without its peer
        ({0: 1, 1: 1}, {1: "Traceback: a bug", 0: "Connection closed"}, 1, "Traceback: a bug"),
        ({0: 1, 1: -9}, {0: "Connection closed"}, 137, "SIGKILL ended process 1, often"),
        ({0: 143, 1: -11}, {0: "Terminated."}, 139, "SIGSEGV ended process 1. The same"),
        ({0: 143, 1: -15}, {0: "Terminated."}, 143, "Terminated."),
        ({0: -15, 1: 1}, {}, 1, ""),
        ({0: -15, 1: -15}, {}, 143, "SIGTERM ended process 0. The same"),
        ({0: 1, 1: -15}, {}, 1, ""),
    ],
)
def test_the_first_failure_is_reported(tmp_path, capsys, codes, reports, code, message):
    for number, (rank, text) in enumerate(reports.items()):
        (tmp_path / str(rank)).write_text(text)
        moment = time.time() + number / 10
        os.utime(tmp_path / str(rank), (moment, moment))
    assert _report(tmp_path, codes) == code
    assert capsys.readouterr().err.startswith(message)


def test_a_process_that_the_launcher_killed_is_not_the_cause(tmp_path, capsys):
    (tmp_path / "1").write_text("Traceback: a bug")
    os.utime(tmp_path / "1", (time.time() - 6, time.time() - 6))
    assert _report(tmp_path, {0: -9, 1: 1}) == 1
    assert capsys.readouterr().err == "Traceback: a bug\n"
