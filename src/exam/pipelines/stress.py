"""`exam stress`: how a reader answers when its contexts or options are not as they should be."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from datasets import Dataset

from exam.config import Stress
from exam.core import distributed
from exam.core.artifacts import Stage, log_reused, open_stage
from exam.core.checkpoints import MODEL
from exam.core.errors import ExamError
from exam.core.files import checksum_matches, read_json, write_json, write_with_checksum
from exam.core.logging import print_result
from exam.core.trainer import CHECKPOINTS, REPORT, RESULTS
from exam.data.questions import questions_digest
from exam.data.schema import permute_options
from exam.evaluation.predictions import predictions_of, read_predictions, write_predictions
from exam.evaluation.results import System, baselines, of_logits, results, table
from exam.metrics import Floats, ranking
from exam.pipelines.infer import answers_key, read_test_questions, restore_run
from exam.pipelines.preflight import check_saved_reader
from exam.readers.base import load_reader
from exam.report.run import write_results
from exam.retrieval.contexts import (
    EVALUATION_FILES,
    FILE,
    evaluate,
    read_contexts,
    read_support,
    write_contexts,
)
from exam.retrieval.evaluation import Contexts
from exam.retrieval.idf import DocumentFrequencies
from exam.retrieval.retriever import Retrieval

NONE = "None of the above"
AS_GIVEN = "as given"
LONGEST_WRONG = "as given, where the longest option is wrong"
Question = dict[str, Any]


@dataclass(frozen=True)
class Condition:
    """One way to change what the reader is given."""

    name: str
    question: Callable[[Question, Random], Question] | None = None
    contexts: Callable[[Contexts, list[str], Random], Contexts] | None = None


def _swap_contexts(contexts: Contexts, ids: list[str], random: Random) -> Contexts:
    """Each question gets the passages of the next one in a random order."""
    order = random.sample(ids, len(ids))
    after = dict(zip(order, [*order[1:], order[0]], strict=True))
    return {key: contexts.get(after[key], []) for key in ids}


def _reversed(contexts: Contexts, *_: Any) -> Contexts:
    return {key: passages[::-1] for key, passages in contexts.items()}


def _permuted(question: Question, random: Random) -> Question:
    number = len(question["options"])
    return permute_options(question, random.sample(range(number), number))


def _with_none(*, right: bool) -> Callable[[Question, Random], Question]:
    """The right option, or one of the wrong ones, replaced."""

    def changed(question: Question, random: Random) -> Question:
        options, label = list(question["options"]), question["label"]
        wrong = [i for i in range(len(options)) if i != label]
        options[label if right else random.choice(wrong)] = NONE
        return {"options": options}

    return changed


PERMUTED = "options in another order"
CONDITIONS = (
    Condition(AS_GIVEN),
    Condition("without context", contexts=lambda *_: {}),
    Condition("another question's context", contexts=_swap_contexts),
    Condition("passages reversed", contexts=_reversed),
    Condition(PERMUTED, question=_permuted),
    Condition(f"a wrong option is “{NONE}”", question=_with_none(right=False)),
    Condition(f"the right option is “{NONE}”", question=_with_none(right=True)),
)


def run_stress(stress: Stress) -> None:
    """Ask a run's reader the same questions under every condition; a table of what changes."""
    distributed.require_single_process("exam stress")
    trained, config = restore_run(stress)
    check_saved_reader(config, trained.folder / MODEL)
    questions = read_test_questions(config)
    if None in questions["label"]:
        raise ExamError(
            f"data={config.data.name} has questions without an answer.\n"
            "Give answered ones: data.test=<file>, or data=<name>"
        )
    retrieval = Retrieval.from_config(config)
    contexts = retrieval.contexts(questions, f"{config.data.name}-test")
    key = {
        **answers_key(trained, config, questions, contexts),
        "seed": stress.seed,
        "conditions": [condition.name for condition in CONDITIONS],
    }
    outputs, name = Path(stress.outputs), f"{config.data.name}-{trained.folder.name}"
    top_k = config.context.passages(training=False)
    frequencies = retrieval.document_frequencies if config.retriever.kind.searches else None
    with open_stage(outputs, "stress", name, key, stress.resume.value) as stage:
        if not stage.reused:
            reader = load_reader(config, trained.folder / MODEL, stage.folder)
            found = {}
            for condition, path in _files(stage):
                asked = _asked(condition, questions, stress.seed)
                if not checksum_matches(path):  # of an interrupted run
                    given = _given(condition, contexts, asked, top_k, stress.seed, frequencies)
                    logits, _ = reader.predict(asked, given)
                    predictions = predictions_of(asked, logits, config.name, condition.name)
                    with write_with_checksum(path) as temporary:
                        write_predictions(temporary, [predictions])
                found[condition.name] = asked, read_predictions(path).logits
            _write(stage, found, contexts, retrieval.stages)
        shutil.rmtree(stage.folder / CHECKPOINTS, ignore_errors=True)
    log_reused([*retrieval.stages, contexts, stage])
    shown = read_json(stage.folder / RESULTS)
    flips = f"another first choice with options in another order: {shown['flip_rate']:.1%}"
    print_result(f"{table(shown)}\n{flips}\n{stage.folder / RESULTS}\n{stage.folder / REPORT}")


def _write(
    stage: Stage,
    found: dict[str, tuple[Dataset, Floats]],
    contexts: Stage,
    earlier: list[Stage],
) -> None:
    """Results, the page that shows them, and the manifest."""
    stage.measure()
    write_json(stage.folder / RESULTS, _results(found, contexts, [*earlier, stage]))
    shown = read_json(stage.folder / RESULTS)
    as_given = [row["system"] for row in shown["rows"]].index(AS_GIVEN)
    write_results(stage.folder / REPORT, stage.folder.name, shown, as_given)
    files = [path.name for _, path in _files(stage)]
    stage.finish([*files, RESULTS, REPORT], questions=len(found[AS_GIVEN][0]))


def _files(stage: Stage) -> list[tuple[Condition, Path]]:
    """Every condition, and where its predictions lie."""
    return [(own, stage.folder / f"{number}.parquet") for number, own in enumerate(CONDITIONS)]


def _asked(condition: Condition, questions: Dataset, seed: int) -> Dataset:
    """The questions under a condition; each draws by its own id."""
    if condition.question is None:
        return questions
    change = condition.question
    return questions.map(
        lambda question: change(question, Random(f"{seed}:{question['id']}")),
        load_from_cache_file=False,
    )


def _given(
    condition: Condition,
    contexts: Stage,
    questions: Dataset,
    top_k: int,
    seed: int,
    frequencies: DocumentFrequencies | None,
) -> Stage:
    """The passages under a condition, as a stage of their own."""
    if condition.contexts is None and condition.question is None:
        return contexts
    key = {"of": contexts.hash, "condition": condition.name, "seed": seed, "top_k": top_k}
    key["questions"] = questions_digest(questions)
    outputs, name = contexts.folder.parents[1], f"stress-{contexts.folder.name}"
    with open_stage(outputs, "stressed", name, key, log_level=logging.DEBUG) as stage:
        if not stage.reused:
            found = read_contexts(contexts, top_k)
            if condition.contexts is not None:
                found = condition.contexts(found, list(questions["id"]), Random(seed))
            ranked = (
                [{**p, "question_id": key, "rank": rank} for rank, p in enumerate(passages, 1)]
                for key, passages in found.items()
            )
            write_contexts(stage, ranked)
            evaluate(stage, questions, frequencies)
            stage.finish([FILE, *EVALUATION_FILES], questions=len(questions))
    return stage


def _results(
    found: dict[str, tuple[Dataset, Floats]], contexts: Stage, stages: list[Stage]
) -> dict[str, Any]:
    """Every condition's MAP@3 beside the baselines, and against the questions as given."""
    questions, logits = found[AS_GIVEN]
    systems = [of_logits(name, own, asked["label"]) for name, (asked, own) in found.items()]
    lengths = [[len(option) for option in options] for options in questions["options"]]
    wrong = np.array(
        [
            int(np.argmax(length)) != label
            for length, label in zip(lengths, questions["label"], strict=True)
        ]
    )
    given = systems[0]
    rows = [
        *baselines(questions, read_support(contexts, questions["id"])),
        *systems,
        System(LONGEST_WRONG, given.scores[wrong]),
    ]
    shown = results(rows, [(other, given) for other in systems[1:]], stages)
    return {**shown, "flip_rate": _flips(questions, logits, *found[PERMUTED])}


def _flips(questions: Dataset, logits: Floats, permuted: Dataset, others: Floats) -> float:
    """The share of questions whose first choice is another text."""
    chosen = [
        [options[best] for options, best in zip(asked["options"], ranking(own)[:, 0], strict=True)]
        for asked, own in ((questions, logits), (permuted, others))
    ]
    return float(np.mean([a != b for a, b in zip(*chosen, strict=True)]))
