"""Hidden states between two layers, in memory or on disk, where an interrupted run goes on."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file, save

from exam.core.errors import ExamError
from exam.core.files import checksum_matches, digest, read_object, write_json, write_with_checksum
from exam.readers.causal_lm.scoring import Batch, Tensor

log = logging.getLogger(__name__)

STATE = "state.json"
NOTED_EVERY = 60.0  # seconds between notes of states that are kept in memory


class States:
    """Every batch's hidden states in front of a layer, in memory or on disk.

    Those in memory are noted on disk once a minute, so that an interrupted run goes on from there.
    The files stay: whoever keeps the answers removes them.
    """

    def __init__(
        self, folder: Path, batches: Sequence[Batch], memory: int, size: int, dtype: str
    ) -> None:
        """Go on with what an interrupted run of the same batches left in `folder`."""
        self.folder, self.number, self.on_disk = folder, len(batches), size > memory
        self.held: dict[int, dict[str, Tensor]] = {}
        self.time = time.monotonic()
        self.key = digest(
            [dtype, *([b.rows, b.prefix.tolist(), b.endings.tolist()] for b in batches)]
        )
        folder.mkdir(parents=True, exist_ok=True)
        self.layer = self._noted()
        if self.layer is not None:
            log.info("layers: going on behind layer %d", self.layer)
            if not self.on_disk:
                self.held = {n: load_file(self._path(n, self.layer)) for n in range(self.number)}
        where = "on disk" if self.on_disk else "in memory"
        log.info("layers: %.1f MiB of states, %s", size / 2**20, where)

    def _noted(self) -> int | None:
        """The layer in front of which all batches were noted; None where none is to be trusted."""
        if not (self.folder / STATE).is_file():
            return None
        try:
            noted = read_object(self.folder / STATE, "key", "layer")
            layer = int(noted["layer"])
            paths = [self._path(number, layer) for number in range(self.number)]
            if noted["key"] == self.key and all(map(checksum_matches, paths)):
                return layer
        except (ExamError, TypeError, ValueError):
            pass
        log.warning("layers: %s holds no whole states of these questions", self.folder)
        return None

    def _path(self, number: int, layer: int) -> Path:
        return self.folder / f"states-{layer:03d}-{number:06d}.safetensors"

    def get(self, number: int, layer: int) -> dict[str, Tensor]:
        """A batch's states in front of a layer."""
        return load_file(self._path(number, layer)) if self.on_disk else self.held[number]

    def put(self, number: int, layer: int, states: dict[str, Tensor]) -> None:
        """Keep a batch's states in front of a layer."""
        if self.on_disk:
            self._save(number, layer, states)
        else:
            self.held[number] = states

    def whole(self, layer: int) -> None:
        """All batches stand in front of this layer."""
        if not self.on_disk:
            if time.monotonic() - self.time < NOTED_EVERY:
                return
            for number, states in self.held.items():
                self._save(number, layer, states)
            self.time = time.monotonic()
        write_json(self.folder / STATE, {"key": self.key, "layer": layer})
        for path in self.folder.glob("states-*.safetensors"):
            if not path.name.startswith(f"states-{layer:03d}-"):
                path.unlink()

    def _save(self, number: int, layer: int, states: dict[str, Tensor]) -> None:
        data = save({name: value.contiguous() for name, value in states.items()})
        with write_with_checksum(self._path(number, layer)) as temporary:
            temporary.write_bytes(data)
