"""`python -m exam.bundle.unpack BUNDLE OUTPUTS`: link a read-only bundle's stages for runs.

Link every stage's folder instead of copying: runs write locks and new stages beside the links.
"""

import sys
from functools import partial
from pathlib import Path

from exam.bundle.contents import check
from exam.endings import ended


def unpack(bundle: Path, outputs: Path) -> None:
    """Link each stage of the bundle below `outputs`."""
    for stage in (bundle / "outputs").glob("*/*"):
        link = outputs / stage.parent.name / stage.name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(stage.resolve(), target_is_directory=True)


def main(bundle: Path, outputs: Path) -> int:
    """Check the bundle, then link; return the exit code."""
    check(bundle)
    unpack(bundle, outputs)
    return 0


if __name__ == "__main__":
    sys.exit(ended(partial(main, Path(sys.argv[1]), Path(sys.argv[2]))))
