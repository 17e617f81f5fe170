"""The model and data-set hub: resolve a repository to a commit, list and download its files."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from exam.core.errors import ExamError
from exam.core.estimates import check_disk
from exam.core.files import write_atomically

log = logging.getLogger(__name__)

UNAUTHORIZED = 401
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Repository:
    """A repository on the hub, and the settings that name it in messages."""

    name: str  # owner/name
    revision: str | None  # branch, tag, pull request or commit; None: main
    key: str  # model.name_or_path
    kind: str = "model"  # or dataset

    @property
    def group(self) -> str:
        """The configuration group, such as model, encoder or data."""
        return self.key.rpartition(".")[0]


@cache
def resolve_commit(repository: Repository) -> str:
    """Return the commit that a revision names now; offline, the last one that was fetched.

    Raises:
        ExamError: there is no such repository or revision, access is denied, or the hub is out of
            reach and nothing was fetched before.
    """
    from httpx2 import TransportError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    name, revision, kind = repository.name, repository.revision, repository.kind
    if COMMIT.fullmatch(revision or ""):
        return str(revision)
    before = _recorded_commit(repository)
    try:
        commit = str(HfApi().repo_info(name, revision=revision, repo_type=kind).sha)
    except (TransportError, OfflineModeIsEnabled, HfHubHTTPError, HFValidationError) as error:
        refusal = _refusal(repository, error)
        if refusal or before is None:
            raise refusal or _failure(repository, error) from None
        if not isinstance(error, OfflineModeIsEnabled):
            log.warning("The hub cannot be reached: using commit %.8s of %s", before, name)
        return before
    if before not in (None, commit):
        log.warning(
            "%s: %s has moved from %.8s to %.8s since its last use; "
            "set %s.revision=%s to keep the earlier one",
            name, revision or "main", before, commit, repository.group, before,
        )  # fmt: skip
    return commit


def cache_folder(repository: Repository) -> Path:
    """Return the folder of the hub's cache that holds a repository's references and snapshots."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=repository.name, repo_type=repository.kind)
    return Path(HF_HUB_CACHE) / folder


def _reference(repository: Repository) -> Path:
    """Return the file in which the hub's cache keeps the commit of a branch or tag."""
    return cache_folder(repository) / "refs" / (repository.revision or "main")


def _recorded_commit(repository: Repository) -> str | None:
    path = _reference(repository)
    commit = path.read_text().strip() if path.is_file() else ""
    return commit if COMMIT.fullmatch(commit) else None


def record_commit(repository: Repository, commit: str) -> None:
    """Note which commit a branch or tag named, once its files are complete in the cache.

    Noted earlier, an interrupted download would take the place of a complete one offline.
    """
    path = _reference(repository)
    if repository.revision == commit or _recorded_commit(repository) == commit:
        return
    with suppress(OSError), write_atomically(path) as temporary:  # the cache may be read-only
        temporary.write_text(commit)


def list_files(repository: Repository, commit: str) -> list[str]:
    """Return the names of a commit's files: from the cache where they are known, else the hub.

    Raises:
        ExamError: the hub is out of reach, and the files were never listed or downloaded.
    """
    if sizes := _cached_sizes(repository, commit):
        return [*sizes]
    folder = download(repository, commit, ["config.json"])  # the client lists all files first
    if sizes := _cached_sizes(repository, commit):
        return [*sizes]
    # Offline, and downloaded by an earlier version of the client: the folder is the list.
    return [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]


def _cached_sizes(repository: Repository, commit: str) -> dict[str, int]:
    """Return the bytes of a commit's files by name; empty if the cache does not list them."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    with suppress(CachedRepoTreeNotFoundError):
        tree = get_cached_repo_tree(repository.name, repo_type=repository.kind, revision=commit)
        return {file.path: file.size for file in tree}
    return {}


def download(repository: Repository, commit: str, names: list[str]) -> Path:
    """Return the folder of a commit's snapshot, after downloading those of `names` it lacks."""
    from glob import escape

    from huggingface_hub import snapshot_download

    with translate_hub_errors(repository):
        return Path(
            snapshot_download(
                repository.name,
                repo_type=repository.kind,
                revision=commit,
                allow_patterns=[escape(name) for name in names],
            )
        )


def check_space(repository: Repository, commit: str, names: list[str]) -> None:
    """Log the size of the files that are still to be downloaded, and refuse what cannot fit."""
    cache = cache_folder(repository)
    snapshot = cache / "snapshots" / commit
    sizes = _cached_sizes(repository, commit)
    size = sum(sizes.get(name, 0) for name in names if not (snapshot / name).exists())
    if size:
        task = f"the download of {repository.name}"
        alternative = "name another folder for the hub's files: HF_HOME=<folder>"
        check_disk(task, {"files": size}, cache.parent, alternative)


@contextmanager
def translate_hub_errors(repository: Repository) -> Iterator[None]:
    """Turn the client's errors into one message each."""
    from httpx2 import TransportError
    from huggingface_hub import errors

    try:
        yield
    except (
        errors.HfHubHTTPError,
        errors.HFValidationError,
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
    ) as error:
        raise _refusal(repository, error) or _failure(repository, _cause(error)) from None
    except TransportError as error:
        raise ExamError(
            f"The download of {repository.name} broke off: {type(error).__name__} {error}.\n"
            "Run the same command again: it continues with the files that are complete."
        ) from None


def _refusal(repository: Repository, error: Exception) -> ExamError | None:
    """Return the message for a definite answer of the hub; None for other errors."""
    from huggingface_hub import errors, get_token

    setting = f"{repository.key}={repository.name}"
    if isinstance(error, errors.GatedRepoError):
        return access_error(repository)
    if isinstance(error, (errors.RepositoryNotFoundError, errors.HFValidationError)):
        state = "or your token has no access to it" if get_token() else "or it is private"
        return ExamError(
            f"{setting}: the hub has no such repository, {state}.\n"
            "Check the name (owner/name); for a private one log in (hf auth login) or set "
            f"HF_TOKEN; for files on this machine give their folder: {repository.key}=<folder>"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ExamError(
            f"{setting}: the repository has no revision {repository.revision or 'main'}.\n"
            f"Give a branch, a tag or a commit: {repository.group}.revision=<name>"
        )
    if isinstance(error, errors.HfHubHTTPError) and error.response.status_code == UNAUTHORIZED:
        return ExamError(
            f"The hub answers HTTP {UNAUTHORIZED} for {repository.name}: the token is not valid.\n"
            "Log in again (hf auth login), or correct HF_TOKEN."
        )
    return None


def access_error(repository: Repository) -> ExamError:
    """Return the error for a gated repository."""
    from huggingface_hub import get_token

    state = "your token has no access to it" if get_token() else "you are not logged in"
    return ExamError(
        f"{repository.key}={repository.name} is a gated repository, and {state}.\n"
        f"Request access on its page on the hub, then log in (hf auth login) or set HF_TOKEN; or "
        f"copy its files to a folder and set {repository.key}=<folder>"
    )


def _failure(repository: Repository, cause: BaseException) -> ExamError:
    """Return the message for another status, or a hub that is out of reach."""
    from huggingface_hub.constants import HF_HUB_CACHE, is_offline_mode

    if (response := getattr(cause, "response", None)) is not None:
        return ExamError(
            f"The hub answers HTTP {response.status_code} for {repository.name}.\n"
            "It limits requests, or is down: run the same command again later."
        )
    state = "the network is switched off (offline=true or HF_HUB_OFFLINE)"
    if not is_offline_mode():
        reason = (str(cause) or type(cause).__name__).splitlines()[0][:120]
        state = f"the hub cannot be reached ({reason})"
    revision = f" at {repository.revision}" if repository.revision else ""
    other_source = (
        f"copy the repository's files to a folder and set {repository.key}=<folder>; "
        "model=minilm and encoder=minilm need no hub."
        if repository.kind == "model"
        else "give files: data=csv data.train=<file> data.valid=<file>, with the same data.columns."
    )
    return ExamError(
        f"{repository.key}={repository.name}{revision} is not complete in the cache "
        f"({HF_HUB_CACHE}), and {state}.\n"
        f"Run the command once where the hub can be reached, or {other_source}"
    )


def _cause(error: BaseException) -> BaseException:
    """Return the first error of a chain that is the hub's answer, else the original one."""
    from huggingface_hub.errors import HfHubHTTPError

    while error.__cause__ is not None:
        error = error.__cause__
        if isinstance(error, HfHubHTTPError):
            break
    return error
