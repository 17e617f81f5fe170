"""Describe a bundle's target machine, and collect wheels of the packages that it lacks.

`pip` downloads the wheels but cannot resolve the requirements: it evaluates markers for the Python
and the system that run it, not for the target's.
"""

import logging
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import Distribution, PackageNotFoundError, PathDistribution, distribution
from pathlib import Path
from typing import Any
from zipfile import Path as ZipPath

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

from exam.config import Bundle
from exam.core.errors import ExamError

log = logging.getLogger(__name__)

CLONE = Path(__file__).parents[3]
KAGGLE_PYTHON = "3.12"  # of Kaggle's image since 2025-12
WRITE_IMAGE = "(python -VV; pip freeze) > image.txt"
USE_IMAGE = "list the package in the image's file (constraints=<file>)"
LINUX = {
    "os_name": "posix",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "implementation_name": "cpython",
}


@dataclass(frozen=True)
class Target:
    """A machine that answers with a bundle."""

    python: str  # major and minor version
    platforms: list[str]
    packages: dict[str, str]  # versions by name


def read_target(bundle: Bundle) -> Target:
    """Read the target from the image's file, and its Python from `python=` if the file has none.

    Refuse two different Pythons, or one that exam does not run on. A clone is needed to build
    exam's wheel.
    """
    project = CLONE / "pyproject.toml"
    if not project.is_file():
        raise ExamError(
            "A bundle needs a wheel of exam, which is built from a clone.\n"
            "Run the command in a clone of the repository."
        )
    lines: list[str] = []
    if bundle.constraints:
        constraints = Path(bundle.constraints)
        if not constraints.is_file():
            raise ExamError(
                f"constraints={constraints} does not exist.\n"
                f"Write it on the target machine: {WRITE_IMAGE}"
            )
        lines = constraints.read_text(encoding="utf-8").splitlines()
    match = re.match(r"Python (\d+\.\d+)\.", lines[0]) if lines else None  # of `python -VV`
    image_python = match[1] if match else None
    python = bundle.python or image_python or KAGGLE_PYTHON
    if not re.fullmatch(r"3\.\d+", python):
        raise ExamError(
            f"python={python} must be a version with two parts.\n"
            f"Set the target's, as in python={KAGGLE_PYTHON}"
        )
    if image_python not in (None, python):
        raise ExamError(
            f"python={python}, but Python {image_python} wrote constraints={bundle.constraints}.\n"
            f"Leave out python=, or write the file again on the target machine: {WRITE_IMAGE}"
        )
    supported = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["requires-python"]
    if not SpecifierSet(supported).contains(python):
        raise ExamError(
            f"The target has Python {python}; exam needs {supported}.\nChoose a newer image there."
        )
    return Target(python, bundle.platforms, parse_pins(lines))


def parse_pins(lines: list[str]) -> dict[str, str]:
    """Parse the versions that a constraints file (`pip freeze` of the image) pins, by name."""
    pins = {}
    for line in lines:
        name, pinned, version = line.partition("#")[0].partition(";")[0].strip().partition("==")
        if pinned:
            pins[str(canonicalize_name(name.partition("[")[0]))] = version.strip()
    return pins


def add_wheels(target: Target, folder: Path, extra_packages: list[str]) -> list[str]:
    """Add the wheels of exam and of the packages that the image lacks; return all file names.

    The runs need `extra_packages` besides exam's requirements. Versions are those installed here,
    with which the runs were trained.
    """
    folder.mkdir(parents=True)
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    if error := _run_pip("wheel", *options, str(CLONE)):
        raise ExamError(f"Building exam's wheel failed: {error}\nRun: make setup")
    (project,) = folder.glob("*.whl")
    requirements = [*(_read_metadata(project).requires or []), *extra_packages]
    find_missing(requirements, target, partial(fetch_wheel, target, folder))
    return sorted(path.name for path in folder.glob("*.whl"))


def find_installed(name: str) -> Distribution:
    """Return a package of this environment; refuse one that is not installed."""
    try:
        return distribution(name)
    except PackageNotFoundError:
        raise ExamError(
            f"The target needs {name}, which is not installed here.\n"
            f"Run pip install {name}, or {USE_IMAGE}."
        ) from None


def find_missing(
    requirements: list[str],
    target: Target,
    fetch: Callable[[str], Distribution] = find_installed,
) -> dict[str, str]:
    """Map packages of which the target has no suitable version to the versions installed here.

    Include dependencies, except of packages that the target has. `fetch` returns a package as built
    for the target: torch for a GPU needs packages that torch for a CPU does not. Refuse a package
    of which this environment has no suitable version.
    """
    specifiers: dict[str, SpecifierSet] = {}
    missing: dict[str, Distribution] = {}
    pending, visited = _select_needed(requirements, "", target.python), set[str]()
    while pending:
        requirement = pending.pop()
        name = str(canonicalize_name(requirement.name))
        specifiers[name] = specifiers.get(name, SpecifierSet()) & requirement.specifier
        if name not in missing:
            if _is_suitable(target.packages.get(name), specifiers[name]):
                continue
            missing[name] = fetch(name)
        if not _is_suitable(missing[name].version, specifiers[name]):
            raise ExamError(
                f"The target needs {name}{specifiers[name]}; this environment has "
                f"{missing[name].version}.\nInstall it here, or {USE_IMAGE}."
            )
        if str(requirement) not in visited:
            visited.add(str(requirement))
            for extra in ("", *requirement.extras):
                pending += _select_needed(missing[name].requires or [], extra, target.python)
    return {name: Version(package.version).public for name, package in missing.items()}


def _is_suitable(version: str | None, specifier: SpecifierSet) -> bool:
    return version is not None and specifier.contains(version, prereleases=True)


def _select_needed(requirements: list[str], extra: str, python: str) -> list[Requirement]:
    """Select the requirements whose markers hold on the target, including those of an extra."""
    versions = {"python_version": python, "python_full_version": f"{python}.0", "extra": extra}
    parsed = [Requirement(text) for text in requirements]
    return [r for r in parsed if r.marker is None or r.marker.evaluate({**LINUX, **versions})]


def fetch_wheel(target: Target, folder: Path, name: str) -> Distribution:
    """Download a package's wheel for the target, or build a pure one if there is none.

    Refuse a package of which the target can install neither.
    """
    # No registry has versions with a local part, such as +cu128.
    requirement = f"{name}=={Version(find_installed(name).version).public}"
    log.info("bundle: %s", requirement)
    options = ["--only-binary", ":all:", "--implementation", "cp"]
    options += ["--python-version", target.python]
    options += [word for platform in target.platforms for word in ("--platform", platform)]
    error = _run_pip("download", "--no-deps", "--dest", str(folder), *options, requirement)
    if error:
        _run_pip("wheel", "--no-deps", "--wheel-dir", str(folder), requirement)
    for wheel in folder.glob("*-none-any.whl" if error else "*.whl"):
        if parse_wheel_filename(wheel.name)[0] == name:
            return _read_metadata(wheel)
    raise ExamError(
        f"There is no wheel of {requirement} for Python {target.python}, "
        f"{', '.join(target.platforms)}: {error}\nCheck python= and platforms=, or {USE_IMAGE}."
    )


def _read_metadata(wheel: Path) -> Distribution:
    root: Any = next(p for p in ZipPath(wheel).iterdir() if p.name.endswith(".dist-info"))
    return PathDistribution(root)


def _run_pip(*arguments: str) -> str | None:
    """Run pip; return its first error, or None."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if not process.returncode:
        return None
    errors = [line for line in process.stderr.splitlines() if line.startswith("ERROR")]
    return errors[0] if errors else "pip failed"
