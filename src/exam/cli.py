"""The `exam` command: parse, dispatch, exit code.

Imports stay inside functions, so that `--help` is quick and `exam doctor` runs where packages are
missing.
"""

import argparse
import difflib
import os
import re
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exam.core import distributed
from exam.core.environment import setup_process
from exam.core.errors import ExamError, spell_command
from exam.core.exit import CONTINUES, exit_if_distributed, run_command, translate_os_errors
from exam.core.logging import print_error, print_result
from exam.core.version import __version__

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from exam.config import Command
    from exam.pipelines.sweep import Job

COMMANDS = {
    "train": "fine-tune a reader, a reranker or an encoder, and evaluate it",
    "infer": "answer questions with one run or several",
    "retrieve": "find passages for questions, and score them",
    "generate": "write training questions from a corpus",
    "stress": "answer the same questions with changed contexts and options",
    "compare": "compare runs, or contexts, on the same questions",
    "ask": "answer questions that you type",
    "bundle": "collect what a machine without a network needs to answer an exam",
    "doctor": "list what this machine has and what it lacks",
    "demo": "measure on the demo corpus what retrieval adds",
}
HELP = """\
usage: exam COMMAND …

Open-book multiple-choice exams with the Hugging Face Trainer.

{commands}

exam COMMAND --help   how to use a command
exam --version        the version
exam -sc install=bash the shell's completion: eval "$(exam -sc install=bash)", also for zsh;
                      for fish: exam -sc install=fish | source"""
UNPACK = "bundle unpack"
ARGUMENTS: dict[str, dict[str, dict[str, Any]]] = {  # of the commands without a configuration
    "compare": {
        "FOLDER": {"nargs": "+", "type": Path, "help": "of train or infer; or of contexts"},
        "--fit-on": {
            "nargs": "+",
            "type": Path,
            "metavar": "FOLDER",
            "default": [],
            "help": "contexts of other questions, one for each of those compared and in their "
            "order, to fit the lexical reader on; by default it is cross-fitted on those compared",
        },
        "--json": {
            "type": Path,
            "metavar": "FILE",
            "help": "where to write the same figures, and a plot beside them (.png); of runs, by "
            "default below outputs/compare",
        },
    },
    "ask": {
        "RUN": {"help": "a folder of outputs/train"},
        "OVERRIDE": {"nargs": "*", "help": "those of exam infer: run.corpus.dir=…"},
        "--outputs": {"help": "where the index lies, if not beside the run"},
    },
    "doctor": {"--deep": {"action": "store_true", "help": "import torch and compute something"}},
    "demo": {},
    UNPACK: {
        "BUNDLE": {"type": Path, "help": "the folder of a bundle"},
        "OUTPUTS": {"type": Path, "help": "where infer looks for runs"},
    },
}
INTERRUPTED = {
    "compare": "Give the same command again.",
    "ask": "Nothing is lost: start it again.",
}
COMPLETION = ("-sc", "--shell-completion")


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: the command and its arguments; by default the process's own.

    Returns:
        The exit code: 0; 1 or 2 after a mistake; 128 and the signal's number after a signal.
    """
    words = sys.argv[1:] if arguments is None else arguments
    command, rest = (words[0], words[1:]) if words else ("--help", [])
    if "--version" in words:
        print_result(f"exam {__version__}")
        return 0
    if command in COMMANDS:
        return _run_command(command, rest)
    if command in ("-h", "--help"):
        lines = [f"  {name:<9} {purpose}" for name, purpose in COMMANDS.items()]
        print_result(HELP.format(commands="\n".join(lines)))
        return 0 if words else 2
    if command in COMPLETION:
        return exit_if_distributed(run_command(partial(_complete, words)))
    print_error(_explain_command(command))
    return 2


def _run_command(command: str, arguments: list[str]) -> int:
    if command == "bundle" and arguments[:1] == ["unpack"]:
        command, arguments = UNPACK, arguments[1:]
    if command in ARGUMENTS:
        body = partial(_run_parsed, command, _parse(command, arguments))
        return run_command(body, INTERRUPTED.get(command, CONTINUES))
    if {"-h", "--help"} & set(arguments):
        return run_command(partial(_print_help, command, arguments))
    return exit_if_distributed(run_command(partial(_run_jobs, command, arguments)))


def _print_help(command: str, arguments: list[str]) -> int:
    """Print a command's help, or that of the groups and keys among the arguments."""
    from exam.config.help import help_text

    topics = [word for word in arguments if not word.startswith("-") and "=" not in word]
    print_result(help_text(command, COMMANDS[command], topics))
    return 0


def _explain_command(command: str) -> str:
    near = difflib.get_close_matches(command, COMMANDS, n=1)
    hint = f"Did you mean {spell_command(near[0])}? " if near else ""
    return f"{command} is not a command of exam.\n{hint}Commands: {', '.join(COMMANDS)}."


def _complete(arguments: list[str]) -> int:
    """Complete a line of the shell: the command here, the rest with Hydra's completion."""
    line = os.environ.get("COMP_LINE", "")
    start_of_line = re.match(r"\s*(\S+)\s+(\S+)\s+(.*)", line)
    if start_of_line and start_of_line[2] in COMMANDS:
        command = start_of_line[2]
        if command in ARGUMENTS:
            return 0
        os.environ["COMP_LINE"] = f"{start_of_line[1]} {start_of_line[3]}"
        return _run_jobs(command, arguments)
    if any(argument.startswith("query=") for argument in arguments):
        typed = [*line.split(), "", ""][1]
        print_result("\n".join(name for name in COMMANDS if name.startswith(typed)))
        return 0
    return _run_jobs("train", arguments)


def _parse(command: str, arguments: list[str]) -> argparse.Namespace:
    purpose = COMMANDS.get(command, "link what a bundle holds below a folder of outputs")
    description = f"{purpose[0].upper()}{purpose[1:]}."
    parser = argparse.ArgumentParser(prog=spell_command(command), description=description)
    for name, keywords in ARGUMENTS[command].items():
        parser.add_argument(name, **keywords)
    return parser.parse_args(arguments)


def _run_parsed(command: str, options: argparse.Namespace) -> int:
    """Run a command without a configuration."""
    if command == "compare":
        from exam.report.compare import compare_folders

        print_result(compare_folders(options.FOLDER, options.fit_on, options.json))
    elif command == "ask":
        from exam.pipelines.ask import answer_typed_questions

        setup_process("warning")
        answer_typed_questions(options.RUN, options.OVERRIDE, options.outputs)
    elif command == "doctor":
        from exam.pipelines.doctor import examine

        return 0 if examine(deeply=options.deep) else 1
    elif command == "demo":
        from exam.pipelines.demo import run_demo

        setup_process("info")
        run_demo()
    else:
        from exam.bundle.contents import unpack

        unpack(options.BUNDLE, options.OUTPUTS)
    return 0


@dataclass
class Jobs:
    """One job of a command that Hydra configures, or several (`-m`)."""

    command: str
    arguments: list[str]
    refused: bool = False
    failure: Exception | None = None
    finished: list["Job"] = field(default_factory=list)

    def run(self, composed: "DictConfig") -> float | None:
        """Run a job; its mistake, or a failure of one among several, stops no other job.

        Keep the failure of a single job: Hydra would log one that is raised here.

        Returns:
            The MAP@3 that a sweeper is to maximise: of the fold that chooses the checkpoint, or of
            all folds.
        """
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode
        from omegaconf.errors import OmegaConfBaseException

        from exam.config.compose import explain

        job = HydraConfig.get()
        is_sweep = job.mode is RunMode.MULTIRUN
        name = f"Job {job.job.num} ({' '.join(job.overrides.task)}): " if is_sweep else ""
        try:
            run = _run_body(composed, self.command, self.arguments, multirun=is_sweep)
        except ExamError as error:
            self.refuse(f"{name}{error}")
            return None
        except OmegaConfBaseException as error:
            self.refuse(f"{name}{explain(error, self.command)}")
            return None
        except Exception as error:  # noqa: BLE001 - raised again outside of Hydra
            if is_sweep:
                self.refuse(f"{name}{traceback.format_exc()}")
            else:
                self.failure = error
            return None
        if not getattr(run, "systems", ()):
            return None
        if is_sweep:
            from exam.core.trainer import RESULTS
            from exam.pipelines.sweep import Job

            values = dict(pair.split("=", 1) for pair in job.overrides.task if "=" in pair)
            self.finished.append(Job(values, run.stage.folder / RESULTS))
        selection_score: float | None = run.selection_score
        return selection_score

    def refuse(self, message: str) -> None:
        """Print why a job ended."""
        self.refused = True
        print_error(message)


def _run_jobs(command: str, arguments: list[str]) -> int:
    """Have Hydra compose the configuration of every job, and run them."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from exam.config.compose import (
        check_flags,
        check_groups,
        conf_dir,
        explain,
        register,
        with_prefix,
    )

    check_flags(command, arguments)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, and the messages are ours
    sweep = [word for word in arguments if word in ("-m", "--multirun")]
    overrides = [with_prefix(word) for word in arguments if word not in sweep]
    sys.argv[1:] = [*sweep, *overrides]
    register()
    decorate = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=command)
    jobs = Jobs(command, arguments)
    try:
        check_groups(command, sys.argv[1:])
        _run_application(decorate(jobs.run), command, arguments)
        if jobs.failure is not None:
            raise jobs.failure
        if len(jobs.finished) > 1 and distributed.rank() == 0:
            from exam.pipelines.sweep import compare_jobs

            print_result(compare_jobs(jobs.finished))
    except (HydraException, OmegaConfBaseException) as error:
        jobs.refuse(explain(error, command))
    return 2 if jobs.refused else 0


def _run_application(application: Callable[[], Any], command: str, arguments: list[str]) -> None:
    """Run Hydra's application; in a printed configuration (`--cfg`), mark mandatory settings.

    Raises:
        ExamError: Hydra's flags do not go together.
    """
    from exam.config.compose import mark_required

    prints = {"--cfg", "-c"} & {word.partition("=")[0] for word in arguments}
    try:
        with redirect_stdout(StringIO()) if prints else nullcontext(StringIO()) as text:
            application()
    except ValueError as error:  # of Hydra: `Jobs` keeps those of jobs
        raise ExamError(str(error)) from None
    if prints:
        print_result(mark_required(text.getvalue(), command))


def _run_body(composed: "DictConfig", command: str, arguments: list[str], *, multirun: bool) -> Any:
    """Run a command's body on its configuration, here or in several processes."""
    from exam.config.compose import typed
    from exam.core.security import enable_offline_mode
    from exam.data.files import check_paths
    from exam.pipelines.launch import start_processes

    config = typed(composed)
    if config.offline:
        enable_offline_mode()
    setup_process(config.log_level)
    with translate_os_errors():
        check_paths(config)
        if start_processes(config, command, arguments, multirun=multirun):
            return None
        return run_pipeline(command, config)


def run_pipeline(command: str, config: "Command") -> Any:
    """Pin the hub ids of a configuration, and run the command's body in this process."""
    from exam.config import Generate, Retrieving
    from exam.pipelines.revisions import pin_revisions

    if isinstance(config, Retrieving | Generate):
        config = pin_revisions(config)
    package = "bundle" if command == "bundle" else "pipelines"
    module = import_module(f"exam.{package}.{command}")
    return getattr(module, f"run_{command}")(config)
