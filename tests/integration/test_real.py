"""Real questions and articles, and the package as it is installed."""

import csv
import json
import re
import subprocess
import sys
import zipfile

import pytest
from helpers import ROOT, python, run_exam

pytestmark = pytest.mark.slow


def test_real_data_through_the_whole_path(shared, tmp_path):
    place = [
        f"data.dir={shared / 'exam'}",
        f"corpus.dir={shared / 'wikipedia'}",
        f"outputs={tmp_path}",
    ]
    small = ["corpus=wikipedia", "data.limit=60", "model=tiny", "trainer.num_train_epochs=1"]
    run_exam("train", "data=kaggle", *small, *place)
    (contexts,) = tmp_path.glob("contexts/kaggle-valid-two_stage-*/manifest.json")
    scores = json.loads(contexts.read_text())["metadata"]["scores"]
    assert scores["recall_at_5"]["value"] >= 0.85
    assert scores["supported"]["n"] == 60

    (run,) = tmp_path.glob("train/kaggle-tiny-two_stage-*")
    run_exam("infer", f"ckpt={run}", "data=kaggle_test", place[0], place[2])
    (submission,) = tmp_path.glob("infer/*/submission.csv")
    with submission.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (shared / "exam" / "test.csv").open(newline="") as file:
        assert [r["id"] for r in rows] == [r["id"] for r in csv.DictReader(file)]
    assert len(rows) == 200
    assert all(len(set(r["prediction"].split()) & set("ABCDE")) == 3 for r in rows)


def test_wheel_carries_its_configuration_and_commands(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("openbook_exam-*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "installed")
    (entries,) = (tmp_path / "installed").glob("*.dist-info/entry_points.txt")
    assert entries.read_text().split() == ["[console_scripts]", "exam", "=", "exam.cli:main"]
    code = "from exam.cli import main; main(['train', '--help'])"
    done = python("-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "installed"))
    assert re.search("model +bert_base, deberta_base", done.stdout)
    assert (tmp_path / "installed" / "exam" / "data" / "demo" / "questions.csv").is_file()
    assert (tmp_path / "installed" / "exam" / "py.typed").is_file()
