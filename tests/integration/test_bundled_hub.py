"""Checkpoints of the hub in a bundle: found by their ids where there is no network."""

import json

import pytest
from helpers import python
from hub.layouts import files_of_model
from hub.server import Hub

pytestmark = pytest.mark.slow

READER, ENCODER = "acme/reader", "acme/encoder"
COLLECT = """
import sys
from pathlib import Path
from exam.bundle.contents import Contents, _add_weights
from exam.config import Checkpoint
contents = Contents(Path(sys.argv[1]))
for name in sys.argv[2:]:
    _add_weights(contents, Checkpoint("reader", "model.name_or_path", name))
print(contents.overrides)
"""
RESOLVE = """
import json, sys
from exam.core.checkpoints import checkpoint_fingerprint, resolve_checkpoint
from exam.config import Checkpoint
checkpoints = [Checkpoint("reader", "model.name_or_path", name) for name in sys.argv[1:]]
files = [sorted(p.name for p in resolve_checkpoint(c).iterdir()) for c in checkpoints]
print(json.dumps([files, [checkpoint_fingerprint(c) for c in checkpoints]]))
"""


def run(source, *arguments, **environment):
    done = python("-c", source, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_bundle_carries_what_the_hub_gave(tmp_path):
    names, bundle = (READER, ENCODER), tmp_path / "bundle"
    bundle.mkdir()
    with Hub() as hub:
        hub.add(READER, files_of_model("microsoft/deberta-v3-xsmall"))
        hub.add(ENCODER, files_of_model("BAAI/bge-small-en-v1.5"))
        commits = [hub.get(name).main.sha for name in names]
        overrides = run(COLLECT, str(bundle), *names, **hub.environment(tmp_path))
    assert overrides.strip() == "[]"  # found by their ids
    assert not list(bundle.rglob("*.bin"))
    offline = {"HF_HUB_CACHE": str(bundle / "hub"), "HF_HUB_OFFLINE": "1"}
    caches = {"HF_HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "other")}
    files, keys = json.loads(run(RESOLVE, *names, **offline, **caches))
    assert {"config.json", "model.safetensors", "spm.model"} <= {*files[0]}
    assert {"modules.json", "1_Pooling", "model.safetensors"} <= {*files[1]}
    assert keys == [{"id": n, "commit": c} for n, c in zip(names, commits, strict=True)]
