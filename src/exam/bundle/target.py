"""The machine that a bundle is for: its Python, its platforms, the packages it has."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

from exam.config import Bundle
from exam.errors import ExamError

CLONE = Path(__file__).parents[3]
KAGGLE_PYTHON = "3.12"  # of its image since 2025-12
WRITE_IMAGE = "(python -VV; pip freeze) > image.txt"
VERSION = re.compile(r"3\.\d+")
OTHER_PYTHON = (
    "This is Python {running}, and the bundle's wheels are for Python {python}. "
    "Make the bundle again with python={running}, or use it with Python {python}."
)


@dataclass(frozen=True)
class Target:
    """Where a bundle will be used. `python` is major and minor version; `image` maps names."""

    python: str
    platforms: list[str]
    image: dict[str, str]

    @property
    def tags(self) -> set[Tag]:
        """The tags of the wheels that the target can install."""
        version = [int(part) for part in self.python.split(".")]
        interpreter = f"cp{self.python.replace('.', '')}"
        return {
            *cpython_tags(version, platforms=self.platforms),
            *compatible_tags(version, interpreter, self.platforms),
        }


def target_of(bundle: Bundle) -> Target:
    """Read the target from the image's file, and its Python from `python=` where that has none.

    Raises:
        ExamError: the two name different Pythons, or one that this project does not run on; or
            this is not a clone, whose wheel a bundle carries.
    """
    project = CLONE / "pyproject.toml"
    if not project.is_file():
        raise ExamError(
            "A bundle carries this project's wheel, which is built from a clone.\n"
            "Run the command in a clone of the project."
        )
    lines = _lines(Path(bundle.image)) if bundle.image else []
    of_image = image_python(lines)
    python = bundle.python or of_image or KAGGLE_PYTHON
    if not VERSION.fullmatch(python):
        raise ExamError(
            f"python={python} is not a version with two parts.\n"
            f"Give the target's, as in python={KAGGLE_PYTHON}."
        )
    if of_image not in (None, python):
        raise ExamError(
            f"python={python}, and image={bundle.image} was written by Python {of_image}.\n"
            f"Leave out python=, or write the file again on the target machine: {WRITE_IMAGE}"
        )
    needed = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["requires-python"]
    if not SpecifierSet(needed).contains(python):
        raise ExamError(
            f"The target has Python {python}; exam needs {needed}.\nChoose a newer image there."
        )
    return Target(python, bundle.platforms, image_packages(lines))


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise ExamError(
            f"image={path} does not exist.\nWrite it on the target machine: {WRITE_IMAGE}"
        )
    return path.read_text(encoding="utf-8").splitlines()


def image_python(lines: list[str]) -> str | None:
    """Return major and minor version of the Python that `python -VV` names in the first line."""
    named = re.match(r"Python (\d+\.\d+)\.", lines[0]) if lines else None
    return named[1] if named else None


def image_packages(lines: list[str]) -> dict[str, str]:
    """Return names and versions that a constraints file (`pip freeze` of the image) pins."""
    pins = {}
    for line in lines:
        name, pinned, version = line.partition("#")[0].partition(";")[0].strip().partition("==")
        if pinned:
            pins[str(canonicalize_name(name.partition("[")[0]))] = version.strip()
    return pins


def check_wheels(folder: Path, target: Target) -> None:
    """Refuse a wheel that the target cannot install.

    Raises:
        ExamError: one is for another Python, ABI or platform.
    """
    tags = target.tags
    for wheel in sorted(folder.glob("*.whl")):
        *_, wheel_tags = parse_wheel_filename(wheel.name)
        if tags.isdisjoint(wheel_tags):
            raise ExamError(
                f"{wheel.name} cannot be installed on the target: Python {target.python}, "
                f"{', '.join(target.platforms)}.\n"
                "Check python= and platforms=, or have the image bring the package "
                "(image=<constraints file>)."
            )
