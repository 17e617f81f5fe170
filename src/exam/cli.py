"""The command line: compose the configuration, run a verb, turn mistakes into one message.

Nothing heavy is imported until a configuration has been composed and checked.
"""

import difflib
import os
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any, get_args, get_type_hints

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from exam import ranks
from exam.compose import check_groups, conf_dir, register, typed, with_prefix
from exam.config import ROOTS, Generate, Retrieving
from exam.endings import ended, explained, leave
from exam.errors import ExamError
from exam.launch import start_processes
from exam.places import check_places
from exam.revisions import pin_revisions
from exam.runtime import complain, say, start
from exam.safety import go_offline

SETTING_OTHERS = {"experiment", "debug"}  # groups of no values of their own
HELP = """\
exam: open-book multiple-choice exams with the Hugging Face Trainer
Choose an option of a group, or set any value:
  {program} group=option group.key=value

{groups}

Every value and its default:  {program} --cfg job
Several runs:                 {program} -m {sweep}{more}"""
LAUNCH = """
Several GPUs:                 each has a process; launch=single keeps one, launch=2 starts two"""
SWEEPS = {  # an example for each command
    "train": "context.top_k=0,3,5",
    "retrieve": "retriever=bm25,two_stage",
    "infer": "ckpt=RUN run.context.top_k=1,3,5",
    "stress": "ckpt=RUN_A,RUN_B",
    "generate": "generator.seed=0,1",
    "bundle": "ckpt=RUN out=bundle_a,bundle_b",
}


def train() -> None:
    """`exam-train`, `python train.py`."""
    sys.exit(main("train"))


def retrieve() -> None:
    """`exam-retrieve`, `python retrieve.py`."""
    sys.exit(main("retrieve"))


def infer() -> None:
    """`exam-infer`, `python infer.py`."""
    sys.exit(main("infer"))


def generate() -> None:
    """`exam-generate`, `python generate.py`."""
    sys.exit(main("generate"))


def stress() -> None:
    """`exam-stress`, `python stress.py`."""
    sys.exit(main("stress"))


def main(verb: str) -> int:
    """Run a verb on the process's arguments.

    Returns:
        The exit code: 0, or one of `ended`.
    """
    if {"--help", "-h"} & set(sys.argv[1:]):
        say(help_text(verb))
        return 0
    return leave(ended(partial(_run, verb)))


def _run(verb: str) -> int:
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, and the messages are ours
    arguments = sys.argv[1:]
    sys.argv[1:] = _arguments(arguments, verb)
    register()
    application = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=verb)
    mistakes: list[str] = []
    failures: list[Exception] = []
    finished: list[tuple[dict[str, str], Any]] = []
    try:
        check_groups(verb, sys.argv[1:])
        application(_task(verb, arguments, mistakes, failures, finished))()
        if failures:
            raise failures[0]
        _summarise(finished)
    except (HydraException, OmegaConfBaseException) as error:
        mistakes.append(explain(error, verb))
        complain(mistakes[-1])
    return 2 if mistakes else 0


def help_text(verb: str) -> str:
    """The groups of a verb and their options; Hydra's own takes two seconds to list them."""
    program = "python -m exam.bundle" if verb == "bundle" else f"python {verb}.py"
    used = {field.name for field in fields(ROOTS[verb])} | SETTING_OTHERS
    groups = {
        folder.name: ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
        for folder in sorted(conf_dir().iterdir())
        if folder.is_dir() and folder.name in used
    }
    listed = "\n".join(f"{name}: {options}" for name, options in groups.items())
    launches = any(field.name == "launch" for field in fields(ROOTS[verb]))
    more = LAUNCH if launches else ""
    return HELP.format(program=program, groups=listed, sweep=SWEEPS[verb], more=more)


def _arguments(given: list[str], verb: str) -> list[str]:
    """What Hydra reads: `-m` anywhere, and new keys of the values that are dictionaries."""
    several = [a for a in given if a in ("-m", "--multirun")]
    others = [with_prefix(a) for a in given if a not in several]
    return [*several, *others, f"hydra.job.name={verb}"]


def _task(
    verb: str,
    arguments: list[str],
    mistakes: list[str],
    failures: list[Exception],
    finished: list[tuple[dict[str, str], Any]],
) -> Callable[[DictConfig], float | None]:
    """One job; of several (`-m`) none stops the others.

    Its value for a sweeper is the MAP@3 on the fold that chooses the checkpoint, or on all folds.

    Those that end well join `finished` with the values they were started with. The error of a
    single job joins `failures`: Hydra would log one that is raised here.
    """

    def task(composed: DictConfig) -> float | None:
        job = HydraConfig.get()
        several = job.mode is RunMode.MULTIRUN
        values = dict(pair.split("=", 1) for pair in job.overrides.task if "=" in pair)
        name = f"Job {job.job.num} ({' '.join(job.overrides.task)}): " if several else ""
        try:
            run = _job(composed, verb, arguments, multirun=several)
        except (ExamError, OmegaConfBaseException) as error:
            own = isinstance(error, ExamError)
            mistakes.append(str(error) if own else explain(error, verb))
            complain(f"{name}{mistakes[-1]}")
            return None
        except Exception as error:  # noqa: BLE001 - raised again outside of Hydra
            if not several:
                failures.append(error)
                return None
            mistakes.append(traceback.format_exc())
            complain(f"{name}{mistakes[-1]}")
            return None
        if run is None or not run.systems:
            return None
        if several:
            finished.append((values, run))
        chosen_by: float | None = run.chosen_by
        return chosen_by

    return task


def _job(composed: DictConfig, verb: str, arguments: list[str], *, multirun: bool) -> Any:
    """Run a verb's body on its configuration, here or in several processes."""
    config = typed(composed)
    if config.offline:
        go_offline()
    start(config.log_level)
    with explained():
        check_places(config)
        if start_processes(config, verb, arguments, multirun=multirun):
            return None
        if isinstance(config, Retrieving | Generate):
            config = pin_revisions(config)
    from exam import pipeline

    with explained():
        return getattr(pipeline, f"run_{verb}")(config)


def _summarise(finished: list[tuple[dict[str, str], Any]]) -> None:
    """Show what several jobs found beside each other."""
    if len(finished) < 2 or ranks.rank() > 0:
        return
    from exam.runs import RESULTS
    from exam.sweep import Job, compare_jobs

    jobs = [Job(values, run.stage.folder / RESULTS) for values, run in finished]
    outputs = finished[0][1].stage.folder.parents[1]
    say(compare_jobs(jobs, outputs))


def explain(error: Exception, verb: str) -> str:
    """One message for a configuration that Hydra refuses: what was observed, and the way out."""
    text = str(error)
    cause = error.__cause__ or error.__context__
    detail = str(cause) if isinstance(cause, OmegaConfBaseException) else text
    if isinstance(error, OverrideParseException):
        return f"{text.splitlines()[0]}\nWrite overrides as group=option or group.key=value."
    if isinstance(error, MissingConfigException):
        return _unknown_option(text)
    unknown = re.search(r"Key '([^']+)' (?:is not in|not in) .*?full_key: (\S+)", detail, re.DOTALL)
    if unknown:
        return _unknown_key(unknown[2], verb)
    wrong = re.search(r"^(.*)\n\s+full_key: (\S+)", detail)
    if wrong:
        return f"{wrong[2]}: {wrong[1]}\nSee its type and default with: python {verb}.py --cfg job"
    override = re.search(r"Could not override '([^']+)'", text)
    if override:
        return _unknown_key(override[1], verb)
    return text


def _unknown_option(text: str) -> str:
    """`model/foo` is no option of its group: name the options, and the nearest."""
    found = re.search(r"Could not find '([^']+)/([^'/]+)'", text)
    options = re.findall(r"^\t(\S+)$", text, re.MULTILINE)
    if not found or not options:
        return text
    group, name = found[1], found[2]
    near = difflib.get_close_matches(name, options, n=1)
    hint = f"Did you mean {group}={near[0]}? " if near else ""
    return (
        f"{group}={name} is no option of {group}.\n"
        f"{hint}There are: {', '.join(options)}. For your own values choose one and set "
        f"{group}.<key>=<value>."
    )


def _unknown_key(key: str, verb: str) -> str:
    """`key` is no value of the configuration: name the nearest one."""
    group, dot, last = key.rpartition(".")
    siblings = [k.rpartition(".") for k in known_keys(ROOTS[verb])]
    beside = sorted(name for place, _, name in siblings if place == group)
    near = difflib.get_close_matches(last, beside, n=1)
    hint = f"Did you mean {group}{dot}{near[0]}? " if near else ""
    return (
        f"{key} is not a value of {verb}.py.\n"
        f"{hint}All of them are listed by: python {verb}.py --cfg job"
    )


def known_keys(schema: Any, prefix: str = "") -> list[str]:
    """Dotted names of every value of a schema, groups included."""
    hints = get_type_hints(schema)
    found = []
    for field in fields(schema):
        name = f"{prefix}{field.name}"
        found.append(name)
        kinds = [hints[field.name], *get_args(hints[field.name])]
        group = next((k for k in kinds if isinstance(k, type) and is_dataclass(k)), None)
        if group is not None and not str(hints[field.name]).startswith("list"):
            found += known_keys(group, f"{name}.")
    return found
