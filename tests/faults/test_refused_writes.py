"""What the system refuses to write: one message, and the last good state goes on."""

import errno
import os
import re
from functools import partial

import pytest
from helpers import refuses
from processes import GIVEN, Mounted, bound_by_permissions, limit_files, refused, run

from exam.core import artifacts
from exam.core.artifacts import load_stage, open_stage
from exam.core.errors import ExamError
from exam.core.exit import FREE_SPACE, OTHER_FOLDER, translate_os_errors
from exam.core.files import write_atomically

LEXICAL = [*GIVEN, "retriever=bm25", "evaluate=false"]
CLOSED = [*GIVEN, "retriever=none", "model=lexical"]


@pytest.fixture
def mounted(workdir):
    """Outputs on a file system of half a megabyte, which is another than the questions'."""
    mount = Mounted(workdir / "outputs", "512k")
    if not mount.possible:
        pytest.skip("this process may mount no file system")
    yield mount
    mount.end()


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (RuntimeError("Error while serializing: File too large (os error 27)"), "(ulimit -f)"),
        (OSError("800 requested and 96 written"), FREE_SPACE),
        (RuntimeError("[enforce fail at x.cc:664] . PytorchStreamWriter failed"), FREE_SPACE),
        (RuntimeError("writing failed: No space left on device"), FREE_SPACE),
        (caused(RuntimeError("a"), OSError(errno.EDQUOT, "Disk quota exceeded")), FREE_SPACE),
    ],
)
def test_every_writer_is_understood(tmp_path, error, remedy):
    observed = f"A file below {tmp_path / 'out'} could not be written: {error}\n"
    with refuses(observed, remedy), translate_os_errors(tmp_path / "out"):
        raise error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "", "c"), f"c: No space left on device.\n{FREE_SPACE}"),
        (PermissionError(errno.EACCES, "", "c"), f"c: Permission denied.\n{OTHER_FOLDER}"),
    ],
)
def test_a_file_that_cannot_be_written_is_named(error, message):
    with refuses(message), translate_os_errors():
        raise error


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "", "d"), RuntimeError("bug")])
def test_other_errors_are_left_as_they_are(error):
    with pytest.raises(type(error)) as caught, translate_os_errors():
        raise error
    assert caught.value is error


def test_an_atomic_write_names_its_file(tmp_path):
    def written(error):
        with write_atomically(tmp_path / "a.json") as part:
            part.write_text("half")
            raise error

    with pytest.raises(OSError, match="No space") as caught:
        written(OSError(errno.ENOSPC, "No space left on device"))
    assert caught.value.filename == str(tmp_path / "a.json")
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match="denied") as caught:
        written(PermissionError(errno.EACCES, "Permission denied", "what is read meanwhile"))
    assert caught.value.filename == "what is read meanwhile"


def test_a_finished_stage_is_read_where_nothing_can_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts, "LARGE", 1)
    mount = Mounted(tmp_path / "m", "1m")
    if not mount.possible:
        pytest.skip("this process may mount no file system")
    try:
        with open_stage(mount.folder, "k", "n", {"a": 1}) as stage:
            (stage.folder / "f").write_bytes(b"x")
            stage.finish(["f"])
        (stage.folder / "verified.json").unlink()
        mount.change("ro")
        with open_stage(mount.folder, "k", "n", {"a": 1}) as again:
            assert again.reused
        with (
            pytest.raises(ExamError, match=r"Read-only file system\.\nChange its permissions"),
            translate_os_errors(),
            open_stage(mount.folder, "k", "n", {"a": 2}),
        ):
            pass
    finally:
        mount.end()


@pytest.mark.slow
def test_a_full_disk_is_one_message_and_room_goes_on(workdir, mounted):
    run(workdir, "retrieve", *LEXICAL)
    good = sorted((workdir / "outputs").glob("*/*/manifest.json"))
    filler = mounted.folder / "filler"
    with filler.open("wb") as file:
        free = os.statvfs(mounted.folder)
        file.write(b"x" * (free.f_bavail * free.f_frsize - 8192))
    other = [*LEXICAL, "chunking.chunk_words=20"]
    first, second = refused(workdir, "retrieve", *other)
    assert first.endswith(": No space left on device.")
    assert first.startswith("outputs/")
    assert second == FREE_SPACE
    assert len([load_stage(path.parent) for path in good]) >= 3
    filler.unlink()
    run(workdir, "retrieve", *other)
    assert not list((workdir / "outputs").rglob("*.part"))


@pytest.mark.slow
def test_a_read_only_folder_is_one_message(workdir, mounted):
    mounted.change("ro")
    first, second = refused(workdir, "retrieve", *LEXICAL)
    assert (first.endswith(": Read-only file system."), second) == (True, OTHER_FOLDER)
    mounted.change("rw")
    run(workdir, "retrieve", *LEXICAL)
    mounted.change("ro")
    run(workdir, "retrieve", *LEXICAL)  # finished: nothing is written


@pytest.mark.slow
def test_a_limit_on_files_is_one_message(workdir):
    *_, first, second = refused(workdir, "train", *CLOSED, fault=partial(limit_files, 60_000))
    named = r"outputs/train/kaggle-lexical-none-\w{8}/report\.html: File too large\."
    assert re.fullmatch(named, first)
    assert second == (
        "Raise the limit on the size of files (ulimit -f), and run the same command again: it "
        "continues from what is finished."
    )
    run(workdir, "train", *CLOSED)


@pytest.mark.slow
def test_a_missing_permission_is_one_message(workdir):
    (workdir / "outputs").mkdir(mode=0o555)
    first, second = refused(workdir, "retrieve", *LEXICAL, fault=bound_by_permissions)
    assert (first, second) == ("outputs/articles: Permission denied.", OTHER_FOLDER)
    (workdir / "outputs").chmod(0o755)
    (workdir / "articles.jsonl").chmod(0)
    first, second = refused(workdir, "retrieve", *LEXICAL, fault=bound_by_permissions)
    assert (first, second) == ("articles.jsonl: Permission denied.", OTHER_FOLDER)
