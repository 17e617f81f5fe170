"""`python -m exam.bundle.unpack BUNDLE OUTPUTS`: stages of a read-only bundle, where runs look.

Every stage's folder is linked, not copied: locks and new stages are written beside it.
"""

import sys
from functools import partial
from pathlib import Path

from exam.bundle.contents import check
from exam.endings import ended


def unpack(bundle: Path, outputs: Path) -> int:
    """Link each stage of the bundle below `outputs`; how many there are."""
    number = 0
    for stage in sorted((bundle / "outputs").glob("*/*")):
        place = outputs / stage.parent.name / stage.name
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            place.symlink_to(stage.resolve(), target_is_directory=True)
        number += 1
    return number


def main(bundle: Path, outputs: Path) -> int:
    """Check the bundle, then link; the exit code."""
    check(bundle)
    unpack(bundle, outputs)
    return 0


if __name__ == "__main__":
    sys.exit(ended(partial(main, Path(sys.argv[1]), Path(sys.argv[2]))))
