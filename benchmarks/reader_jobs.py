"""What the benchmark of readers measures, each job in a process of its own."""

import tempfile
import time
from pathlib import Path
from typing import Any

from plain_reader import plain
from reader_models import CONFIGURED, checkpoint, read_in
from side_by_side import measured, questions_and_contexts, resident_mib

PHASES = {"train": 3, "predict": 1}  # forward passes that each costs


def ours(job: dict[str, Any], train: Any, asked: Any, work: Path) -> Any:
    """The configured reader, in the same form."""
    from exam.config import trainer_values
    from exam.config.compose import compose_config
    from exam.readers.multiple_choice.features import build_features
    from exam.readers.multiple_choice.reader import MultipleChoiceReader

    config: Any = compose_config(
        "train",
        f"model={CONFIGURED[job['model']]}",
        f"model.name_or_path={checkpoint(job['model'], work)}",
        "model.packing=options",
        f"model.max_length={job['length']}",
        "trainer.num_train_epochs=1",
        f"trainer.per_device_train_batch_size={job['batch']}",
        f"trainer.per_device_eval_batch_size={job['batch']}",
        "trainer.eval_strategy=no",
        "trainer.save_strategy=no",
        "trainer.load_best_model_at_end=false",
    )
    folder = Path(tempfile.mkdtemp(dir=work))
    reader = MultipleChoiceReader.build(
        config.model, trainer_values(config.trainer), folder, job["seed"]
    )
    read_in(reader.model)
    data = [
        build_features(questions, contexts, reader.tokenizer, job["length"], 4096)[0]
        for questions, contexts in (train, asked)
    ]
    options = max(len(row) for part in data for row in part["options"])
    trainer = reader.build_trainer(data[0], None, options)
    tokens = [
        reader.build_collator(options).count_tokens(row) for part in data for row in part.to_list()
    ]
    return trainer.train, lambda: reader.predict_logits(data[1]), tokens


def with_options(questions: Any, number: int) -> Any:
    """The questions with another number of options: the first ones, or these repeated."""

    def changed(question: dict[str, Any]) -> dict[str, Any]:
        repeated = question["options"] * (number // len(question["options"]) + 1)
        label = question["label"]
        return {
            "options": repeated[:number],
            "label": None if label is None else min(label, number - 1),
        }

    return questions.map(changed, load_from_cache_file=False)


def run(job: dict[str, Any], data: Path, work: Path) -> dict[str, Any]:
    """Train, predict, or both: seconds, memory, tokens, and logits where they are wanted.

    Each by itself when memory is wanted: what training leaves behind would count as prediction's.
    """
    parts = []
    for part in ("train", "valid"):
        questions, contexts = questions_and_contexts(data, work, part, job["top_k"])
        if job["questions"]:
            questions = questions.select(range(min(job["questions"], len(questions))))
        if job["options"]:
            questions = with_options(questions, job["options"])
        parts.append((questions, contexts))
    side: Any = plain if job["side"] == "plain" else ours
    train, predict, tokens = side(job, *parts, work)
    loaded = resident_mib()
    found: dict[str, Any] = {
        "loaded_mib": loaded,
        "tokens_per_question": sum(tokens) / sum(len(questions) for questions, _ in parts),
    }
    logits: Any = None
    for phase, work_of, (questions, _) in zip(PHASES, (train, predict), parts, strict=True):
        if phase in job["phases"]:
            logits, figures = measured(work_of, loaded)
            rate = len(questions) / figures["seconds"]
            found[phase] = {**figures, "questions_per_second": rate}
    if job["logits"]:
        found |= {"logits": logits.tolist(), "labels": parts[1][0]["label"][:]}
    return found


def peak(job: dict[str, Any], work: Path) -> dict[str, Any]:
    """GFLOP/s of bfloat16 matrix products in a model's own shapes, and its products per token."""
    import torch
    from torch.nn.functional import linear
    from transformers import AutoModel

    from exam.core.environment import tune_malloc

    tune_malloc()
    model = AutoModel.from_pretrained(checkpoint(job["model"], work))
    shapes = [
        tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "pooler" not in name
    ]
    rows = job["rows"]

    def seconds(a: torch.Tensor, b: torch.Tensor) -> float:
        times = []
        for _ in range(12):
            start = time.perf_counter()
            linear(a, b)
            times.append(time.perf_counter() - start)
        return min(times)

    def shaped(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.bfloat16)

    forward = backward = 0.0
    for shape in set(shapes):
        wide, deep = shape
        forward += shapes.count(shape) * seconds(shaped(rows, deep), shaped(wide, deep))
        backward += shapes.count(shape) * (
            seconds(shaped(rows, wide), shaped(deep, wide))
            + seconds(shaped(wide, rows), shaped(deep, rows))
        )
    products = sum(wide * deep for wide, deep in shapes)
    return {
        "predict_gflops": 2 * rows * products / forward / 1e9,
        "train_gflops": 6 * rows * products / (forward + backward) / 1e9,
        "products_per_token": products,
        "layers": model.config.num_hidden_layers,
        "hidden": model.config.hidden_size,
    }


def pairs(job: dict[str, Any], data: Path, work: Path) -> dict[str, Any]:
    """Tokens and attended pairs of a question, packed: the useful part of what is computed."""
    from transformers import AutoTokenizer

    from exam.readers.multiple_choice.collator import PackedCollator
    from exam.readers.multiple_choice.features import build_features
    from exam.readers.multiple_choice.packing import attention_mask_for

    tokenizer = AutoTokenizer.from_pretrained(checkpoint(job["model"], work))
    questions, contexts = questions_and_contexts(data, work, job["part"], job["top_k"])
    questions = questions.select(range(min(job["questions"], len(questions))))
    features, _ = build_features(questions, contexts, tokenizer, job["length"], 4096)
    collator, tokens, attended = PackedCollator(tokenizer, 5), 0, 0
    for row in features.to_list():
        batch = collator([row])
        tokens += int(batch["attention_mask"].sum())
        attended += int(attention_mask_for(batch["attention_mask"], batch["option_tokens"]).sum())
    return {"tokens": tokens / len(features), "pairs": attended / len(features)}
