"""The local hub: huggingface_hub finds in it what it finds in the real one, faults included."""

import time
from pathlib import Path
from urllib.request import Request, urlopen

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


def test_patterns_choose_the_files_that_are_fetched(hub, cache):
    folder = fetch_all(hub, cache, allow_patterns=["*.json", "*.safetensors"])
    assert files_in(folder).keys() == FILES.keys() - {"onnx/model.onnx"}
    assert (NAME, "onnx/model.onnx") not in downloads(hub.requests)


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


def test_information_names_commit_and_files(hub, api):
    information = api.model_info(NAME, files_metadata=True)
    assert (information.id, information.sha) == (NAME, hub.get(NAME).main.sha)
    assert (information.private, information.gated) == (False, False)
    sizes = {sibling.rfilename: sibling.size for sibling in information.siblings}
    assert sizes == {path: len(data) for path, data in FILES.items()}
    weights = next(s for s in information.siblings if s.rfilename == "model.safetensors")
    assert weights.lfs.sha256 == hub.get(NAME).main.files["model.safetensors"].sha256


@pytest.mark.parametrize("page", [1, 2, 1000])
def test_trees_are_listed_page_by_page(hub, api, page):
    hub.page = page
    assert [entry.path for entry in api.list_repo_tree(NAME)] == [
        "1_Pooling",
        "config.json",
        "model.safetensors",
        "onnx",
    ]
    whole = [entry.path for entry in api.list_repo_tree(NAME, recursive=True)]
    assert whole == sorted([*FILES, "1_Pooling", "onnx"])
    assert [entry.path for entry in api.list_repo_tree(NAME, "onnx")] == ["onnx/model.onnx"]
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree(NAME, "additional_chat_templates"))


def test_paths_that_are_there_are_described(api):
    (path,) = api.get_paths_info(NAME, ["model.safetensors", "none.json"])
    assert (path.path, path.size) == ("model.safetensors", len(WEIGHTS))
    assert api.file_exists(NAME, "config.json")
    assert not api.file_exists(NAME, "none.json")


def test_an_old_name_leads_to_the_new_one(hub, api, cache):
    hub.rename("acme/old", NAME)
    assert api.model_info("acme/old").id == NAME
    assert fetch(hub, cache, "model.safetensors", "acme/old").read_bytes() == WEIGHTS
    first = next(r for r in hub.requests if r.method == "HEAD")
    assert (first.path, first.status) == ("/acme/old/resolve/main/model.safetensors", 307)


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


def test_a_pull_request_is_a_revision(hub, api, cache):
    proposed = hub.propose(NAME, 4, {"other.safetensors": b"weights"})
    path = fetch(hub, cache, "other.safetensors", revision="refs/pr/4")
    assert path.parent.name == proposed
    with pytest.raises(RemoteEntryNotFoundError):
        fetch(hub, cache, "other.safetensors")
    refs = api.list_repo_refs(NAME, include_pull_requests=True)
    assert [(ref.ref, ref.target_commit) for ref in refs.branches + refs.pull_requests] == [
        ("refs/heads/main", hub.get(NAME).main.sha),
        ("refs/pr/4", proposed),
    ]
    commits = [commit.commit_id for commit in api.list_repo_commits(NAME, revision="refs/pr/4")]
    assert commits == [proposed, hub.get(NAME).main.sha]


def test_transformers_finds_the_bots_pull_request(hub, api, monkeypatch):
    from transformers import safetensors_conversion
    from transformers.safetensors_conversion import previous_pr

    monkeypatch.setattr(safetensors_conversion, "get_repo_discussions", api.get_repo_discussions)
    hub.propose(NAME, 4, {"other.safetensors": b"weights"})
    title = "Adding `safetensors` variant of this model"
    discussion = previous_pr(api, NAME, title, token=None)
    assert (discussion.num, discussion.author) == (4, "SFconvertbot")
    hub.move(NAME, {"config.json": b"new"})
    assert previous_pr(api, NAME, title, token=None) is None  # main has moved on


# Ranges and cuts


def test_a_range_of_a_file_is_sent(hub):
    sha = hub.get(NAME).main.sha
    address = f"{hub.url}/{NAME}/resolve/{sha}/model.safetensors"
    request = Request(address, headers={"Range": "bytes=1000-1009"})
    with urlopen(request) as answer:
        assert answer.status == 206
        assert answer.headers["Content-Range"] == f"bytes 1000-1009/{len(WEIGHTS)}"
        assert answer.read() == WEIGHTS[1000:1010]


def test_a_cut_download_goes_on_where_it_ended(hub, cache, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    hub.cut(NAME, "model.safetensors", after_bytes=10_500, times=1)
    assert fetch(hub, cache, "model.safetensors").read_bytes() == WEIGHTS
    first, second = (r for r in hub.requests if r.method == "GET")
    assert (first.status, first.sent) == (200, 10_500)
    assert (second.status, second.range) == (206, "bytes=10000-")


def test_what_was_whole_is_not_fetched_again_after_a_cut(hub, cache, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    hub.cut(NAME, "model.safetensors", after_bytes=100)
    with pytest.raises(Exception, match="peer closed connection"):
        fetch_all(hub, cache, max_workers=1)
    hub.heal()
    whole = {file for _, file in downloads(hub.requests)} - {"model.safetensors"}
    with hub.recording() as requests:
        assert files_in(fetch_all(hub, cache)) == FILES
    assert downloads(requests) == {(NAME, path): 1 for path in FILES.keys() - whole}


# Refusals


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


def test_a_private_repository_is_missing_to_others(hub, api):
    hub.hide(NAME, "hf_right")
    hub.tokens.add("hf_other")
    for token in (False, "hf_other"):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info(NAME, token=token)
    assert api.model_info(NAME, token="hf_right").private


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


def test_the_cache_serves_a_hub_that_is_down(hub, cache):
    path = fetch(hub, cache, "config.json")
    hub.fail(NAME, status=500)
    assert fetch(hub, cache, "config.json") == path


def test_nothing_is_asked_offline(hub, cache, monkeypatch):
    folder = fetch_all(hub, cache)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with hub.recording() as requests:
        assert fetch_all(hub, cache) == folder
        assert fetch(hub, cache, "config.json") == folder / "config.json"
        with pytest.raises(LocalEntryNotFoundError):
            fetch(hub, cache, "none.json")
    assert requests == []
