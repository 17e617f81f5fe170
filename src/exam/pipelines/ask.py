"""`exam ask`: answer questions typed at the terminal; `exam.load` does so in Python."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from exam.core.errors import ExamError
from exam.core.logging import print_error, print_result, quiet_libraries
from exam.core.security import enable_offline_mode

ID = "asked"  # of the question


@dataclass(frozen=True, repr=False)
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
        return self.ranking[0][0]

    @property
    def ranking(self) -> list[tuple[str, float]]:
        """The options with their probabilities, best first; equal ones keep their order."""
        pairs = zip(self.options, self.probabilities, strict=True)
        return sorted(pairs, key=lambda pair: -pair[1])

    def __repr__(self) -> str:
        ranking = ", ".join(f"{option!r} {chance:.3f}" for option, chance in self.ranking)
        return f"Answer({ranking}; {len(self.passages)} passages)"


class LoadedRun:
    """A run of `exam train`, ready to answer from its index."""

    def __init__(
        self, run: str | PathLike[str], *overrides: str, outputs: str | PathLike[str] | None = None
    ) -> None:
        """Load the reader and its index; see `exam.load` for the arguments and errors."""
        from exam.config.compose import compose_infer

        infer = compose_infer(run, outputs, *overrides)
        quiet_libraries()
        if infer.offline:
            enable_offline_mode()
        from exam.core.checkpoints import MODEL
        from exam.pipelines.infer import restore_run
        from exam.pipelines.launch import check_gpu
        from exam.readers.base import load_reader
        from exam.retrieval.retriever import Retrieval

        check_gpu(infer)
        _, self.config = restore_run(infer, reads_questions=False)
        self._work = TemporaryDirectory()
        self._stages = Path(self._work.name) / "stages"  # of one question
        self.retrieval = replace(Retrieval.from_config(self.config), contexts_outputs=self._stages)
        self._reader = load_reader(self.config, Path(infer.ckpt) / MODEL, Path(self._work.name))

    def answer(self, prompt: str, options: Sequence[str]) -> Answer:
        """Retrieve passages for a question, and score its options.

        Args:
            prompt: The question.
            options: Its 2 to 26 options, a list of texts.

        Raises:
            ExamError: the prompt or an option is no text or is empty, or there are fewer than two
                options, or more than 26.
        """
        return self.answer_batch([(prompt, options)])[0]

    def answer_batch(self, questions: Iterable[tuple[str, Sequence[str]]]) -> list[Answer]:
        """Answer several questions at once, which takes less time than one by one.

        Args:
            questions: The prompt and the options of each question.

        Returns:
            The answers, in the order of the questions.

        Raises:
            ExamError: a question is none, as for `answer`.
        """
        from datasets import Dataset

        from exam.data.schema import FEATURES
        from exam.evaluation.predictions import to_probabilities
        from exam.retrieval.contexts import read_contexts

        checked_questions = _check_questions(questions)
        if not checked_questions:
            return []
        rows: list[dict[str, Any]] = [
            {**dict.fromkeys(FEATURES), "id": f"{ID}-{n}", "prompt": prompt, "options": options}
            for n, (prompt, options) in enumerate(checked_questions)
        ]
        table = Dataset.from_list(rows, features=FEATURES)
        try:
            with _without_bars():
                contexts = self.retrieval.contexts(table, ID)
                logits, _ = self._reader.predict(table, contexts)
            passages = read_contexts(contexts, self.config.context.passages(training=False))
        finally:
            shutil.rmtree(self._stages, ignore_errors=True)
            self.retrieval.used.clear()
        return [
            Answer(row["options"], values[: len(row["options"])], passages.get(row["id"], []))
            for row, values in zip(rows, to_probabilities(logits).tolist(), strict=True)
        ]


def _check_questions(questions: Any) -> list[tuple[str, list[str]]]:
    """Refuse what are not pairs of a prompt and a list of options."""
    is_iterable = isinstance(questions, Iterable) and not isinstance(questions, str | dict)
    pairs = list(questions) if is_iterable else [questions]
    for number, pair in enumerate(pairs, 1):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ExamError(
                f"Question {number} of the batch is {_describe(pair)}.\n"
                "Give pairs of a prompt and its options: "
                'answer_batch([("Where?", ["here", "there"])])'
            )
    return [_check_question(prompt, options) for prompt, options in pairs]


def _check_question(prompt: Any, options: Any) -> tuple[str, list[str]]:
    """Return a prompt and its options; refuse those that are no texts."""
    from exam.data.schema import LETTERS

    if not isinstance(prompt, str) or not prompt.strip():
        raise ExamError(
            f"The prompt is {_describe(prompt)}.\n"
            "Give the text of one question; answer_batch takes several questions."
        )
    if isinstance(options, str | bytes | dict | set) or not isinstance(options, Iterable):
        remedy = "list(options.values())" if isinstance(options, dict) else '["here", "there"]'
        raise ExamError(
            f"The options are {_describe(options)}.\nGive a list of texts, such as {remedy}."
        )
    texts = list(options)
    if not 2 <= len(texts) <= len(LETTERS):
        raise ExamError(f"The question has {len(texts)} options.\nGive 2 to {len(LETTERS)}.")
    for letter, text in zip(LETTERS, texts, strict=False):
        if not isinstance(text, str) or not text.strip():
            raise ExamError(
                f"Option {letter} is {_describe(text)}.\nGive a list of texts that are not empty."
            )
    return prompt, texts


def _describe(value: Any) -> str:
    """Return what a value is, for a message."""
    if isinstance(value, str):
        return f"the text {value[:40]!r}" if value.strip() else "empty"
    return f"of the type {type(value).__name__}"


@contextmanager
def _without_bars() -> Iterator[None]:
    """Draw no progress bars of `datasets`: an answer takes a moment."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    was_disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not was_disabled:
            enable_progress_bars()


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
