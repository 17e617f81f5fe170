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
from typing import Any

from platformdirs import user_cache_path

from exam.core.artifacts import MANIFEST, is_intact, write_manifest
from exam.core.errors import ExamError
from exam.core.estimates import check_disk
from exam.core.files import atomic_directory, digest, file_digest, read_object, write_json

log = logging.getLogger(__name__)

FORMAT = 3  # of converted folders; raise it when their content changes
PICKLE = re.compile(r"(?:pytorch|adapter)_model(?:-(\d+)-of-(\d+))?\.bin")
# The cause in torch's message, between its advice on how to read the file all the same.
UNPICKLER = re.compile(
    r"(?:WeightsUnpickler error: |Trying to load )(.*?)(?:\.? Please|\.? Check|$)"
)
PICKLE_INDEX = ".bin.index.json"
INDEX = "model.safetensors.index.json"
OTHER_CACHE = "name another folder for caches in the environment: XDG_CACHE_HOME=<folder>"


def is_pickle(name: str) -> bool:
    """Tell whether a file of a checkpoint holds pickled weights."""
    return PICKLE.fullmatch(PurePosixPath(name).name) is not None


def convert_folder(folder: Path, names: list[str]) -> Path:
    """Return a folder in the user's cache with the files `names`, pickled weights as safetensors.

    The folder is named by the content of all files, written once, and verified at each use.
    A pickle that is damaged or holds more than tensors is refused.
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
                size = sum((folder / name).stat().st_size for name in names)
                task = f"the conversion of {folder}"
                check_disk(task, {"safetensors": size}, target.parent, OTHER_CACHE)
                log.info("checkpoint: converting %s to safetensors once, in %s", folder, target)
                with atomic_directory(target) as part:
                    _write(folder, names, part)
    except OSError as error:
        raise ExamError(
            f"The converted weights of {folder} cannot be written to {target.parent}: "
            f"{error.strerror or error}.\nMake room there, or {OTHER_CACHE}"
        ) from error
    return target


def _current_files(folder: Path, names: list[str]) -> list[str]:
    """Return `names` without the index of pickled shards, and without shards that it does not list.

    Refuse incomplete shards, and those of two uploads without an index.
    """
    pickles = [name for name in names if is_pickle(name)]
    current = [name for name in names if not is_pickle(name) and not name.endswith(PICKLE_INDEX)]
    for parent in sorted({name.rpartition("/")[0] for name in pickles}):
        shards = {PurePosixPath(n).name: n for n in pickles if n.rpartition("/")[0] == parent}
        index = folder / parent / f"pytorch_model{PICKLE_INDEX}"
        if index.is_file():
            listed = read_object(index, "weight_map")["weight_map"]
            expected = {str(n) for n in listed.values()} if isinstance(listed, dict) else set()
        elif "pytorch_model.bin" in shards:
            expected = {"pytorch_model.bin"}
        else:
            totals = {match[2] for name in shards if (match := PICKLE.fullmatch(name))}
            is_one_upload = totals in ({None}, {f"{len(shards):05d}"})
            expected = set(shards) if is_one_upload else {index.name}
        if missing := sorted(expected - shards.keys()):
            raise ExamError(
                f"{folder / parent} holds {', '.join(sorted(shards))}; {missing[0]} is missing.\n"
                "Copy all files of one upload of the checkpoint."
            )
        adapters = {name for name in shards if name.startswith("adapter")}
        current += [shards[name] for name in sorted(expected | adapters)]
    return current


def _write(folder: Path, names: list[str], target: Path) -> None:
    """Write the files, with an index of the shards of each folder, and their manifest."""
    from safetensors import safe_open

    for name in _current_files(folder, names):
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if is_pickle(name):  # named as the library expects: pytorch_model.bin → model.safetensors
            stem = path.stem.replace("pytorch_model", "model")
            convert_file(folder / name, path.with_name(f"{stem}.safetensors"))
        else:
            shutil.copyfile(folder / name, path)
    for parent in {path.parent for path in target.rglob("*-of-*.safetensors")}:
        size, weight_map = 0, dict[str, str]()
        for shard in sorted(parent.glob("*-of-*.safetensors")):
            size += shard.stat().st_size
            with safe_open(shard, framework="pt") as file:
                weight_map |= dict.fromkeys(file.keys(), shard.name)
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        write_json(parent / INDEX, index)
    files = [path for path in target.rglob("*") if path.is_file()]
    write_manifest(target / MANIFEST, [str(path.relative_to(target)) for path in files])


def convert_file(source: Path, target: Path) -> None:
    """Write a pickled state dict as safetensors; tensors that share memory are written apart."""
    from safetensors.torch import save_file

    storages: set[int] = set()
    tensors = {}
    for name, tensor in read_tensors(source).items():
        storage = tensor.untyped_storage().data_ptr()
        is_shared = storage in storages
        tensors[name] = tensor.contiguous().clone() if is_shared else tensor.contiguous()
        storages.add(storage)
    save_file(tensors, target, metadata={"format": "pt"})


def read_tensors(path: Path) -> dict[str, Any]:
    """Read a pickled state dict; refuse one that is damaged or holds more than tensors."""
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
