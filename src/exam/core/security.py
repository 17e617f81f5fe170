"""Redact secrets, refuse paths that escape their folder, and enforce offline mode."""

import os
import re
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from exam.core.errors import ExamError

KEYS = (
    *("OPENAI_API_KEY", "WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
    *("KAGGLE_KEY", "KAGGLE_API_TOKEN"),
)
MAX_NAME_BYTES = 255
MIN_SECRET_CHARS = 8  # shorter values are placeholders, and occur in ordinary text
LOGIN = re.compile(r"(?<=://)[^\s/?#@]+@")
TOKEN = re.compile(r"\b(?:hf_[A-Za-z0-9]{20,}|sk-(?:proj-)?\w{20,})")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line feed
PICKLES = {".bin", ".pkl", ".pickle", ".pt", ".pth", ".joblib", ".ckpt", ".dill"}
SKIPPED_DIR = "checkpoints"  # a finished run never reads them
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
    """Return a text for printing: secrets removed, terminal control characters escaped."""
    for secret in _secrets():
        text = text.replace(secret, "…")
    text = LOGIN.sub("…@", TOKEN.sub("…", text))
    return CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def has_secret(text: str) -> bool:
    """Tell whether a text holds a secret of the environment, a token, or a URL with a login."""
    known = any(secret in text for secret in _secrets())
    return known or LOGIN.search(text) is not None or TOKEN.search(text) is not None


def _secrets() -> list[str]:
    """Return the environment's secrets, also URL-encoded, the longest first."""
    values = [os.environ.get(name, "") for name in KEYS]
    secrets = {s for v in values if len(v) >= MIN_SECRET_CHARS for s in (v, quote(v, safe=""))}
    return sorted(secrets, key=len, reverse=True)


def escapes_directory(name: str) -> bool:
    """Tell whether a file's name is empty, too long, or points outside its folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    is_invalid = "\0" in name or not path.parts
    is_long = any(len(part.encode(errors="replace")) > MAX_NAME_BYTES for part in path.parts)
    return is_invalid or is_long or path.is_absolute() or ".." in path.parts


def check_folder(folder: Path) -> None:
    """Refuse files that no stage writes: pickles, and links that leave the folder."""
    real = folder.resolve()
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and not path.resolve().is_relative_to(real):
            raise ExamError(
                f"{path} is a link that leaves its folder.\n"
                "Replace the link with the file, or delete it."
            )
        if path.relative_to(folder).parts[0] == SKIPPED_DIR or not path.is_file():
            continue
        if path.suffix.lower() in PICKLES or (path.suffix == ".npy" and _holds_objects(path)):
            raise ExamError(
                f"{path} may hold a pickle, which runs code when it is read; exam writes none.\n"
                "Delete it, and store weights as safetensors."
            )


def _holds_objects(path: Path) -> bool:
    """Tell whether a `.npy` file holds Python objects, or is not an array."""
    import numpy as np

    try:
        np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError):
        return True
    return False


def enable_offline_mode() -> None:
    """Keep this process and its children off the network; call it before importing libraries."""
    os.environ.update({OFFLINE: "1", **LIBRARIES_OFFLINE})


def require_network(what: str, instead: str) -> None:
    """Refuse to download `what` with `offline=true`; `instead` is another way to get it."""
    if os.environ.get(OFFLINE) == "1":
        raise ExamError(
            f"{what} is not on this machine, and offline=true forbids downloads.\n"
            f"Run once without offline=true, or {instead}"
        )
