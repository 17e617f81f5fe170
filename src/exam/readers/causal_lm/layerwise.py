"""A model larger than memory, one layer at a time: weights stay on disk, questions pass through.

Every layer is read once and used for all batches, while the next one is read. A batch's keys and
values live for one layer only: its prefixes fill them, its endings use them, and they are gone.
One long class, because all of it works on the single layer that is on the device.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from exam.core.errors import ExamError
from exam.core.files import read_object
from exam.core.logging import progress_bar
from exam.core.security import escapes_directory
from exam.readers.causal_lm.scoring import Batch, Hidden, Tensor, hidden_states, logits_of
from exam.readers.causal_lm.states import States

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class Layerwise:
    """A causal language model whose layers are on `device` one after the other."""

    def __init__(
        self,
        folder: Path,
        config: Any,
        dtype: torch.dtype,
        device: torch.device,
        work: Path,
        memory: int,
    ) -> None:
        """Make the model without weights.

        `memory` bytes of hidden states stay in memory; beyond that they are files below `work`.

        Raises:
            ExamError: the family does not keep its layers where every other does.
        """
        from accelerate import init_empty_weights
        from transformers import AutoModelForCausalLM

        if getattr(config, "quantization_config", None) is not None:
            raise ExamError(
                "The checkpoint is quantized, and model.weights_location=layerwise reads weights "
                "as they "
                "are.\nChoose model.weights_location=memory, or a checkpoint that is not."
            )
        factory: Any = AutoModelForCausalLM
        with init_empty_weights(include_buffers=False):
            self.model: Any = factory.from_config(config, dtype=dtype).eval()
        base = self.model.base_model
        if not all(hasattr(base, name) for name in ("embed_tokens", "layers", "norm")):
            raise ExamError(
                f"A {config.model_type} model does not name its layers as this execution needs "
                "(embed_tokens, layers, norm).\nChoose model.weights_location=offload."
            )
        self.base, self.dtype, self.device = base, dtype, device
        self._check_family(config)
        self.places = {module: name for name, module in self.model.named_modules()}
        self.files = _tensor_files(folder)
        self.work, self.memory = work, memory
        self.of_head: Any = None  # which tokens' rows of the head are there

    @torch.inference_mode()
    def _check_family(self, config: Any) -> None:
        """Refuse a family that changes what enters its first layer, outside of its layers."""
        states = torch.ones(1, 1, int(config.hidden_size), dtype=self.dtype, device=self.device)
        with self._alone(None):
            found = self.base(inputs_embeds=states, use_cache=False).last_hidden_state
        if not torch.equal(found, states):
            raise ExamError(
                f"A {config.model_type} model changes the embeddings outside of its layers, which "
                "this execution does not follow.\nChoose model.weights_location=offload."
            )

    # Weights.

    def _read(self, module: nn.Module, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """A module's weights from disk, copied into `found`, so that no file stays mapped.

        What is there already is written over: memory that is taken and given back for every layer
        would not all be given back.
        """
        for own, name in self._names(module).items():
            with safe_open(self.files[name], framework="pt") as file:
                weight = file.get_tensor(name)
            if own not in found or found[own].shape != weight.shape:
                found[own] = torch.empty(weight.shape, dtype=self.dtype)
            found[own].copy_(weight)
            del weight
        return found

    def _put_rows(self, module: nn.Module, tokens: list[int] | None) -> None:
        """A vocabulary's weights, of some tokens or all: it may be larger than a layer."""
        for own, name in self._names(module).items():
            with safe_open(self.files[name], framework="pt") as file:
                rows = file.get_slice(name)
                parts = [slice(None)] if tokens is None else [slice(t, t + 1) for t in tokens]
                found = torch.cat([rows[part] for part in parts])
            weight = nn.Parameter(found.to(self.device, self.dtype), requires_grad=False)
            setattr(module, own, weight)

    def _names(self, module: nn.Module) -> dict[str, str]:
        """A module's parameters, and what the checkpoint calls them."""
        place = self.places[module]
        wanted = {name: f"{place}.{name}" for name, _ in module.named_parameters()}
        tied = (
            module is self.model.get_output_embeddings() and self.model.config.tie_word_embeddings
        )
        if tied and wanted["weight"] not in self.files:
            wanted["weight"] = f"{self.places[self.base.embed_tokens]}.weight"
        missing = [name for name in wanted.values() if name not in self.files]
        if missing:
            raise ExamError(
                f"The checkpoint has no tensor {missing[0]}: it names its weights otherwise than "
                "the library does.\nChoose model.weights_location=offload."
            )
        return wanted

    def _put(self, module: nn.Module, weights: dict[str, Tensor]) -> None:
        own = {name: value.to(self.device) for name, value in weights.items()}
        module.load_state_dict(own, strict=False, assign=True)

    # Running.

    @torch.inference_mode()
    def run(self, batches: Sequence[Batch]) -> Iterator[Hidden]:
        """Each batch's states; an interrupted run goes on at the last layer that was noted."""
        size = self._size(batches)
        states = States(self.work, batches, self.memory, size, str(self.dtype))
        if states.layer is None:
            self._embed(batches, states)
        self._through(batches, states, states.layer or 0)
        self._put(self.base.norm, self._read(self.base.norm, {}))
        for number in range(len(batches)):
            found = states.get(number, len(self.base.layers))
            last = self.base.norm(found["prefix"][:, -1].to(self.device))
            endings = found.get("endings", last.new_empty((0, last.shape[-1])))
            yield Hidden(last, self.base.norm(endings.to(self.device)))

    def _through(self, batches: Sequence[Batch], states: States, first: int) -> None:
        """All batches through all layers from the first; the next one is read meanwhile."""
        layers = list(self.base.layers)
        held: tuple[dict[str, Tensor], ...] = ({}, {})  # of the layer at work, and of the next
        with ThreadPoolExecutor(1) as reader:

            def ahead(place: int) -> list[Any]:
                own = layers[place : place + 1]
                return [reader.submit(self._read, layer, held[place % 2]) for layer in own]

            waiting = ahead(first)
            with progress_bar("layers", len(layers), "layers") as bar:
                bar.update(first)
                for place in range(first, len(layers)):
                    weights = waiting.pop().result()
                    waiting = ahead(place + 1)
                    self._put(layers[place], weights)
                    with self._alone(place):
                        for number, batch in enumerate(batches):
                            after = self._layer(place, batch, states.get(number, place))
                            states.put(number, place + 1, after)
                    _drop(layers[place])
                    states.whole(place + 1)
                    bar.update()

    @torch.inference_mode()
    def head(self, hidden: Tensor, tokens: list[int] | None = None) -> Tensor:
        """See `Runner`."""
        head: Any = self.model.get_output_embeddings()
        if self.of_head != (tokens,):
            self._put_rows(head, tokens)
            self.of_head = (tokens,)
        return logits_of(self.model, hidden)

    def _size(self, batches: Sequence[Batch]) -> int:
        """Bytes of all batches' hidden states."""
        tokens = sum(batch.prefix.numel() + batch.endings.numel() for batch in batches)
        return tokens * int(self.model.config.hidden_size) * self.dtype.itemsize

    def _embed(self, batches: Sequence[Batch], states: States) -> None:
        """All batches' states in front of the first layer."""
        embed = self.base.embed_tokens
        parts = [ids for batch in batches for ids in (batch.prefix, batch.endings)]
        used = torch.unique(torch.cat([ids.flatten() for ids in parts]))
        self._put_rows(embed, used.tolist())
        embed.padding_idx = None  # a place in the whole vocabulary; it matters to gradients alone

        def embedded(ids: Tensor) -> Tensor:
            found: Tensor = embed(torch.searchsorted(used, ids).to(self.device)).cpu()
            return found

        for number, batch in enumerate(batches):
            own = {"prefix": embedded(batch.prefix)}
            if batch.repeats:
                own["endings"] = embedded(batch.endings)
            states.put(number, 0, own)
        _drop(embed)
        states.whole(0)

    def _layer(self, place: int, batch: Batch, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch's states behind one layer.

        The library's own forward makes masks and positions; all other layers let through what
        they are given.
        """
        from transformers import DynamicCache

        cache: Any = DynamicCache(config=self.base.config)
        cache.layers = [cache.layers[place]] * len(cache.layers)  # masks are sized by any of them
        order: list[str] = [name for name in ("prefix", "endings") if name in found]
        inputs = {name: {"inputs_embeds": found[name]} for name in order}
        done = hidden_states(self.base, batch, inputs, cache, self.device)
        return {name: own.cpu() for name, own in done.items()}

    @contextmanager
    def _alone(self, place: int | None) -> Iterator[None]:
        """The model with one layer, or none, and without its last norm."""
        kept = self.base.layers, self.base.norm
        layers = [own if n == place else _Through() for n, own in enumerate(kept[0])]
        self.base.layers, self.base.norm = nn.ModuleList(layers), nn.Identity()
        try:
            yield
        finally:
            self.base.layers, self.base.norm = kept


def _drop(module: nn.Module) -> None:
    """Forget a module's weights, and no buffers: those are not read again."""
    gone = {name: torch.empty_like(own, device="meta") for name, own in module.named_parameters()}
    module.load_state_dict(gone, strict=False, assign=True)


class _Through(nn.Module):
    """Stands for a layer that is elsewhere."""

    def forward(self, hidden: Tensor, **_: Any) -> Tensor:
        """Give the states back as they are."""
        return hidden


def _tensor_files(folder: Path) -> dict[str, Path]:
    """Which file of a checkpoint holds each tensor.

    Raises:
        ExamError: the folder holds no safetensors.
    """
    if (folder / INDEX).is_file():
        found = read_object(folder / INDEX, "weight_map")["weight_map"]
        for file in found.values() if isinstance(found, dict) else [found]:
            named = isinstance(file, str) and not escapes_directory(file)
            if not named or Path(file).suffix != ".safetensors" or not (folder / file).is_file():
                raise ExamError(f"{folder / INDEX} names {file!r}, which is no file beside it.")
        return {name: folder / file for name, file in found.items()}
    if (folder / SINGLE).is_file():
        with safe_open(folder / SINGLE, framework="pt") as file:
            return dict.fromkeys(file.keys(), folder / SINGLE)
    raise ExamError(
        f"{folder} holds no weights in safetensors.\n"
        "Layer by layer reads those alone: convert the checkpoint, or choose another."
    )
