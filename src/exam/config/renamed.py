"""Old names of settings and options; the command refuses them and states the new name."""

import re

from exam.config.values import conf_dir
from exam.core.errors import ExamError

RENAMED = {
    "adversary": "tuning",
    "adversary.adv_eps": "tuning.awp_eps",
    "adversary.adv_lr": "tuning.awp_lr",
    "adversary.start_epoch": "tuning.awp_start_epoch",
    "adversary=awp": "tuning=awp",
    "adversary=none": "tuning=full",
    "cascade.share": "cascade.escalate_fraction",
    "context.eval_top_k": "context.eval_num_passages",
    "context.top_k": "context.num_passages",
    "context.train_top_k": "context.train_num_passages",
    "context=only_when_asked": "context=inference_only",
    "context=seven_best_last": "context=published/top7_best_last",
    "corpus.also": "corpus.extra_corpora",
    "corpus.reader": "corpus.format",
    "data.extra": "data.extra_train",
    "data.fold=all": "data.cross_validate=true",
    "data.valid_share": "data.valid_fraction",
    "encoder.batch_tokens": "encoder.max_tokens_per_batch",
    "ensemble.of": "ensemble.space",
    "ensemble.points": "ensemble.vote_points",
    "generator.n": "generator.num_questions",
    "generator.neighbours": "generator.num_neighbors",
    "generator.writer": "generator.llm",
    "generator.writer.gguf": "generator.llm.gguf_file",
    "generator.writer.parallel": "generator.llm.concurrency",
    "generator.writer.price_in": "generator.llm.usd_per_million_input_tokens",
    "generator.writer.price_out": "generator.llm.usd_per_million_output_tokens",
    "image": "constraints",
    "index.memory_gib": "index.max_memory_gib",
    "index.probe": "index.nprobe",
    "index.recipe": "index.type",
    "index.recipe=low_ram": "index.type=low_memory",
    "index.refine": "index.refine_k",
    "index=low_ram": "index=low_memory",
    "merge": "merge_adapters",
    "model.chat": "model.use_chat_template",
    "model.evidence": "model.overlap_features",
    "model.execution": "model.weights_location",
    "model.flash": "model.attn_implementation",
    "model.flash=true": "model.attn_implementation=flashdeberta",
    "model.gguf": "model.gguf_file",
    "model.memory_gib": "model.max_memory_gib",
    "model.others": "model.cross_option_bias",
    "n": "num_questions",
    "pairs": "training_pairs",
    "pairs.first": "training_pairs.min_rank",
    "pairs.last": "training_pairs.max_rank",
    "pairs.negatives": "training_pairs.num_negatives",
    "pairs.per_question": "training_pairs.num_positives",
    "passages": "chunking",
    "passages.overlap": "chunking.overlap_sentences",
    "passages.words": "chunking.chunk_words",
    "passes": "variants",
    "reranker.depth": "reranker.top_k",
    "retriever.depth": "retriever.top_k",
    "retriever.encode_at_most": "retriever.prefilter_k",
    "retriever.kind=given": "retriever.kind=provided",
    "retriever=given": "retriever=provided",
    "retriever=two_stage_fast": "retriever=two_stage_prefiltered",
    "rotations": "option_rotations",
    "trainer=no_training": "trainer=zero_shot",
    "tuning.dora": "tuning.use_dora",
    "tuning.rslora": "tuning.use_rslora",
}
PUBLISHED = [
    f"{path.parts[-3]}=published/{path.stem}" for path in conf_dir().glob("*/published/*.yaml")
]
RENAMED |= {
    name.replace("published/", ""): name for name in PUBLISHED if name not in RENAMED.values()
}
MEMBER = re.compile(r"^retriever\.members\.\w+\.")


def new_name(setting: str) -> str | None:
    """Return the new name of an old key, `group=option` or `key=value`; None if it is not old."""
    key, _, value = setting.partition("=")
    key = MEMBER.sub("retriever.", key)
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
