"""A local hub: repositories in memory behind the protocol that huggingface_hub 2 speaks.

    with Hub() as hub:
        hub.add("acme/reader", {"config.json": b"{}"})
        os.environ.update(hub.environment(home))

Like the hub, it answers `resolve` with a redirect: of a small file to its own cache, of a large
one to another host (this machine's other name), where no token goes along.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Condition, Thread
from typing import Self

from hub.answers import Handler
from hub.repositories import Repository, files_of

HOST, STORE = "127.0.0.1", "localhost"  # two names of this machine: the hub and its large files


@dataclass(frozen=True)
class Request:
    """A request as it came, and how it was answered."""

    method: str
    path: str  # with its query
    status: int
    repository: str | None = None
    file: str | None = None


@dataclass
class Fault:
    """What goes wrong with a repository's files: a status, or a connection cut after some bytes."""

    repository: str
    pattern: str  # of the files' paths; the empty path is the repository's information
    left: int | None  # how often it goes wrong; None: always
    status: int | None = None
    retry_after: int | None = None
    after_bytes: int = 0

    def meets(self, repository: str, path: str) -> bool:
        return self.repository == repository and fnmatch(path, self.pattern) and self.left != 0


@dataclass
class Hub:
    """The server's repositories, the tokens it knows, and what is to go wrong."""

    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    renamed: dict[tuple[str, str], str] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)
    answered: list[Request] = field(default_factory=list)
    busy: int = 0  # requests that are being answered

    def __enter__(self) -> Self:
        self.lock = Condition()
        self.server = ThreadingHTTPServer((HOST, 0), type("_Handler", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.thread = Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    @property
    def port(self) -> int:
        return self.server.server_address[1]

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def store(self) -> str:
        """Where large files are sent from: another host to every client."""
        return f"http://{STORE}:{self.port}"

    def environment(self, home: Path) -> dict[str, str]:
        """What a process needs to use this hub, with its caches below `home`, and no token."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home / "hf"),
            "XDG_CACHE_HOME": str(home / "cache"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0",
            "HF_TOKEN": "",
            "NO_PROXY": f"{HOST},{STORE}",
            "no_proxy": f"{HOST},{STORE}",
        }

    def add(self, name: str, files: Mapping[str, bytes] | Path, kind: str = "model") -> str:
        """Publish a repository, from memory or a folder; return its first commit."""
        files = files_of(files) if isinstance(files, Path) else files
        repository = self.repositories[kind, name] = Repository(name, kind)
        return repository.commit(files)

    def get(self, name: str, kind: str = "model") -> Repository:
        return self.repositories[kind, name]

    def move(self, name: str, changes: Mapping[str, bytes | None], kind: str = "model") -> str:
        """Move main on by a commit; return its hash."""
        return self.get(name, kind).commit(changes)

    def propose(self, name: str, number: int, changes: Mapping[str, bytes | None]) -> str:
        """Open a pull request on main; return its commit."""
        return self.get(name).commit(changes, f"refs/pr/{number}")

    def rename(self, old: str, new: str, kind: str = "model") -> None:
        """Redirect an old name to a repository."""
        self.renamed[kind, old] = new

    def gate(self, name: str, token: str, kind: str = "model") -> None:
        """Let a repository's files be read with this token alone; its information stays open."""
        self.tokens.add(token)
        self.get(name, kind).is_gated = True
        self.get(name, kind).readers.add(token)

    def fail(
        self,
        name: str,
        pattern: str = "*",
        *,
        status: int = 503,
        times: int | None = None,
        retry_after: int | None = None,
    ) -> None:
        """Answer with a status, the next times or always, instead of files (and information)."""
        self.faults.append(Fault(name, pattern, times, status, retry_after))

    def cut(self, name: str, pattern: str, *, after_bytes: int, times: int | None = None) -> None:
        """End the connection at this byte of a file, the next times or always."""
        self.faults.append(Fault(name, pattern, times, after_bytes=after_bytes))

    def heal(self) -> None:
        """Let nothing go wrong any more."""
        self.faults.clear()

    def strike(self, repository: str, path: str, *, body: bool) -> Fault | None:
        """The fault that an answer meets: a status, or with `body` a cut; counted down."""
        with self.lock:
            for fault in self.faults:
                if (fault.status is None) == body and fault.meets(repository, path):
                    fault.left = None if fault.left is None else fault.left - 1
                    return fault
        return None

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Count a request as being answered: a client may go on before it is recorded."""
        with self.lock:
            self.busy += 1
        try:
            yield
        finally:
            with self.lock:
                self.busy -= 1
                self.lock.notify_all()

    def record(self, request: Request) -> None:
        """Keep a request that has been answered."""
        with self.lock:
            self.answered.append(request)

    @property
    def requests(self) -> list[Request]:
        """Every request so far, once those being answered are."""
        with self.lock:
            self.lock.wait_for(lambda: self.busy == 0, timeout=10)
            return list(self.answered)

    @contextmanager
    def recording(self) -> Iterator[list[Request]]:
        """Collect the requests that come meanwhile."""
        start = len(self.requests)
        requests: list[Request] = []
        yield requests
        requests += self.requests[start:]


def downloads(requests: list[Request]) -> Counter[tuple[str | None, str | None]]:
    """How often each file's body was sent, in whole or in part, by repository and path."""
    bodies = (r for r in requests if r.method == "GET" and r.file and r.status in (200, 206))
    return Counter((r.repository, r.file) for r in bodies)
