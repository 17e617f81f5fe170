"""`exam bundle`: collect everything that an offline notebook needs, and estimate its time."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from exam.bundle.contents import CONTENTS, NOTEBOOK, collect, link_stages
from exam.bundle.notebook import Place, format_commands, write_notebook
from exam.bundle.rehearsal import check_dry_run, dry_run
from exam.bundle.wheels import Target, add_wheels, read_target
from exam.config import (
    Bundle,
    Cascade,
    Data,
    EnsembleKind,
    Infer,
    Source,
    Train,
    as_list,
    to_dict,
)
from exam.core.artifacts import Stage
from exam.core.errors import ExamError, spell_command
from exam.core.files import atomic_directory
from exam.core.logging import print_result
from exam.data.files import INPUT
from exam.data.schema import LETTERS
from exam.evaluation.results import choose_k
from exam.evaluation.submission import validate_submission
from exam.pipelines.ensemble import ONE_METRIC, check_readers
from exam.pipelines.infer import answer, read_test_questions, restore_run

log = logging.getLogger(__name__)

SAMPLES = (8, 40)  # questions
MEASURED = ("contexts", "infer")  # kinds of stages
TRUST = {"trust_remote_code": True}  # the only override of a run that a notebook repeats


def run_bundle(bundle: Bundle) -> None:
    """Collect all files, write the notebook, estimate its time, and rehearse it if configured."""
    target = _check(bundle)
    runs = [restore_run(replace(bundle, ckpt=name)) for name in as_list(bundle.ckpt)]
    choose_k(None, {str(run.folder): config.metric.k for run, config in runs}, ONE_METRIC)
    samples = [_sample(bundle, run, config, SAMPLES[0]) for run, config in runs]
    stages = [stage for sample in samples for stage in answer(sample).opened]
    overrides, extra = _format_overrides(bundle), _extra_packages(runs)
    out = Path(bundle.out)
    with atomic_directory(out) as folder:
        contents = collect(bundle, folder, runs, stages)
        wheels = add_wheels(target, folder / "wheels", extra)
        lines = format_commands([*overrides, *contents.overrides], extra)
        places = _find_places(bundle, str(INPUT), str(INPUT))
        write_notebook(folder / NOTEBOOK, lines, places, target.python)
        listing = contents.close(bundle.limit_gib, target.python)
    files, size = len(listing["files"]), listing["bytes"] / 2**20
    log.info("bundle: %d files · %d wheels · %.1f MiB", files, len(wheels), size)
    print_result(_estimate(bundle, runs))
    if bundle.rehearse:
        config = runs[0][1]
        names = as_list(config.data.test or config.data.valid)
        parent = Path(config.data.dir or ".", *names[:1]).parent.resolve()
        places = _find_places(bundle, str(out.resolve()), str(parent))
        # The launcher does not work without a network.
        local = [*overrides, *contents.overrides, "launch=single"]
        if "questions" not in places:
            data = json.dumps(str(Path(config.data.dir or ".").resolve()))
            local.append(f"data.dir={data}")
        _rehearse(target, out, format_commands(local, extra), config, places)
    print_result(f"{out / NOTEBOOK}\n{out / CONTENTS}")


def _check(bundle: Bundle) -> Target:
    """Refuse, before any work, settings that a notebook cannot follow; return its machine."""
    out = Path(bundle.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExamError(f"{out} is not empty.\nSet another folder, out=<folder>, or delete it.")
    target = read_target(bundle)
    if bundle.rehearse:
        check_dry_run(target)
    is_changed = any(values != TRUST for values in bundle.run.values())
    if is_changed or bundle.retriever or bundle.context or bundle.reranker:
        raise ExamError(
            "A bundle cannot change a run: run.<key>, retriever=, context= and reranker= are set.\n"
            "Leave them out, and add them to the notebook's infer line."
        )
    if bundle.ensemble is not None and bundle.ensemble.kind is EnsembleKind.fitted:
        raise ExamError(
            "ensemble=fitted needs held-out predictions, which a bundle does not carry.\n"
            f"Fit once with {spell_command('infer')}, and set the weights that it prints: "
            "ensemble=mean 'ensemble.weights=[…]'"
        )
    readers = len(as_list(bundle.ckpt))
    if readers > 1 or bundle.ensemble is not None or to_dict(bundle.cascade) != to_dict(Cascade()):
        check_readers(bundle, readers)
    log.info("bundle: for Python %s with %d packages", target.python, len(target.packages))
    return target


def _format_overrides(bundle: Bundle) -> list[str]:
    """Return the notebook's overrides for the runs, the data, the ensemble and the cascade.

    The notebook finds the folder of the question files by the name of the first one.
    """
    runs = [f"{{bundle}}/runs/{Path(name).name}" for name in as_list(bundle.ckpt)]
    overrides = [f"ckpt=[{','.join(runs)}]" if len(runs) > 1 else f"ckpt={runs[0]}"]
    if bundle.data is not None:
        values = to_dict(bundle.data)
        values |= {name: _file_names(values[name]) for name in ("valid", "test")}
        values |= dict.fromkeys(("dir", "train", "extra_train", "soft_labels"))
        overrides += ["data=csv", *_format_group("data", values, to_dict(Data()))]
        if _has_own_files(bundle):
            overrides.append("data.dir={questions}")
    overrides += [f"run.{group}.trust_remote_code=true" for group in bundle.run]
    if bundle.ensemble is not None:
        values = to_dict(bundle.ensemble)
        merging = {name: values[name] for name in ("space", "weights", "vote_points")}
        overrides += [f"ensemble={bundle.ensemble.name}", *_format_group("ensemble", merging, {})]
    overrides += _format_group("metric", to_dict(bundle.metric), {})
    return overrides + _format_group("cascade", to_dict(bundle.cascade), {})


def _file_names(entries: Any) -> Any:
    """Return the names of question files without their folders on this machine."""
    if isinstance(entries, list):
        return [_file_names(entry) for entry in entries]
    return entries if entries is None else Path(entries).name


def _has_own_files(bundle: Bundle) -> bool:
    """Tell whether the questions are files that are not a competition's, which exam finds."""
    data = bundle.data
    return data is not None and data.source is Source.files and data.competition is None


def _find_places(bundle: Bundle, root: str, questions: str) -> dict[str, Place]:
    """Return what the notebook finds below two folders: the bundle, and the question files."""
    places = {"bundle": Place(root, f"runs/{Path(as_list(bundle.ckpt)[0]).name}")}
    if bundle.data is not None and _has_own_files(bundle):
        name = as_list(_file_names(bundle.data.test or bundle.data.valid))[0]
        places["questions"] = Place(questions, name)
    return places


def _format_group(group: str, values: dict[str, Any], defaults: dict[str, Any]) -> list[str]:
    """Return overrides for the values of a group that differ from its defaults, or from None."""
    return [
        f"{group}.{name}={json.dumps(value)}"
        for name, value in values.items()
        if value != defaults.get(name)
    ]


def _sample(bundle: Bundle, run: Stage, config: Train, questions: int) -> Infer:
    """Return a command that answers a run's first questions."""
    groups = ("metric", "run", "outputs", "log_level", "corpus", "retriever", "context", "reranker")
    return Infer(
        ckpt=str(run.folder),
        data=replace(config.data, limit=questions),
        **{name: getattr(bundle, name) for name in groups},
    )


def estimate_seconds(
    few: list[Stage],
    many: list[Stage],
    sizes: tuple[int, int],
    questions: int,
    share: float = 1.0,
) -> dict[str, float]:
    """Extrapolate each kind's seconds to all questions from two samples of `sizes`.

    The reader answers a `share` of the questions. Reused stages cost nothing here.
    """
    seconds = {}
    for kind in MEASURED:
        small, large = (
            sum(s.seconds for s in stages if s.kind == kind and not s.reused)
            for stages in (few, many)
        )
        per_question = max(0.0, (large - small) / (sizes[1] - sizes[0]))
        fixed = max(0.0, small - per_question * sizes[0])
        seconds[kind] = fixed + per_question * share * questions
    return seconds


def format_estimate(readers: list[dict[str, float]], questions: int, hours: float) -> str:
    """Format a table of all readers' seconds, and their fractions of the budget in hours."""
    rows = {kind: sum(seconds[kind] for seconds in readers) for kind in MEASURED}
    rows["total"] = sum(rows.values())
    title = f"Estimate for {questions:,} questions, from two samples; the limit is {hours:g} h"
    lines = [f"{kind:<10} {sec:>9,.0f} s {sec / hours / 3600:>7.1%}" for kind, sec in rows.items()]
    return "\n".join([title, *lines])


def _estimate(bundle: Bundle, runs: list[tuple[Stage, Train]]) -> str:
    """Answer two samples with the unpacked bundle, and format an estimate of the full time."""
    share = bundle.cascade.escalate_fraction
    rest = share if isinstance(share, list) else [1.0 if share is None else share] * (len(runs) - 1)
    measured = []
    for size in SAMPLES:
        with TemporaryDirectory() as outputs:
            link_stages(Path(bundle.out), Path(outputs))
            samples = [_sample(bundle, run, config, size) for run, config in runs]
            answers = [answer(replace(sample, outputs=outputs)) for sample in samples]
        measured.append([[*answered.opened, answered.stages[-1]] for answered in answers])
    readers = [
        estimate_seconds(few, many, SAMPLES, bundle.questions, share)
        for few, many, share in zip(*measured, [1.0, *rest], strict=True)
    ]
    return format_estimate(readers, bundle.questions, bundle.hours)


def _extra_packages(runs: list[tuple[Stage, Train]]) -> list[str]:
    """List the packages of exam's extras that the runs need."""
    packages = {
        "gguf": any(config.model.gguf_file is not None for _, config in runs),
        "bitsandbytes": any(config.model.load_in_4bit for _, config in runs),
    }
    return [name for name, is_needed in packages.items() if is_needed]


def _rehearse(
    target: Target, bundle: Path, lines: list[str], config: Train, places: dict[str, Place]
) -> None:
    """Run the notebook with this machine's folders, and check its submission."""
    submission = bundle.with_name(f"{bundle.name}-submission.csv")
    with TemporaryDirectory() as name:
        notebook = Path(name) / NOTEBOOK
        write_notebook(notebook, lines, places, target.python)
        seconds = dry_run(notebook, target, submission)
    questions = read_test_questions(config)
    options = [len(texts) for texts in questions["options"]]
    validate_submission(
        submission, questions["id"], options, config.metric.k, config.data.options or LETTERS
    )
    print_result(
        f"rehearsed without a network: {len(questions)} questions in {seconds:.0f} s\n{submission}"
    )
