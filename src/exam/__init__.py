"""exam: open-book multiple-choice exams with the Hugging Face Trainer.

Four functions do in Python what the command does. Settings are those of the command line, such as
`"model=deberta_large"`. A mistake raises `ExamError` with the message of the command line.

Example:
    ```python
    import exam

    run = exam.train("retriever=bm25", "trainer.num_train_epochs=1")
    print(exam.evaluate(run))
    answer = exam.load(run).answer("Where do orchid seeds sprout?", ["in soil", "in the sea"])
    ```

The functions print the tables of the commands. They log to the logger `exam` and set up no handler:
show the log with `logging.basicConfig()` and `logging.getLogger("exam").setLevel("INFO")`.
"""

import signal
import sys
from importlib.util import find_spec
from os import PathLike
from typing import TYPE_CHECKING, Any

from exam.core.errors import ExamError
from exam.core.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exam.config import Command, Retrieve, Train
    from exam.evaluation.results import Evaluation, Run
    from exam.pipelines.ask import LoadedRun
    from exam.retrieval.contexts import ContextSet

__all__ = ["ExamError", "__version__", "evaluate", "load", "retrieve", "train"]

# Every command comes here first. Windows has neither, and would end in a traceback later.
if find_spec("resource") is None or not hasattr(signal, "SIGALRM"):
    sys.stderr.write("exam runs on Linux and macOS; on Windows, run it in WSL (wsl --install).\n")
    raise SystemExit(2)


def train(*overrides: str, config: "Train | None" = None) -> "Run":
    """Train a reader and score it on the validation questions, as `exam train` does.

    A repeated call reuses finished stages and resumes an interrupted training. Training uses this
    process and at most one GPU; `exam train` starts a process for each GPU.

    Args:
        overrides: settings of `exam train`, such as `"data=kaggle"` or `"trainer.max_steps=100"`.
        config: the whole configuration instead, such as a changed `exam.load(run).config`.

    Returns:
        The run. `run.folder` holds the model, `run.systems` the baselines and, last, the reader;
        `run.systems[-1].estimate` is its MAP@k (0 to 1) with a 95 % interval. A reranker or an
        encoder (`task=`) has no systems.

    Raises:
        ExamError: a setting, a file or the environment does not allow the training.

    Example:
        ```python
        run = exam.train("data=csv", "data.train=mine.csv", "data.valid_fraction=0.2")
        ```
    """
    run: Run = _run("train", _compose("train", overrides, config))
    return run


def retrieve(*overrides: str, config: "Retrieve | None" = None) -> "dict[str, ContextSet]":
    """Find passages for questions and score them, as `exam retrieve` does.

    Args:
        overrides: settings of `exam retrieve`, such as `"retriever=bm25"`.
        config: the whole configuration instead.

    Returns:
        The contexts of the parts `train`, `valid` and `test` that the data has. `passages` is a
        `datasets.Dataset` with one row for each passage: `question_id`, `rank` (1 is the best),
        `score`, `title`, `text` and more. `scores` maps a metric, such as `recall_at_5`, to its
        mean over questions (0 to 1) with a 95 % interval.

    Raises:
        ExamError: a setting, a file or the environment does not allow the retrieval.

    Example:
        ```python
        contexts = exam.retrieve("retriever=bm25", "data.train=null")["valid"]
        print(contexts.scores["supported"], contexts.passages[0]["text"])
        ```
    """
    contexts: dict[str, ContextSet] = _run("retrieve", _compose("retrieve", overrides, config))
    return contexts


def evaluate(
    runs: "str | PathLike[str] | Sequence[str | PathLike[str]]",
    *overrides: str,
    outputs: str | PathLike[str] | None = None,
    k: int | None = None,
) -> "Evaluation":
    """Score runs on the same questions, with 95 % intervals and beside baselines.

    Without overrides, score the predictions that the runs hold. With overrides, first
    answer the questions that they name, as `exam infer` does.

    Args:
        runs: a run or several: results of `exam.train`, or folders with predictions.
        overrides: settings of `exam infer`, such as `"data=csv"` and `"data.test=mine.csv"`.
        outputs: the folder of indexes and answers; by default the one that holds the run.
        k: the ranks that score (MAP@k; 1 is accuracy); by default the k that all runs remember.

    Returns:
        The baselines and the runs (`systems`), and the first run's paired differences from the
        others and from baselines that read (`differences`). `print` shows them as a table.

    Raises:
        ExamError: the runs answered different questions, or the right options are not known.

    Example:
        ```python
        print(exam.evaluate([open_book, closed_book]))
        print(exam.evaluate("outputs/train/RUN", "data=csv", "data.test=mine.csv"))
        ```
    """
    from pathlib import Path

    from exam.config.compose import compose_infer
    from exam.core.artifacts import load_stage
    from exam.evaluation.results import Run
    from exam.report.compare import evaluate_runs

    each = [runs] if isinstance(runs, str | PathLike) else runs
    if overrides:
        each = [_run("infer", compose_infer(run, outputs, *overrides)) for run in each]
    scored = [
        run if isinstance(run, Run) else Run(load_stage(Path(run).expanduser()), [], [])
        for run in each
    ]
    return evaluate_runs(scored, k)


def load(
    run: str | PathLike[str], *overrides: str, outputs: str | PathLike[str] | None = None
) -> "LoadedRun":
    """Load a run of `exam train`, ready to answer single questions.

    Args:
        run: a result of `exam.train`, or a folder of `outputs/train`.
        overrides: settings of `exam infer`, such as `"run.corpus.dir=notes"`.
        outputs: the folder of the run's index; by default the one that holds the run.

    Returns:
        The reader. `reader.answer(prompt, options)` returns the `best` option, the `ranking` of all
        of them, their `probabilities`, and the `passages` that it read. `reader.answer_batch`
        answers several questions at once.

    Raises:
        ExamError: the folder is not a finished run, or an override is not a setting.

    Example:
        ```python
        reader = exam.load("outputs/train/RUN")
        print(reader.answer("Where do orchid seeds sprout?", ["in soil", "in the sea"]).best)
        ```
    """
    from exam.pipelines.ask import LoadedRun

    return LoadedRun(run, *overrides, outputs=outputs)


def _compose(command: str, overrides: tuple[str, ...], config: "Command | None") -> "Command":
    from exam.config.compose import compose_config
    from exam.config.validate import validate
    from exam.config.values import expand_home

    if config is None:
        composed: Command = compose_config(command, *overrides)
        return composed
    if overrides:
        raise ExamError(
            f"exam.{command} takes overrides or config=, and both are here.\n"
            "Change the configuration with dataclasses.replace, and leave the overrides out."
        )
    settings: Command = expand_home(config)
    validate(settings)
    return settings


def _run(command: str, config: "Command") -> Any:
    """Run a command's body in this process."""
    from exam.cli import run_pipeline
    from exam.core.environment import tune_malloc
    from exam.core.exit import translate_os_errors
    from exam.core.logging import quiet_libraries
    from exam.core.security import enable_offline_mode
    from exam.data.files import check_paths
    from exam.pipelines.launch import check_gpu

    if config.offline:
        enable_offline_mode()
    quiet_libraries()
    tune_malloc()
    with translate_os_errors():
        check_paths(config)
        check_gpu(config)
        return run_pipeline(command, config)
