"""The trainer group: what a configuration sets of `transformers.TrainingArguments`."""

from typing import Any

from omegaconf import MISSING

from exam.trainer_fields import TrainerFields

SHARDING = ("deepspeed", "fsdp", "fsdp_config")


def trainer_values(fields: TrainerFields) -> dict[str, Any]:
    """The TrainingArguments a configuration sets, without those left to the library."""
    return {name: value for name, value in vars(fields).items() if value != MISSING}


def is_trained(fields: TrainerFields) -> bool:
    """Whether a reader learns anything, or its checkpoint answers as it is."""
    return bool(trainer_values(fields).get("num_train_epochs") != 0)


def answering_values(fields: TrainerFields) -> dict[str, Any]:
    """The same without what shards a model: to answer, one is loaded whole."""
    values = trainer_values(fields)
    return {name: value for name, value in values.items() if name not in SHARDING}
