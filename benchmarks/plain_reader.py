"""A plain `Trainer` script, as the notebooks write it."""

import tempfile
from pathlib import Path
from typing import Any

from reader_models import RATE, checkpoint, read_in


def plain(job: dict[str, Any], train: Any, asked: Any, work: Path) -> Any:
    """A trainer, its prediction set, and the tokens of both; in one piece, as such scripts are."""
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

    from exam.core.checkpoints import dropout_fields

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
