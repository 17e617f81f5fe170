"""Old names of settings and options; the command refuses them and states the new name."""

import re

from exam.core.errors import ExamError

RENAMED = {
    "adversary": "tuning",
    "adversary=awp": "tuning=awp",
    "adversary=none": "tuning=full",
    "adversary.adv_eps": "tuning.awp_eps",
    "adversary.adv_lr": "tuning.awp_lr",
    "adversary.start_epoch": "tuning.awp_start_epoch",
    "data.fold=all": "data.cross_validate=true",
    "model.flash": "model.attn_implementation",
    "model.flash=true": "model.attn_implementation=flashdeberta",
}
PUBLISHED = {  # options that are now <group>=published/<option>
    "context": ("seven_best_last", "twenty_sentences"),
    "corpus": ("stem_270k",),
    "data": (
        *("official_200", "official_200_answered", "radek_6k", "sixty_k", "stem_1k"),
        *("trained_with_context", "written_1k"),
    ),
    "generator": ("llm_stem",),
    "model": ("deberta_large_256", "longformer_race", "platypus2_70b"),
    "retriever": ("two_stage_five_articles",),
    "trainer": (
        *("awp", "bert_baseline", "deberta_closed_book", "how_to_train_open_book"),
        "trained_with_context",
    ),
    "tuning": ("lora_published",),
}
MEMBER = re.compile(r"^retriever\.members\.\w+\.")


def new_name(setting: str) -> str | None:
    """Return the new name of an old key, `group=option` or `key=value`; None if it is not old."""
    key, _, value = setting.partition("=")
    key = MEMBER.sub("retriever.", key)
    if value in PUBLISHED.get(key, ()):
        return f"{key}=published/{value}"
    if (name := RENAMED.get(f"{key}={value}") or RENAMED.get(key)) is not None:
        return name
    group, _, last = key.rpartition(".")
    return f"{RENAMED[group]}.{last}" if group in RENAMED else None


def check_renamed(override: str) -> None:
    """Refuse an override with an old name.

    Raises:
        ExamError: the setting or the option was renamed.
    """
    setting = override.lstrip("+~").removeprefix("run.")
    if (name := new_name(setting)) is not None:
        old = setting if "=" in name else setting.partition("=")[0]
        raise ExamError(f"{old} was renamed to {name}.\nWrite {name} instead.")
