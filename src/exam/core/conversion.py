"""Convert pickled weights to safetensors once, in the user's cache, reading tensors only.

torch builds tensors and plain containers from a pickle with `weights_only=True`, and runs nothing
else of it (torch ≥ 2.6; CVE-2025-32434 concerns earlier versions).
"""

import logging
import re
import shutil
import zipfile
from functools import cache
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError  # the error that torch raises; nothing is unpickled here
from tempfile import TemporaryDirectory
from typing import Any

from platformdirs import user_cache_path

from exam.core.artifacts import MANIFEST, is_intact, write_manifest
from exam.core.errors import ExamError
from exam.core.estimates import check_fits, free_disk
from exam.core.files import digest, file_digest, read_object, write_json

log = logging.getLogger(__name__)

FORMAT = 3  # of converted folders; raise it when their content changes
PICKLE = re.compile(r"(?:pytorch|adapter)_model(?:-(\d+)-of-(\d+))?\.bin")
# The cause in torch's message, between its advice on how to read the file all the same.
UNPICKLER = re.compile(
    r"(?:WeightsUnpickler error: |Trying to load )(.*?)(?:\.? Please|\.? Check|$)"
)
PICKLE_INDEX = ".bin.index.json"
INDEX = "model.safetensors.index.json"


def is_pickle(name: str) -> bool:
    """Tell whether a file of a checkpoint holds pickled weights."""
    return PICKLE.fullmatch(PurePosixPath(name).name) is not None


def convert_folder(folder: Path, names: list[str]) -> Path:
    """Return a folder in the user's cache with the files `names`, pickled weights as safetensors.

    The folder is named by the content of all files, written once, and verified at each use.

    Raises:
        ExamError: a pickle holds anything but tensors, or is damaged.
    """
    stamps = [((folder / name).stat(), name) for name in sorted(names)]
    seen = tuple((name, s.st_size, s.st_mtime_ns, s.st_ino) for s, name in stamps)
    return _convert(folder, seen)


@cache  # a file's stamp changes with its content
def _convert(folder: Path, stamps: tuple[tuple[str, int, int, int], ...]) -> Path:
    from filelock import FileLock

    names = [name for name, *_ in stamps]
    digests = {name: file_digest(folder / name) for name in names}
    target = user_cache_path("exam") / "converted" / digest({"format": FORMAT, **digests})[:16]
    if is_intact(target / MANIFEST):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_suffix(".lock")):
            if not is_intact(target / MANIFEST):
                if target.is_dir():
                    log.warning("%s is damaged and is written again", target)
                    shutil.rmtree(target)
                _check_space(folder, names, target.parent)
                log.info("checkpoint: converting %s to safetensors once, in %s", folder, target)
                with TemporaryDirectory(dir=target.parent) as name:
                    part = Path(name) / "part"
                    _write(folder, names, part)
                    part.rename(target)
    except OSError as error:
        raise ExamError(
            f"The converted weights of {folder} cannot be written to {target.parent}: "
            f"{error.strerror or error}.\nMake room there, or name another folder for caches in "
            "the environment: XDG_CACHE_HOME=<folder>"
        ) from error
    return target


def _check_space(folder: Path, names: list[str], cache: Path) -> None:
    size = sum((folder / name).stat().st_size for name in names)
    check_fits(
        f"the conversion of {folder}",
        {"safetensors": size},
        free_disk(cache),
        f"the disk of {cache}",
        "Make room there, or name another folder for caches in the environment: "
        "XDG_CACHE_HOME=<folder>",
    )


def _current_files(folder: Path, names: list[str]) -> list[str]:
    """Return `names` without pickled shards that the index does not list, and without the index.

    Raises:
        ExamError: a shard is missing, or shards of several uploads lie there without an index.
    """
    pickles = [name for name in names if is_pickle(name)]
    rest = [name for name in names if not is_pickle(name) and not name.endswith(PICKLE_INDEX)]
    parents = sorted({name.rpartition("/")[0] for name in pickles})
    return [*rest, *(n for parent in parents for n in _current_shards(folder, pickles, parent))]


def _current_shards(folder: Path, pickles: list[str], parent: str) -> list[str]:
    shards = {PurePosixPath(n).name: n for n in pickles if n.rpartition("/")[0] == parent}
    index = folder / parent / f"pytorch_model{PICKLE_INDEX}"
    if index.is_file():
        listed = read_object(index, "weight_map")["weight_map"]
        expected = {str(name) for name in listed.values()} if isinstance(listed, dict) else set()
    elif "pytorch_model.bin" in shards:
        expected = {"pytorch_model.bin"}
    else:
        totals = {match[2] for name in shards if (match := PICKLE.fullmatch(name))}
        total = int(max((t for t in totals if t), default="0"))
        expected = {n for n in shards if f"-of-{total:05d}" in n} if total else set(shards)
        if len(totals) > 1 or (total and len(expected) != total):
            expected = {f"pytorch_model{PICKLE_INDEX}"}
    if missing := sorted(expected - shards.keys()):
        raise ExamError(
            f"{folder / parent} holds {', '.join(sorted(shards))}; {missing[0]} is missing.\n"
            "Copy all files of one upload of the checkpoint."
        )
    adapters = {name for name in shards if name.startswith("adapter")}
    return [shards[name] for name in sorted(expected | adapters)]


def _write(folder: Path, names: list[str], target: Path) -> None:
    for name in _current_files(folder, names):
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if is_pickle(name):
            convert_file(folder / name, path.with_name(safe_name(path.name)))
        else:
            shutil.copyfile(folder / name, path)
    for parent in {path.parent for path in target.rglob("*-of-*.safetensors")}:
        _write_index(parent)
    files = [path for path in target.rglob("*") if path.is_file()]
    write_manifest(target / MANIFEST, [str(path.relative_to(target)) for path in files])


def safe_name(name: str) -> str:
    """Return the name that the library looks for: `pytorch_model.bin` → `model.safetensors`."""
    return name.replace("pytorch_model", "model").replace(".bin", ".safetensors")


def convert_file(source: Path, target: Path) -> None:
    """Write a pickled state dict as safetensors; tensors that share memory are written apart.

    Raises:
        ExamError: the pickle holds anything but tensors, or is damaged.
    """
    from safetensors.torch import save_file

    seen: set[int] = set()
    tensors = {}
    for name, tensor in read_tensors(source).items():
        storage = tensor.untyped_storage().data_ptr()
        is_shared = storage in seen
        tensors[name] = tensor.contiguous().clone() if is_shared else tensor.contiguous()
        seen.add(storage)
    save_file(tensors, target, metadata={"format": "pt"})


def read_tensors(path: Path) -> dict[str, Any]:
    """Read a pickled state dict, building tensors only.

    Raises:
        ExamError: the pickle holds anything else, or is damaged.
    """
    import torch

    try:
        state = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except UnpicklingError as error:
        raise _refusal(path, _reason(error)) from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ExamError(
            f"{path} cannot be read: {_reason(error)}.\n"
            "It is damaged, or not a file of weights. Copy or download it again."
        ) from None
    if not isinstance(state, dict):
        raise _refusal(path, f"a {type(state).__name__} where a state dict is expected")
    for name, value in state.items():
        if not isinstance(name, str) or type(value) not in (torch.Tensor, torch.nn.Parameter):
            raise _refusal(path, f"{name!s:.60} is a {type(value).__name__}")
        if value.layout is not torch.strided or value.is_quantized:
            raise _refusal(path, f"{name:.60} is a sparse or quantized tensor")
    return state


def _reason(error: Exception) -> str:
    """Return the part of a long message that names the cause."""
    text = " ".join(str(error).split())
    if cause := UNPICKLER.search(text):
        return cause[1][:120]
    return (text or type(error).__name__)[:120].rstrip(".")


def _refusal(path: Path, reason: str) -> ExamError:
    return ExamError(
        f"{path} holds more than tensors: {reason}.\n"
        "Only tensors are read from a pickle, because anything else may run code. Use a checkpoint "
        "in safetensors, or the original file of its publisher."
    )


def _write_index(folder: Path) -> None:
    """Write the index of a sharded checkpoint from the shards themselves."""
    from safetensors import safe_open

    weight_map: dict[str, str] = {}
    for shard in sorted(folder.glob("*-of-*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            weight_map |= dict.fromkeys(file.keys(), shard.name)
    size = sum(shard.stat().st_size for shard in folder.glob("*-of-*.safetensors"))
    write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})
