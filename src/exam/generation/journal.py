"""What a language model has written so far, kept line by line."""

import json
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from os import SEEK_END
from pathlib import Path
from threading import Lock
from typing import Any

from exam.core.files import digest

log = logging.getLogger(__name__)

SUM = "sha256"  # of a line's other values
NOTED = {"asked", "article", "questions", "refused", "read", "written"}


@dataclass
class Journal:
    """What was written so far, by what was asked; the file is only ever added to."""

    path: Path
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    lock: Any = field(default_factory=Lock)

    @classmethod
    def read(cls, path: Path) -> "Journal":
        """The notes of an interrupted run; a line that is not as it was written is left out."""
        lines = path.read_bytes().split(b"\n") if path.is_file() else []
        found = [_note(line) for line in lines if line]
        rows = {row["asked"]: row for row in found if row is not None}
        if None in found:
            broken = found.count(None)
            log.warning("generate: %d lines of %s are broken, and left out", broken, path)
        return cls(path, rows)

    def settled(self, asked: str, attempts: int) -> bool:
        """Whether an article has its questions, or was asked about often enough."""
        row = self.rows.get(asked)
        return row is not None and bool(row["questions"] or len(row["refused"]) >= attempts)

    def add(self, row: dict[str, Any]) -> None:
        """Note one article; a line that was cut short before is ended first."""
        line = f"{json.dumps({**row, SUM: digest(row)}, ensure_ascii=False)}\n".encode()
        with self.lock, self.path.open("ab+") as file:
            if file.tell():
                file.seek(-1, SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line)
        self.rows[row["asked"]] = row


def _note(line: bytes) -> dict[str, Any] | None:
    """What a line of the journal says; None where it is not as it was written."""
    with suppress(ValueError, AttributeError, TypeError, RecursionError):
        row: dict[str, Any] = json.loads(line)
        signed = row.pop(SUM, None) == digest(row)
        return row if signed and row.keys() == NOTED and isinstance(row["asked"], str) else None
    return None
