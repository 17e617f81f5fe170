"""What this project never does, whoever asks: show secrets, follow paths out, go out offline."""

import os
import re
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from exam.core.errors import ExamError

KEYS = (
    *("OPENAI_API_KEY", "WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
    *("KAGGLE_KEY", "KAGGLE_API_TOKEN"),
)
LONGEST = 255  # bytes of a file's name
SHORTEST = 8  # characters: what is shorter is a placeholder, and would stand in any text
LOGIN = re.compile(r"(?<=://)[^\s/?#@]+@")
TOKEN = re.compile(r"\b(?:hf_[A-Za-z0-9]{20,}|sk-(?:proj-)?\w{20,})")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line feed
PICKLES = {".bin", ".pkl", ".pickle", ".pt", ".pth", ".joblib", ".ckpt", ".dill"}
SKIPPED_DIR = "checkpoints"  # of a finished run: deleted, and never read
UNPRINTABLE = re.compile(f"{CONTROL.pattern}|[\u2028\u2029\ud800-\udfff]")  # YAML keeps none
OFFLINE = "EXAM_OFFLINE"
LIBRARIES_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "WANDB_MODE": "offline",
    "WANDB_ERROR_REPORTING": "false",
}


def redact(text: str) -> str:
    """A text as it may be printed: without secrets, and with nothing that drives a terminal."""
    for secret in _secrets():
        text = text.replace(secret, "…")
    text = LOGIN.sub("…@", TOKEN.sub("…", text))
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def has_secret(text: str) -> bool:
    """Whether a text holds a key of the environment, a token, or an address with a login."""
    known = any(secret in text for secret in _secrets())
    return known or LOGIN.search(text) is not None or TOKEN.search(text) is not None


def _secrets() -> list[str]:
    """The environment's keys, and as an address would spell them; the longest first."""
    values = [os.environ.get(name, "") for name in KEYS]
    found = {form for v in values if len(v) >= SHORTEST for form in (v, quote(v, safe=""))}
    return sorted(found, key=len, reverse=True)


def escapes_directory(name: str) -> bool:
    """Whether a file's name is empty, too long, or points outside its folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    none = "\0" in name or not path.parts
    none = none or any(len(p.encode(errors="replace")) > LONGEST for p in path.parts)
    return none or path.is_absolute() or ".." in path.parts


def check_folder(folder: Path) -> None:
    """Refuse what no stage of this project writes: pickles, and links to elsewhere.

    Raises:
        ExamError: the first such file.
    """
    real = folder.resolve()
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and not path.resolve().is_relative_to(real):
            raise ExamError(
                f"{path} is a link out of its folder, which may come from anywhere.\n"
                "Put the file itself there, or delete the link."
            )
        if path.relative_to(folder).parts[0] == SKIPPED_DIR or not path.is_file():
            continue
        if path.suffix.lower() in PICKLES or (path.suffix == ".npy" and _holds_objects(path)):
            raise ExamError(
                f"{path} may hold a pickle, which runs code when it is read; this project writes "
                "none.\nDelete it; weights belong into safetensors."
            )


def _holds_objects(path: Path) -> bool:
    """Whether an array's file holds Python objects, or is none at all."""
    import numpy as np

    try:
        np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError):
        return True
    return False


def enable_offline_mode() -> None:
    """Keep this process, and those it starts, from the network; before libraries are imported."""
    os.environ.update({OFFLINE: "1", **LIBRARIES_OFFLINE})


def require_network(what: str, instead: str) -> None:
    """Refuse to fetch something where nothing may be fetched.

    Raises:
        ExamError: `offline=true`.
    """
    if os.environ.get(OFFLINE) == "1":
        raise ExamError(
            f"{what} is not on this machine, and offline=true fetches nothing.\n"
            f"Run once without it, or {instead}"
        )
