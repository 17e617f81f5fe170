"""Data sets with the columns, configurations and splits of the published ones, but few rows.

`DATA_SETS` maps the ids that `conf/data` names to what makes their files.
"""

import io
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features, List, Value

from hub.server import Hub
from hub.vocabularies import ANIMALS, PLACES
from hub.weights import Files

Row = dict[str, Any]
Splits = dict[str, list[Row]]
TEXT = Value("string")
LETTERS = "ABCDE"
SIZES = {"train": 24, "validation": 8, "test": 8}


def questions(count: int, start: int, options: int = 4) -> Iterator[tuple[str, list[str], int]]:
    """Questions where an animal lives: prompt, options, and which of them is right."""
    animals, places = ANIMALS.split()[:10], PLACES.split()[:10]
    for i in range(start, start + count):
        right = i % options
        wrong = [places[(i + 2 * j + 1) % 10] for j in range(options)]
        texts = [*wrong[:right], places[i % 10], *wrong[right + 1 :]]
        yield f"Where does the {animals[i % 10]} number {i} live?", texts, right


def splits(row: Callable[[int, str, list[str], int], Row], **sizes: int) -> Splits:
    """The rows of every split; each question has another number."""
    rows_of, start = {}, 0
    for split, count in (sizes or SIZES).items():
        rows = enumerate(questions(count, start), start)
        rows_of[split] = [row(i, *question) for i, question in rows]
        start += count
    return rows_of


def race() -> Files:
    """Configurations all, high and middle; a question may hold a blank."""
    features = Features(
        example_id=TEXT, article=TEXT, answer=TEXT, question=TEXT, options=List(TEXT)
    )

    def row(i: int, prompt: str, options: list[str], right: int) -> Row:
        return {
            "example_id": f"{'high' if i % 2 else 'middle'}{i // 2}.txt",
            "article": f"Every animal has a home.\n{prompt[:-1]}: in the {options[right]}.",
            "answer": LETTERS[right],
            "question": prompt if i % 3 else prompt.replace("Where does", "_ is where").rstrip("?"),
            "options": options,
        }

    whole = splits(row)
    levels = {
        level: {
            s: [r for r in rows if r["example_id"].startswith(level)] for s, rows in whole.items()
        }
        for level in ("high", "middle")
    }
    return files_of_set({"all": whole, **levels}, features, "other")


def mmlu() -> Files:
    """A configuration of all, and one a subject; of those none has auxiliary_train."""
    answer = ClassLabel(names=list("ABCD"))
    features = Features(question=TEXT, subject=TEXT, choices=List(TEXT), answer=answer)
    subjects = ("anatomy", "astronomy")

    def row(i: int, prompt: str, options: list[str], right: int) -> Row:
        return {
            "question": prompt,
            "subject": subjects[i % 2],
            "choices": options,
            "answer": right,
        }

    whole = splits(row, test=8, validation=8, dev=4, auxiliary_train=24)
    for question in whole["auxiliary_train"]:
        question["subject"] = ""
    evaluated = {split: rows for split, rows in whole.items() if split != "auxiliary_train"}
    by_subject = {
        subject: {s: [r for r in rows if r["subject"] == subject] for s, rows in evaluated.items()}
        for subject in subjects
    }
    files = files_of_set({"all": whole, **by_subject}, features, "mit")
    nested = [{"train": question} for question in whole["auxiliary_train"]]
    path = "auxiliary_train/train-00000-of-00001.parquet"
    return files | {path: parquet(nested, Features(train=features))}


def sciq() -> Files:
    """The right answer has a column of its own; a question may lack its support."""
    names = ("question", "distractor3", "distractor1", "distractor2", "correct_answer", "support")
    features = Features(dict.fromkeys(names, TEXT))

    def row(i: int, prompt: str, options: list[str], right: int) -> Row:
        wrong = [option for n, option in enumerate(options) if n != right]
        support = f"It is in the {options[right]} that this animal lives." if i % 4 else ""
        return dict(zip(names, [prompt, *wrong, options[right], support], strict=True))

    return files_of_set({"default": splits(row)}, features, "cc-by-nc-3.0")


def openbookqa() -> Files:
    """Configurations main and additional, the latter with the fact."""
    choices = {"text": List(TEXT), "label": List(TEXT)}
    main = Features(id=TEXT, question_stem=TEXT, choices=choices, answerKey=TEXT)
    extra = {"fact1": TEXT, "humanScore": Value("float32"), "clarity": Value("float32")}
    additional = Features(main | extra | {"turkIdAnonymized": TEXT})

    def row(i: int, prompt: str, options: list[str], right: int) -> Row:
        return {
            "id": f"7-{i}",
            "question_stem": prompt.rstrip("?"),
            "choices": {"text": options, "label": list("ABCD")},
            "answerKey": LETTERS[right],
        }

    def with_fact(i: int, prompt: str, options: list[str], right: int) -> Row:
        fact = {"fact1": f"animals live in the {options[right]}", "humanScore": 1.0}
        return row(i, prompt, options, right) | fact | {"clarity": 1.6, "turkIdAnonymized": "b3"}

    first = files_of_set({"main": splits(row)}, main, "unknown")
    second = files_of_set({"additional": splits(with_fact)}, additional, "unknown")
    card = joined_cards(first.pop("README.md"), second.pop("README.md"))
    return first | second | {"README.md": card}


def arc() -> Files:
    """Three to five options, with letters or numbers for labels."""
    choices = {"text": List(TEXT), "label": List(TEXT)}
    features = Features(id=TEXT, question=TEXT, choices=choices, answerKey=TEXT)

    def row(i: int, prompt: str, options: list[str], right: int) -> Row:
        if i % 8 == 6:
            options = [*options, "desert"]
        if i % 8 == 4:  # of those the first is right
            options = options[:3]
        labels = ["1", "2", "3", "4", "5"] if i % 5 == 0 else list(LETTERS)
        return {
            "id": f"Mercury_{i}",
            "question": prompt,
            "choices": {"text": options, "label": labels[: len(options)]},
            "answerKey": labels[right],
        }

    sets = {name: splits(row) for name in ("ARC-Challenge", "ARC-Easy")}
    return files_of_set(sets, features, "cc-by-sa-4.0")


def medmcqa() -> Files:
    """The answers of the test are withheld, as -1; explanations and topics may be null."""
    names = ("id", "question", "opa", "opb", "opc", "opd")
    last = ("choice_type", "exp", "subject_name", "topic_name")
    cop = {"cop": ClassLabel(names=list("abcd"))}
    features = Features(dict.fromkeys(names, TEXT) | cop | dict.fromkeys(last, TEXT))

    def row(i: int, prompt: str, options: list[str], right: int) -> Row:
        return {
            **dict(zip(names, [f"e9ad821a-{i:04}", prompt, *options], strict=True)),
            "cop": right,
            "choice_type": "multi" if i % 3 else "single",
            "exp": None if i % 4 == 0 else f"It is the {options[right]}.",
            "subject_name": "Anatomy",
            "topic_name": None if i % 2 else "Animals",
        }

    rows = splits(row)
    for question in rows["test"]:
        question |= {"cop": -1, "exp": None}
    return files_of_set({"default": rows}, features, "apache-2.0")


def extended(options: list[str], number: int) -> list[str]:
    """Four options and more places, up to that number."""
    return [*options, *(p for p in PLACES.split()[:10] if p not in options)][:number]


def withheld(rows: Splits, column: str, split: str = "test") -> Splits:
    """The same rows, with empty answers in one split."""
    return rows | {split: [row | {column: ""} for row in rows[split]]}


def commonsense_qa() -> Files:
    """Five options; the answers of the test are withheld."""
    choices = {"label": List(TEXT), "text": List(TEXT)}
    names = dict.fromkeys(("id", "question", "question_concept"), TEXT)
    features = Features(names | {"choices": choices, "answerKey": TEXT})

    def row(i: int, prompt: str, options: list[str], right: int) -> Row:
        return {
            "id": f"075e483d21c29a511267ef62bedc{i:04}",
            "question": prompt,
            "question_concept": "animal",
            "choices": {"label": list(LETTERS), "text": extended(options, 5)},
            "answerKey": LETTERS[right],
        }

    return files_of_set({"default": withheld(splits(row), "answerKey")}, features, "mit")


def hellaswag() -> Files:
    """Four endings; labels are texts that count from 0, and empty in the test."""
    names = ("activity_label", "ctx_a", "ctx_b", "ctx")
    last = dict.fromkeys(("source_id", "split", "split_type", "label"), TEXT)
    first = {"ind": Value("int32")} | dict.fromkeys(names, TEXT) | {"endings": List(TEXT)}
    features = Features(first | last)

    def row(i: int, prompt: str, options: list[str], right: int) -> Row:
        return {
            "ind": i,
            **dict.fromkeys(names, f"[header] {prompt} [step] It"),
            "endings": [f"lives in the {place}." for place in options],
            "source_id": f"wikihow~{i}",
            "split": "train",
            "split_type": "indomain",
            "label": str(right),
        }

    return files_of_set({"default": withheld(splits(row), "label")}, features, "mit")


def mmlu_pro() -> Files:
    """Three to ten options; no split to train on but that of the examples."""
    texts = dict.fromkeys(("question", "answer", "cot_content", "category", "src"), TEXT)
    counts = dict.fromkeys(("question_id", "answer_index"), Value("int64"))
    features = Features(texts | counts | {"options": List(TEXT)})

    def row(i: int, prompt: str, options: list[str], right: int) -> Row:
        return {
            "question_id": 70 + i,
            "question": prompt,
            "options": extended(options, max(right + 1, 3 + i % 8)),
            "answer": LETTERS[right],
            "answer_index": right,
            "cot_content": "",
            "category": "biology",
            "src": "ori_mmlu",
        }

    return files_of_set({"default": splits(row, test=8, validation=24)}, features, "mit")


def qasc() -> Files:
    """Eight options; answers and facts of the test are withheld."""
    choices = {"text": List(TEXT), "label": List(TEXT)}
    texts = ("id", "question", "answerKey", "fact1", "fact2", "combinedfact", "formatted_question")
    features = Features(dict.fromkeys(texts, TEXT) | {"choices": choices})

    def row(i: int, prompt: str, options: list[str], right: int) -> Row:
        return {
            **dict.fromkeys(texts, "animals live somewhere"),
            "id": f"3NGI5ARFTT4HNGVWXAMLNBMFA0U{i:03}",
            "question": prompt,
            "choices": {"text": extended(options, 8), "label": list("ABCDEFGH")},
            "answerKey": "ABCDEFGH"[right],
        }

    return files_of_set({"default": withheld(splits(row), "answerKey")}, features, "cc-by-4.0")


def ceval() -> Files:
    """A configuration a subject; ids count from 0 in every split."""
    texts = dict.fromkeys(("question", *"ABCD", "answer", "explanation"), TEXT)
    features = Features({"id": Value("int32")} | texts)

    def row(i: int, prompt: str, options: list[str], right: int) -> Row:
        values = dict(zip("ABCD", options, strict=True))
        answer = {"answer": LETTERS[right], "explanation": ""}
        return {"id": i % 8, "question": prompt, **values, **answer}

    sizes = {"test": 8, "val": 8, "dev": 5}
    sets = {name: withheld(splits(row, **sizes), "answer") for name in ("accountant", "law")}
    return files_of_set(sets, features, "cc-by-nc-sa-4.0")


def medqa() -> Files:
    """Options in an object with a letter each; the answer as a text and as a letter."""
    texts = dict.fromkeys(("question", "answer", "meta_info", "answer_idx"), TEXT)
    letters = dict.fromkeys("ABCD", TEXT)
    features = Features(texts | {"options": letters, "metamap_phrases": List(TEXT)})

    def row(i: int, prompt: str, options: list[str], right: int) -> Row:
        return {
            "question": prompt,
            "answer": options[right],
            "options": dict(zip("ABCD", options, strict=True)),
            "meta_info": "step1",
            "answer_idx": LETTERS[right],
            "metamap_phrases": ["animal"],
        }

    return files_of_set({"default": splits(row, train=24, test=8)}, features, "cc-by-4.0")


def files_of_set(sets: dict[str, Splits], features: Features, licence: str) -> Files:
    """A file for each split of each configuration, and the card that says which is where."""
    files: Files = {".gitattributes": b"*.parquet filter=lfs\n"}
    configs, infos = [], []
    for name, rows in sets.items():
        folder = "data" if name == "default" else name
        paths = {split: f"{folder}/{split}-00000-of-00001.parquet" for split in rows}
        files |= {path: parquet(rows[split], features) for split, path in paths.items()}
        globs = [{"split": split, "path": f"{folder}/{split}-*"} for split in rows]
        configs.append({"config_name": name, "data_files": globs})
        infos.append(information(name, rows, features, [len(files[p]) for p in paths.values()]))
    if len(infos) == 1:
        infos[0].pop("config_name")
    infos_or_one = infos if len(infos) > 1 else infos[0]
    metadata = {"license": licence, "dataset_info": infos_or_one, "configs": configs}
    return files | {"README.md": card(metadata)}


def information(name: str, rows: Splits, features: Features, sizes: list[int]) -> Row:
    """What a card says of a configuration: columns, rows and bytes."""
    counts = [
        {"name": split, "num_bytes": size, "num_examples": len(rows[split])}
        for split, size in zip(rows, sizes, strict=True)
    ]
    return {
        "config_name": name,
        "features": features._to_yaml_list(),
        "splits": counts,
        "download_size": sum(sizes),
        "dataset_size": sum(sizes),
    }


def parquet(rows: list[Row], features: Features) -> bytes:
    file = io.BytesIO()
    pq.write_table(Dataset.from_list(rows, features=features).with_format("arrow")[:], file)
    return file.getvalue()


def card(metadata: Row) -> bytes:
    import yaml

    return f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n# A data set\n".encode()


def joined_cards(first: bytes, second: bytes) -> bytes:
    """The card of two configurations with different columns."""
    import yaml

    one, two = (yaml.safe_load(text.decode().split("---\n")[1]) for text in (first, second))
    names = [part["configs"][0]["config_name"] for part in (one, two)]
    infos = [
        {"config_name": n} | part["dataset_info"] for n, part in zip(names, (one, two), strict=True)
    ]
    return card(one | {"dataset_info": infos, "configs": one["configs"] + two["configs"]})


DATA_SETS: dict[str, Callable[[], Files]] = {
    "ehovy/race": race,
    "cais/mmlu": mmlu,
    "allenai/sciq": sciq,
    "allenai/openbookqa": openbookqa,
    "allenai/ai2_arc": arc,
    "openlifescienceai/medmcqa": medmcqa,
    "tau/commonsense_qa": commonsense_qa,
    "Rowan/hellaswag": hellaswag,
    "TIGER-Lab/MMLU-Pro": mmlu_pro,
    "allenai/qasc": qasc,
    "ceval/ceval-exam": ceval,
    "GBaker/MedQA-USMLE-4-options": medqa,
}


@cache
def files_of_data_set(name: str) -> Files:
    """A published data set's files, made once a process."""
    return DATA_SETS[name]()


def publish_data_sets(hub: Hub) -> None:
    """Add every data set to a hub."""
    for name in DATA_SETS:
        hub.add(name, files_of_data_set(name), kind="dataset")
