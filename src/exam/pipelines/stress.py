"""`exam stress`: answer the same questions with changed contexts and options."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from datasets import Dataset

from exam.config import Stress, Train
from exam.core import distributed
from exam.core.artifacts import Stage, log_reused, open_stage
from exam.core.checkpoints import MODEL
from exam.core.errors import ExamError
from exam.core.files import checksum_matches, read_json, write_with_checksum
from exam.core.trainer import CHECKPOINTS, REPORT, RESULTS
from exam.data.option_order import find_fixed_orders, fixed_orders_key, has_fixed_order
from exam.data.questions import questions_digest
from exam.data.schema import permute_options
from exam.evaluation.learned import describe_learned, find_learned
from exam.evaluation.predictions import make_predictions, read_predictions, write_predictions
from exam.evaluation.results import (
    ScoredSystem,
    build_results,
    log_warnings,
    print_results,
    score_apart,
    score_baselines,
    score_logits,
)
from exam.metrics import Floats, rank_options
from exam.pipelines.infer import answers_key, answers_name, read_test_questions, restore_run
from exam.pipelines.preflight import check_saved_reader
from exam.readers.base import load_reader
from exam.report.run import write_results
from exam.retrieval.contexts import (
    EVALUATION_FILES,
    FILE,
    Contexts,
    evaluate,
    read_contexts,
    read_support,
    write_contexts,
)
from exam.retrieval.idf import DocumentFrequencies
from exam.retrieval.retriever import Retrieval

NONE = "None of the above"
UNCHANGED = "as given"
PERMUTED = "options in another order"
LONGEST_WRONG = "as given, where the longest option is wrong"
Question = dict[str, Any]
Answers = dict[str, tuple[Dataset, Floats]]  # by perturbation: questions and logits


@dataclass(frozen=True)
class Perturbation:
    """A change to the reader's questions or contexts."""

    name: str
    question: Callable[[Question, Random], Question] | None = None
    contexts: Callable[[Contexts, list[str], Random], Contexts] | None = None


def _swap_contexts(contexts: Contexts, ids: list[str], random: Random) -> Contexts:
    """Give each question the passages of the next one in a random order."""
    order = random.sample(ids, len(ids))
    following = dict(zip(order, [*order[1:], order[0]], strict=True))
    return {key: contexts.get(following[key], []) for key in ids}


def _reverse_passages(contexts: Contexts, *_: Any) -> Contexts:
    return {key: passages[::-1] for key, passages in contexts.items()}


def _shuffle_options(question: Question, random: Random) -> Question:
    number = len(question["options"])
    return permute_options(question, random.sample(range(number), number))


def _replace_right(question: Question, _: Random) -> Question:
    return _replace_option(question, question["label"])


def _replace_wrong(question: Question, random: Random) -> Question:
    number, label = len(question["options"]), question["label"]
    return _replace_option(question, random.choice([i for i in range(number) if i != label]))


def _replace_option(question: Question, index: int) -> Question:
    options = list(question["options"])
    options[index] = NONE
    return {"options": options}


PERTURBATIONS = (
    Perturbation(UNCHANGED),
    Perturbation("without context", contexts=lambda *_: {}),
    Perturbation("another question's context", contexts=_swap_contexts),
    Perturbation("passages reversed", contexts=_reverse_passages),
    Perturbation(PERMUTED, question=_shuffle_options),
    Perturbation(f"a wrong option is “{NONE}”", question=_replace_wrong),
    Perturbation(f"the right option is “{NONE}”", question=_replace_right),
)


def run_stress(stress: Stress) -> None:
    """Answer a run's questions under every perturbation, and print the scores.

    Raises:
        ExamError: a question has no right option, or the run cannot be restored.
    """
    distributed.require_single_process("exam stress")
    run, config = restore_run(stress)
    check_saved_reader(config, run.folder / MODEL)
    questions = read_test_questions(config)
    if None in questions["label"]:
        raise ExamError(
            f"data={config.data.name} has questions without an answer.\n"
            "Set questions that have one: data.test=<file>, or data=<name>"
        )
    retrieval = Retrieval.from_config(config)
    contexts = retrieval.contexts(questions, f"{config.data.name}-test")
    key = {
        **answers_key(run, config, questions, contexts),
        "seed": stress.seed,
        "conditions": [perturbation.name for perturbation in PERTURBATIONS],
        **fixed_orders_key(questions["options"]),
    }
    outputs, name = Path(stress.outputs), answers_name(config.data.name, run.folder)
    frequencies = retrieval.document_frequencies if config.retriever.kind.searches else None
    with open_stage(outputs, "stress", name, key, stress.resume.value) as stage:
        if not stage.reused:
            reader = load_reader(config, run.folder / MODEL, stage.folder)
            answers = {}
            for number, perturbation in enumerate(PERTURBATIONS):
                path = stage.folder / f"{number}.parquet"
                changed = _change_questions(perturbation, questions, stress.seed)
                if not checksum_matches(path):  # or left by an interrupted run
                    passages = _change_contexts(
                        perturbation, contexts, changed, config, stress.seed, frequencies
                    )
                    logits, _ = reader.predict(changed, passages)
                    predictions = make_predictions(changed, logits, config.name, perturbation.name)
                    with write_with_checksum(path) as temporary:
                        write_predictions(temporary, [predictions])
                answers[perturbation.name] = changed, read_predictions(path).logits
            stage.measure()
            learned = find_learned(run, questions)
            warnings = [describe_learned(run.folder.name, learned, len(questions))] * bool(learned)
            stages, k = [*retrieval.stages, stage], config.metric.k
            figures = _score(answers, contexts, stages, k, learned, warnings)
            unchanged = [row["system"] for row in figures["rows"]].index(UNCHANGED)
            write_results(stage.folder, figures, unchanged)
            files = [f"{number}.parquet" for number in range(len(PERTURBATIONS))]
            stage.finish([*files, RESULTS, REPORT], questions=len(questions), warnings=warnings)
        shutil.rmtree(stage.folder / CHECKPOINTS, ignore_errors=True)
    log_reused([*retrieval.stages, contexts, stage])
    log_warnings(stage)
    flip_rate = read_json(stage.folder / RESULTS)["flip_rate"]
    flips = "no question" if flip_rate is None else f"{flip_rate:.1%}"
    print_results(stage.folder, f"first choices that change with the order of options: {flips}")


def _change_questions(perturbation: Perturbation, questions: Dataset, seed: int) -> Dataset:
    """Perturb the questions; a question's random numbers depend on its id only.

    Options that refer to others stay: a new order or text would change the right answer.
    """
    change = perturbation.question
    if change is None:
        return questions
    return questions.map(
        lambda question: (
            {}
            if has_fixed_order(question["options"])
            else change(question, Random(f"{seed}:{question['id']}"))
        ),
        load_from_cache_file=False,
    )


def _change_contexts(
    perturbation: Perturbation,
    contexts: Stage,
    questions: Dataset,
    config: Train,
    seed: int,
    frequencies: DocumentFrequencies | None,
) -> Stage:
    """Perturb the contexts in a separate stage."""
    if perturbation.contexts is None and perturbation.question is None:
        return contexts
    top_k = config.context.passages(training=False)
    key = {"of": contexts.hash, "condition": perturbation.name, "seed": seed, "top_k": top_k}
    key["questions"] = questions_digest(questions)
    outputs, name = contexts.folder.parents[1], f"stress-{contexts.folder.name}"
    with open_stage(outputs, "stressed", name, key, log_level=logging.DEBUG) as stage:
        if not stage.reused:
            passages_of = read_contexts(contexts, top_k)
            if perturbation.contexts is not None:
                ids = list(questions["id"])
                passages_of = perturbation.contexts(passages_of, ids, Random(seed))
            ranked = (
                [{**p, "question_id": key, "rank": rank} for rank, p in enumerate(passages, 1)]
                for key, passages in passages_of.items()
            )
            write_contexts(stage, ranked)
            evaluate(stage, questions, frequencies)
            stage.finish([FILE, *EVALUATION_FILES], questions=len(questions))
    return stage


def _score(
    answers: Answers,
    contexts: Stage,
    stages: list[Stage],
    k: int,
    learned: list[str],
    warnings: list[str],
) -> dict[str, Any]:
    """Score every perturbation, paired with the unchanged questions, beside the baselines."""
    systems = [
        score_logits(name, logits, questions["label"], k)
        for name, (questions, logits) in answers.items()
    ]
    unchanged, questions = systems[0], answers[UNCHANGED][0]
    longest = [int(np.argmax([len(text) for text in texts])) for texts in questions["options"]]
    is_wrong = np.array(longest) != np.array(questions["label"])
    rows = [
        *score_baselines(questions, read_support(contexts, questions["id"]), k),
        *systems,
        ScoredSystem(LONGEST_WRONG, unchanged.scores[is_wrong], k),
        *score_apart(unchanged, questions, learned),
    ]
    pairs = [(system, unchanged) for system in systems[1:]]
    figures = build_results(rows, pairs, stages, warnings)
    return {**figures, "flip_rate": _flip_rate(answers)}


def _flip_rate(answers: Answers) -> float | None:
    """Return the share of questions whose first choice changes with the order of options.

    Leave out those whose options keep their order; without others, return None.
    """
    first, second = (
        [
            texts[best]
            for texts, best in zip(questions["options"], rank_options(logits)[:, 0], strict=True)
        ]
        for questions, logits in (answers[UNCHANGED], answers[PERMUTED])
    )
    flips = np.array(first) != np.array(second)
    movable = np.delete(flips, find_fixed_orders(answers[UNCHANGED][0]["options"]))
    return float(movable.mean()) if len(movable) else None
