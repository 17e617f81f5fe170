"""Collect into one folder what runs need to answer, wherever that folder will lie."""

import json
import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exam.bundle.target import OTHER_PYTHON
from exam.checkpoints import (
    MODEL,
    PACKAGED,
    hub_repository,
    loaded_files,
    packaged_folder,
    resolve_checkpoint,
)
from exam.config import Bundle, Checkpoint, CorpusReader, CorpusSource, Train, plain
from exam.corpus import files_of
from exam.errors import ExamError
from exam.files import file_digest, read_signed, write_signed
from exam.hub import Repository, resolve_commit
from exam.manifest import fingerprint
from exam.reader.tuning import adapters_base
from exam.runs import CHECKPOINTS
from exam.safety import leads_out
from exam.stage import Stage

log = logging.getLogger(__name__)

CONTENTS = "contents.json"
NOTEBOOK = "notebook.ipynb"
CONFIG_NAME = "config.json"
OF_QUESTIONS = ("contexts", "features", "infer", "ensemble", "stressed", "embeddings")


@dataclass
class Contents:
    """A bundle's folder, and the overrides that let `exam infer` find what is in it."""

    folder: Path  # where it is collected
    overrides: list[str] = field(default_factory=list)

    def add(self, source: Path, name: str) -> None:
        """Copy a file or folder, without links to elsewhere."""
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            ignored = shutil.ignore_patterns(".*", "__pycache__", CHECKPOINTS)
            shutil.copytree(source, target, ignore=ignored, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, target)
        log.info("bundle: %s", name)

    def close(self, limit_gib: float, python: str) -> dict[str, Any]:
        """Write every file's size and sha256, and the target's Python (major and minor version).

        Raises:
            ExamError: it is larger than the limit.
        """
        files: dict[str, dict[str, Any]] = {
            str(path.relative_to(self.folder)): fingerprint(path)
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and path.name != CONTENTS
        }
        size = sum(one["bytes"] for one in files.values())
        if size > limit_gib * 2**30:
            largest = max(files, key=lambda name: int(files[name]["bytes"]))
            raise ExamError(
                f"The bundle has {size / 2**30:.1f} GiB, limit_gib={limit_gib:g} are allowed.\n"
                f"The largest file is {largest}. Attach the corpus by itself "
                "(with_corpus=false), or choose a smaller index (index=low_ram)."
            )
        found = {
            "python": python,
            "bytes": size,
            "files": files,
            "overrides": self.overrides,
        }
        write_signed(self.folder / CONTENTS, found)
        return found


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """Yield a folder beside `folder` to fill; it takes its place when the block ends well."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
    try:
        part.mkdir(parents=True)
        yield part
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check(bundle: Path) -> None:
    """Refuse a bundle for another Python, or whose files are not those that were collected.

    Raises:
        ExamError: this is another Python; a file is missing or another, or the list of them is.
    """
    again = "Upload the bundle again, or make it again."
    if not (bundle / CONTENTS).is_file():
        raise ExamError(f"{bundle / CONTENTS} is missing.\n{again}")
    contents = read_signed(bundle / CONTENTS)
    files = contents.get("files")
    if not isinstance(files, dict) or not all(isinstance(one, dict) for one in files.values()):
        raise ExamError(f"{bundle / CONTENTS} is no list of a bundle's files.\n{again}")
    running = "{}.{}".format(*sys.version_info)
    if contents.get("python") != running:
        raise ExamError(OTHER_PYTHON.format(running=running, python=contents.get("python")))
    for name, expected in files.items():
        path = bundle / name
        if leads_out(name):
            raise ExamError(f"{bundle / CONTENTS}: {name!r} leads out of the bundle.\n{again}")
        if name != NOTEBOOK and not (
            path.is_file() and file_digest(path) == expected.get("sha256")
        ):
            state = "is not the file that was bundled" if path.is_file() else "is missing"
            raise ExamError(f"{path} {state}.\n{again}")


def collect(
    bundle: Bundle, folder: Path, runs: list[tuple[Stage, Train]], stages: list[Stage]
) -> Contents:
    """Runs, the stages of their retrieval, corpora, and the weights that no wheel carries."""
    contents = Contents(folder)
    for stage, _ in runs:
        contents.add(stage.folder, f"runs/{stage.folder.name}")
    for stage in stages:
        if stage.kind not in OF_QUESTIONS:
            contents.add(stage.folder, f"outputs/{stage.kind}/{stage.folder.name}")
    searching = [(s, config) for s, config in runs if config.retriever.kind.searches]
    if searching:
        stage, first = searching[0]
        different = [s.folder.name for s, c in searching if _retrieval(c) != _retrieval(first)]
        if different:
            raise ExamError(
                f"{different[0]} retrieves from another corpus, or with another encoder, than "
                f"{stage.folder.name}.\n"
                "Make a bundle of each, and put their predictions together."
            )
        _add_corpus(contents, bundle, first)
        _add_weights(contents, first.encoder.checkpoint)
        if first.reranker.checkpoint is not None:
            _add_weights(contents, first.reranker.checkpoint)
    for stage, config in runs:
        _add_checkpoint(contents, stage.folder, config, alone=len(runs) == 1)
    return contents


def _add_checkpoint(contents: Contents, run: Path, config: Train, *, alone: bool) -> None:
    """What a run answers with, where its own folder does not hold it.

    Raises:
        ExamError: the run names a folder, and nothing could tell it on the target where that lies.
    """
    own, checkpoint = run / MODEL, config.model.checkpoint
    base = adapters_base(own)
    if base is not None:
        if hub_repository(base) is None and base.name not in PACKAGED:
            raise ExamError(
                f"{run.name} holds adapters of {base.name}, a folder of this machine.\n"
                "Train from a name of the hub, or with tuning=full, and bundle that run."
            )
        _add_weights(contents, base)
    elif checkpoint is not None and not (own / CONFIG_NAME).is_file():
        if not alone and hub_repository(checkpoint) is None:
            raise ExamError(
                f"{run.name} answers with a checkpoint that lies in a folder, and is not alone.\n"
                "Make a bundle of each run, and put their predictions together."
            )
        _add_weights(contents, checkpoint)


def _retrieval(config: Train) -> Any:
    return plain(config.corpus), plain(config.encoder), plain(config.reranker)


def _add_corpus(contents: Contents, bundle: Bundle, config: Train) -> None:
    """The articles' files, each part of a corpus in a folder of its own."""
    parts: list[CorpusSource] = [config.corpus, *config.corpus.also]
    if config.corpus.reader is CorpusReader.demo:
        return  # its stage is carried
    if not bundle.with_corpus:
        log.info("bundle: the corpus is not carried; attach it, and give run.corpus.dir=<folder>")
        return
    for number, part in enumerate(parts):
        for file in files_of(part, Path(config.outputs)):
            contents.add(file.path, f"corpus/{number}/{file.path.name}")
    contents.overrides.append("run.corpus.dir={bundle}/corpus/0")
    also = [
        {**plain(part), "dir": f"{{bundle}}/corpus/{number}"}
        for number, part in enumerate(config.corpus.also, 1)
    ]
    if also:
        contents.overrides.append(f"run.corpus.also={json.dumps(also)}")


def _add_weights(contents: Contents, checkpoint: Checkpoint) -> None:
    """Copy the files that a checkpoint is loaded from, unless an installed package carries them.

    A hub checkpoint is laid out as in the hub's own cache, so that its id finds it on the target.
    """
    if checkpoint.revision is None and packaged_folder(checkpoint.name) is not None:
        return
    repository = hub_repository(checkpoint)
    folder = resolve_checkpoint(checkpoint)
    if repository is None:
        target = f"weights/{checkpoint.group}"
        contents.overrides.append(f"run.{checkpoint.key}={{bundle}}/{target}")
    else:
        target = _cache_folder(contents, repository)
    for name in loaded_files(folder, checkpoint):
        contents.add(folder / name, f"{target}/{name}")


def _cache_folder(contents: Contents, repository: Repository) -> str:
    """Return where the hub's cache keeps a commit, and note which commit a branch named."""
    from huggingface_hub.file_download import repo_folder_name

    commit = resolve_commit(repository)
    root = f"hub/{repo_folder_name(repo_id=repository.name, repo_type=repository.kind)}"
    if repository.revision != commit:
        ref = contents.folder / root / "refs" / (repository.revision or "main")
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)
    return f"{root}/snapshots/{commit}"
