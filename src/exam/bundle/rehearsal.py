"""Rehearse a bundle's notebook in an empty environment without a network."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from exam.bundle.wheels import Target, find_missing
from exam.core.errors import ExamError

RUNNER = ("IPython", "nbformat")  # run the notebook
SUBMISSION = "submission.csv"
SETUPTOOLS = "setuptools"  # torch needs it; images have it, but `pip freeze` does not list it
# of util-linux; the namespace has only a loopback device, which is down
NO_NETWORK = ("unshare", "--map-root-user", "--net")


def check_dry_run(target: Target) -> None:
    """Refuse to rehearse a bundle for another Python, or without the means to run its notebook."""
    running = "{}.{}".format(*sys.version_info)
    if running != target.python:
        raise ExamError(
            f"A rehearsal runs with this machine's Python {running}; the bundle is for "
            f"{target.python}.\nLeave out rehearse=true, or make the bundle with Python "
            f"{target.python}."
        )
    if missing := [name for name in RUNNER if find_spec(name) is None]:
        raise ExamError(
            f"A rehearsal runs the notebook, which needs {' and '.join(missing)}.\n"
            f"pip install {' '.join(missing)}, or leave out rehearse=true"
        )
    if not has_namespaces():
        raise ExamError(
            f"A rehearsal needs network namespaces, but {' '.join(NO_NETWORK)} fails here.\n"
            "Rehearse on Linux, or leave out rehearse=true"
        )


def has_namespaces() -> bool:
    """Tell whether this system can run a process in a namespace without a network."""
    is_installed = shutil.which(NO_NETWORK[0]) is not None
    return is_installed and subprocess.run([*NO_NETWORK, "true"], check=False).returncode == 0


def dry_run(notebook: Path, target: Target, submission: Path) -> float:
    """Run a bundle's notebook without a network, and keep its submission.

    Link the image's packages from this environment; the bundle must bring all other packages.

    Return the seconds that the notebook took; refuse it if a line fails.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        _make_environment(target, folder / "venv")
        start = time.perf_counter()
        _run(notebook, folder)
        shutil.copyfile(folder / SUBMISSION, submission)
        return time.perf_counter() - start


def _run(notebook: Path, folder: Path) -> None:
    """Run every cell with the environment in `folder`."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON", "HF_"))}
    programs = folder / "venv" / "bin"
    environment = {
        **inherited,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HOME": str(folder),
        "PIP_CONFIG_FILE": os.devnull,
    }
    ipython = [str(programs / "python"), "-W", "ignore", "-m", "IPython", "--colors=NoColor"]
    process = subprocess.run(
        [*NO_NETWORK, *ipython, str(notebook.resolve())],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if process.returncode or not (folder / SUBMISSION).is_file():
        printed = process.stdout.splitlines()[-15:]
        raise ExamError("\n".join(["The bundle fails without a network:", *printed]))


def _make_environment(target: Target, folder: Path) -> None:
    """Make an environment with only the image's packages and IPython."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    for old in site.glob(f"{SETUPTOOLS}*"):
        shutil.rmtree(old)
    runner = find_missing([*RUNNER], replace(target, packages={}))
    for package in {SETUPTOOLS, *runner, *target.packages}:
        _link(package, site)


def _link(package: str, site: Path) -> None:
    """Link the files of an installed package into `site`, in place of the image's."""
    try:
        installed = distribution(package)
    except PackageNotFoundError:
        return  # only the image has it, and the bundle may not need it
    for file in installed.files or []:
        source, link = Path(str(file.locate())), site / file
        if ".." not in file.parts and source.exists() and not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source)
