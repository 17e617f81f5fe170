"""`exam bundle`: collect, measure, and try out what an offline notebook needs."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from exam.answers.submission import validate_submission
from exam.artefacts import recording
from exam.bundle.budget import costs, shown, together
from exam.bundle.contents import CONTENTS, NOTEBOOK, Contents, collect, whole
from exam.bundle.notebook import commands, write_notebook
from exam.bundle.rehearsal import check_rehearsal, rehearse
from exam.bundle.target import Target, target_of
from exam.bundle.unpack import unpack
from exam.bundle.wheels import add_wheels
from exam.config import (
    Bundle,
    Cascade,
    Data,
    Ensemble,
    EnsembleKind,
    Infer,
    ReaderKind,
    Train,
    is_trained,
    names,
    plain,
)
from exam.errors import ExamError, spell_command
from exam.inference import answer, asked_questions, restored
from exam.kaggle import INPUT
from exam.question_rows import LETTERS
from exam.runtime import say
from exam.stage import Stage
from exam.together.infer import check_readers

log = logging.getLogger(__name__)

SAMPLES = (8, 40)  # questions
TRUST = {"trust_remote_code": True}  # the one override of a run that a notebook repeats


def make_bundle(bundle: Bundle) -> None:
    """Collect everything, write the notebook, estimate its time, and rehearse where asked."""
    target = _check(bundle)
    folders = [Path(name) for name in names(bundle.ckpt)]
    runs = [restored(replace(bundle, ckpt=str(folder))) for folder in folders]
    with recording() as stages:
        for folder, (_, config) in zip(folders, runs, strict=True):
            answer(_sampled(bundle, folder, config, SAMPLES[0]))
    also = _also([config for _, config in runs])
    ckpt = ",".join(f"{{bundle}}/runs/{folder.name}" for folder in folders)
    verb = [f"ckpt=[{ckpt}]" if len(folders) > 1 else f"ckpt={ckpt}", *_asked(bundle)]
    verb += [f"run.{group}.trust_remote_code=true" for group in bundle.run]
    if bundle.ensemble is not None:
        verb += _ensemble(bundle.ensemble)
    verb += [
        f"cascade.{k}={json.dumps(v)}" for k, v in plain(bundle.cascade).items() if v is not None
    ]
    place = f"{INPUT}/{Path(bundle.out).name}"
    alone = any(_answers_whole(config) for _, config in runs)
    with whole(Path(bundle.out)) as folder:
        contents = collect(bundle, folder, runs, stages)
        carried = add_wheels(target, folder / "wheels", also)
        lines = commands(contents.overrides, verb, 1 if alone else bundle.gpus, also)
        write_notebook(folder / NOTEBOOK, lines, place, target.python)
        found = contents.close(bundle.limit_gib, target.python)
    contents.folder = Path(bundle.out)
    size = found["bytes"] / 2**20
    log.info("bundle: %d files · %d wheels · %.1f MiB", len(found["files"]), len(carried), size)
    asked = dict(zip(folders, [config for _, config in runs], strict=True))
    say(_estimate(bundle, contents, asked))
    if bundle.rehearse:
        first = runs[0][1]
        lines = commands(contents.overrides, _here(verb, first.data), 1, also)
        _rehearse(target, contents, lines, first)
    say(f"{contents.folder / NOTEBOOK}\n{contents.folder / CONTENTS}")


def _answers_whole(config: Train) -> bool:
    """Whether a run answers in one process: a language model as it is."""
    return config.model.kind is ReaderKind.causal_lm and not is_trained(config.trainer)


def _check(bundle: Bundle) -> Target:
    """Refuse, before any work, what the notebook cannot do; return the machine it is for."""
    out = Path(bundle.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExamError(f"{out} is not empty.\nGive another folder, out=<folder>, or delete it.")
    target = target_of(bundle)
    if bundle.rehearse:
        check_rehearsal(target)
    others = [group for group, values in bundle.run.items() if values != TRUST]
    if others or bundle.retriever or bundle.context or bundle.reranker:
        raise ExamError(
            "run.<key>, retriever=, context= and reranker= are not carried into the notebook.\n"
            "Bundle the run as it is, and add them to the notebook's infer line."
        )
    if bundle.ensemble is not None and bundle.ensemble.kind is EnsembleKind.fitted:
        raise ExamError(
            "ensemble=fitted needs held-out predictions, which a bundle does not carry.\n"
            f"Fit once with {spell_command('infer')}, and give what it prints: "
            "ensemble=mean 'ensemble.weights=[…]'"
        )

    readers = len(names(bundle.ckpt))
    if readers > 1 or bundle.ensemble is not None or plain(bundle.cascade) != plain(Cascade()):
        check_readers(bundle, readers)
    log.info("bundle: for Python %s, %d packages there", target.python, len(target.image))
    return target


def _ensemble(ensemble: Ensemble) -> list[str]:
    """An ensemble as overrides."""
    given = plain(ensemble)
    own = {name: given[name] for name in ("of", "weights", "points") if given[name] is not None}
    return [f"ensemble={ensemble.name}", *(f"ensemble.{k}={json.dumps(v)}" for k, v in own.items())]


def _sampled(bundle: Bundle, folder: Path, config: Train, questions: int) -> Infer:
    """The first questions of those that are to be answered."""
    own = {name: getattr(bundle, name) for name in ("corpus", "retriever", "context", "reranker")}
    return Infer(
        ckpt=str(folder),
        data=replace(config.data, limit=questions),
        run=bundle.run,
        outputs=bundle.outputs,
        log_level=bundle.log_level,
        **own,
    )


def _asked(bundle: Bundle) -> list[str]:
    """The data of the notebook as overrides; where they lie is found there."""
    if bundle.data is None:
        return []
    defaults = plain(Data())
    return [
        "data=csv",
        *(
            f"data.{name}={json.dumps(value)}"
            for name, value in plain(bundle.data).items()
            if name != "dir" and value != defaults[name]
        ),
    ]


def _estimate(bundle: Bundle, contents: Contents, runs: dict[Path, Train]) -> str:
    """Ask two samples in a fresh place, as the notebook will, and say what all will take."""
    few, many = (_measured(bundle, contents, runs, size) for size in SAMPLES)
    each = [
        costs(small, large, SAMPLES, share)
        for small, large, share in zip(few, many, _shares(bundle.cascade, len(runs)), strict=True)
    ]
    return shown(together(each), bundle.questions, bundle.hours)


def _measured(
    bundle: Bundle, contents: Contents, runs: dict[Path, Train], size: int
) -> list[list[Stage]]:
    """The stages of every reader's answers to so many questions."""
    found = []
    with TemporaryDirectory() as outputs:
        unpack(contents.folder, Path(outputs))
        for folder, config in runs.items():
            with recording() as stages:
                answer(replace(_sampled(bundle, folder, config, size), outputs=outputs))
            found.append(list(stages))
    return found


def _shares(cascade: Cascade, readers: int) -> list[float]:
    """The share of the questions that each reader is asked, all of them where that is unknown."""
    if cascade.share is None:
        return [1.0] * readers
    share = cascade.share
    return [1.0, *(share if isinstance(share, list) else [share] * (readers - 1))]


def _also(configs: list[Train]) -> list[str]:
    """Packages of this project's extras that a run answers with."""
    wanted = {"gguf": any(c.model.gguf is not None for c in configs)}
    wanted["bitsandbytes"] = any(c.model.load_in_4bit for c in configs)
    return [name for name, is_wanted in wanted.items() if is_wanted]


def _here(verb: list[str], data: Data) -> list[str]:
    """The same with the questions of this machine."""
    return [*verb, f"data.dir={json.dumps(str(Path(data.dir or '.').resolve()))}"]


def _rehearse(target: Target, contents: Contents, lines: list[str], config: Train) -> None:
    """Run the notebook with this machine's folders, and check its submission."""
    submission = contents.folder.with_name(f"{contents.folder.name}-submission.csv")
    with TemporaryDirectory() as name:
        notebook = Path(name) / NOTEBOOK
        write_notebook(notebook, lines, str(contents.folder.resolve()), target.python)
        seconds = rehearse(notebook, target, submission)
    questions = asked_questions(config)
    options = [len(own) for own in questions["options"]]
    validate_submission(submission, questions["id"], options, config.data.options or LETTERS)
    say(f"rehearsed without a network: {len(questions)} questions in {seconds:.0f} s\n{submission}")
