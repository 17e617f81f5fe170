"""`exam ask`: answer questions typed at the terminal; `exam.load` does so in Python."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from exam.core.errors import ExamError
from exam.core.logging import print_error, print_result
from exam.core.security import enable_offline_mode

ID = "asked"  # of the question


@dataclass(frozen=True)
class Answer:
    """The answer to one question.

    Attributes:
        options: The question's options.
        probabilities: A probability for each option; they sum to 1.
        passages: The passages that the reader read, best first: rank, title, text, score and more.
    """

    options: list[str]
    probabilities: list[float]
    passages: list[dict[str, Any]]

    @property
    def best(self) -> str:
        """The option with the highest probability."""
        return self.options[self.probabilities.index(max(self.probabilities))]


class LoadedRun:
    """A run of `exam train`, ready to answer from its index."""

    def __init__(
        self, run: str | PathLike[str], *overrides: str, outputs: str | PathLike[str] | None = None
    ) -> None:
        """Load the reader and its index; see `exam.load` for the arguments and errors."""
        from exam.config.compose import compose_infer

        infer = compose_infer(run, outputs, *overrides)
        if infer.offline:
            enable_offline_mode()
        from exam.core.checkpoints import MODEL
        from exam.pipelines.infer import restore_run
        from exam.readers.base import load_reader
        from exam.retrieval.retriever import Retrieval

        _, self.config = restore_run(infer, reads_questions=False)
        self._work = TemporaryDirectory()
        self._stages = Path(self._work.name) / "stages"  # of one question
        self.retrieval = replace(Retrieval.from_config(self.config), contexts_outputs=self._stages)
        self._reader = load_reader(self.config, Path(infer.ckpt) / MODEL, Path(self._work.name))

    def answer(self, prompt: str, options: Sequence[str]) -> Answer:
        """Retrieve passages for a question, and score its options.

        Raises:
            ExamError: there are fewer than two options, or more than 26.
        """
        from datasets import Dataset

        from exam.data.schema import FEATURES, LETTERS
        from exam.evaluation.predictions import to_probabilities
        from exam.retrieval.contexts import read_contexts

        if not 2 <= len(options) <= len(LETTERS):
            raise ExamError(f"The question has {len(options)} options.\nGive 2 to {len(LETTERS)}.")
        row = {"id": ID, "prompt": prompt, "options": list(options)}
        question = Dataset.from_list([{**dict.fromkeys(FEATURES), **row}], features=FEATURES)
        try:
            contexts = self.retrieval.contexts(question, ID)
            logits, _ = self._reader.predict(question, contexts)
            passages = read_contexts(contexts, self.config.context.passages(training=False))
        finally:
            shutil.rmtree(self._stages, ignore_errors=True)
            self.retrieval.used.clear()
        values = to_probabilities(logits)[0, : len(options)].tolist()
        return Answer(list(options), values, passages.get(ID, []))


def format_answer(answer: Answer) -> str:
    """Format an answer as text: the options, best first, then the passages."""
    from exam.data.schema import LETTERS

    ranking = sorted(range(len(answer.options)), key=lambda i: -answer.probabilities[i])
    lines = [f"{LETTERS[i]}  {answer.probabilities[i]:>6.1%}  {answer.options[i]}" for i in ranking]
    passages = [f"\n{p['rank']}. {p['title'] or 'passage'}\n{p['text']}" for p in answer.passages]
    return "\n".join([*lines, *passages])


def run_ask(run: str, overrides: Sequence[str], outputs: str | None) -> None:
    """Answer questions from the terminal until you enter an empty one."""
    loaded_run = LoadedRun(run, *overrides, outputs=outputs)
    while prompt := _read_line("Question (empty to end): "):
        options = list(iter(lambda: _read_line("Option (empty after the last): "), ""))
        try:
            print_result(format_answer(loaded_run.answer(prompt, options)))
        except ExamError as error:
            print_error(str(error))


def _read_line(prompt: str) -> str:
    try:
        return input(prompt).strip()
    except EOFError:
        return ""
