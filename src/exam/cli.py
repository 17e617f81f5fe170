"""The `exam` command: parse, dispatch, exit code.

Imports stay inside functions, so that `--help` is quick and `exam doctor` runs where packages are
missing.
"""

import argparse
import difflib
import os
import re
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exam.core.environment import setup_process
from exam.core.errors import spell_command
from exam.core.exit import CONTINUES, exit_if_distributed, run_command
from exam.core.logging import print_error, print_result
from exam.core.version import __version__
from exam.pipelines.jobs import run_jobs

if TYPE_CHECKING:
    from exam.config import Command

COMMANDS = {
    "train": "fine-tune a reader, a reranker or an encoder, and evaluate it",
    "infer": "answer questions with one run or several",
    "retrieve": "find passages for questions, and score them",
    "generate": "write training questions from a corpus",
    "stress": "answer the same questions with changed contexts and options",
    "compare": "compare runs, or contexts, on the same questions",
    "ask": "answer questions that you type",
    "bundle": "collect everything that an offline machine needs to answer an exam",
    "inspect": "show how question files are read, and the command that reads them",
    "doctor": "check this machine's packages, memory and devices",
    "demo": "measure the benefit of retrieval on the demo corpus",
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


def _to_path(name: str) -> Path:
    """Return a path; the shell leaves `~` in `--json=~/x`."""
    return Path(name).expanduser()


ARGUMENTS: dict[str, dict[str, dict[str, Any]]] = {  # of commands without a configuration
    "compare": {
        "FOLDER": {
            "nargs": "+",
            "type": _to_path,
            "help": "results of train or infer, or contexts",
        },
        "--fit-on": {
            "nargs": "+",
            "type": _to_path,
            "metavar": "FOLDER",
            "default": [],
            "help": "contexts of other questions to fit the lexical reader on, one for each FOLDER "
            "in order; by default, cross-fit it on the compared contexts",
        },
        "--k": {
            "type": int,
            "choices": range(1, 27),
            "metavar": "K",
            "help": "score by MAP@K, or by accuracy (1); by default as the runs were, contexts by "
            "the default of metric.k",
        },
        "--json": {
            "type": _to_path,
            "metavar": "FILE",
            "help": "write the figures here, and a plot beside them (.png); for runs, the default "
            "is below outputs/compare",
        },
    },
    "ask": {
        "RUN": {"help": "a folder of outputs/train"},
        "OVERRIDE": {"nargs": "*", "help": "settings of exam infer: run.corpus.dir=…"},
        "--outputs": {"help": "the folder of the index, if not beside the run"},
    },
    "inspect": {
        "FILE": {
            "nargs": "+",
            "help": "files or folders of questions, or a hub data set as owner/name, of which "
            "data.hub_config=, data.train= and data.revision= choose a part",
        }
    },
    "doctor": {"--deep": {"action": "store_true", "help": "also time a computation"}},
    "demo": {
        "--seeds": {
            "type": int,
            "nargs": "+",
            "metavar": "N",
            "default": [],
            "help": "train each reader with each of these seeds, such as 0 1 2; by default, once",
        }
    },
    UNPACK: {
        "BUNDLE": {"type": _to_path, "help": "a bundle's folder"},
        "OUTPUTS": {"type": _to_path, "help": "the folder of outputs for exam infer"},
    },
}
INTERRUPTED = {
    "compare": "Run the same command again.",
    "ask": "Start it again: nothing is lost.",
}
COMPLETION = ("-sc", "--shell-completion")


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: the command and its arguments; by default, those of the process.

    Returns:
        The exit code: 0; 1 or 2 after a mistake; 128 plus the signal's number after a signal.
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
    similar = difflib.get_close_matches(command, COMMANDS, n=1)
    hint = f"Did you mean {spell_command(similar[0])}? " if similar else ""
    print_error(f"{command} is not a command of exam.\n{hint}Commands: {', '.join(COMMANDS)}.")
    return 2


def _run_command(command: str, arguments: list[str]) -> int:
    if command == "bundle" and arguments[:1] == ["unpack"]:
        command, arguments = UNPACK, arguments[1:]
    if command in ARGUMENTS:
        body = partial(_run_parsed, command, _parse(command, arguments))
        return run_command(body, INTERRUPTED.get(command, CONTINUES))
    if {"-h", "--help"} & set(arguments):
        return run_command(partial(_print_help, command, arguments))
    return exit_if_distributed(run_command(partial(run_jobs, command, arguments, run_pipeline)))


def _print_help(command: str, arguments: list[str]) -> int:
    """Print a command's help, or that of the groups and keys among the arguments."""
    from exam.config.help import help_text

    topics = [word for word in arguments if not word.startswith("-") and "=" not in word]
    print_result(help_text(command, COMMANDS[command], topics))
    return 0


def _complete(arguments: list[str]) -> int:
    """Complete a line of the shell: the command here, the rest with Hydra's completion."""
    line = os.environ.get("COMP_LINE", "")
    words = re.match(r"\s*(\S+)\s+(\S+)\s+(.*)", line)
    if words and words[2] in COMMANDS:
        if words[2] in ARGUMENTS:
            return 0
        os.environ["COMP_LINE"] = f"{words[1]} {words[3]}"
        return run_jobs(words[2], arguments, run_pipeline)
    if any(argument.startswith("query=") for argument in arguments):
        typed = [*line.split(), "", ""][1]
        print_result("\n".join(name for name in COMMANDS if name.startswith(typed)))
        return 0
    return run_jobs("train", arguments, run_pipeline)


def _parse(command: str, arguments: list[str]) -> argparse.Namespace:
    purpose = COMMANDS.get(command, "check a bundle, and link its stages into a folder of outputs")
    description = f"{purpose[0].upper()}{purpose[1:]}."
    parser = argparse.ArgumentParser(prog=spell_command(command), description=description)
    for name, keywords in ARGUMENTS[command].items():
        parser.add_argument(name, **keywords)
    return parser.parse_args(arguments)


def _run_parsed(command: str, options: argparse.Namespace) -> int:
    """Run a command without a configuration."""
    if command == "compare":
        from exam.report.compare import compare_folders

        print_result(compare_folders(options.FOLDER, options.fit_on, options.json, options.k))
    elif command == "ask":
        from exam.pipelines.ask import run_ask

        setup_process("warning")
        run_ask(options.RUN, options.OVERRIDE, options.outputs)
    elif command == "inspect":
        from exam.data.inspect import inspect_files

        print_result(inspect_files(options.FILE))
    elif command == "doctor":
        from exam.pipelines.doctor import run_doctor

        return 0 if run_doctor(deep=options.deep) else 1
    elif command == "demo":
        from exam.pipelines.demo import run_demo

        setup_process("info")
        run_demo(options.seeds)
    else:
        from exam.bundle.contents import unpack

        unpack(options.BUNDLE, options.OUTPUTS)
    return 0


def run_pipeline(command: str, config: "Command") -> Any:
    """Pin the hub ids of a configuration, and run its command in this process."""
    from exam.config import Generate, Retrieving
    from exam.pipelines.revisions import pin_revisions

    if isinstance(config, Retrieving | Generate):
        config = pin_revisions(config)
    package = "bundle" if command == "bundle" else "pipelines"
    module = import_module(f"exam.{package}.{command}")
    return getattr(module, f"run_{command}")(config)
