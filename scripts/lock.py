"""Write requirements.lock: the exact versions installed here, without local version labels."""

from importlib.metadata import distributions
from pathlib import Path

from packaging.utils import canonicalize_name

TARGET = Path(__file__).parents[1] / "requirements.lock"
NOT_LOCKED = {"openbook-exam", "pip", "setuptools", "wheel"}


def render(pairs: dict[str, str]) -> str:
    """The lock's text; `torch==2.13.0+cpu` becomes `torch==2.13.0`, which every machine finds."""
    lines = [f"{name}=={version.partition('+')[0]}" for name, version in sorted(pairs.items())]
    return "# Written by `make lock`. Installed by every make target.\n" + "\n".join(lines) + "\n"


def main() -> None:
    """Lock this environment."""
    installed = {str(canonicalize_name(d.metadata["Name"])): d.version for d in distributions()}
    pairs = {name: version for name, version in installed.items() if name not in NOT_LOCKED}
    TARGET.write_text(render(pairs), encoding="utf-8")


if __name__ == "__main__":
    main()
