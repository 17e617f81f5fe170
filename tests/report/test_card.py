"""The model card of a run, and its way to a hub."""

import base64
import json
from http.server import BaseHTTPRequestHandler

import pytest
from fakes import Answers, Server
from helpers import ROOT, make_place, python, tiny
from huggingface_hub import ModelCard

from exam.config.compose import compose_config
from exam.core.errors import ExamError
from exam.pipelines.train import train_reader


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("cards"))


@pytest.fixture(scope="module")
def run(place):
    return train_reader(compose_config("train", *tiny(place))).stage.folder


def test_a_card_has_the_figures_of_its_results(run):
    card = ModelCard.load(run / "README.md")
    results = json.loads((run / "results.json").read_text())
    reader = results["rows"][-1]
    (metric,) = card.data.eval_results
    assert metric.metric_value == pytest.approx(reader["map_at_3"], abs=1e-4)
    assert card.data.tags == ["multiple-choice", "open-book"]
    low, high = reader["ci"]
    row = f"| {reader['system']} | {reader['map_at_3']:.3f} | [{low:.3f}, {high:.3f}] |"
    assert row in card.text
    lines = card.text.splitlines()
    table = lines.index("| system | MAP@3 | 95 % interval |")
    assert all(line.startswith("|") for line in lines[table : table + 2 + len(results["rows"])])
    assert "| seed | 42 |" in card.text
    manifest = json.loads((run / "manifest.json").read_text())
    assert {"README.md", "report.html"} <= set(manifest["files"])


def test_a_push_to_nowhere_is_refused_before_any_work(place):
    for repo in ("null", "name", "a/b/c", "/name", "me/na me"):
        with pytest.raises(ExamError, match=r"hub\.repo=<owner>/<name>"):
            compose_config("train", *tiny(place), "hub.push=true", f"hub.repo={repo}")


@pytest.mark.parametrize("value", ["seed=[1,2]", "data.cross_validate=true", "task=encoder"])
def test_only_one_reader_is_pushed(place, value):
    with pytest.raises(ExamError, match=r"hub\.push=true .*\n.*one seed, and no data"):
        compose_config("train", *tiny(place), "hub.push=true", "hub.repo=me/run", value)


class Hub(Server):
    """As much of the hub's interface as a push of small files asks for."""

    def __init__(self):
        super().__init__(HubHandler)
        self.created, self.files, self.seen, self.private = [], {}, [], True


class HubHandler(Answers, BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.body() if self.headers.get("Content-Length") else self._chunks()
        self.server.seen.append((self.path, self.headers.get("Authorization")))
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            return self._reply(
                {"url": f"{self.server.url}/me/run", "name": "me/run", "id": "me/run"}
            )
        if self.path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
            ]
            return self._reply({"files": files})
        if self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
            url = f"{self.server.url}/me/run/commit/abc"
            return self._reply({"commitUrl": url, "commitOid": "abc", "success": True})
        return self._reply({"errors": [], "warnings": []})

    def do_GET(self):
        self._reply({"id": "me/run", "sha": "abc", "siblings": [], "private": self.server.private})

    def _chunks(self):
        body = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        return body

    def _reply(self, value):
        self.answer(json.dumps(value).encode())


def pushed(place, hub):
    overrides = [*tiny(place), "hub.push=true", "hub.repo=me/run"]
    environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_secret", "HF_HUB_DISABLE_XET": "1"}
    return python(str(ROOT / "train.py"), *overrides, **environment)


def test_a_run_is_pushed_whole_and_private(place, run):
    hub = Hub()
    done = pushed(place, hub)
    assert done.returncode == 0, done.stderr
    assert hub.created[0]["visibility"] == "private"
    names = {"README.md", "results.json", "config.yaml", "model/config.json", "report.html"}
    assert names <= set(hub.files)
    assert hub.files["README.md"] == (run / "README.md").read_bytes()
    assert not any(path.startswith("checkpoints") for path in hub.files)
    assert not any(b"hf_secret" in content for content in hub.files.values())
    assert {token for path, token in hub.seen if "commit" in path} == {"Bearer hf_secret"}
    assert f"{hub.url}/me/run/commit/abc" in done.stdout


def test_a_hub_out_of_reach_leaves_the_run_whole(place, run):
    hub = Hub()
    hub.shutdown()
    hub.server_close()
    done = pushed(place, hub)
    assert done.returncode == 2
    first, second = done.stderr.splitlines()[-2:]
    assert first.startswith(f"{run} could not be pushed to me/run: ")
    assert "hf auth login" in second


def test_nothing_is_pushed_to_a_public_repository_unasked(place, run):
    hub = Hub()
    hub.private = False
    done = pushed(place, hub)
    assert (done.returncode, hub.files) == (2, {})
    first, second = done.stderr.splitlines()[-2:]
    assert first.startswith("me/run ")
    assert "hub.private=false" in second
    assert "hub.repo=<owner>/<name>" in second
