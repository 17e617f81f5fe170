"""What the local hub answers: repositories' information, trees and files, and its refusals."""

import json
import re
import socket
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from hub.repositories import Commit, Repository, StoredFile

if TYPE_CHECKING:
    from hub.server import Hub

KINDS = {"models": "model", "datasets": "dataset"}
DATE = "2026-08-01T12:00:00.000Z"
ACTIONS = {"revision", "tree", "paths-info"}
RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class Refusal(Exception):
    """A redirect or an error instead of what the client wants, with the hub's code and message."""

    def __init__(self, status: int, code: str | None, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers


class Handler(BaseHTTPRequestHandler):
    """Answer one connection's requests."""

    hub: "Hub"
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Say nothing: what came is in `hub.requests`."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    # One request

    def answer(self) -> None:
        """Answer a request, and record it."""
        self.repository: Repository | None = None
        self.file: str | None = None
        self.status = 0
        with self.hub.answering():
            self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            try:
                self.route()
            except Refusal as refusal:
                self.refuse(refusal)
            except (BrokenPipeError, ConnectionResetError):  # the client has left
                self.close_connection = True
            finally:
                self.record()

    def record(self) -> None:
        from hub.server import Request

        self.hub.record(
            Request(
                method=self.command,
                path=self.path,
                status=self.status,
                repository=self.repository and self.repository.id,
                file=self.file,
            )
        )

    @property
    def token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query)

    def route(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if self.token is not None and self.token not in self.hub.tokens:
            raise Refusal(401, None, "Invalid credentials in Authorization header")
        if parts[0] == "store":
            return self.send_stored(parts[1], "/".join(parts[2:4]), *parts[4:])
        if parts[:2] == ["api", "resolve-cache"]:
            return self.send_cached(parts[2], "/".join(parts[3:5]), *parts[5:])
        if parts[0] == "api" and parts[1:2] and parts[1] in KINDS:
            return self.route_api(parts[1], parts[2:])
        kind = parts.pop(0) if parts[0] in KINDS else "models"
        name = parts.index("resolve") if "resolve" in parts else 0
        if name in (1, 2) and len(parts) > name + 2:
            return self.resolve(kind, "/".join(parts[:name]), parts[name + 1], parts[name + 2 :])
        raise Refusal(404, None, "Not found")

    def route_api(self, kind: str, parts: list[str]) -> None:
        names = 1 if parts[1:2] and parts[1] in ACTIONS else 2
        action, *rest = parts[names:] or ["revision"]
        repository = self.find(kind, "/".join(parts[:names]))
        self.strike("")
        revision = rest[0] if rest else "main"
        match action:
            case "revision":
                commit = self.commit(repository, revision)
                return self.send_json(information(repository, commit, self.query))
            case "paths-info":
                return self.send_paths(self.commit(repository, revision))
            case "tree":
                return self.send_tree(self.commit(repository, revision), "/".join(rest[1:]))
        raise Refusal(404, None, f"No such action: {action}")

    def find(self, kind: str, name: str) -> Repository:
        """The repository of a name.

        The client takes a 401 for a missing repository where the address is https; this one's is
        not, so that the error's code says it here.
        """
        key = KINDS[kind], name
        if key in self.hub.renamed:
            new = self.path.replace(name, self.hub.renamed[key], 1)
            raise Refusal(307, None, f"Temporary Redirect. Redirecting to {new}", Location=new)
        repository = self.hub.repositories.get(key)
        if repository is None:
            if self.token is None:
                raise Refusal(401, "RepoNotFound", "Invalid username or password.")
            raise Refusal(404, "RepoNotFound", "Repository not found")
        self.repository = repository
        return repository

    def commit(self, repository: Repository, revision: str) -> Commit:
        commit = repository.resolve(revision)
        if commit is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def strike(self, path: str) -> None:
        """Go wrong where a test says so."""
        fault = self.hub.strike(self.repository.id, path, body=False) if self.repository else None
        if fault is not None:
            wait = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            raise Refusal(int(fault.status or 500), None, "The test says so", **wait)

    # Files

    def resolve(self, kind: str, name: str, revision: str, path: list[str]) -> None:
        """Send a client on to where a file's bytes are, with what identifies them."""
        repository = self.find(kind, name)
        self.check_gate(repository)
        commit = self.commit(repository, revision)
        self.file = "/".join(path)
        self.strike(self.file)
        known = {"X-Repo-Commit": commit.sha}
        file = commit.files.get(self.file)
        if file is None:
            raise Refusal(404, "EntryNotFound", "Entry not found", **known)
        known |= {
            "ETag": f'"{file.oid}"',
            "X-Linked-Etag": f'"{file.etag}"',
            "X-Linked-Size": str(file.size),
        }
        tail = quote(file.path, safe="")
        if file.is_large:
            target = f"{self.hub.store}/store/{kind}/{name}/{commit.sha}/{tail}?signature=s"
            raise Refusal(302, None, f"Found. Redirecting to {target}", Location=target, **known)
        target = f"/api/resolve-cache/{kind}/{name}/{commit.sha}/{tail}"
        raise Refusal(307, None, f"Temporary Redirect to {target}", Location=target, **known)

    def check_gate(self, repository: Repository) -> None:
        if not repository.is_gated or self.token in repository.readers:
            return
        restricted = f"Access to {repository.kind} {repository.id} is restricted"
        if self.token is None:
            raise Refusal(
                401,
                "GatedRepo",
                f"{restricted}. You must have access to it and be authenticated to access it. "
                "Please log in.",
            )
        raise Refusal(
            403,
            "GatedRepo",
            f"{restricted} and you are not in the authorized list. Visit "
            f"https://huggingface.co/{repository.id} to ask for access.",
        )

    def send_cached(self, kind: str, name: str, sha: str, path: str) -> None:
        repository = self.find(kind, name)
        self.check_gate(repository)
        self.file = path
        self.send_file(repository, repository.commits[sha].files[path], sha)

    def send_stored(self, kind: str, name: str, sha: str, path: str) -> None:
        """Send a large file; its address is signed, and no token comes along."""
        repository = self.hub.repositories[KINDS[kind], name]
        self.repository, self.file = repository, path
        self.send_file(repository, repository.commits[sha].files[path], sha)

    def send_file(self, repository: Repository, file: StoredFile, sha: str) -> None:
        """Send a file, or the range of it that the client asks for, up to where it is cut."""
        wanted = RANGE.fullmatch(self.headers.get("Range") or "")
        start = int(wanted[1]) if wanted else 0
        end = min(int(wanted[2]) + 1 if wanted and wanted[2] else file.size, file.size)
        if wanted and start >= file.size:
            whole = f"bytes */{file.size}"
            raise Refusal(416, None, "Range Not Satisfiable", **{"Content-Range": whole})
        headers = {"ETag": f'"{file.etag}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.size}"
        self.head(206 if wanted else 200, "application/octet-stream", end - start, headers)
        if self.command == "HEAD":
            return
        fault = self.hub.strike(repository.id, file.path, body=True)
        data = file.data[start : end if fault is None else max(start, min(end, fault.after_bytes))]
        self.wfile.write(data)
        if fault is not None:
            self.cut()

    def cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    # Information

    def send_tree(self, commit: Commit, folder: str) -> None:
        """List a folder."""
        recursive = self.query.get("recursive", ["false"])[0].lower() == "true"
        entries = tree(commit, folder, recursive=recursive)
        if folder and not entries:
            message = f"{folder} does not exist on {commit.sha}"
            raise Refusal(404, "EntryNotFound", message)
        self.send_json(entries)

    def send_paths(self, commit: Commit) -> None:
        kind = self.headers.get("Content-Type", "")
        text = self.body.decode()
        paths = json.loads(text)["paths"] if "json" in kind else parse_qs(text).get("paths", [])
        entries = {entry["path"]: entry for entry in tree(commit, "", recursive=True)}
        self.send_json([entries[path] for path in paths if path in entries])

    def send_json(self, value: Any) -> None:
        self.send(200, json.dumps(value).encode(), "application/json; charset=utf-8", {})

    def refuse(self, refusal: Refusal) -> None:
        headers = dict(refusal.headers)
        if refusal.status < 400:
            return self.send(refusal.status, refusal.message.encode(), "text/plain", headers)
        headers["X-Error-Message"] = refusal.message
        if refusal.code is not None:
            headers["X-Error-Code"] = refusal.code
        error = json.dumps({"error": refusal.message}).encode()
        return self.send(refusal.status, error, "application/json; charset=utf-8", headers)

    def send(self, status: int, body: bytes, kind: str, headers: dict[str, str]) -> None:
        self.head(status, kind, len(body), headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def head(self, status: int, kind: str, length: int, headers: dict[str, str]) -> None:
        self.status = status
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": length, **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()


def information(
    repository: Repository, commit: Commit, query: dict[str, list[str]]
) -> dict[str, Any]:
    """A model's or data set's information; with `blobs` its files' sizes and hashes."""
    with_blobs = query.get("blobs", ["false"])[0].lower() == "true"
    siblings = [sibling(file, with_blobs=with_blobs) for file in ordered(commit)]
    return {
        "_id": commit.sha[:24],
        "id": repository.id,
        "modelId": repository.id,
        "author": repository.id.split("/", maxsplit=1)[0],
        "sha": commit.sha,
        "lastModified": DATE,
        "createdAt": DATE,
        "private": False,
        "gated": "auto" if repository.is_gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": siblings,
    }


def sibling(file: StoredFile, *, with_blobs: bool) -> dict[str, Any]:
    if not with_blobs:
        return {"rfilename": file.path}
    return {
        "rfilename": file.path,
        "blobId": file.oid,
        "size": file.size,
        **({"lfs": large(file, "sha256", "pointerSize")} if file.is_large else {}),
    }


def large(file: StoredFile, sha256: str, pointer_size: str) -> dict[str, Any]:
    return {sha256: file.sha256, "size": file.size, pointer_size: len(file.pointer)}


def tree(commit: Commit, folder: str, *, recursive: bool) -> list[dict[str, Any]]:
    """The files and folders below a folder, as the hub lists them."""
    prefix = f"{folder}/" if folder else ""
    entries: dict[str, dict[str, Any]] = {}
    for file in ordered(commit):
        if not file.path.startswith(prefix):
            continue
        names = file.path.removeprefix(prefix).split("/")
        for depth in range(1, len(names) if recursive else min(len(names), 2)):
            path = prefix + "/".join(names[:depth])
            entries.setdefault(
                path, {"type": "directory", "oid": "0" * 40, "size": 0, "path": path}
            )
        if recursive or len(names) == 1:
            entries[file.path] = entry(file)
    return list(entries.values())


def entry(file: StoredFile) -> dict[str, Any]:
    lfs = {"lfs": large(file, "oid", "pointerSize")} if file.is_large else {}
    return {"type": "file", "oid": file.oid, "size": file.size, "path": file.path, **lfs}


def ordered(commit: Commit) -> Iterable[StoredFile]:
    return (commit.files[path] for path in sorted(commit.files))
