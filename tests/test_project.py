"""The repository: forbidden words, sizes, the lock, the distribution's name."""

import re
import subprocess

import pytest
from helpers import ROOT

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


def read_any(path):
    """Return a file's text; some cases hold other bytes."""
    return path.read_bytes().decode("utf-8", errors="replace")


def test_tracked_files_speak_of_the_project_alone():
    found = []
    for path in tracked():
        name = str(path.relative_to(ROOT))
        if name in FIXTURES or path.suffix == ".png":
            continue
        text = read_any(path)
        found += [f"{name}: {what}" for what, word in FORBIDDEN.items() if re.search(word, text)]
    assert found == []


def test_no_tracked_file_is_large_or_binary():
    large = [p.name for p in tracked() if p.stat().st_size > 1_000_000]
    weights = [p.name for p in tracked() if p.suffix in {".safetensors", ".bin", ".pt"}]
    cases = ROOT / "tests" / "cases"  # small inputs, made up
    tables = [p.name for p in tracked() if p.suffix == ".parquet" and not p.is_relative_to(cases)]
    assert (large, weights, tables) == ([], [], [])


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
        for match in mentions.finditer(read_any(path))
    ]
    assert naming == []
