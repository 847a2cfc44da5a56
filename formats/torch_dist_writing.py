"""Describing a distributed checkpoint (``torch_dist``) before any weight is touched.

Every target rank gets a shard with its own chunks, so that a run in the target layout reads few
bytes that are not its own; what ranks share is written once. ``common.pt`` carries what is no
tensor of the model, and ``.metadata``, which makes the folder a checkpoint, follows from the
shards' plans. The form is that of megatron-core 0.16 to 0.18.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from flmgrow.errors import UsageError
from flmgrow.formats.checkpoint import Checkpoint, TargetModel
from flmgrow.formats.chunks import chunks_of, whole_placement
from flmgrow.formats.dcp_metadata import DcpChunk, DcpObject, DcpTensor
from flmgrow.formats.dcp_writing import DcpFilePlan, NewChunk, NewObject, metadata_bytes
from flmgrow.formats.files import Bytes
from flmgrow.formats.layout import Placement, placements
from flmgrow.formats.megatron_writing import carried_content, extra_states, folder_name
from flmgrow.formats.tables.gpt import ROWS
from flmgrow.formats.tables.row import Home
from flmgrow.formats.targets import Fill, TargetArray, TargetBytes, TargetFile
from flmgrow.formats.torch_dist_contents import COMMON, LAYERS
from flmgrow.formats.torch_zip import new_tensor
from flmgrow.model.axes import Axis, Sizes
from flmgrow.model.tensors import logical_tensors

CONTENT: dict[object, object] = {
    "singleton_local_shards": False,
    "chained_optim_avoid_prefix": True,
}
"""What megatron-core's loader is told about the sharded content: its own values."""

BACKEND = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}

Item = NewChunk | NewObject


@dataclass(frozen=True, eq=False)
class TargetShard:
    """A shard to be written: its path, its items in order, and the array behind each chunk."""

    path: str
    items: tuple[Item, ...]
    behind: tuple[TargetArray | None, ...]

    @property
    def arrays(self) -> tuple[TargetArray, ...]:
        """The arrays in it, in order."""
        return tuple(array for array in self.behind if array is not None)

    @cached_property
    def plan(self) -> DcpFilePlan:
        """Where each item will lie."""
        return DcpFilePlan(self.path.rpartition("/")[2], self.items)

    @property
    def total_size(self) -> int:
        """Its size in bytes."""
        return self.plan.total_size

    def produce(self, write: Callable[[Bytes], object], fill: Fill) -> None:
        """Write it from front to back."""
        writer = self.plan.writer(write)
        for item, array in zip(self.items, self.behind, strict=True):
            if isinstance(item, NewChunk) and array is not None:
                writer.write_chunk(item, fill(array.storage, [array]))
            elif isinstance(item, NewObject):
                writer.write_object(item)
        writer.finish()


def _name(placement: Placement) -> str:
    return placement.row.name(fused=True).replace("{layer}.", "")


def _global_shape(placement: Placement, sizes: Sizes) -> tuple[int, ...]:
    whole = whole_placement(placement.row, placement.parts, sizes)
    return (sizes[Axis.LAYER], *whole.shape) if placement.row.home is Home.LAYER else whole.shape


def _without_copies(wanted: Sequence[Placement]) -> Iterator[Placement]:
    """Leave out what an earlier rank has, too, and the tied copy of the embedding."""
    seen = set()
    for placement in wanted:
        key = (placement.row.key, tuple(placement.ranges.items()))
        if placement.row.home is not Home.LAST_COPY and key not in seen:
            seen.add(key)
            yield placement


def _objects(source: Checkpoint, target: TargetModel) -> Iterator[NewObject]:
    """Yield the layers' ``_extra_state``, each layer's from its donor in the source."""
    for key, value in extra_states(source).items():
        number, _, rest = key.removeprefix(LAYERS).partition(".")
        for layer, donor in enumerate(target.donors):
            if key.startswith(LAYERS) and donor == int(number):
                yield NewObject(f"{LAYERS}{rest}/shard_{layer}_{len(target.donors)}", [value])


def _shards(
    source: Checkpoint, target: TargetModel, wanted: Sequence[Placement], sizes: Sizes, dtype: str
) -> list[TargetShard]:
    """Return one shard per target rank; the first has the objects as well."""
    folder = folder_name(source.iteration)
    items: dict[tuple[int, int], list[Item]] = {rank: [] for rank in target.layout.ranks}
    behind: dict[tuple[int, int], list[TargetArray | None]] = {rank: [] for rank in items}
    for placement in _without_copies(wanted):
        rank = (placement.tensor_rank, placement.pipeline_rank)
        for chunk, offsets, extents in chunks_of(placement, sizes):
            items[rank].append(NewChunk(_name(placement), dtype, offsets, extents))
            behind[rank].append(TargetArray(chunk, dtype, new_tensor(dtype, extents).storage))
    for item in _objects(source, target):
        items[0, 0].append(item)
        behind[0, 0].append(None)
    return [
        TargetShard(f"{folder}/__{n}_0.distcp", tuple(items[rank]), tuple(behind[rank]))
        for n, rank in enumerate(items)
        if items[rank]
    ]


def _metadata(
    shards: Sequence[TargetShard], shapes: Mapping[str, tuple[int, ...]], dtype: str
) -> bytes:
    """Return ``.metadata``: every tensor with its chunks, every object with its place."""
    chunks: dict[str, list[DcpChunk]] = {name: [] for name in shapes}
    objects = []
    for shard in shards:
        for item, placed in zip(shard.items, shard.plan.placed, strict=True):
            if isinstance(placed, DcpObject):
                objects.append(placed)
            else:
                chunks[item.name].append(placed)
    tensors = [DcpTensor(name, dtype, shapes[name], tuple(own)) for name, own in chunks.items()]
    return metadata_bytes(tensors, objects)


def torch_dist_files(
    source: Checkpoint, target: TargetModel
) -> list[TargetFile | TargetShard | TargetBytes]:
    """Return every file of the target checkpoint, described but not produced.

    Raises UsageError for a layout the model cannot take, and for optimizer state.
    """
    if target.optimizer is not None:
        raise UsageError(
            "optimizer state cannot be written as torch_dist yet",
            "pass --no-optimizer, or write --format megatron",
        )
    sizes = {**target.config.sizes, Axis.VOCAB: target.padded_vocab}
    wanted = placements(ROWS, logical_tensors(target.config), sizes, target.layout, fused=True)
    dtype = target.dtype or source.dtype
    shards = _shards(source, target, wanted, sizes, dtype)
    shapes = {_name(p): _global_shape(p, sizes) for p in _without_copies(wanted)}
    folder = folder_name(source.iteration)
    common = {**carried_content(source, target), "content_metadata": CONTENT}
    return [
        *shards,
        TargetFile(f"{folder}/{COMMON}", common, ()),
        TargetBytes(f"{folder}/metadata.json", json.dumps(BACKEND).encode()),
        TargetBytes(f"{folder}/.metadata", _metadata(shards, shapes, dtype)),
    ]
