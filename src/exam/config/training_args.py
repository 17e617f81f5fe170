"""The `trainer` group: what you may set of `transformers.TrainingArguments`.

The schema is read from the source of the installed transformers. Importing the library instead
takes seconds, and a copy of its fields would go stale.
"""

import ast
import re
from dataclasses import field, make_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from exam.core.errors import ExamError

SHARDING = ("deepspeed", "fsdp", "fsdp_config")
TYPES: dict[str, Any] = {kind.__name__: kind for kind in (int, float, bool, str)}
TYPES |= {f"{name} | None": kind | None for name, kind in TYPES.items()}
ENUM = re.compile(r"([A-Z]\w+) \| str")  # such as SchedulerType | str
# Transformers before 5.23 names these fields gradient_…
ADDED_NAMES = ("activation_checkpointing", "activation_checkpointing_kwargs")
MANAGED = {
    "output_dir": "the run folder is outputs/train/<name>-<hash>",
    "seed": "set seed=… at the top level",
    "resume_from_checkpoint": "resume=auto resumes an interrupted run",
    "remove_unused_columns": "the collator reads all columns",
    "label_names": "the reader's label is always `labels`",
    "do_train": "choose the command: exam train or exam infer",
    "do_eval": "choose the command: exam train or exam infer",
    "do_predict": "choose the command: exam train or exam infer",
    "local_rank": "the launcher sets it",
    "dataloader_drop_last": "every question is trained on and answered",
    "eval_do_concat_batches": "the metric is measured over all questions at once",
    "batch_eval_metrics": "the metric is measured over all questions at once",
    "hub_token": "it would be saved; log in (hf auth login), or set HF_TOKEN",
    "push_to_hub": "hub.push=true uploads the finished run",
}

MINIMUM = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 0,
}


def _parse_classes(module: str) -> dict[str, ast.ClassDef]:
    """Parse the top-level classes of a module of transformers by name."""
    spec = find_spec("transformers")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("No module named 'transformers'", name="transformers")
    source = Path(spec.origin).with_name(f"{module}.py").read_text(encoding="utf-8")
    return {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}


def _declare(name: str) -> tuple[str, Any, Any]:
    """Return a field for `make_dataclass`; its type is Any where Hydra cannot express it."""
    if name not in DECLARATIONS:
        text = f"The newer name of trainer.gradient_{name.partition('_')[2]}."
        return name, Any, field(default=MISSING, metadata={"help": text})
    limits = {"minimum": MINIMUM[name]} if name in MINIMUM else {}
    metadata: dict[str, Any] = {"help": "", "library_default": "", "limits": limits}
    kind = TYPES.get(ANNOTATIONS[name], Any)
    if match := ENUM.fullmatch(ANNOTATIONS[name]):
        members = [node.value for node in CLASSES[match[1]].body if isinstance(node, ast.Assign)]
        kind, metadata["choices"] = str, tuple(map(ast.literal_eval, members))
    for node in ast.walk(DECLARATIONS[name]):
        if isinstance(node, ast.keyword) and node.arg == "default":
            metadata["library_default"] = ast.unparse(node.value)
        elif isinstance(node, ast.Dict):
            items = {ast.unparse(k): v for k, v in zip(node.keys, node.values, strict=True) if k}
            text = ast.literal_eval(items["'help'"]) if "'help'" in items else ""
            metadata["help"] = " ".join(text.replace("%%", "%").split())
    return name, kind, field(default=MISSING, metadata=metadata)


def _check_managed(trainer: Any) -> None:
    """Refuse fields that exam manages."""
    for name in trainer_values(trainer):
        if name in MANAGED:
            raise ExamError(f"trainer.{name} is managed by exam: {MANAGED[name]}.\nLeave it out.")


CLASSES = _parse_classes("trainer_utils") | _parse_classes("training_args")
DECLARATIONS = {
    node.target.id: node
    for node in CLASSES["TrainingArguments"].body
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    if not node.target.id.startswith("_")
}
ANNOTATIONS = {name: ast.unparse(node.annotation) for name, node in DECLARATIONS.items()}
if TYPE_CHECKING:
    TrainerFields = Any
else:
    TrainerFields = make_dataclass(
        "TrainerFields",
        map(_declare, dict.fromkeys([*DECLARATIONS, *ADDED_NAMES])),
        namespace={
            "__doc__": "The fields of `TrainingArguments`; MISSING leaves the library's default.",
            "__module__": __name__,
            "validate": _check_managed,
        },
    )


def trainer_values(fields: TrainerFields) -> dict[str, Any]:
    """Return the arguments that a configuration sets, without the library's defaults."""
    return {name: value for name, value in vars(fields).items() if value != MISSING}


def is_trained(fields: TrainerFields) -> bool:
    """Return whether a reader is trained at all, or answers with its checkpoint's weights."""
    return bool(trainer_values(fields).get("num_train_epochs") != 0)


def answering_values(fields: TrainerFields) -> dict[str, Any]:
    """Return the values without sharding: a reader that answers is loaded whole."""
    values = trainer_values(fields)
    return {name: value for name, value in values.items() if name not in SHARDING}
