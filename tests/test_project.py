"""The repository itself: what it says, what it holds, what it locks."""

import re
import subprocess
import tomllib

import pytest
import yaml
from helpers import ROOT

from exam.pipelines.doctor import TESTED

# Words of the workshop, spelled so that this file does not hold them.
FORBIDDEN = {
    "a path above the repository": re.escape("../" + "shared"),
    "an absolute path": r"(?<![\w.])/(?:wor" + r"k|root|home|tmp|Users)/\w",
    "a workplace's tool": r"\b(?:farm-" + r"\w+|CEO|DEVELOPERS\.md)\b",
    "a registry's host": r"\b(?:pypi|registry)\." + r"(?:org|npmjs)",
}
FIXTURES = {"tests/conftest.py", "tests/test_project.py"}


def tracked():
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False
    ).stdout.decode()
    names = [name for name in listed.split("\0") if name]
    if not names:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def test_tracked_files_speak_of_the_project_alone():
    found = []
    for path in tracked():
        name = str(path.relative_to(ROOT))
        if name in FIXTURES or path.suffix == ".png":
            continue
        text = path.read_text(encoding="utf-8")
        found += [f"{name}: {what}" for what, word in FORBIDDEN.items() if re.search(word, text)]
    assert found == []


def test_no_tracked_file_is_large_or_binary():
    large = [p.name for p in tracked() if p.stat().st_size > 1_000_000]
    weights = [p.name for p in tracked() if p.suffix in {".safetensors", ".bin", ".pt", ".parquet"}]
    assert (large, weights) == ([], [])


def test_lock_pins_every_package_without_local_labels():
    lines = (ROOT / "requirements.lock").read_text().splitlines()[1:]
    assert all(re.fullmatch(r"[a-z0-9-]+==[^+\s]+", line) for line in lines)
    locked = {line.partition("==")[0] for line in lines}
    wanted = {"torch", "transformers", "datasets", "faiss-cpu", "peft", "wandb", "ruff", "pytest"}
    assert wanted <= locked


def test_the_distribution_is_not_called_exam():
    """`exam` on the package index is another project."""
    mentions = re.compile(r"pip install (\S+ )*['\"]?exam(?![\w-])|(?<![\w-])exam\[")
    naming = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in tracked()
        if path.suffix != ".png" and path.name != "test_project.py"
        for match in mentions.finditer(path.read_text(encoding="utf-8"))
    ]
    assert naming == []


def test_every_declared_python_is_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    prefix = "Programming Language :: Python :: "
    declared = [name for name in project["classifiers"] if name.startswith(prefix)]
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    tested = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert [prefix + version for version in tested] == declared
    assert tuple(tuple(map(int, tested[i].split("."))) for i in (0, -1)) == TESTED
    assert project["requires-python"] == f">={tested[0]}"


def test_workflows_name_tests_and_targets_that_exist():
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    text = "\n".join(path.read_text() for path in workflows)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [
        name for name in re.findall(r"\btests/[\w/]+\.py", text) if not (ROOT / name).is_file()
    ] == []
    assert set(re.findall(r"\bmake ([a-z-]+)", text)) <= set(targets)


def test_tests_for_a_gpu_stand_where_make_test_gpu_looks():
    marks = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("*.py")
        if "mark.gpu" in path.read_text() and path.name != "test_project.py"
    ]
    assert marks == ["tests/gpu/accelerators.py"]
