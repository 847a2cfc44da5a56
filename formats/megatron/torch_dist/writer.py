"""Describing a distributed checkpoint (``torch_dist``) before any weight is touched.

Every target rank gets a shard with its own chunks, so that a run in the target layout reads few
bytes that are not its own; what ranks share is written once. A common part carries what is no
tensor of the model, and ``.metadata``, which makes the folder a checkpoint, follows from the
shards' plans. The form is that of megatron-core 0.16 to 0.18, or that of 0.19; ``integrity.json``
is 0.19's in either, as older ones pass over it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

from flmgrow.formats.checkpoint import Checkpoint, TargetModel
from flmgrow.formats.dcp.writer import NewChunk, NewObject
from flmgrow.formats.layout.chunks import chunks_of, whole_placement, without_copies
from flmgrow.formats.layout.lags import Lags, has_state
from flmgrow.formats.layout.placements import Placement, placements
from flmgrow.formats.megatron.carried import carried_content, extra_states
from flmgrow.formats.megatron.folders import folder_name
from flmgrow.formats.megatron.torch_dist.common import COMMON, COMMON_STATE
from flmgrow.formats.megatron.torch_dist.integrity import INTEGRITY, encode_integrity
from flmgrow.formats.megatron.torch_dist.objects import LAYERS
from flmgrow.formats.megatron.torch_dist.optimizer import (
    common_entry,
    content_entry,
    state_prefixes,
)
from flmgrow.formats.megatron.torch_dist.pieces import layers_with_state
from flmgrow.formats.megatron.torch_dist.shards import DcpShard, Entry, listed_items
from flmgrow.formats.tables.gpt import ROWS
from flmgrow.formats.tables.row import Home
from flmgrow.formats.targets import (
    PlannedFile,
    TargetArray,
    TargetBytes,
    TargetFile,
    TargetSums,
)
from flmgrow.model.axes import Axis, Sizes
from flmgrow.model.states import State
from flmgrow.model.tensors import logical_tensors

CONTENT: dict[object, object] = {
    "singleton_local_shards": False,
    "chained_optim_avoid_prefix": True,
}
"""What megatron-core's loader is told about the sharded content: its own values."""

_SHARDED: dict[str, object] = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
BACKENDS: dict[str, dict[str, object]] = {
    "0.16": {**_SHARDED, "common_backend": "torch", "common_backend_version": 1},
    "0.19": _SHARDED,
}
"""What ``metadata.json`` says, by the first megatron-core that writes it so."""

VERSIONS = tuple(BACKENDS)


def _name(placement: Placement) -> str:
    return placement.row.name(fused=True).replace("{layer}.", "")


def _global_shape(placement: Placement, sizes: Sizes) -> tuple[int, ...]:
    whole = whole_placement(placement.row, placement.parts, sizes)
    return (sizes[Axis.LAYER], *whole.shape) if placement.row.home is Home.LAYER else whole.shape


def _objects(source: Checkpoint, target: TargetModel) -> Iterator[NewObject]:
    """Yield every ``_extra_state``; a layer's comes from its donor in the source.

    megatron-core's GPT has none of the output layer, which holds nothing.
    """
    for key, value in extra_states(source).items():
        if not key.startswith(LAYERS):
            if value is not None or not key.startswith("output_layer."):
                yield NewObject(f"{key}/shard_0_1", [value])
            continue
        number, _, rest = key.removeprefix(LAYERS).partition(".")
        for layer, donor in enumerate(target.donors):
            if donor == int(number):
                yield NewObject(f"{LAYERS}{rest}/shard_{layer}_{len(target.donors)}", [value])


class _Array(NamedTuple):
    """A tensor of the checkpoint: its name, and its shape."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Kept:
    """What is kept of every parameter, but for those without a state by ``lags``: the name's
    beginning, and the dtype.
    """

    state: State
    prefix: str
    dtype: str
    lags: Lags = field(default_factory=dict)

    def holds(self, placement: Placement) -> bool:
        """Whether anything is kept of a parameter."""
        return has_state(placement, self.lags)

    def array_of(self, placement: Placement, sizes: Sizes) -> _Array:
        """Return what a parameter is in: all layers together; each alone if some have no state."""
        stacked = _global_shape(placement, sizes)
        if placement.row.home is Home.LAYER and self.lags:
            whole = whole_placement(placement.row, placement.parts, sizes)
            if len(layers_with_state(whole, sizes, self.lags)) < sizes[Axis.LAYER]:
                (layer,) = {layer for _, layer in placement.slices}
                name = placement.row.name(fused=True).format(layer=layer)
                return _Array(self.prefix + name, stacked[1:])
        return _Array(self.prefix + _name(placement), stacked)


def _kept(source: Checkpoint, target: TargetModel) -> list[_Kept]:
    """Return the states the checkpoint shall hold, the weights first."""
    weights = _Kept(State.WEIGHT, "", target.dtype or source.dtype)
    optimizer = target.optimizer
    if optimizer is None:
        return [weights]
    prefixes = state_prefixes(optimizer)
    return [
        weights,
        *(_Kept(s, prefixes[s], dtype, optimizer.lags) for s, dtype in optimizer.dtypes.items()),
    ]


def _backend(target: TargetModel) -> Mapping[str, object]:
    return BACKENDS[target.torch_dist_version or VERSIONS[0]]


def _common(source: Checkpoint, target: TargetModel) -> tuple[list[NewObject], list[TargetFile]]:
    """Return the common part, as an object for the first shard or as a file beside it."""
    optimizer = target.optimizer
    rebuilt = {} if optimizer is None else {"optimizer": common_entry(optimizer)}
    carried = carried_content(source, target, rebuilt)
    content = {**carried, "content_metadata": {**CONTENT, **content_entry(optimizer)}}
    if "common_backend" in _backend(target):
        return [], [TargetFile(f"{folder_name(source.iteration)}/{COMMON}", content, ())]
    return [NewObject(COMMON_STATE, [content])], []


def _shards(
    source: Checkpoint,
    target: TargetModel,
    kept: Sequence[_Kept],
    wanted: Sequence[Placement],
    sizes: Sizes,
    common: Sequence[NewObject],
) -> list[DcpShard]:
    """Return one shard per target rank, or one for each of its replicas that writes; the first has
    the objects as well.
    """
    folder = folder_name(source.iteration)
    entries: dict[tuple[int, int], list[Entry]] = {(0, 0): []}
    numbers = {rank: number for number, rank in enumerate(target.layout.ranks)}
    for own, placement in product(kept, wanted):
        if not own.holds(placement):
            continue
        shard = entries.setdefault((numbers[placement.rank], target.replica_of(placement)), [])
        array = own.array_of(placement, sizes)
        for chunk, offsets, extents in chunks_of(placement, sizes):
            start = len(offsets) - len(array.shape)  # of a layer alone, behind its number
            item = NewChunk(array.name, own.dtype, offsets[start:], extents[start:])
            shard.append((item, TargetArray.alone(chunk, own.dtype, own.state)))
    entries[0, 0] += [(item, None) for item in (*_objects(source, target), *common)]
    return [
        DcpShard(f"{folder}/__{number}_{replica}.distcp", tuple(own))
        for (number, replica), own in sorted(entries.items(), key=lambda one: one[0])
        if own
    ]


def torch_dist_files(source: Checkpoint, target: TargetModel) -> list[PlannedFile]:
    """Return every file of the target checkpoint, described but not produced.

    Raises:
        UsageError: For a layout the model cannot take.
    """
    sizes = {**target.config.sizes, Axis.VOCAB: target.padded_vocab}
    everything = placements(ROWS, logical_tensors(target.config), sizes, target.layout, fused=True)
    wanted = list(without_copies(everything))
    kept = _kept(source, target)
    objects, beside = _common(source, target)
    shards = _shards(source, target, kept, wanted, sizes, objects)
    arrays = (k.array_of(p, sizes) for k, p in product(kept, wanted) if k.holds(p))
    shapes = {array.name: array.shape for array in arrays}
    folder = folder_name(source.iteration)
    files: list[PlannedFile] = [
        *shards,
        *beside,
        TargetBytes(f"{folder}/metadata.json", json.dumps(_backend(target)).encode()),
        TargetBytes(f"{folder}/.metadata", listed_items(shards, shapes)),
    ]
    listed = tuple(file.path for file in files)
    return [*files, TargetSums(f"{folder}/{INTEGRITY}", listed, encode_integrity)]
