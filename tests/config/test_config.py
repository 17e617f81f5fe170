"""Configuration mistakes: one message, about a second, nothing heavy imported."""

import re
import sys
import time
import typing
from dataclasses import fields
from enum import EnumType
from typing import Any

import pytest
from helpers import ROOT, exam, imported, python, run_exam
from omegaconf import OmegaConf

from exam import __version__
from exam.cli import COMMANDS, main
from exam.config import ROOTS, Chunking, Context, Retriever
from exam.config.compose import check_groups, compose_config, known_keys
from exam.config.help import SWEEPS, list_groups, option_comment, option_paths
from exam.config.overrides import prepare_override
from exam.config.renamed import RENAMED
from exam.config.training_args import TrainerFields
from exam.config.values import conf_dir
from exam.core.errors import PROGRAM, spell_command

MISTAKES = {
    "modle=minilm": (
        "modle is not a setting of exam train.\n"
        "Did you mean model? List all settings: exam train --cfg job\n"
    ),
    "context.num_passage=3": (
        "context.num_passage is not a setting of exam train.\n"
        "Did you mean context.num_passages? List all settings: exam train --cfg job\n"
    ),
    "trainer.learning_rat=1": (
        "trainer.learning_rat is not a setting of exam train.\n"
        "Did you mean trainer.learning_rate? List all settings: exam train --cfg job\n"
    ),
    "max_steps=1": (
        "max_steps is not a setting of exam train.\n"
        "Did you mean trainer.max_steps? List all settings: exam train --cfg job\n"
    ),
    "retriever=two_stages": (
        "Unknown option retriever=two_stages.\n"
        "Did you mean retriever=two_stage? Options: bm25, hybrid, none, passages, "
        "provided, tfidf, two_stage, two_stage_prefiltered. "
        "For other values, choose one and set retriever.<key>=<value>\n"
    ),
    "trainer.num_train_epochs=abc": (
        "trainer.num_train_epochs: Value 'abc' of type 'str' could not be converted to Float\n"
        "See its type and default with: exam train --cfg job\n"
    ),
    "context.num_passages=21": (
        "context.num_passages=21 exceeds retriever.top_k=20.\n"
        "Set retriever.top_k=21, or a smaller context.num_passages.\n"
    ),
}


@pytest.mark.parametrize("override", MISTAKES)
def test_mistakes_get_one_message(override):
    done = exam("train", override)
    assert (done.returncode, done.stderr, done.stdout) == (2, MISTAKES[override], "")


def test_ungrammatical_override():
    done = exam("train", "model")
    assert done.returncode == 2
    assert done.stderr.endswith("\nWrite overrides as group=option or group.key=value\n")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("overrides", "observed", "remedy"),
    [
        ([], "ckpt and predictions are missing", "predictions=[<file>,…]"),
        (["ckpt=run", "data.test=my.csv"], "data.test needs an option of data", "data=<option>"),
        (["ckpt=run", "context.num_passages=8"], "an option of context", "run.context."),
    ],
)
def test_what_infer_lacks_is_named(overrides, observed, remedy):
    done = exam("infer", *overrides)
    first, second = done.stderr.splitlines()
    assert (done.returncode, observed in first, remedy in second) == (2, True, True)


HEAVY = ("torch", "transformers", "datasets", "numpy", "pyarrow")
CONFIGURED = [command for command in COMMANDS if command in ROOTS]


@pytest.mark.parametrize("command", CONFIGURED)
def test_help_lists_the_groups(command, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["exam"])
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^  corpus +demo, jsonl, smoke, text, wikipedia$", text, re.MULTILINE)
    assert "log_level: one of debug, info, warning, error; default info" in text
    assert f"exam {command} --cfg job" in text


@pytest.mark.parametrize(
    ("topic", "lines"),
    [
        ("context", ["  context=inference_only  ", "  context.order: one of best_first, best_"]),
        ("num_passages", ["  context.num_passages: integer, at least 0; default 5"]),
        ("reranker.weight", ["  reranker.weight: number, above 0 and at most 1; default 1.0"]),
        ("trainer", ["  trainer.per_device_train_batch_size: integer, at least 1; default 8"]),
        ("experiment", ["  experiment=awp  System 10. "]),
    ],
)
def test_help_describes_the_keys_of_a_group(topic, lines, capsys):
    assert main(["train", "--help", topic]) == 0
    text = capsys.readouterr().out
    assert [line for line in lines if line not in text] == []


def test_help_names_the_nearest_key(capsys):
    assert main(["train", "--help", "modle"]) == 2
    assert "Did you mean model?" in capsys.readouterr().err


def test_every_new_name_exists():
    keys = {key for schema in ROOTS.values() for key in known_keys(schema)}
    for name in RENAMED.values():
        key, _, value = name.partition("=")
        assert key in keys
        if value and key in list_groups("train"):
            assert (conf_dir() / key / f"{value}.yaml").is_file()


def test_every_option_is_described():
    groups = {group for command in ROOTS for group in list_groups(command)}
    paths = [path for group in groups for path in option_paths(group)]
    assert [path for path in paths if not option_comment(path)] == []


def test_help_lists_the_commands(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name, purpose in COMMANDS.items():
        assert re.search(rf"^  {name} +{purpose}$", text, re.MULTILINE)


@pytest.mark.parametrize(
    "arguments", [[], ["train"], ["train", "trainer"], ["compare"], ["doctor"], ["bundle"]]
)
def test_help_is_quick(arguments):
    code = (
        f"from exam.cli import main\ntry: main({[*arguments, '--help']})\nexcept SystemExit: pass"
    )
    started = time.monotonic()
    assert imported(code, *HEAVY, "hydra") == set()
    assert time.monotonic() - started < 3  # a fifth of a second on an idle machine


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"exam {__version__}\n"


def test_an_unknown_command_names_the_nearest(capsys):
    assert main(["retreive", "data=kaggle"]) == 2
    assert "Did you mean exam retrieve?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "arguments", "remedy"),
    [
        ("train", ["--model", "mpnet"], "model=mpnet"),
        ("train", ["--model=mpnet", "seed=1"], "model=mpnet"),
        ("train", ["--learning-rate", "1e-5"], "trainer.learning_rate=1e-5"),
        ("bundle", ["--rehearse", "--hours", "9"], "rehearse=true"),
        ("bundle", ["ckpt=a", "--rehearse"], "rehearse=true"),
    ],
)
def test_a_setting_written_as_a_flag_gets_its_spelling(command, arguments, remedy):
    done = exam(command, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(f"Write settings without dashes: {remedy}\n")


@pytest.mark.parametrize("command", CONFIGURED)
def test_a_printed_configuration_holds_no_marker_of_a_missing_value(command):
    done = run_exam(command, "--cfg", "job")
    assert "???" not in done.stdout
    assert ("ckpt: null  # required" in done.stdout) == (command in ("stress", "bundle"))


@pytest.mark.parametrize("words", [["seed=3", "--cfg", "job"], ["--cfg", "job", "seed=3"]])
def test_settings_stand_on_both_sides_of_an_option(words):
    assert "seed: 3" in run_exam("train", "data=csv", *words, "data.limit=9").stdout


@pytest.mark.parametrize(
    ("line", "completions"),
    [
        ("exam ", [*COMMANDS]),
        ("exam tr", ["train"]),
        ("exam train tracker=", ["tracker=none", "tracker=wandb", "tracker=wandb_offline"]),
        ("exam infer ensemble=f", ["ensemble=fitted"]),
        ("exam ask outputs", []),
    ],
)
def test_the_shell_completes_commands_and_settings(line, completions, monkeypatch):
    monkeypatch.setenv("COMP_LINE", line)
    assert python("-m", "exam", "-sc", "query=bash").stdout.split() == completions


@pytest.mark.parametrize(
    ("program", "spelling"),
    [("train.py", "python train.py"), ("src/exam/__main__.py", "python -m exam train")],
)
def test_a_command_names_itself_as_it_was_started(program, spelling):
    words = [] if program == "train.py" else ["train"]
    done = python(str(ROOT / program), *words, "modle=minilm")
    assert done.returncode == 2
    assert done.stderr.count(spelling) == 2


def test_a_launched_process_names_the_command_that_launched_it(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["src/exam/__main__.py"])
    monkeypatch.setenv(PROGRAM, "train.py")
    assert spell_command("infer") == "python infer.py"
    assert spell_command("bundle") == "exam bundle"


@pytest.mark.parametrize("override", ["ckpt={}", "predictions=[{}]"])
def test_a_name_that_no_file_can_have_is_one_message(override):
    done = exam("infer", override.format("a" * 300))
    assert done.returncode == 2
    assert re.fullmatch(
        r"a{300}(/manifest\.json)?: File name too long\.\nGive a shorter name\.\n", done.stderr
    )


@pytest.mark.parametrize("verb", ROOTS)
def test_the_example_of_several_runs_is_one(verb):
    overrides = [prepare_override(override) for override in SWEEPS[verb].split()]
    check_groups(verb, overrides)
    first = [re.sub(",.*", "", override) for override in overrides]
    assert compose_config(verb, *first)


@pytest.mark.parametrize("verb", ["train", "infer", "retrieve"])
def test_without_its_environment_a_command_says_how_to_enter_it(verb):
    done = python("-I", "-S", str(ROOT / f"{verb}.py"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "No module named 'exam'.\nRun: make setup && . .venv/bin/activate\n"


@pytest.mark.parametrize(
    ("verb", "override"),
    [
        ("train", "context.num_passages=99"),
        ("train", "data.train=nowhere.csv"),
        ("infer", "ckpt=nowhere"),
    ],
)
def test_a_refusal_imports_nothing_heavy_and_is_quick(verb, override):
    code = f"from exam.cli import main; assert main(['{verb}', '{override}']) == 2"
    started = time.monotonic()
    assert imported(code, *HEAVY, "faiss") == set()
    assert time.monotonic() - started < 5  # a second on an idle machine


def test_trainer_fields_are_those_of_the_installed_transformers():
    from transformers import TrainingArguments

    accepted = {field.name: field for field in fields(TrainingArguments) if field.init}
    types = {field.name: field.type for field in fields(TrainerFields)}
    assert [*types] == [*accepted]
    assert types["learning_rate"] is float
    assert types["eval_steps"] == float | None
    assert (types["optim"], types["fsdp_config"]) == (str, Any)
    for field in fields(TrainerFields):
        words = accepted[field.name].metadata["help"].replace("%%", "%").split()
        assert field.metadata["help"] == " ".join(words), field.name
    defaults = {f.name: f.metadata["library_default"] for f in fields(TrainerFields)}
    assert (defaults["learning_rate"], defaults["save_strategy"]) == ("5e-05", "'steps'")


def test_trainer_choices_are_those_of_the_installed_transformers():
    from transformers import TrainingArguments

    hints = typing.get_type_hints(TrainingArguments)
    enums = {
        name: tuple(value.value for value in member)
        for name, hint in hints.items()
        for member in typing.get_args(hint)
        if isinstance(member, EnumType) and str in typing.get_args(hint)
    }
    choices = {field.name: field.metadata.get("choices") for field in fields(TrainerFields)}
    assert {name: values for name, values in choices.items() if values} == enums
    assert "adafactor" in enums["optim"]


def test_any_training_argument_is_overridden_without_plus():
    config = compose_config("train", "trainer.warmup_steps=0.25", "trainer.optim=adafactor")
    assert (config.trainer.warmup_steps, config.trainer.optim) == (0.25, "adafactor")


GROUPS = [
    (path.parts[0], path.with_suffix("").relative_to(path.parts[0]).as_posix())
    for path in sorted(p.relative_to(conf_dir()) for p in conf_dir().glob("*/**/*.yaml"))
    if path.parts[0] != "hydra"
]


@pytest.mark.parametrize(("group", "option"), GROUPS)
def test_every_option_of_every_group_fits_the_schema(group, option):
    closed = ["context.num_passages=0"] if group == "retriever" else []
    needed = ["data.hub=owner/name"] if (group, option) == ("data", "hub") else []
    if group == "ensemble":  # of what has been trained
        needed = ["ckpt=[a,b]", *(["ensemble.fit_on=[c,d]"] if option == "fitted" else [])]
    if (group, option) == ("model", "published/platypus2_70b"):  # answers as it is
        needed = ["trainer=zero_shot"]
    verb = "infer" if group == "ensemble" else "train"
    config = compose_config(verb, f"{group}={option}", *closed, *needed)
    assert hasattr(config, group) or group in ("experiment", "debug")  # these set others


@pytest.mark.parametrize(
    ("schema", "option"),
    [
        (Chunking, "chunking/default"),
        (Context, "context/default"),
        (Retriever, "retriever/two_stage"),
        (Retriever, "retriever/bm25"),
        (Retriever, "retriever/tfidf"),
    ],
)
def test_options_that_spell_the_defaults_out_hold_them(schema, option):
    default = OmegaConf.structured(schema)
    laid_over = OmegaConf.merge(default, OmegaConf.load(conf_dir() / f"{option}.yaml"))
    found, expected = map(OmegaConf.to_container, (laid_over, default))
    differing = {key for key in expected if found[key] != expected[key]}
    assert differing <= {"name", "kind", "top_k"}


def test_defaults_are_those_that_need_no_hub():
    config = compose_config("train")
    assert (config.data.name, config.corpus.name, config.model.name) == ("demo", "demo", "minilm")
