"""`exam bundle unpack BUNDLE OUTPUTS`: stages of a read-only bundle, where runs look.

Every stage's folder is linked, not copied: locks and new stages are written beside it.
"""

from pathlib import Path

from exam.bundle.contents import check


def unpack(bundle: Path, outputs: Path) -> int:
    """Link each stage of the bundle below `outputs`, and return their number."""
    stages = sorted((bundle / "outputs").glob("*/*"))
    for stage in stages:
        link = outputs / stage.parent.name / stage.name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(stage.resolve(), target_is_directory=True)
    return len(stages)


def check_and_unpack(bundle: Path, outputs: Path) -> None:
    """Check the bundle, then link its stages.

    Raises:
        ExamError: a file of the bundle is missing or damaged.
    """
    check(bundle)
    unpack(bundle, outputs)
