"""A bundle tried where nothing else is: an empty environment in a namespace without a network."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from tempfile import TemporaryDirectory

from exam.bundle.wheels import image_packages
from exam.errors import ExamError

UNLISTED = "setuptools"  # every image has it, `pip freeze` leaves it out, and torch asks for it
ALONE = ("unshare", "--map-root-user", "--net")  # util-linux: no device but a loopback that is down


def rehearse(folder: Path, lines: list[str], image: Path | None, target: Path) -> float:
    """Run a bundle's lines without a network; its submission goes to `target`. Seconds taken.

    What the image has is taken from this environment, package by package; all else must come out
    of the bundle.

    Raises:
        ExamError: there is no network namespace to be had here, or a line failed.
    """
    if shutil.which(ALONE[0]) is None or subprocess.run([*ALONE, "true"], check=False).returncode:
        raise ExamError(
            "A rehearsal needs a namespace without a network, which this system does not give "
            f"({' '.join(ALONE)}).\nRehearse on Linux, or leave out rehearse=true."
        )
    with _empty_environment(image) as place:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON", "HF_"))}
        environment = {
            **clean,
            "PATH": f"{place / 'venv' / 'bin'}:{os.environ['PATH']}",
            "HOME": str(place),
            "PIP_CONFIG_FILE": os.devnull,
        }
        start = time.perf_counter()
        for line in lines:
            command = line.replace("{bundle}", str(folder.resolve()))
            done = subprocess.run(
                [*ALONE, "sh", "-c", command],
                cwd=place,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                said = "\n".join(done.stderr.splitlines()[-15:])
                raise ExamError(f"The bundle fails without a network, at: {command}\n{said}")
        shutil.copyfile(place / "submission.csv", target)
        return time.perf_counter() - start


@contextmanager
def _empty_environment(image: Path | None) -> Iterator[Path]:
    with TemporaryDirectory() as name:
        place = Path(name)
        subprocess.run([sys.executable, "-m", "venv", str(place / "venv")], check=True)
        if image is not None:
            (site,) = (place / "venv" / "lib").glob("python*/site-packages")
            for old in site.glob(f"{UNLISTED}*"):
                shutil.rmtree(old)
            for package in (UNLISTED, *image_packages(image)):
                _link(package, site)
        yield place


def _link(package: str, site: Path) -> None:
    """Link an installed package's files into another environment, as its image would have them."""
    try:
        found = distribution(package)
    except PackageNotFoundError:
        return  # the image has it, and this machine does not: the bundle may do without
    tops = {file.parts[0] for file in found.files or [] if file.parts[0] != ".."}
    for top in tops - {"__pycache__"}:
        source = Path(str(found.locate_file(top)))
        if source.exists() and not (site / top).exists():
            (site / top).symlink_to(source)
