"""Small real questions, articles, settings and vectors, and commands that run on them."""

import csv
import json
import multiprocessing
import os
import re
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from exam.core.errors import ExamError
from exam.core.logging import quiet_libraries

if TYPE_CHECKING:  # a GPU machine without them still collects the tests
    from datasets import Dataset

    from exam.config import Corpus
    from exam.core.artifacts import Stage

ROOT = Path(__file__).parents[1]
ANIMALS = ["otter", "heron", "badger", "newt", "falcon", "mole", "trout", "beetle", "lynx", "toad"]
PLACES = [
    "river", "marsh", "forest", "pond", "cliff", "meadow", "stream", "log", "mountain", "well",
]  # fmt: skip


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


def kaggle_rows(n: int, start: int = 0) -> list[dict[str, str]]:
    """Questions whose answer stands in the article of their animal."""
    rows = []
    for i in range(start, start + n):
        animal, right = ANIMALS[i % 10], i % 5
        places = [PLACES[(i + 2 * j + 1) % 10] for j in range(5)]
        places[right] = PLACES[i % 10]
        rows.append(
            {
                "id": str(i),
                "prompt": f"Question {i}: where does the {animal} number {i // 10} live?",
                **dict(zip("ABCDE", places, strict=True)),
                "answer": "ABCDE"[right],
            }
        )
    return rows


def make_questions(folder: Path) -> Path:
    """A folder with train.csv (40), valid.csv (10) and test.csv (6, no answers)."""
    folder.mkdir()
    write_csv(folder / "train.csv", kaggle_rows(40))
    write_csv(folder / "valid.csv", kaggle_rows(10, start=40))
    test = [{k: v for k, v in row.items() if k != "answer"} for row in kaggle_rows(6, start=50)]
    write_csv(folder / "test.csv", test)
    return folder


def make_articles(path: Path) -> Path:
    """A JSONL corpus of ten articles."""
    with path.open("w", encoding="utf-8") as file:
        for i, (animal, place) in enumerate(zip(ANIMALS, PLACES, strict=True)):
            text = f"The {animal} is an animal. It lives in the {place}. It is number {i}."
            file.write(json.dumps({"id": f"a{i}", "title": animal.title(), "text": text}) + "\n")
    return path


def make_place(folder: Path) -> Path:
    """A folder with `questions` and `articles.jsonl`, made where there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    make_questions(folder / "questions")
    make_articles(folder / "articles.jsonl")
    return folder


def setting(folder: Path, *more: str) -> list[str]:
    """Overrides that name what `make_place` made, and `outputs` beside it."""
    return [
        "data=kaggle",
        f"data.dir={folder / 'questions'}",
        "data.folds=4",
        "corpus=jsonl",
        f"corpus.dir={folder}",
        "corpus.files=articles.jsonl",
        f"outputs={folder / 'outputs'}",
        *more,
    ]


def tiny(folder: Path, *more: str) -> list[str]:
    """The setting of a run that takes seconds: BM25, and a tiny reader's one epoch."""
    reader = ["retriever=bm25", "model=tiny", "trainer.num_train_epochs=1"]
    return setting(folder, *reader, *more)


def jsonl_corpus(path: Path) -> "Corpus":
    """The corpus of one JSONL file."""
    from exam.config import Corpus, CorpusFormat

    return Corpus(name="c", format=CorpusFormat.jsonl, dir=str(path.parent), files=path.name)


def read_csv(path: Path, rows: list[dict[str, str]]) -> "Dataset":
    """Questions written in Kaggle's form, and read again."""
    from exam.config import Data
    from exam.data.questions import read_questions

    write_csv(path, rows)
    columns = {c: c for c in ["id", "prompt", "answer", *"ABCDE"]}
    return read_questions(Data(name=path.stem, dir=str(path.parent), columns=columns), path.name)


def contexts_stage(
    outputs: Path, passages: dict[str, list[dict]], idf: dict[str, float] | None = None, **key: Any
) -> "Stage":
    """A finished stage of contexts: the passages of each question's id, best first."""
    from exam.core.artifacts import open_stage
    from exam.core.files import write_json
    from exam.retrieval.contexts import FILE, IDF, SCHEMA, write_contexts

    with open_stage(outputs, "contexts", "c", key) as stage:
        if not stage.reused:
            empty = dict.fromkeys(SCHEMA.names)
            rows = (
                [{**empty, "question_id": key, "rank": n, **own} for n, own in enumerate(ranked, 1)]
                for key, ranked in passages.items()
            )
            write_contexts(stage, rows)
            write_json(stage.folder / IDF, idf or {})
            stage.finish([FILE, IDF])
    return stage


def read_losses(folder: Path) -> list[float]:
    """The losses that a training logged."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [log["loss"] for log in history if "loss" in log]


def refuses(*parts: str) -> pytest.RaisesExc[ExamError]:
    """Expect an ExamError whose message holds these parts in this order."""
    return pytest.raises(ExamError, match="(?s)" + ".*".join(map(re.escape, parts)))


FORKS = multiprocessing.get_context("forkserver")
COMMANDS = ("train", "infer", "retrieve", "generate", "stress")
FORKS.set_forkserver_preload([f"exam.pipelines.{name}" for name in COMMANDS])


def exam(
    command: str, *arguments: str, cwd: Path = ROOT, processes: int = 1
) -> subprocess.CompletedProcess[str]:
    """Run a command as a person would, in one process or in several under torchrun."""
    if processes > 1:
        return torchrun(["-m", "exam", command, *arguments], cwd, processes)
    return fork(["exam", command, *arguments], cwd)


def run_exam(
    command: str, *arguments: str, cwd: Path = ROOT, processes: int = 1
) -> subprocess.CompletedProcess[str]:
    """Run a command that must succeed."""
    done = exam(command, *arguments, cwd=cwd, processes=processes)
    assert done.returncode == 0, done.stderr
    return done


def run_script(
    script: Path, *arguments: str, cwd: Path, processes: int = 1
) -> subprocess.CompletedProcess[str]:
    """Run a script in its own process, or in several under torchrun."""
    if processes > 1:
        return torchrun([str(script), *arguments], cwd, processes)
    return fork([str(script), *arguments], cwd)


def torchrun(words: list[str], cwd: Path, processes: int) -> subprocess.CompletedProcess[str]:
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return python("-m", *launcher, *words, cwd=cwd, OMP_NUM_THREADS="1")


def python(
    *arguments: str, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python in a new process, with this project and more variables in its environment."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def imported(code: str, *names: str) -> set[str]:
    """Run code in a new process, and return those of the modules that it imports."""
    done = python("-c", f"{code}\nimport sys; print('imports', *set({names}) & set(sys.modules))")
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


def fork(words: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Fork a command from a process that has imported what all commands do.

    Importing takes longer than the work of most tests.
    """
    quiet_libraries()  # before their import
    with tempfile.TemporaryDirectory() as folder:
        process = FORKS.Process(target=become, args=(words, str(cwd), folder))
        process.start()
        process.join()
        stdout, stderr = ((Path(folder) / name).read_text() for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess(words, process.exitcode or 0, stdout, stderr)


def become(words: list[str], cwd: str, folder: str) -> None:
    """Become `exam COMMAND …` or a script, with standard output and error in files of `folder`."""
    for stream, name in ((sys.stdout, "stdout"), (sys.stderr, "stderr")):
        file = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT)
        os.dup2(file, stream.fileno())
    os.chdir(cwd)
    sys.argv = list(words)
    if words[0] == "exam":
        from exam.cli import main

        sys.exit(main())
    sys.path.insert(0, str(Path(words[0]).parent))
    runpy.run_path(words[0], run_name="__main__")


def unit(n, d, seed, topics=40):
    """Unit vectors around a few topics."""
    random = np.random.default_rng(seed)
    found = np.random.default_rng(99).standard_normal((topics, d))[random.integers(0, topics, n)]
    found = found + 0.7 * random.standard_normal((n, d))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def streamed(vectors, size=300):
    """The vectors in blocks, anew at every call."""
    return lambda: iter([vectors[i : i + size] for i in range(0, len(vectors), size)])
