"""`exam bundle unpack BUNDLE OUTPUTS`: stages of a read-only bundle, where runs look.

Link every stage's folder instead of copying: runs write locks and new stages beside the links.
"""

from pathlib import Path

from exam.bundle.contents import check


def unpack(bundle: Path, outputs: Path) -> None:
    """Link each stage of the bundle below `outputs`."""
    for stage in (bundle / "outputs").glob("*/*"):
        link = outputs / stage.parent.name / stage.name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(stage.resolve(), target_is_directory=True)


def check_and_unpack(bundle: Path, outputs: Path) -> None:
    """Check the bundle, then link its stages.

    Raises:
        ExamError: a file of the bundle is missing or damaged.
    """
    check(bundle)
    unpack(bundle, outputs)
