"""The local hub: huggingface_hub finds in it what it finds in the real one, faults included."""

import time
from pathlib import Path

import pytest
from hub.server import STORE, Hub, downloads
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

NAME = "acme/reader"
WEIGHTS = bytes(range(256)) * 100
FILES = {
    "config.json": b"{}",
    "1_Pooling/config.json": b'{"a": 1}',
    "model.safetensors": WEIGHTS,
    "onnx/model.onnx": b"junk",
}


@pytest.fixture
def hub():
    with Hub() as hub:
        hub.add(NAME, FILES)
        yield hub


@pytest.fixture
def api(hub: Hub) -> HfApi:
    return HfApi(endpoint=hub.url, token=False)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def fetch(hub: Hub, cache: Path, path: str, name: str = NAME, **more) -> Path:
    more = {"token": False, **more}
    return Path(hf_hub_download(name, path, endpoint=hub.url, cache_dir=cache, **more))


def fetch_all(hub: Hub, cache: Path, **more) -> Path:
    more = {"token": False, **more}
    return Path(snapshot_download(NAME, endpoint=hub.url, cache_dir=cache, **more))


def files_in(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_a_snapshot_holds_every_file_and_is_fetched_once(hub, cache):
    folder = fetch_all(hub, cache)
    assert files_in(folder) == FILES
    assert folder.name == hub.get(NAME).main.sha
    assert downloads(hub.requests) == {(NAME, path): 1 for path in FILES}
    with hub.recording() as requests:
        assert fetch_all(hub, cache) == folder
    assert [(r.method, r.path) for r in requests] == [("GET", f"/api/models/{NAME}/revision/main")]


def test_large_files_lie_with_another_host_that_sees_no_token(hub, cache):
    hub.gate(NAME, "hf_right")
    path = fetch(hub, cache, "model.safetensors", token="hf_right")
    assert path.resolve().name == hub.get(NAME).main.files["model.safetensors"].sha256
    head, body = hub.requests
    assert (head.method, head.status, head.token) == ("HEAD", 302, "hf_right")
    assert (body.method, body.status, body.token) == ("GET", 200, None)
    assert body.host == f"{STORE}:{hub.port}"


def test_small_files_lie_with_the_hub_itself(hub, cache):
    path = fetch(hub, cache, "1_Pooling/config.json")
    # The id that `git hash-object` gives b'{"a": 1}'.
    assert path.resolve().name == "4a036f56bb619924ec4189bd84ed716c766971ae"
    assert [(r.method, r.status) for r in hub.requests] == [
        ("HEAD", 307),
        ("HEAD", 200),
        ("GET", 200),
    ]
    assert {r.host for r in hub.requests} == {f"127.0.0.1:{hub.port}"}


def test_information_and_trees_name_commit_and_files(hub, api):
    information = api.model_info(NAME, files_metadata=True)
    assert (information.id, information.sha) == (NAME, hub.get(NAME).main.sha)
    sizes = {sibling.rfilename: sibling.size for sibling in information.siblings}
    assert sizes == {path: len(data) for path, data in FILES.items()}
    assert {entry.path for entry in api.list_repo_tree(NAME)} == {
        *("1_Pooling", "config.json", "model.safetensors", "onnx")
    }
    weights = next(s for s in information.siblings if s.rfilename == "model.safetensors")
    assert weights.lfs.sha256 == hub.get(NAME).main.files["model.safetensors"].sha256


def test_main_moves_and_old_commits_stay(hub, cache):
    old = hub.get(NAME).main.sha
    fetch_all(hub, cache)
    new = hub.move(NAME, {"config.json": b'{"new": 1}', "onnx/model.onnx": None})
    with hub.recording() as requests:
        folder = fetch_all(hub, cache)
    assert folder.name == new != old
    assert files_in(folder).keys() == FILES.keys() - {"onnx/model.onnx"}
    assert downloads(requests) == {(NAME, "config.json"): 1}
    assert fetch(hub, cache, "config.json", revision=old).read_bytes() == b"{}"


def test_a_pull_request_is_a_revision(hub, cache):
    proposed = hub.propose(NAME, 4, {"other.safetensors": b"weights"})
    path = fetch(hub, cache, "other.safetensors", revision="refs/pr/4")
    assert path.parent.name == proposed
    with pytest.raises(RemoteEntryNotFoundError):
        fetch(hub, cache, "other.safetensors")


def test_a_cut_download_goes_on_where_it_ended(hub, cache, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    hub.cut(NAME, "model.safetensors", after_bytes=10_500, times=1)
    assert fetch(hub, cache, "model.safetensors").read_bytes() == WEIGHTS
    first, second = (r for r in hub.requests if r.method == "GET")
    assert (first.status, first.sent) == (200, 10_500)
    assert (second.status, second.range) == (206, "bytes=10000-")


def test_a_gate_opens_to_its_token(hub, api, cache):
    hub.gate(NAME, "hf_right")
    hub.tokens.add("hf_other")
    assert api.model_info(NAME).gated == "auto"
    for token, status in ((False, 401), ("hf_other", 403)):
        with pytest.raises(GatedRepoError) as caught:
            fetch(hub, cache, "config.json", token=token)
        assert caught.value.response.status_code == status
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as caught:
        fetch(hub, cache, "config.json", token="hf_wrong")
    assert caught.value.response.status_code == 401
    assert fetch(hub, cache, "config.json", token="hf_right").read_bytes() == b"{}"


def test_what_is_missing_is_told_apart(hub, cache):
    with pytest.raises(RepositoryNotFoundError):
        fetch(hub, cache, "config.json", "acme/none")
    with pytest.raises(RemoteEntryNotFoundError):
        fetch(hub, cache, "none.json")
    with pytest.raises(RevisionNotFoundError):
        fetch(hub, cache, "config.json", revision="v2")
    missing = cache / "models--acme--reader" / ".no_exist" / hub.get(NAME).main.sha / "none.json"
    assert missing.is_file()


def test_a_busy_hub_is_asked_again(hub, cache, monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    hub.fail(NAME, "config.json", status=429, times=2, retry_after=7)
    assert fetch(hub, cache, "config.json").read_bytes() == b"{}"
    assert waits == [8.0]  # before the first it looks into the cache
    hub.fail(NAME, "model.safetensors", status=503)
    with pytest.raises(LocalEntryNotFoundError):
        fetch(hub, cache, "model.safetensors")
