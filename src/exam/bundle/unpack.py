"""`exam bundle unpack BUNDLE OUTPUTS`: stages of a read-only bundle, where runs look.

Every stage's folder is linked, not copied: locks and new stages are written beside it.
"""

from pathlib import Path

from exam.bundle.contents import check


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


def check_and_unpack(bundle: Path, outputs: Path) -> None:
    """Check the bundle, then link its stages.

    Raises:
        ExamError: a file of the bundle is missing or damaged.
    """
    check(bundle)
    unpack(bundle, outputs)
