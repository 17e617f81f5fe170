"""Repositories of a local hub: files, commits, branches and pull requests."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

# What the hub's .gitattributes keep in large file storage.
LARGE = {".bin", ".h5", ".model", ".msgpack", ".onnx", ".ot", ".parquet", ".safetensors", ".xml"}


@dataclass(frozen=True)
class StoredFile:
    """A file of a commit, with the identities that git and large file storage give it."""

    path: str
    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def is_large(self) -> bool:
        return Path(self.path).suffix in LARGE

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        """What git holds in place of a large file."""
        lines = ["version https://git-lfs.github.com/spec/v1"]
        lines += [f"oid sha256:{self.sha256}", f"size {self.size}", ""]
        return "\n".join(lines).encode()

    @cached_property
    def oid(self) -> str:
        """Git's blob id: of the pointer where the file is large."""
        blob = self.pointer if self.is_large else self.data
        return hashlib.sha1(b"blob %d\0%b" % (len(blob), blob)).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_large else self.oid


@dataclass(frozen=True)
class Commit:
    """A state of a repository's files."""

    sha: str
    files: dict[str, StoredFile]


@dataclass
class Repository:
    """A model's or a data set's repository.

    `readers` are the tokens that may read it where it is gated.
    """

    id: str
    kind: str = "model"
    is_gated: bool = False
    readers: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, changes: Mapping[str, bytes | None], ref: str = "main") -> str:
        """Add a commit to a branch, or to a pull request that starts from main; return its hash.

        None deletes a file.
        """
        parent = self.refs.get(ref, self.refs.get("main"))
        files = dict(self.commits[parent].files) if parent else {}
        for path, data in changes.items():
            if data is None:
                del files[path]
            else:
                files[path] = StoredFile(path, data)
        state = repr((self.kind, self.id, parent, sorted(f.oid for f in files.values())))
        sha = hashlib.sha1(state.encode()).hexdigest()
        self.commits[sha] = Commit(sha, files)
        self.refs[ref] = sha
        return sha

    def resolve(self, revision: str) -> Commit | None:
        """The commit that a branch, a pull request or a commit's hash names."""
        return self.commits.get(self.refs.get(revision, revision))

    @property
    def main(self) -> Commit:
        return self.commits[self.refs["main"]]


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path there."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
