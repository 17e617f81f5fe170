"""What a language model has written so far, kept line by line."""

import json
from contextlib import suppress
from dataclasses import dataclass, field
from os import SEEK_END
from pathlib import Path
from threading import Lock
from typing import Any


@dataclass
class Journal:
    """What was written so far, by what was asked; the file is only ever added to."""

    path: Path
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    lock: Any = field(default_factory=Lock)

    @classmethod
    def read(cls, path: Path) -> "Journal":
        """The notes of an interrupted run; a line that was cut short is left out."""
        rows = {}
        for line in path.read_bytes().splitlines() if path.is_file() else ():
            with suppress(ValueError):
                row = json.loads(line)
                rows[row["asked"]] = row
        return cls(path, rows)

    def settled(self, asked: str, attempts: int) -> bool:
        """Whether an article has its questions, or was asked about often enough."""
        row = self.rows.get(asked)
        return row is not None and bool(row["questions"] or len(row["refused"]) >= attempts)

    def add(self, row: dict[str, Any]) -> None:
        """Note one article; a line that was cut short before is ended first."""
        line = f"{json.dumps(row, ensure_ascii=False)}\n".encode()
        with self.lock, self.path.open("ab+") as file:
            if file.tell():
                file.seek(-1, SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line)
        self.rows[row["asked"]] = row
