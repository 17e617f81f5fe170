"""Refuse a model that cannot read, learn or run as it is told to, and its tuning."""

from exam import ranks
from exam.config import (
    BatchBy,
    Execution,
    Layout,
    Loss,
    Model,
    Packing,
    ReaderKind,
    Scoring,
    Task,
    Train,
    Tuning,
    is_trained,
    trainer_values,
)
from exam.errors import ExamError

OF_HEADS = ("packing", "evidence", "loss", "others", "flash", "dropout")  # a reader's with a head
OF_CAUSAL = ("scoring", "chat", "template", "execution", "memory_gib", "gguf")  # a language model's


def check_model(config: Train) -> None:
    """Refuse a model whose values do not go together, or not with the Trainer's."""
    model, trainer = config.model, trainer_values(config.trainer)
    named = model.name_or_path or model.config or model.architecture
    if model.kind.is_neural and not named:
        raise ExamError("model.name_or_path has no value.\nGive a hub id or a folder.")
    if model.kind.is_neural:
        _check_own(model)
    if model.kind is ReaderKind.causal_lm:
        _check_causal(config)
    if model.others and model.loss is not Loss.binary:
        raise ExamError(
            "model.others=true changes nothing under model.loss=softmax, which compares the "
            "options itself.\nSet model.loss=binary, or leave model.others out."
        )
    sampling = trainer.get("train_sampling_strategy", "random")
    if model.batch_by is BatchBy.tokens and sampling != "random":
        raise ExamError(
            f"trainer.train_sampling_strategy={sampling}, but model.batch_by=tokens draws the "
            "batches.\nLeave it out, or set model.batch_by=questions."
        )
    if model.flash and model.packing is not Packing.none:
        raise ExamError(
            f"model.flash=true, but model.packing={model.packing.value}: flashdeberta reads "
            "one sequence for each option.\nSet model.packing=none, or leave model.flash out."
        )


def _check_own(model: Model) -> None:
    """Refuse values that the other kind of neural reader alone has a use for."""
    other, others = ReaderKind.causal_lm, OF_CAUSAL
    if model.kind is ReaderKind.causal_lm:
        other, others = ReaderKind.transformer, OF_HEADS
    ignored = [name for name in others if getattr(model, name) != getattr(Model(), name)]
    if ignored:
        raise ExamError(
            f"model.{ignored[0]} has no meaning for model.kind={model.kind.value}.\n"
            f"Leave it out, or set model.kind={other.value}."
        )


def _check_causal(config: Train) -> None:
    """A causal language model answers as it is, or learns letters in memory."""
    model = config.model
    _check_template(model)
    if model.load_in_4bit and model.execution is not Execution.memory:
        raise ExamError(
            f"model.load_in_4bit=true is for model.execution=memory, not {model.execution.value}.\n"
            "Leave one of them out."
        )
    if not is_trained(config.trainer):
        ranks.check_single("A language model that answers as it is")
    if config.context.layout is not Layout.context_first:
        raise ExamError(
            "context.layout is of readers with a head of their own; model.template says what "
            "stands where.\nLeave context.layout out."
        )
    in_memory = model.execution is Execution.memory and model.scoring is Scoring.letters
    if is_trained(config.trainer) and not in_memory:
        raise ExamError(
            f"model.scoring={model.scoring.value} with model.execution={model.execution.value} "
            "answers without training.\nChoose trainer=no_training, or train letters: "
            "model.scoring=letters model.execution=memory"
        )
    if model.gguf and model.execution is Execution.layerwise:
        raise ExamError(
            "model.execution=layerwise reads safetensors, and model.gguf is another form.\n"
            "Choose model.execution=memory, or a checkpoint in safetensors."
        )


def _check_template(model: Model) -> None:
    """A template shows what the way of scoring asks by, and what options share in front of them."""
    needed = {Scoring.letters: "{options}", Scoring.yes_no: "{option}"}.get(model.scoring, "")
    lacking = [mark for mark in ("{prompt}", needed) if mark not in (model.template or mark)]
    if lacking:
        raise ExamError(
            f"model.template has no {lacking[0]}, which model.scoring={model.scoring.value} asks "
            "by.\nWrite where it stands."
        )
    _, mark, behind = (model.template or "").partition("{option}")
    if mark and ("{option}" in behind or "{context}" in behind):
        raise ExamError(
            "model.template has {option} or {context} behind its first {option}, where every "
            "option would be read anew.\nPut {context} in front, and {option} once."
        )
    if model.scoring is Scoring.likelihood and mark:
        raise ExamError(
            "model.template has {option}, and model.scoring=likelihood puts the option behind it."
            "\nLeave {option} out."
        )


def check_tuning(config: Train) -> None:
    """Refuse a tuning or an adversary that has nothing to change, or cannot."""
    tuning, adversary = config.tuning, config.adversary
    chosen = {"tuning": tuning != Tuning(), "adversary": adversary.adv_lr is not None}
    for group, is_chosen in chosen.items():
        name = getattr(config, group).name
        if is_chosen and config.task is not Task.reader:
            raise ExamError(
                f"{group}={name} is for a reader, and task={config.task.value} trains none.\n"
                f"Leave {group} out."
            )
        if is_chosen and not config.model.kind.is_neural:
            raise ExamError(
                f"{group}={name} is for a transformer, and model={config.model.name} is none.\n"
                f"Leave {group} out, or choose another model."
            )
    if tuning.lora_rank is None and (tuning.rslora or tuning.dora or tuning.lora_targets):
        raise ExamError(
            "tuning.rslora, tuning.dora and tuning.lora_targets shape adapters, and there are none."
            "\nChoose tuning=lora, or leave them out."
        )
    head, adv_lr, adv_eps = tuning.head_learning_rate, adversary.adv_lr, adversary.adv_eps
    for key, value, allowed, required in (
        ("tuning.freeze_layers", tuning.freeze_layers, tuning.freeze_layers >= 0, "0 or more"),
        ("tuning.layer_decay", tuning.layer_decay, 0 < tuning.layer_decay <= 1, "above 0, up to 1"),
        ("tuning.head_learning_rate", head, head is None or head > 0, "more than 0"),
        ("tuning.lora_dropout", tuning.lora_dropout, 0 <= tuning.lora_dropout < 1, "0 to 0.99"),
        ("adversary.adv_lr", adv_lr, adv_lr is None or adv_lr > 0, "more than 0"),
        ("adversary.adv_eps", adv_eps, adv_eps is None or adv_eps > 0, "more than 0"),
    ):
        if not allowed:
            raise ExamError(f"{key}={value} must be {required}.")
