"""Run a model larger than memory one layer at a time; its weights stay on disk.

Each layer is read once and used for all batches, while the next one loads. A batch's keys and
values live for one layer only: its prefixes fill them, and its suffixes use them.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import nn

from exam.core.errors import ExamError
from exam.core.files import checksum_matches, digest, read_object, write_json, write_with_checksum
from exam.core.logging import progress_bar
from exam.core.security import escapes_directory
from exam.readers.causal_lm.scoring import (
    Batch,
    Hidden,
    Tensor,
    compute_hidden_states,
    compute_logits,
)

log = logging.getLogger(__name__)

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
STATE = "state.json"
SAVE_INTERVAL = 60.0  # seconds between saves of states that are kept in memory


class States:
    """Every batch's hidden states before a layer, in memory or on disk.

    Those in memory are saved once a minute, so that an interrupted run can resume. The files stay:
    the caller removes them with its work folder.
    """

    def __init__(
        self, folder: Path, batches: Sequence[Batch], memory: int, size: int, dtype: str
    ) -> None:
        """Resume from the states in `folder`, if an interrupted run saved them for these batches.

        States of `size` bytes are kept on disk if they exceed `memory` bytes.
        """
        self.folder, self.on_disk = folder, size > memory
        self.in_memory: dict[int, dict[str, Tensor]] = {}
        self.saved_at = time.monotonic()
        self.key = digest(
            [dtype, *([b.rows, b.prefix.tolist(), b.suffixes.tolist()] for b in batches)]
        )
        folder.mkdir(parents=True, exist_ok=True)
        self.layer = self._read_layer(len(batches))
        if self.layer is not None:
            log.info("layers: resuming after layer %d", self.layer)
            if not self.on_disk:
                paths = [self._path(number, self.layer) for number in range(len(batches))]
                self.in_memory = dict(enumerate(map(load_file, paths)))
        where = "on disk" if self.on_disk else "in memory"
        log.info("layers: %.1f MiB of states, %s", size / 2**20, where)

    def _read_layer(self, number: int) -> int | None:
        """Return the layer before which the saved states stand; None without valid states."""
        if not (self.folder / STATE).is_file():
            return None
        try:
            record = read_object(self.folder / STATE, "key", "layer")
            layer = int(record["layer"])
            paths = [self._path(batch, layer) for batch in range(number)]
            if record["key"] == self.key and all(map(checksum_matches, paths)):
                return layer
        except (ExamError, TypeError, ValueError):
            pass
        log.warning("layers: %s has no complete states of these questions", self.folder)
        return None

    def _path(self, number: int, layer: int) -> Path:
        return self.folder / f"states-{layer:03d}-{number:06d}.safetensors"

    def get(self, number: int, layer: int) -> dict[str, Tensor]:
        """Return a batch's states before a layer."""
        return load_file(self._path(number, layer)) if self.on_disk else self.in_memory[number]

    def put(self, number: int, layer: int, states: dict[str, Tensor]) -> None:
        """Keep a batch's states before a layer."""
        if self.on_disk:
            self._save(number, layer, states)
        else:
            self.in_memory[number] = states

    def mark_complete(self, layer: int) -> None:
        """Record that all batches' states before a layer exist; delete those of earlier layers."""
        if not self.on_disk:
            if time.monotonic() - self.saved_at < SAVE_INTERVAL:
                return
            for number, states in self.in_memory.items():
                self._save(number, layer, states)
            self.saved_at = time.monotonic()
        write_json(self.folder / STATE, {"key": self.key, "layer": layer})
        for path in self.folder.glob("states-*.safetensors"):
            if not path.name.startswith(f"states-{layer:03d}-"):
                path.unlink()

    def _save(self, number: int, layer: int, states: dict[str, Tensor]) -> None:
        data = save({name: value.contiguous() for name, value in states.items()})
        with write_with_checksum(self._path(number, layer)) as temporary:
            temporary.write_bytes(data)


class Layerwise:
    """A causal language model with one layer at a time on `device`."""

    def __init__(
        self,
        folder: Path,
        config: Any,
        dtype: torch.dtype,
        device: torch.device,
        work: Path,
        memory: int,
    ) -> None:
        """Build the model without weights.

        Up to `memory` bytes of hidden states stay in memory; more go to files below `work`.

        Raises:
            ExamError: the checkpoint is quantized, or its family cannot run layer by layer.
        """
        from accelerate import init_empty_weights
        from transformers import AutoModelForCausalLM

        if getattr(config, "quantization_config", None) is not None:
            raise ExamError(
                "The checkpoint is quantized, and model.weights_location=layerwise does not unpack "
                "weights.\nSet model.weights_location=memory, or choose an unquantized checkpoint."
            )
        factory: Any = AutoModelForCausalLM
        with init_empty_weights(include_buffers=False):
            self.model: Any = factory.from_config(config, dtype=dtype).eval()
        base = self.model.base_model
        if not all(hasattr(base, name) for name in ("embed_tokens", "layers", "norm")):
            raise ExamError(
                f"A {config.model_type} model lacks a name that model.weights_location=layerwise "
                "needs (embed_tokens, layers, norm).\nSet model.weights_location=offload"
            )
        self.base, self.dtype, self.device = base, dtype, device
        self._check_family(config)
        self.paths = {module: name for name, module in self.model.named_modules()}
        self.files = _map_tensors(folder)
        self.work, self.memory = work, memory
        self.head_tokens: Any = None  # in a tuple: the tokens whose rows of the head are loaded

    @torch.inference_mode()
    def _check_family(self, config: Any) -> None:
        """Refuse a family that changes embeddings before its first layer."""
        states = torch.ones(1, 1, int(config.hidden_size), dtype=self.dtype, device=self.device)
        with self._only_layer(None):
            unchanged = self.base(inputs_embeds=states, use_cache=False).last_hidden_state
        if not torch.equal(unchanged, states):
            raise ExamError(
                f"A {config.model_type} model changes the embeddings outside of its layers, which "
                "model.weights_location=layerwise skips.\nSet model.weights_location=offload"
            )

    # Weights.

    def _read(self, module: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Read a module's weights into the tensors of `weights`; no file stays mapped.

        Overwriting the tensors avoids memory that the allocator would not return between layers.
        """
        for name, tensor in self._tensor_names(module).items():
            with safe_open(self.files[tensor], framework="pt") as file:
                weight = file.get_tensor(tensor)
            if name not in weights or weights[name].shape != weight.shape:
                weights[name] = torch.empty(weight.shape, dtype=self.dtype)
            weights[name].copy_(weight)
            del weight
        return weights

    def _load_rows(self, module: nn.Module, tokens: list[int] | None) -> None:
        """Load a vocabulary's weights, of some tokens or all: it may be larger than a layer."""
        for name, tensor in self._tensor_names(module).items():
            with safe_open(self.files[tensor], framework="pt") as file:
                rows = file.get_slice(tensor)
                parts = [slice(None)] if tokens is None else [slice(t, t + 1) for t in tokens]
                values = torch.cat([rows[part] for part in parts])
            weight = nn.Parameter(values.to(self.device, self.dtype), requires_grad=False)
            setattr(module, name, weight)

    def _tensor_names(self, module: nn.Module) -> dict[str, str]:
        """Return the checkpoint's name of each of a module's parameters."""
        path = self.paths[module]
        names = {name: f"{path}.{name}" for name, _ in module.named_parameters()}
        is_head = module is self.model.get_output_embeddings()
        is_tied = is_head and self.model.config.tie_word_embeddings
        if is_tied and names["weight"] not in self.files:
            names["weight"] = f"{self.paths[self.base.embed_tokens]}.weight"
        missing = [name for name in names.values() if name not in self.files]
        if missing:
            raise ExamError(
                f"The checkpoint has no tensor {missing[0]}, as transformers names it.\n"
                "Set model.weights_location=offload"
            )
        return names

    def _assign(self, module: nn.Module, weights: dict[str, Tensor]) -> None:
        on_device = {name: value.to(self.device) for name, value in weights.items()}
        module.load_state_dict(on_device, strict=False, assign=True)

    # Running.

    @torch.inference_mode()
    def run(self, batches: Sequence[Batch]) -> Iterator[Hidden]:
        """Yield each batch's hidden states; an interrupted run resumes at the last saved layer."""
        tokens = sum(batch.prefix.numel() + batch.suffixes.numel() for batch in batches)
        size = tokens * int(self.model.config.hidden_size) * self.dtype.itemsize
        states = States(self.work, batches, self.memory, size, str(self.dtype))
        if states.layer is None:
            self._embed(batches, states)
        layers, first = list(self.base.layers), states.layer or 0
        with progress_bar("layers", len(layers), "layers") as bar:
            bar.update(first)
            numbers = range(first, len(layers))
            for number, weights in zip(numbers, self._read_ahead(layers[first:]), strict=False):
                self._assign(layers[number], weights)
                with self._only_layer(number):
                    for row, batch in enumerate(batches):
                        output = self._forward_layer(number, batch, states.get(row, number))
                        states.put(row, number + 1, output)
                _drop_weights(layers[number])
                states.mark_complete(number + 1)
                bar.update()
        self._assign(self.base.norm, self._read(self.base.norm, {}))
        for number in range(len(batches)):
            final = states.get(number, len(layers))
            last = self.base.norm(final["prefix"][:, -1].to(self.device))
            suffixes = final.get("suffixes", last.new_empty((0, last.shape[-1])))
            yield Hidden(last, self.base.norm(suffixes.to(self.device)))

    def _read_ahead(self, layers: list[nn.Module]) -> Iterator[dict[str, Tensor]]:
        """Yield each layer's weights, and read the next layer's meanwhile."""
        buffers: tuple[dict[str, Tensor], ...] = ({}, {})  # of the current and the next layer
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(self._read, layers[0], buffers[0])
            for number, layer in enumerate(layers[1:], start=1):
                weights = reading.result()
                reading = pool.submit(self._read, layer, buffers[number % 2])
                yield weights
            yield reading.result()

    @torch.inference_mode()
    def head(self, hidden: Tensor, tokens: list[int] | None = None) -> Tensor:
        """Return fp32 logits; see `Runner`."""
        if self.head_tokens != (tokens,):
            self._load_rows(self.model.get_output_embeddings(), tokens)
            self.head_tokens = (tokens,)
        return compute_logits(self.model, hidden)  # of the rows that are loaded

    def _embed(self, batches: Sequence[Batch], states: States) -> None:
        """Compute all batches' states before the first layer."""
        embed = self.base.embed_tokens
        parts = [ids.flatten() for batch in batches for ids in batch.ids.values()]
        used = torch.unique(torch.cat(parts))
        self._load_rows(embed, used.tolist())
        embed.padding_idx = None  # a row of the whole vocabulary; only gradients depend on it
        for number, batch in enumerate(batches):
            rows = {k: torch.searchsorted(used, ids) for k, ids in batch.ids.items()}
            states.put(number, 0, {k: embed(ids.to(self.device)).cpu() for k, ids in rows.items()})
        _drop_weights(embed)
        states.mark_complete(0)

    def _forward_layer(
        self, number: int, batch: Batch, states: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return a batch's states after a layer.

        The library's forward pass builds masks and positions; `Passthrough` replaces other layers.
        """
        from transformers import DynamicCache

        cache: Any = DynamicCache(config=self.base.config)
        cache.layers = [cache.layers[number]] * len(cache.layers)  # any of them sizes the masks
        inputs = {name: states[name] for name in batch.ids}  # a file does not keep their order
        output = compute_hidden_states(self.base, batch, inputs, cache, self.device)
        return {name: value.cpu() for name, value in output.items()}

    @contextmanager
    def _only_layer(self, number: int | None) -> Iterator[None]:
        """Replace all layers but one (None: all layers), and the last norm, by identities."""
        layers, norm = self.base.layers, self.base.norm
        kept = [layer if n == number else Passthrough() for n, layer in enumerate(layers)]
        self.base.layers, self.base.norm = nn.ModuleList(kept), nn.Identity()
        try:
            yield
        finally:
            self.base.layers, self.base.norm = layers, norm


def _drop_weights(module: nn.Module) -> None:
    """Free a module's weights, but not its buffers, which are not read again."""
    empty = {name: torch.empty_like(w, device="meta") for name, w in module.named_parameters()}
    module.load_state_dict(empty, strict=False, assign=True)


class Passthrough(nn.Module):
    """Replaces a layer that is not loaded."""

    def forward(self, hidden: Tensor, **_: Any) -> Tensor:
        """Return the states unchanged."""
        return hidden


def _map_tensors(folder: Path) -> dict[str, Path]:
    """Return the file of each tensor; refuse an index that names files outside of the folder."""
    index = folder / INDEX
    if index.is_file():
        files = read_object(index, "weight_map")["weight_map"]
        for file in files.values() if isinstance(files, dict) else [files]:
            is_weights = isinstance(file, str) and file.endswith(".safetensors")
            if not is_weights or escapes_directory(file) or not (folder / file).is_file():
                raise ExamError(
                    f"{index} names {file!r}, which is not a safetensors file in its folder.\n"
                    "Copy the checkpoint again."
                )
        return {name: folder / file for name, file in files.items()}
    if (folder / SINGLE).is_file():
        with safe_open(folder / SINGLE, framework="pt") as file:
            return dict.fromkeys(file.keys(), folder / SINGLE)
    raise ExamError(
        f"{folder} has no weights in safetensors, which model.weights_location=layerwise needs.\n"
        "Convert the checkpoint, or choose another."
    )
