"""Fixtures of interrupted and refused commands."""

import pytest
from helpers import make_place


@pytest.fixture
def workdir(tmp_path):
    """A folder of questions and articles, in which commands run."""
    return make_place(tmp_path / "workdir")
