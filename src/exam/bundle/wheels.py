"""The packages that a target machine lacks, as wheels, and nothing that its image already has."""

import logging
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, PathDistribution, distribution
from pathlib import Path
from typing import Any
from zipfile import Path as ZipPath

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from exam.bundle.target import CLONE, Target, check_wheels
from exam.errors import ExamError

log = logging.getLogger(__name__)

LINUX = {
    "os_name": "posix",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "implementation_name": "cpython",
}


def add_wheels(target: Target, folder: Path, also: list[str]) -> list[str]:
    """Bring this project's wheel, and what it needs beside the image, into `folder`; their names.

    `also` names packages that the runs need besides what the project always does. The versions are
    those installed here, with which the runs were made.

    Raises:
        ExamError: a wheel that the target can install is missing, or lacks what it needs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = PathDistribution(_information(_build_own(folder)))
    carried = missing([*(own.requires or []), *also], target.image, target.python)
    for name, version in sorted(carried.items()):
        log.info("bundle: %s %s", name, version)
        _bring(f"{name}=={version}", target, folder)
    check_wheels(folder, target)
    check_needs(folder, target)
    return [path.name for path in sorted(folder.glob("*.whl"))]


def missing(wanted: list[str], image: dict[str, str], python: str) -> dict[str, str]:
    """Requirements, and theirs in turn, where the image has no version that will do.

    Versions as installed here. What the image keeps brings its own needs with it.

    Raises:
        ExamError: something that is needed is not installed here.
    """
    asked: dict[str, SpecifierSet] = {}
    found: dict[str, str] = {}
    waiting, seen = _on_target(wanted, "", python), set[str]()
    while waiting:
        needed = waiting.pop()
        name = str(canonicalize_name(needed.name))
        asked[name] = asked.get(name, SpecifierSet()) & needed.specifier
        kept = name in image and asked[name].contains(image[name], prereleases=True)
        if kept or (str(needed) in seen and name in found):
            continue
        seen.add(str(needed))
        try:
            here = distribution(name)
        except PackageNotFoundError:
            raise ExamError(
                f"{name} is needed, and not installed here.\n"
                "Install this project with all it needs, then make the bundle."
            ) from None
        found[name] = here.version.partition("+")[0]
        for extra in ("", *needed.extras):
            waiting += _on_target(here.requires or [], extra, python)
    return found


def _on_target(lines: list[str], extra: str, python: str) -> list[Requirement]:
    """The requirements that hold on the target, those of an extra included."""
    own = {"python_version": python, "python_full_version": f"{python}.0", "extra": extra}
    needs = [Requirement(line) for line in lines]
    return [n for n in needs if n.marker is None or n.marker.evaluate({**LINUX, **own})]


def check_needs(folder: Path, target: Target) -> None:
    """Refuse a wheel whose requirements neither the image nor another wheel meets.

    They differ between platforms: torch for a GPU needs packages that torch for a CPU does not.

    Raises:
        ExamError: the target lacks a requirement of a wheel.
    """
    wheels = [PathDistribution(_information(path)) for path in sorted(folder.glob("*.whl"))]
    carried = {str(canonicalize_name(wheel.name)): wheel.version for wheel in wheels}
    there = {**target.image, **carried}
    for wheel in wheels:
        for needed in _on_target(wheel.requires or [], "", target.python):
            version = there.get(str(canonicalize_name(needed.name)))
            if version is None or not needed.specifier.contains(version, prereleases=True):
                raise ExamError(
                    f"{wheel.name} {wheel.version} needs {needed} on the target, and neither the "
                    f"bundle nor the image has it ({version or 'missing'}).\n"
                    f"Use an image that has {wheel.name} or {needed.name}: image=<its packages>."
                )


def _bring(package: str, target: Target, folder: Path) -> None:
    """Download a package's wheel for the target; where there is none, build one of pure Python."""
    options = ["--only-binary", ":all:", "--implementation", "cp"]
    options += ["--python-version", target.python]
    options += [word for platform in target.platforms for word in ("--platform", platform)]
    if _pip("download", "--no-deps", "--dest", str(folder), *options, package) is None:
        return
    failed = _pip("wheel", "--no-deps", "--wheel-dir", str(folder), package)
    if failed:
        raise ExamError(
            f"There is no wheel of {package} for Python {target.python}: {failed}\n"
            "Check python= and platforms=, or have the image bring it (image=<constraints file>)."
        )


def _information(wheel: Path) -> Any:
    """A wheel's metadata, where `importlib.metadata` reads it."""
    return next(p for p in ZipPath(wheel).iterdir() if p.name.endswith(".dist-info"))


def _build_own(folder: Path) -> Path:
    """Build this project's wheel from its clone."""
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    failed = _pip("wheel", *options, str(CLONE))
    if failed:
        raise ExamError(f"This project's wheel could not be built: {failed}\nRun: make setup")
    return max(folder.glob("openbook_exam-*.whl"))


def _pip(*arguments: str) -> str | None:
    """Run pip; what it says of its failure, or None."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.returncode:
        return None
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return errors[0] if errors else "pip failed"
