"""The model and data-set hub: resolve a repository to a commit, list and download its files."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from exam.core.errors import ExamError
from exam.core.estimates import check_fits, free_disk
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

    A branch that has moved since is reported.

    Raises:
        ExamError: there is no such repository or revision, access is denied, or the hub is out of
            reach and nothing was fetched before.
    """
    from httpx2 import TransportError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    name, revision, kind = repository.name, repository.revision, repository.kind
    if COMMIT.fullmatch(revision or ""):
        return str(revision)
    before = _recorded_commit(repository)
    try:
        with translate_refusals(repository):
            commit = str(HfApi().repo_info(name, revision=revision, repo_type=kind).sha)
    except (TransportError, OfflineModeIsEnabled, HfHubHTTPError) as error:
        if before is None:
            raise _status_or_unreachable(repository, error) from None
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


def _reference(repository: Repository) -> Path:
    """Return the file in which the hub's cache keeps the commit of a branch or tag."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=repository.name, repo_type=repository.kind)
    return Path(HF_HUB_CACHE) / folder / "refs" / (repository.revision or "main")


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
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    def cached_names() -> list[str]:
        tree = get_cached_repo_tree(repository.name, repo_type=repository.kind, revision=commit)
        return [file.path for file in tree]

    with suppress(CachedRepoTreeNotFoundError):
        return cached_names()
    folder = download(repository, commit, ["config.json"])  # the client lists all files first
    with suppress(CachedRepoTreeNotFoundError):
        return cached_names()
    # Offline, and downloaded by an earlier version of the client: the folder is the list.
    return [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]


def download(repository: Repository, commit: str, names: list[str]) -> Path:
    """Return the folder of a commit's snapshot, with the files `names` in it.

    Files that are there already are not downloaded again.

    Raises:
        ExamError: the hub is out of reach, refuses, or breaks off.
    """
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


def is_offline() -> bool:
    """Tell whether the hub's client is told not to use the network."""
    from huggingface_hub.constants import is_offline_mode

    return bool(is_offline_mode())


def check_space(repository: Repository, commit: str, names: list[str]) -> None:
    """Log the size of the files that are still to be downloaded, and refuse what cannot fit.

    Raises:
        ExamError: they are larger than the free disk of the hub's cache.
    """
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    snapshot = _reference(repository).parents[1] / "snapshots" / commit
    missing = {name for name in names if not (snapshot / name).exists()}
    with suppress(CachedRepoTreeNotFoundError):
        tree = get_cached_repo_tree(repository.name, repo_type=repository.kind, revision=commit)
        size = sum(file.size for file in tree if file.path in missing)
        if size:
            check_fits(
                f"the download of {repository.name}",
                {"files": size},
                free_disk(Path(HF_HUB_CACHE)),
                f"the disk of {HF_HUB_CACHE}",
                "Make room there, or name another folder for the hub's files: HF_HOME=<folder>",
            )


@contextmanager
def translate_hub_errors(repository: Repository) -> Iterator[None]:
    """Turn the client's errors into one message each.

    Raises:
        ExamError: the observed fault, and its remedy.
    """
    from httpx2 import TransportError
    from huggingface_hub import errors

    try:
        with translate_refusals(repository):
            yield
    except (
        errors.HfHubHTTPError,
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
    ) as error:
        raise _status_or_unreachable(repository, _cause(error)) from None
    except TransportError as error:
        raise ExamError(
            f"The download of {repository.name} broke off: {type(error).__name__} {error}.\n"
            "Run the same command again: it continues with the files that are complete."
        ) from None


@contextmanager
def translate_refusals(repository: Repository) -> Iterator[None]:
    """Turn the hub's definite answers into one message each; let other errors pass.

    Raises:
        ExamError: the repository or revision does not exist, or access is denied.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise access_error(repository) from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise _missing_error(repository) from None
    except errors.RevisionNotFoundError:
        raise ExamError(
            f"{repository.key}={repository.name}: the repository has no revision "
            f"{repository.revision or 'main'}.\n"
            f"Give a branch, a tag or a commit: {repository.group}.revision=<name>"
        ) from None
    except errors.HfHubHTTPError as error:
        response = getattr(error, "response", None)
        if response is None or response.status_code != UNAUTHORIZED:
            raise
        raise ExamError(
            f"The hub answers HTTP {UNAUTHORIZED} for {repository.name}: the token is not valid.\n"
            "Log in again (hf auth login), or correct HF_TOKEN."
        ) from None


def access_error(repository: Repository) -> ExamError:
    """Return the error for a gated repository."""
    from huggingface_hub import get_token

    state = "your token has no access to it" if get_token() else "you are not logged in"
    return ExamError(
        f"{repository.key}={repository.name} is a gated repository, and {state}.\n"
        f"Request access on its page on the hub, then log in (hf auth login) or set HF_TOKEN; or "
        f"copy its files to a folder and set {repository.key}=<folder>."
    )


def _missing_error(repository: Repository) -> ExamError:
    from huggingface_hub import get_token

    state = "or your token has no access to it" if get_token() else "or it is private"
    return ExamError(
        f"{repository.key}={repository.name}: the hub has no such repository, {state}.\n"
        "Check the name (owner/name); for a private one log in (hf auth login) or set HF_TOKEN; "
        f"for files on this machine give their folder: {repository.key}=<folder>"
    )


def _status_or_unreachable(repository: Repository, cause: BaseException) -> ExamError:
    from huggingface_hub.constants import HF_HUB_CACHE

    if (response := getattr(cause, "response", None)) is not None:
        return ExamError(
            f"The hub answers HTTP {response.status_code} for {repository.name}.\n"
            "It limits requests, or is down: run the same command again later."
        )
    state = "the network is switched off (offline=true or HF_HUB_OFFLINE)"
    if not is_offline():
        reason = (str(cause) or type(cause).__name__).splitlines()[0][:120]
        state = f"the hub cannot be reached ({reason})"
    revision = f" at {repository.revision}" if repository.revision else ""
    return ExamError(
        f"{repository.key}={repository.name}{revision} is not complete in the cache "
        f"({HF_HUB_CACHE}), and {state}.\n{_retry(repository)}"
    )


def _cause(error: BaseException) -> BaseException:
    """Return the first error of a chain that is the hub's answer, else the original one."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    while error.__cause__ is not None:
        error = error.__cause__
        if isinstance(error, HfHubHTTPError) and not isinstance(error, LocalEntryNotFoundError):
            break
    return error


def _retry(repository: Repository) -> str:
    if repository.kind != "model":
        return (
            "Run the command once where the hub can be reached, or give files: data=csv "
            "data.train=<file> data.valid=<file>, with the same data.columns."
        )
    return (
        "Run the command once where the hub can be reached, or copy the repository's files to a "
        f"folder and set {repository.key}=<folder>. model=minilm and encoder=minilm need no hub."
    )
