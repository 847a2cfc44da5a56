"""Opening a checkpoint, wherever it is, and looking at it: its model, its layout, its tensors."""

from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

import numpy as np

from flmgrow.errors import UsageError
from flmgrow.formats.checkpoint import Checkpoint, HubOrigin, ReadOptions
from flmgrow.formats.history.manifest import manifest_of, masks_of
from flmgrow.formats.history.manifest_value import Manifest
from flmgrow.formats.layout.placements import Layout
from flmgrow.formats.opening import open_checkpoint, with_optimizer
from flmgrow.formats.reading import LogicalReader
from flmgrow.given import ReadOptionsGiven
from flmgrow.hub.names import hub_name, is_on_hub
from flmgrow.model.arrays import Array
from flmgrow.model.axes import Box, full_box
from flmgrow.model.config import ModelConfig
from flmgrow.model.masks import Dimension, Mask
from flmgrow.model.states import State
from flmgrow.model.tensors import parameter_count
from flmgrow.storage.remote.addresses import is_remote
from flmgrow.storage.remote.path import open_folder
from flmgrow.text import Setting, Text


@dataclass(frozen=True, eq=False)
class LogicalArray:
    """Values of a logical tensor: ``axes`` name the dimensions of ``values``, in order."""

    name: str
    axes: tuple[str, ...]
    values: Array

    @property
    def shape(self) -> dict[str, int]:
        """The size of every axis."""
        return dict(zip(self.axes, self.values.shape, strict=True))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self.values, dtype=dtype, copy=copy)


class Source:
    """An opened checkpoint of any format. Closed by ``close``, or by leaving ``with``."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    @property
    def path(self) -> Path:
        """The checkpoint's root folder."""
        return self.checkpoint.path

    @property
    def hub(self) -> HubOrigin | None:
        """The place on the Hub that it was fetched from; None for a folder or an object store."""
        return self.checkpoint.hub

    @property
    def format(self) -> str:
        """``megatron``, ``torch_dist``, ``fsdp_dtensor`` or ``huggingface``."""
        return self.checkpoint.format

    @property
    def model(self) -> ModelConfig:
        """What the model computes: sizes, norm, activation, positions, multipliers."""
        return self.checkpoint.config

    @property
    def layout(self) -> Layout:
        """Tensor, pipeline and virtual pipeline sizes, and which chunk has which layers."""
        return self.checkpoint.layout

    @property
    def iteration(self) -> int | None:
        """The iteration it was saved at; None for a release, or where none are counted."""
        return self.checkpoint.iteration

    @property
    def dtype(self) -> str:
        """The dtype of the weights."""
        return self.checkpoint.dtype

    @property
    def parameters(self) -> int:
        """The number of parameters, without the vocabulary's padding."""
        return parameter_count(self.checkpoint.config)

    @property
    def masks(self) -> dict[Dimension, Mask]:
        """The masks of a growth that is not finished, by dimension."""
        return dict(masks_of(self.checkpoint))

    @property
    def manifest(self) -> Manifest | None:
        """What ``flmgrow.json`` says; None if there is none."""
        return manifest_of(self.checkpoint)

    @property
    def notes(self) -> tuple[str, ...]:
        """How it was read, where that is not plain from its files."""
        return self.checkpoint.notes

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of its logical tensors."""
        return tuple(self.checkpoint.reader.tensors)

    def tensor(self, name: str, layer: int | None = None, state: str = "weight") -> LogicalArray:
        """Return a logical tensor, or one layer of it, as it is stored.

        ``state`` is ``weight``, or ``master``, ``exp_avg`` or ``exp_avg_sq`` of the optimizer. A
        vocabulary is returned without its padding; a gain that is stored around zero is returned
        so.

        Raises:
            UsageError: For a tensor, layer or state that the checkpoint does not have.
        """
        reader = self._reader(state)
        if name not in reader.tensors:
            raise UsageError(
                f"tensor {name!r}: {self.path} has none", f"one of {', '.join(self.tensors)}"
            )
        tensor = reader.tensors[name]
        axes = tuple(str(axis) for axis in tensor.axes)
        box = full_box(tensor.shape(self.model.sizes))
        if layer is None:
            return LogicalArray(name, axes, reader.read(name, box))
        if not tensor.layered or not 0 <= layer < self.model.layers:
            raise UsageError(
                f"tensor {name!r}: has no layer {layer}",
                f"the model has {self.model.layers} layers, counted from 0"
                if tensor.layered
                else "it belongs to no layer",
            )
        box = Box(((layer, layer + 1), *box.ranges[1:]))
        return LogicalArray(name, axes[1:], reader.read(name, box)[0])

    def _reader(self, state: str) -> LogicalReader:
        found = self.checkpoint
        if state != State.WEIGHT and not found.state_readers:
            found = self.checkpoint = with_optimizer(found)
        readers = {str(kind): reader for kind, reader in found.readers.items()}
        if state not in readers:
            raise UsageError(f"state {state!r}: not in {self.path}", f"one of {', '.join(readers)}")
        return readers[state]

    def close(self) -> None:
        """Close all files."""
        self.checkpoint.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_options(**options: Unpack[ReadOptionsGiven]) -> ReadOptions:
    """Return what ``options`` say about a source."""
    return ReadOptions(
        ignored_arguments=tuple(options.get("ignore_arguments", ())),
        ignored_fields=tuple(options.get("ignore_fields", ())),
        max_positions=options.get("max_position_embeddings"),
        untie=options.get("untie"),
        true_vocab=options.get("true_vocab_size"),
        fused=is_fused(options.get("transformer_impl", "transformer_engine")),
        given_arguments=options.get("set_arguments", {}),
    )


def local_folder(path: Path) -> tuple[Path, HubOrigin | None]:
    """Return the folder that ``path`` stands for: fetched first if it is on the Hub, looked through
    if it is in an object store.
    """
    if is_remote(path):
        return open_folder(path), None
    if not is_on_hub(path):
        return path, None
    from flmgrow.hub.reading import fetch

    return fetch(hub_name(path))


def is_fused(implementation: str) -> bool:
    """Whether a layer spec of Megatron's fuses norms into the projections behind them."""
    known = {"transformer_engine": True, "local": False}
    if implementation not in known:
        found = Text(Setting("transformer_impl"), f" {implementation}: unknown")
        raise UsageError(found, " or ".join(known))
    return known[implementation]


def opened(path: Path, iteration: int | None, options: ReadOptions) -> Checkpoint:
    """Open the checkpoint at ``path``, fetched first if it is on the Hub."""
    folder, origin = local_folder(path)
    return replace(open_checkpoint(folder, iteration, options), hub=origin)


def opened_source(path: Path, result: Checkpoint, options: ReadOptions) -> Checkpoint:
    """Open a source as it was read when ``result`` was made from it, or with the arguments that
    ``options`` give.

    Those that the manifest of ``result`` records are of this source only if its digest is the one
    recorded there; any other source is opened as it stands.
    """
    manifest = manifest_of(result)
    if options.given_arguments or manifest is None or not manifest.source.arguments:
        return opened(path, None, options)
    source = opened(path, None, replace(options, given_arguments=manifest.source.arguments))
    if manifest.source.digest == source.contents.digest():
        return source
    source.close()
    return opened(path, None, options)
