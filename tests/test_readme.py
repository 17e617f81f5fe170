"""The README's commands: every one is composed, and run on small data."""

import re
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ANIMALS, PLACES, ROOT, kaggle_rows, write_csv

from exam import pipeline
from exam.cli import COMMANDS, main
from exam.compose import composed, with_prefix

COMMAND = re.compile(r"(exam|python|torchrun|wandb|make|pip|export|[A-Z]=)\b.*|[A-Z]=.*")
VERBS = ("train", "retrieve", "infer", "generate", "stress", "bundle")
# What is not run as it stands, and why; the first that matches holds.
SMOKE = {  # with small random weights of the model's own architecture
    "a hub": r"model=deberta|experiment=",
    "a hub and a GPU": r"model=(qwen|mistral)_7b",
    "the demo's index, which `make demo` builds": r"train\.py( |$)(?!.*(data|task)=)",
    "a reranker trained for a quarter of an hour": r"reranker=cross_encoder.*(bf16|pairs)",
}
COMPOSED = {
    "several processes, or machines: tests of indexes and training": r"^torchrun",
    "an environment of its own: the bundle's tests": r"^exam bundle",
    "the hub: the model card's tests": r"hub\.push",
    "a W&B server: the trackers' tests": r"^wandb|tracker=wandb",
    "Optuna's sweeper, which is an extra": r"optuna",
    "minutes: the demo's and the benchmarks' own tests": r"^make|benchmarks/",
    "an endpoint: the question writer's tests": r"generator=llm",
    "a person: its own tests": r"^exam (ask|doctor)",
    "shell, not this project": r"^(pip|export)",
}

DATA = ["data=kaggle", "data.dir=data"]
CORPUS = ["corpus=wikipedia", "corpus.dir=wikipedia"]
TEXT = (
    "The {0} is an animal that spends most of its life in the {1}. It was first described in {2} "
    "by a traveller who watched it for weeks. Its young leave the nest after about {2} hours."
)


def commands():
    """Every command of the README's blocks, variables put in and continued lines joined."""
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    known, found = {"EXAM_DATA": "given"}, []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for line in filter(COMMAND.fullmatch, [] if language else block.splitlines()):
            for name, value in known.items():
                line = line.replace(f"${name}", value)  # noqa: PLW2901
            if line[1] == "=":
                known[line[0]] = shlex.split(line[2:])[0]
            else:
                found.append(line)
    return found


def words_of(command):
    return [word for word in shlex.split(command, comments=True) if word != "…"]


def reason(command, table):
    return next((why for why, where in table.items() if re.search(where, command)), None)


def parsed(words):
    """Split a command into its name, or its script's, and the arguments."""
    if words[0] == "exam":
        return words[1], words[2:]
    program = next(i for i, word in enumerate(words) if word.endswith(".py"))
    return words[program].removesuffix(".py"), words[program + 1 :]


def test_the_readme_has_commands():
    assert len(commands()) > 40


@pytest.mark.parametrize("command", commands())
def test_commands_compose(command):
    words = words_of(command)
    if words[0] == "make":
        target = words[1]
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    if words[0] == "wandb":
        assert (ROOT / words[-1]).is_file()
        return
    if words[0] in ("pip", "export"):
        return
    name, given = parsed(words)
    if name not in VERBS:
        assert name in COMMANDS or (ROOT / f"{name}.py").is_file()
        return
    given = [word for word in given if word != "-m" and not word.startswith("hydra")]
    swept = [re.sub(r"^([\w.]+=[\d.]+),.*", r"\1", word) for word in given]
    swept = [re.sub(r"=tag\(.*", "=1e-4", word).replace("<name>", "m") for word in swept]
    swept = [word.replace("<url>", "http://localhost/v1").replace("[…]", "[a,b]") for word in swept]
    composed(name, *map(with_prefix, swept))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with what the commands name: questions, articles, and runs to come."""
    for folder in ("data", "given/exam"):
        (tmp_path / folder).mkdir(parents=True)
        write_csv(tmp_path / folder / "train.csv", kaggle_rows(24))
        write_csv(tmp_path / folder / "valid.csv", kaggle_rows(10, start=40))
        asked = [{k: v for k, v in row.items() if k != "answer"} for row in kaggle_rows(6)]
        write_csv(tmp_path / folder / "test.csv", asked)
    write_csv(tmp_path / "mine.csv", kaggle_rows(24))
    rows = [
        {"id": f"a{i}", "title": animal.title(), "text": TEXT.format(animal, home, 1750 + 10 * i)}
        for i, (animal, home) in enumerate(zip(ANIMALS, PLACES, strict=True))
    ]
    table = pa.Table.from_pylist([{**row, "categories": ""} for row in rows])
    for folder in ("wikipedia", "given/wikipedia"):
        (tmp_path / folder).mkdir(parents=True)
        pq.write_table(table, tmp_path / folder / "a.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def filled_in(word, runs):
    """A command's word with two runs for its placeholders, and files for its patterns."""
    for letter, run in zip("AB", runs, strict=True):
        word = word.replace(f"RUN_{letter}", str(run)).replace(f"FOLDS_{letter}", str(run))
        word = word.replace(f"{letter.lower()}.parquet", f"{run}/predictions.parquet")
    word = word.replace("outputs/train/RUN", str(runs[0]))
    if "RERANKER" in word:
        folders = Path("outputs/train").glob("*/manifest.json")
        newest = max(folders, key=lambda path: path.stat().st_mtime).parent
        word = word.replace("outputs/train/RERANKER", str(newest))
    return sorted(map(str, Path().glob(word))) if "*" in word else [word]


@pytest.mark.slow
def test_commands_run(place):
    tiny = [*DATA, *CORPUS, "model=tiny", "data.folds=4"]
    runs = [
        pipeline.run_train(composed("train", *tiny, f"retriever={name}")).stage.folder
        for name in ("two_stage", "none")
    ]
    ran = []
    for command in commands():
        if reason(command, COMPOSED):
            continue
        name, given = parsed(words_of(command))
        given = [word for old in given for word in filled_in(old, runs)]
        if name in VERBS:
            smoke = ["debug=smoke"] if reason(command, SMOKE) and name == "train" else []
            if name == "train" and "-m" in given:
                given = [re.sub(r",.*", "", word) for word in given if word != "-m"]
            own = ["data.folds=4"] if name == "train" else []
            given = ["n=3" if word == "n=1000" else word for word in given]
            for group in (DATA, CORPUS) if name in ("train", "retrieve") else ():
                own += [] if _given(group[0], given) else group
            config = composed(name, *map(with_prefix, [*smoke, *given, *own]))
            getattr(pipeline, f"run_{name}")(config)
        else:
            assert main([name, *given]) == 0
        ran.append(command)
    assert len(ran) > 20


def _given(word, given):
    return any(other.split("=")[0] == word.split("=")[0] for other in given)
