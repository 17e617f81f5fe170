"""Commands with another hub, home and cache than this process has.

The hub's client reads its environment when it is imported, so that the commands cannot be forked
from the process that the other tests share. `Commands` starts one like it, in its own environment,
which has imported what commands do and forks each of them.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[2]
IMPORTS = (
    *(
        *(
            f"exam.pipelines.{name}"
            for name in ("train", "infer", "retrieve", "generate", "stress")
        ),
        "exam.readers.base",
        "exam.readers.causal_lm",
        "exam.cli",
    ),
    *("sentence_transformers", "peft", "faiss", "sklearn.model_selection", "scipy.optimize"),
    *("bm25s", "altair", "transformers.trainer"),
)


class Commands:
    """Runs verbs in an environment."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    def __enter__(self) -> Self:
        paths = [str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hub.commands"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **self.environment, "PYTHONPATH": os.pathsep.join(paths)},
            cwd=ROOT,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait()

    def run(
        self, verb: str, *overrides: str, cwd: Path = ROOT, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a verb as a person would."""
        command = ["exam", verb, *overrides]
        with tempfile.TemporaryDirectory() as folder:
            job = {"command": command, "cwd": str(cwd), "folder": folder, "env": environment}
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            code = int(self.process.stdout.readline())
            streams = [(Path(folder) / name).read_text() for name in ("stdout", "stderr")]
        return subprocess.CompletedProcess(command, code, *streams)


def serve() -> None:
    """Fork a command for each line of standard input, and answer with its exit code."""
    from importlib import import_module

    from exam.core.logging import quiet_libraries

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints is no answer
    quiet_libraries()  # before their import
    from helpers import become

    for name in IMPORTS:
        import_module(name)
    import_module("exam.report.page")._charts_script()  # kept for all: it takes a second
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            os.environ.update(job["env"])
            finish(become, job["command"], job["cwd"], job["folder"])
        _, status = os.waitpid(child, 0)
        answers.write(f"{os.waitstatus_to_exitcode(status)}\n")
        answers.flush()


def finish(*call: object) -> None:
    """End the forked process as a script ends."""
    become, *arguments = call
    code: object = 0
    try:
        become(*arguments)
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 - a bug's traceback is what the test is to see
        sys.excepthook(*sys.exc_info())
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    serve()
