"""Our reader against a plain `Trainer` script as the notebooks write it, side by side in one run.

    python benchmarks/reader.py DATA [--parts speed,quality,growth] [--rounds 3]

DATA (or EXAM_DATA) holds `exam/{train,valid}.csv` and `wikipedia/*.parquet`. Both sides read the
same questions and BM25 passages, at most 256 tokens for an option. Every timed run has a process
of its own, and the sides take turns. Timed: `trainer.train()` and `trainer.predict()`; not the
imports, the loading, or the tokenisation, which are reported apart.

- `plain`: `AutoModelForMultipleChoice`, float32, batches of 8, one sequence for each option; its
  quality is measured without dropout too;
- `ours`: this project's reader as configured, with `model.packing=options`. MiniLM and MPNet are
  configured without dropout, which the plain script leaves as the checkpoint has it.

MiniLM has its real weights; MPNet-base and DeBERTa-v3-xsmall are random models of that shape.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from side_by_side import measured, median, questions_and_contexts, resident_mib

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
SHAPES: dict[str, dict[str, Any]] = {
    "mpnet": {"model_type": "mpnet", "vocab_size": 30527},
    "deberta": {
        "model_type": "deberta-v2",
        "vocab_size": 128100,
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "intermediate_size": 1536,
        "max_position_embeddings": 512,
        "max_relative_positions": -1,
        "pooler_hidden_size": 384,
        "position_biased_input": False,
        "type_vocab_size": 0,
        "relative_attention": True,
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "layer_norm_eps": 1e-7,
        "pad_token_id": 0,
    },
}
CONFIGURED = {"minilm": "minilm", "mpnet": "mpnet", "deberta": "deberta_xsmall"}
LENGTH, BATCH, RATE, TOP_K = 256, 8, 1e-4, 5
DEEP = 40  # passages that fill the longest input
TIMED = {"minilm": 128, "mpnet": 32, "deberta": 48}  # questions, to train on and to predict
SEEDS = (0, 1, 2)
PHASES = {"train": 3, "predict": 1}  # forward passes that each costs
LENGTHS, OPTIONS, BATCHES = (128, 256, 512, 1024, 2048), (2, 3, 5, 10), (1, 2, 4, 8, 16, 32)


# What both sides are given.


def checkpoint(model: str, work: Path) -> str:
    """The folder of a model's weights; random ones are made once."""
    import torch
    from transformers import MODEL_MAPPING, AutoConfig, AutoTokenizer

    from exam.weights import locate

    if model == "minilm":
        return locate(MINILM)
    folder = work / model
    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        AutoTokenizer.from_pretrained(locate(MINILM)).save_pretrained(folder)
        config = AutoConfig.for_model(**SHAPES[model])
        architecture: Any = MODEL_MAPPING[type(config)]
        architecture(config).save_pretrained(folder)
    return str(folder)


def read_in(model: Any) -> None:
    """Read every weight once: they are mapped from their file, and count as loaded from then on."""
    for weight in model.parameters():
        weight.detach().sum()


# The notebooks' way.


def plain(job: dict[str, Any], train: Any, asked: Any, work: Path) -> Any:
    """A plain Trainer script: a trainer, its prediction set, and the tokens of both."""
    import torch
    from datasets import Dataset
    from transformers import (
        AutoModelForMultipleChoice,
        AutoTokenizer,
        DataCollatorForMultipleChoice,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    from exam.weights import dropout_fields

    place = checkpoint(job["model"], work)
    tokenizer = AutoTokenizer.from_pretrained(place)

    def prepared(questions: Any, contexts: Any) -> Dataset:
        rows = []
        for question in questions:
            context = " ".join(p["text"] for p in contexts.get(question["id"], []))
            options = question["options"]
            row = tokenizer(
                [context] * len(options),
                [f"{question['prompt']} {option}" for option in options],
                truncation="only_first",
                max_length=job["length"],
            )
            rows.append({**row, "label": question["label"] or 0})
        return Dataset.from_list(rows)

    data = prepared(*train), prepared(*asked)
    set_seed(job["seed"])  # for the new head
    dropout = {} if job["dropout"] is None else dropout_fields(job["dropout"])
    model = AutoModelForMultipleChoice.from_pretrained(place, dtype=torch.float32, **dropout)
    read_in(model)
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(dir=work),
        per_device_train_batch_size=job["batch"],
        per_device_eval_batch_size=job["batch"],
        num_train_epochs=1,
        learning_rate=RATE,
        warmup_steps=0.1,
        weight_decay=0.01,
        seed=job["seed"],
        save_strategy="no",
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=data[0],
        data_collator=DataCollatorForMultipleChoice(tokenizer=tokenizer),
        processing_class=tokenizer,
    )
    tokens = [sum(map(len, row)) for part in data for row in part["input_ids"]]
    return trainer.train, lambda: trainer.predict(data[1]).predictions, tokens


# Ours.


def ours(job: dict[str, Any], train: Any, asked: Any, work: Path) -> Any:
    """The configured reader, in the same form."""
    from exam.compose import composed
    from exam.config import trainer_values
    from exam.reader.features import build_features
    from exam.reader.reader import Reader
    from exam.reader.training import predict

    config: Any = composed(
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
    reader = Reader.load(config.model, trainer_values(config.trainer), folder, job["seed"])
    read_in(reader.model)
    data = [
        build_features(questions, contexts, reader.tokenizer, job["length"], 4096)[0]
        for questions, contexts in (train, asked)
    ]
    options = max(len(row) for part in data for row in part["options"])
    trainer = reader.trainer(data[0], None, options)
    tokens = [reader.collator(options).tokens(row) for part in data for row in part.to_list()]
    return trainer.train, lambda: predict(reader, data[1]), tokens


# One job, in a process of its own.


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

    from exam.runtime import keep_freed_memory

    keep_freed_memory()
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

    from exam.reader.collator import PackedCollator
    from exam.reader.features import build_features
    from exam.reader.packing import seen

    tokenizer = AutoTokenizer.from_pretrained(checkpoint(job["model"], work))
    questions, contexts = questions_and_contexts(data, work, job["part"], job["top_k"])
    questions = questions.select(range(min(job["questions"], len(questions))))
    features, _ = build_features(questions, contexts, tokenizer, job["length"], 4096)
    collator, tokens, attended = PackedCollator(tokenizer, 5), 0, 0
    for row in features.to_list():
        batch = collator([row])
        tokens += int(batch["attention_mask"].sum())
        attended += int(seen(batch["attention_mask"], batch["option_tokens"]).sum())
    return {"tokens": tokens / len(features), "pairs": attended / len(features)}


# All of them.


class Bench:
    """Starts jobs one after the other and keeps what they found.

    An interrupted run continues behind its last whole job, unless the code has changed since.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Take the command line's folders and threads."""
        from exam.files import digest, file_digest

        self.arguments = arguments
        root = Path(__file__).parents[1]
        sources = sorted(
            p for part in ("src", "conf", "benchmarks") for p in root.glob(f"{part}/**/*")
        )
        code = digest([file_digest(path) for path in sources if path.suffix in (".py", ".yaml")])
        self.found = arguments.work / f"jobs-{code[:8]}"
        self.found.mkdir(exist_ok=True)

    def job(self, kind: str, repetition: int = 0, **settings: Any) -> dict[str, Any]:
        """What a job finds in a fresh process; of several repetitions each is run."""
        from exam.files import digest

        arguments = self.arguments
        defaults = {
            "model": "minilm",
            "questions": None,
            "options": None,
            "length": LENGTH,
            "top_k": TOP_K,
            "batch": BATCH,
            "seed": 0,
            "dropout": None,  # the checkpoint's own
            "logits": False,
            "phases": list(PHASES),
        }
        job = {"kind": kind, **defaults, **settings}
        threads = str(arguments.threads)
        path = self.found / f"{digest([job, repetition, threads, str(arguments.data)])[:16]}.json"
        if not path.is_file():
            command = [sys.executable, __file__, str(arguments.data), "--work", str(arguments.work)]
            command += ["--threads", threads, "--job", json.dumps(job), "--output", str(path)]
            environment = {**os.environ, "OMP_NUM_THREADS": threads}
            subprocess.run(command, check=True, env=environment)
        found: dict[str, Any] = json.loads(path.read_text())
        shown = {k: v for k, v in settings.items() if k != "logits"}
        seconds = [round(found[k]["seconds"], 2) for k in PHASES if k in found]
        sys.stderr.write(f"{kind} {shown} {seconds}\n")
        return found

    def speed(self, model: str) -> dict[str, Any]:
        """Both sides in turn, and their medians."""
        questions = min(TIMED[model], self.arguments.questions or TIMED[model])
        figures: dict[str, Any] = {"questions": questions}
        for (phase, times), part in zip(PHASES.items(), ("train", "valid"), strict=True):
            runs: dict[str, list[dict[str, Any]]] = {"plain": [], "ours": []}
            for repetition in range(self.arguments.rounds):
                for side, done in runs.items():
                    settings: dict[str, Any] = {"side": side, "model": model, "phases": [phase]}
                    settings |= {"repetition": repetition, "questions": questions}
                    done.append(self.job("run", **settings))
            useful = self.job("pairs", model=model, questions=questions, part=part)
            rows = round(BATCH * useful["tokens"])
            limit = self.job("peak", model=model, rows=rows)
            flops = 2 * limit["products_per_token"] * useful["tokens"]
            flops += 4 * limit["layers"] * limit["hidden"] * useful["pairs"]
            rate, memory = (
                {side: median([run[phase] for run in done], name) for side, done in runs.items()}
                for name in ("questions_per_second", "mib")
            )
            reached = times * flops * rate["ours"] / 1e9
            figures[phase] = {
                "questions_per_second": rate,
                "ratio": rate["ours"] / rate["plain"],
                "mib": memory,
                "memory_ratio": memory["ours"] / memory["plain"],
                "useful_gflops": reached,
                "share_of_peak": reached / limit[f"{phase}_gflops"],
                "peak": limit,
                **useful,
                "runs": runs,
            }
        return figures

    def quality(self) -> dict[str, Any]:
        """MAP@3 on the reported questions after one epoch, over several seeds."""
        import numpy as np

        from exam.metrics import average_precision, ranking
        from exam.retrieval.evaluation import figures

        sides: dict[str, dict[str, Any]] = {
            "plain": {"side": "plain"},
            "plain_without_dropout": {"side": "plain", "dropout": 0.0},
            "ours": {"side": "ours"},
        }
        scores: dict[str, list[Any]] = {side: [] for side in sides}
        for seed in self.arguments.seeds:
            for side, settings in sides.items():
                settings |= {"seed": seed, "logits": True, "questions": self.arguments.questions}
                done = self.job("run", **settings)
                order = ranking(np.array(done["logits"]))
                scores[side].append(average_precision(order, np.array(done["labels"])))
        mean = {side: np.mean(found, axis=0) for side, found in scores.items()}
        return {
            "seeds": list(self.arguments.seeds),
            "each": {side: [float(np.mean(s)) for s in found] for side, found in scores.items()},
            **{side: figures(values) for side, values in mean.items()},
            "difference": figures(mean["ours"] - mean["plain"]),
            "difference_without_dropout": figures(mean["ours"] - mean["plain_without_dropout"]),
        }

    def growth(self) -> dict[str, Any]:
        """How the cost of our reader grows; DeBERTa's shape, whose positions have no end."""
        questions = self.arguments.questions or 16
        base: dict[str, Any] = {"side": "ours", "questions": questions}
        return {
            "length": {
                n: self.job("run", model="deberta", length=n, top_k=DEEP, batch=2, **base)
                for n in LENGTHS
            },
            "options": {n: self.job("run", options=n, **base) for n in OPTIONS},
            "batch": {
                n: self.job("run", batch=n, **{**base, "questions": 2 * max(n, questions)})
                for n in BATCHES
            },
        }


def worker(job: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """One job of one process."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    from exam.runtime import keep_freed_memory

    disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(arguments.threads)
    if job["kind"] == "run":
        if job["side"] == "ours":
            keep_freed_memory()  # as every command of the project begins
        return run(job, arguments.data, arguments.work)
    if job["kind"] == "peak":
        return peak(job, arguments.work)
    return pairs(job, arguments.data, arguments.work)


def main() -> None:
    """Parse the command line; compare, or do one job of the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path, default=os.environ.get("EXAM_DATA"))
    parser.add_argument("--parts", default="speed,quality,growth")
    parser.add_argument("--models", default="minilm,mpnet,deberta")
    parser.add_argument("--questions", type=int, help="at most N questions in every run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=json.loads, default=list(SEEDS))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--work", type=Path, default=Path("outputs/bench/reader"))
    parser.add_argument("--output", type=Path, default=Path("outputs/bench/reader.json"))
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    from exam.files import write_json

    if arguments.data is None:
        parser.error("say where the data are: an argument, or EXAM_DATA=<folder>")
    arguments.data = Path(arguments.data)
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.job:
        found = worker(arguments.job, arguments)
        write_json(arguments.output, found)
        return
    bench = Bench(arguments)
    figures: dict[str, Any] = {}
    for part in arguments.parts.split(","):
        if part == "speed":
            for model in arguments.models.split(","):
                figures.setdefault(part, {})[model] = bench.speed(model)
                write_json(arguments.output, figures)
        else:
            figures[part] = getattr(bench, part)()
            write_json(arguments.output, figures)
    shutil.rmtree(bench.found)  # all of it is in the output; a next run measures anew
    sys.stdout.write(f"{json.dumps(figures.get('speed', figures), indent=1)}\n{arguments.output}\n")


if __name__ == "__main__":
    main()
