"""The documents: every command composes, the README's run on small data, and settings exist."""

import re
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import ANIMALS, PLACES, ROOT, kaggle_rows, write_csv

from exam import cli
from exam.config import ROOTS
from exam.config.compose import compose_config, known_keys
from exam.config.values import conf_dir
from exam.pipelines.train import run_train

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
RUN = [README, ROOT / "docs" / "guides" / "prediction.md"]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
COMMAND = re.compile(r"(exam|torchrun|wandb|make|pip|export)\b.*|[A-Z]=.*")
SETTING = re.compile(r"[+~]?([a-z]\w*(?:\.\w+)*)(?:=(.*))?")
GROUPS = {path.name for path in conf_dir().iterdir() if path.is_dir()}
KEYS = {key for schema in ROOTS.values() for key in known_keys(schema)}
FREE = (  # their keys are yours
    *("data.columns", "corpus.columns", "retriever.members", "retriever.weights"),
)
PLACEHOLDERS = {"group", "key", "run"}
# Commands that a test does not run as written, and why; the first match holds.
SMOKE = {  # run with small random weights of the model's architecture
    "a hub": r"model=deberta|experiment=",
    "the demo's index, which `make demo` builds": r"exam train( |$)(?!.*(data|task)=)",
}
COMPOSED = {
    "several processes, or machines: tests of indexes and training": r"^torchrun",
    "an environment of its own: the bundle's tests": r"exam bundle",
    "a W&B server: the trackers' tests": r"^wandb|tracker=wandb",
    "minutes: the demo's and the benchmarks' own tests": r"^make",
    "an endpoint: the question writer's tests": r"generator=llm",
    "a person: tests of these commands": r"exam (ask|inspect|doctor|demo|--)",
    "shell, not this project": r"^(pip|export)",
}

DATA = ["data=kaggle", "data.dir=data"]
CORPUS = ["corpus=wikipedia", "corpus.dir=wikipedia"]
TEXT = (
    "The {0} is an animal that spends most of its life in the {1}. It was first described in {2} "
    "by a traveller who watched it for weeks. Its young leave the nest after about {2} hours."
)


def read_commands(page):
    """List the commands of a page's shell blocks, with variables and continued lines resolved."""
    text = page.read_text().replace("\\\n", " ")
    variables, commands = {"EXAM_DATA": "given"}, []
    for language, block in BLOCK.findall(text):
        for line in filter(COMMAND.fullmatch, block.splitlines() if language == "bash" else []):
            for name, value in variables.items():
                line = line.replace(f"${name}", value)  # noqa: PLW2901
            if line[1] == "=":
                variables[line[0]] = shlex.split(line[2:])[0]
            else:
                commands.append(line)
    return commands


def read_inline(page):
    """List the inline code of a page, tables included."""
    return INLINE.findall(BLOCK.sub("", page.read_text()))


def split(command):
    """Return an exam command's name and its arguments."""
    words = [word for word in shlex.split(command, comments=True) if not re.search("[…|]$", word)]
    words = words[words.index("exam") + 1 :]
    return words[0], words[1:]


def find_reason(command, table):
    return next((why for why, pattern in table.items() if re.search(pattern, command)), None)


def compose(name, arguments):
    """Compose a command's configuration, with one value of every sweep and placeholder."""
    words = [word for word in arguments if word != "-m" and not word.startswith("hydra")]
    words = [re.sub(r"^([\w.]+=[\d.]+),.*", r"\1", word) for word in words]
    words = [re.sub(r"=tag\(.*", "=1e-4", word).replace("<name>", "m") for word in words]
    words = [word.replace("<url>", "http://localhost/v1").replace("[…]", "[a,b]") for word in words]
    return compose_config(name, *words)


def is_known(name, value):
    """Return whether a word names a setting, or is none: `submission.csv`, `joblib`."""
    group = name.partition(".")[0]
    if name in GROUPS and value and value.isidentifier():
        return bool(list((conf_dir() / name).rglob(f"{value}.yaml")))
    if group in GROUPS and "." in name:
        return name in KEYS or name.endswith(".py") or name.startswith(FREE)
    return value is None or name in GROUPS | KEYS or group in PLACEHOLDERS


def all_commands(pages=PAGES):
    return list(dict.fromkeys(command for page in pages for command in read_commands(page)))


def test_the_readme_is_one_page():
    lines = README.read_text().splitlines()
    first = next(i for i, line in enumerate(lines, 1) if line == "```bash")
    assert len(lines) <= 180
    assert first < 20
    assert len(read_commands(README)) > 12


@pytest.mark.parametrize("command", all_commands())
def test_commands_compose(command):
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text()
        assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE)
    elif words[0] == "wandb":
        assert (ROOT / words[-1]).is_file()
    elif "exam" in words:
        name, arguments = split(command)
        if name in ROOTS:
            compose(name, arguments)
        else:
            assert name in {*cli.COMMANDS, "--version", "-sc"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_inline_commands_compose(page):
    for code in read_inline(page):
        if re.match(r"exam (train|retrieve|infer|generate|stress) .*=|torchrun .* exam ", code):
            compose(*split(code.replace(",…]", "]")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_settings_exist(page):
    words = (word for code in read_inline(page) for word in code.split())
    settings = filter(None, map(SETTING.fullmatch, words))
    assert [setting[0] for setting in settings if not is_known(setting[1], setting[2])] == []


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the files that the commands name."""
    for name in ("data", "given/exam"):
        (tmp_path / name).mkdir(parents=True)
        write_csv(tmp_path / name / "train.csv", kaggle_rows(24))
        write_csv(tmp_path / name / "valid.csv", kaggle_rows(10, start=40))
        unanswered = [{k: v for k, v in row.items() if k != "answer"} for row in kaggle_rows(6)]
        write_csv(tmp_path / name / "test.csv", unanswered)
    write_csv(tmp_path / "mine.csv", kaggle_rows(24))
    rows = [
        {"id": f"a{i}", "title": animal.title(), "text": TEXT.format(animal, home, 1750 + 10 * i)}
        for i, (animal, home) in enumerate(zip(ANIMALS, PLACES, strict=True))
    ]
    table = pa.Table.from_pylist([{**row, "categories": ""} for row in rows])
    for name in ("wikipedia", "given/wikipedia"):
        (tmp_path / name).mkdir(parents=True)
        pq.write_table(table, tmp_path / name / "a.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fill_in(word, runs):
    """Replace a word's placeholders with runs, and a pattern with the files that it matches."""
    for letter, run in zip("AB", runs, strict=True):
        word = word.replace(f"RUN_{letter}", str(run)).replace(f"FOLDS_{letter}", str(run))
        word = word.replace(f"{letter.lower()}.parquet", f"{run}/predictions.parquet")
    word = word.replace("outputs/train/RUN", str(runs[0]))
    return sorted(map(str, Path().glob(word))) if "*" in word else [word]


def add_data(command, arguments, name):
    """Append small data, weights and folds where a command names none."""
    extra = ["data.folds=4"] if name == "train" else []
    if name == "train" and find_reason(command, SMOKE):
        extra.append("debug=smoke")
    for group in (DATA, CORPUS) if name in ("train", "retrieve") else ():
        chosen = any(word.startswith(f"{group[0].partition('=')[0]}=") for word in arguments)
        extra += [] if chosen else group
    return [*arguments, *extra]


@pytest.mark.slow
def test_commands_run(folder):
    tiny = [*DATA, *CORPUS, "model=tiny", "data.folds=4"]
    runs = [
        run_train(compose_config("train", *tiny, f"retriever={name}")).stage.folder
        for name in ("two_stage", "none")
    ]
    ran = []
    for command in all_commands(RUN):
        if find_reason(command, COMPOSED):
            continue
        name, arguments = split(command)
        arguments = [word for old in arguments for word in fill_in(old, runs)]
        if name in ROOTS:
            words = [
                "num_questions=3" if word == "num_questions=1000" else word for word in arguments
            ]
            config = compose(name, add_data(command, words, name))
            cli.run_pipeline(name, config)
        else:
            assert cli.main([name, *arguments]) == 0
        ran.append(command)
    assert len(ran) > 15
