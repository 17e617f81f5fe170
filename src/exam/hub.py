"""The model and data-set hub: resolve a repository to a commit, list and download its files."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from exam.errors import ExamError

log = logging.getLogger(__name__)

UNAUTHORIZED = 401


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
    """Return the commit that a revision names now; offline, the one that was resolved last.

    A branch that has moved since the last use is reported once.

    Raises:
        ExamError: there is no such repository or revision, access is denied, or the hub is out of
            reach and nothing was resolved before.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionResolutionError

    name, revision, kind = repository.name, repository.revision, repository.kind
    api = HfApi()
    try:
        before = api.resolve_revision(
            name, revision=revision, repo_type=kind, local_files_only=True
        ).resolved
    except RevisionResolutionError:
        before = None
    with translate_hub_errors(repository):
        commit: str = api.resolve_revision(name, revision=revision, repo_type=kind).resolved
    if before not in (None, commit):
        log.warning(
            "%s: %s has moved from %.8s to %.8s since its last use; "
            "set %s.revision=%s to keep the earlier one",
            name, revision or "main", before, commit, repository.group, before,
        )  # fmt: skip
    return commit


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


@contextmanager
def translate_hub_errors(repository: Repository) -> Iterator[None]:
    """Turn the client's errors into one message each.

    Raises:
        ExamError: the observed fault, and its remedy.
    """
    from httpx2 import TransportError
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise _access_error(repository) from None
    except errors.RepositoryNotFoundError:
        raise _missing_error(repository) from None
    except errors.RevisionNotFoundError:
        raise ExamError(
            f"{repository.key}={repository.name}: the repository has no revision "
            f"{repository.revision or 'main'}.\n"
            f"Give a branch, a tag or a commit: {repository.group}.revision=<name>"
        ) from None
    except (
        errors.RevisionResolutionError,
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
    ) as error:
        cause = _cause(error)
        if isinstance(cause, errors.HfHubHTTPError):
            raise _status_error(repository, cause.response.status_code) from None
        raise _unreachable_error(repository, cause) from None
    except errors.HfHubHTTPError as error:
        raise _status_error(repository, error.response.status_code) from None
    except TransportError as error:
        raise ExamError(
            f"The download of {repository.name} broke off: {type(error).__name__} {error}.\n"
            "Run the same command again: it continues with the files that are complete."
        ) from None


def _access_error(repository: Repository) -> ExamError:
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


def _status_error(repository: Repository, status: int) -> ExamError:
    if status == UNAUTHORIZED:
        return ExamError(
            f"The hub answers HTTP {status} for {repository.name}: the token is not valid.\n"
            "Log in again (hf auth login), or correct HF_TOKEN."
        )
    return ExamError(
        f"The hub answers HTTP {status} for {repository.name}.\n"
        "It limits requests, or is down: run the same command again later."
    )


def _unreachable_error(repository: Repository, cause: BaseException) -> ExamError:
    from huggingface_hub.constants import HF_HUB_CACHE

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
