"""Settings that cannot work: the message names the setting, what it must be and the remedy."""

import re
from dataclasses import fields, is_dataclass
from typing import get_args, get_type_hints

import pytest
from helpers import refuses

from exam.config import ROOTS, Restore
from exam.config.compose import compose_config
from exam.config.saved import load_run
from exam.config.training_args import TrainerFields
from exam.config.values import describe_range, setting
from exam.core.errors import ExamError

RANGES = {
    "data.limit=0": "at least 1", "data.folds=1": "at least 2",
    "data.valid_fraction=1": "at least 0 and below 1",
    "data.valid_fraction=nan": "at least 0 and below 1",
    "data.soft_weight=0": "above 0 and at most 1", "context.num_passages=-1": "at least 0",
    "retriever.articles=0": "at least 1", "index.shard_size=0": "at least 1",
    "index.max_memory_gib=0": "above 0", "chunking.chunk_words=0": "at least 1",
    "reranker.weight=0": "above 0 and at most 1", "generator.options=27": "between 2 and 26",
    "generator.llm.per_article=0": "at least 1", "model.max_length=0": "at least 1",
    "model.dropout=1": "at least 0 and below 1", "tuning.layer_decay=0": "above 0 and at most 1",
    "tuning.lora_rank=0": "at least 1", "tuning.awp_lr=0": "above 0",
    "trainer.per_device_train_batch_size=0": "at least 1",
    "trainer.num_train_epochs=-1": "at least 0",
    "log_level=loud": "one of debug, info, warning, error",
    "trainer.eval_strategy=always": "one of no, steps, epoch",
}  # fmt: skip
CONTRADICTIONS = {  # what the message names, and its remedy
    "train trainer.fp16=true": ["trainer.use_cpu", "trainer=gpu"],
    "train trainer.output_dir=x": ["trainer.output_dir", "outputs/train/<name>-<hash>"],
    "train trainer.save_strategy=steps": ["load_best_model_at_end", "trainer.save_strategy=epoch"],
    "train trainer.save_total_limit=1": ["trainer.save_total_limit=2"],
    "train trainer.train_sampling_strategy=group_by_length": [
        *("trainer.train_sampling_strategy", "model.batch_by=questions")
    ],
    "train data.fold=null": ["data.fold=null", "trainer.load_best_model_at_end=false"],
    "train data.fold=10": ["data.fold", "between 0 and 9", "data.cross_validate=true"],
    "train data.options=A": ["2 to 26", "(got A)", "data.options=ABCD"],
    "train data.options=AAB": ["different options", "(got AAB)"],
    "train data.source=hub": ["data.hub=<owner/name>"],
    "train seed=[1,[2]]": ["seed must be", "seed=[0,1,2]"],
    "train seed=[1,1]": ["seed must be", "seed=[0,1,2]"],
    "train context.eval_num_passages=21": ["context.eval_num_passages=21", "retriever.top_k=21"],
    "train tuning.use_dora=true": ["tuning.use_dora", "tuning=lora"],
    "train model.cross_option_bias=true": ["model.cross_option_bias", "model.loss=binary"],
    "train model.attn_implementation=flashdeberta": ["flashdeberta", "model.packing=none"],
    "train name=a/b": ["name must be", "dashes"],
    "train task=reranker reranker=none": ["reranker.ckpt=cross-encoder/"],
    "train task=reranker retriever=none context.num_passages=0": [
        "retriever=none",
        "reranker=none",
    ],
    "train task=encoder retriever=bm25": ["retriever=bm25", "retriever=two_stage"],
    "train task=encoder training_pairs=support": [
        "training_pairs.target=support",
        "training_pairs=binary",
    ],
    "train task=reranker training_pairs.positives=missing.csv": [
        "missing.csv",
        "training_pairs.positives=reader",
    ],
    "train task=reranker training_pairs.positives=reader": ["training_pairs.reader=<run folder>"],
    "train task=reranker training_pairs.reader=missing": ["training_pairs.positives=reader"],
    "train task=reranker training_pairs.max_rank=30": [
        "training_pairs.max_rank=30",
        "keeps 20",
        "training_pairs.max_rank=20",
    ],
    "train task=reranker reranker.query=per_option": ["reranker.query=prompt_options"],
    "train reranker=cross_encoder reranker.top_k=40": ["reranker.top_k=40", "retriever.top_k=40"],
    "train reranker=cross_encoder reranker.top_k=3": ["reranker.top_k=3", "reranker.top_k=5"],
    "train model=smollm2 trainer=zero_shot model.scoring=letters model.template='{prompt}'": [
        *("{options}", "model.scoring=letters")
    ],
    "train model=smollm2 trainer=zero_shot model.scoring=yes_no "
    "model.template='{prompt}{option}{context}'": ["Put {context} first"],
    "train model=smollm2 trainer=zero_shot model.packing=options": [
        *("model.packing", "model.kind=transformer")
    ],
    "train model=smollm2 trainer=zero_shot trainer.num_train_epochs=1 "
    "model.weights_location=layerwise model.gguf_file=null": [
        "trainer=zero_shot",
        "model.weights_location=memory",
    ],
    "infer ckpt=[a,b] ensemble=mean cascade.escalate_fraction=0.5": [
        "ensemble=",
        "cascade.escalate_fraction=",
    ],
    "infer ckpt=[a,b] ensemble=fitted": ["ensemble.fit_on", "'ensemble.fit_on=[<folder>,…]'"],
    "infer ckpt=[a,b] ensemble=mean ensemble.weights=[0,0]": ["Leave ensemble.weights out"],
    "infer predictions=[a,b] option_rotations=2": ["predictions=…", "ckpt=[<folder>,…]"],
}


@pytest.mark.parametrize("override", RANGES)
def test_a_value_out_of_range_is_refused(override):
    key, _, _ = override.partition("=")
    with refuses(f"{key} must be {RANGES[override]} (got "):
        compose_config("train", override)


@pytest.mark.parametrize("command", CONTRADICTIONS)
def test_a_contradiction_is_refused(command):
    with refuses(*CONTRADICTIONS[command]):
        compose_config(*command.split(" "))


def test_every_item_of_a_list_is_within_range_and_a_member_is_named():
    with refuses("cascade.escalate_fraction must be between 0 and 1 (got 2)"):
        compose_config("infer", "ckpt=[a,b,c]", "cascade.escalate_fraction=[0.5,2]")
    with pytest.raises(ExamError, match=r"^ensemble\.weights must be at least 0 \(got -1.0\)"):
        compose_config("infer", "ckpt=[a,b]", "ensemble=mean", "ensemble.weights=[1,-1]")
    with refuses("cascade.escalate_fraction must be between 0 and 1 (got half)"):
        compose_config("infer", "ckpt=[a,b]", "cascade.escalate_fraction=half")
    with pytest.raises(ExamError, match=r"^retriever\.members\.bm25\.top_k must be at least 1"):
        compose_config("train", "retriever=hybrid", "retriever.members.bm25.top_k=0")


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("adversary.adv_lr=0.1", "tuning.awp_lr"),
        ("trainer=awp", "trainer=published/awp"),
        ("data.fold=all", "data.cross_validate=true"),
    ],
)
def test_an_old_name_is_refused_with_the_new_one(override, name):
    with pytest.raises(ExamError, match=rf"renamed to {re.escape(name)}\.\nWrite"):
        compose_config("train", override)


def test_a_run_with_an_old_name_has_to_be_trained_again(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("retriever:\n  depth: 20\n")
    with pytest.raises(ExamError, match=r"retriever\.depth, which was renamed to retriever\.top_k"):
        load_run(path, Restore(ckpt="run"))


def groups(schema):
    """Yield a dataclass and those of its fields, at any depth."""
    yield schema
    for hint in get_type_hints(schema).values():
        for kind in (hint, *get_args(hint)):
            if isinstance(kind, type) and is_dataclass(kind) and kind is not TrainerFields:
                yield from groups(kind)


@pytest.mark.parametrize("verb", ROOTS)
def test_every_setting_has_one_sentence_of_help(verb):
    for schema in groups(ROOTS[verb]):
        for field in fields(schema):
            text = field.metadata.get("help", "")
            assert text.endswith("."), f"{schema.__name__}.{field.name}"
            assert text[0].isupper() or ":" in text or "," in text


def test_a_range_is_described_in_words():
    described = {
        "": setting(1, "Help."),
        "at least 1": setting(1, "Help.", minimum=1),
        "above 0 and at most 1": setting(1, "Help.", above=0, maximum=1),
        "one of a, b": setting("a", "Help.", choices=("a", "b")),
    }
    assert [describe_range(field.metadata) for field in described.values()] == list(described)
