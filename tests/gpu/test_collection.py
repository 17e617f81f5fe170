"""The tests for a GPU can be collected on a machine that lacks what they do not need."""

import re

import pytest
from helpers import python

# Not in the list of wheels that CONTRIBUTING.md gives for a GPU machine, or optional there.
ABSENT = ["altair", "bitsandbytes", "blingfire", "bm25s", "faiss", "gguf", "hypothesis", "openai"]
ABSENT += ["playwright", "pydantic", "pysbd", "vl_convert", "wandb", "xdist"]
COLLECT = """
import sys
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec

@classmethod
def without_absent(cls, name, *rest):
    return None if name.split(".")[0] in {absent} else find_spec(name, *rest)

PathFinder.find_spec = without_absent
import pytest
sys.exit(pytest.main(["--collect-only", "-m", "gpu", "-ra", "tests/gpu"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("absent", [ABSENT, ["datasets"]], ids=["optional", "needed"])
def test_they_are_collected_or_say_what_is_missing(absent):
    done = python("-c", COLLECT.format(absent=absent), PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert "error" not in done.stdout, done.stdout
    if absent is ABSENT:
        number = re.search(r"^(\d+)/\d+ tests collected", done.stdout, re.MULTILINE)
        assert done.returncode == 0
        assert int(number[1]) > 100
    else:
        assert done.returncode == 5  # nothing was collected
        assert "No module named 'datasets'" in done.stdout
