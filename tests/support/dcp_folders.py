"""DCP folders that torch itself writes and reads, with any chunks, in one process."""

import itertools
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import (
    filesystem,
    metadata,
    planner,
    state_dict_loader,
    state_dict_saver,
)
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.dcp.metadata import read_metadata

Box = tuple[tuple[int, ...], tuple[int, ...]]

# The dtypes a weight, an optimizer state or a buffer can have.
DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


def grid(shape: Sequence[int], parts: Sequence[int]) -> list[Box]:
    """The boxes of a regular grid of so many parts per dimension."""
    boxes: list[Box] = [((), ())]
    for size, count in zip(shape, parts, strict=True):
        cuts = [size * part // count for part in range(count + 1)]
        spans = list(itertools.pairwise(cuts))
        boxes = [
            ((*at, start), (*sizes, end - start)) for at, sizes in boxes for start, end in spans
        ]
    return boxes


def cut(tensor: torch.Tensor, box: Box) -> torch.Tensor:
    """A view of the box."""
    return tensor[tuple(slice(at, at + size) for at, size in zip(*box, strict=True))]


def random_tensor(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Any bits at all (but a bool has only two values)."""
    itemsize = torch.empty(0, dtype=dtype).element_size()
    data = torch.randint(0, 256, (*shape, itemsize), dtype=torch.uint8)
    return data[..., 0] < 128 if dtype == torch.bool else data.view(dtype).reshape(tuple(shape))


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


class _Save(DefaultSavePlanner):
    """Save tensors in the boxes given for them; collections as one item each, unless flattened."""

    def __init__(self, boxes: Mapping[str, list[Box]], flatten: bool) -> None:
        super().__init__(flatten_state_dict=flatten, flatten_sharded_tensors=flatten)
        self.boxes = boxes

    def create_local_plan(self) -> planner.SavePlan:
        plan = super().create_local_plan()
        items = []
        for item in plan.items:
            name, data = item.index.fqn, item.tensor_data
            if data is None:
                items.append(item)
                continue
            whole = ((0,) * len(data.size), tuple(data.size))
            for number, (offsets, sizes) in enumerate(self.boxes.get(name, [whole])):
                chunk = metadata.ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
                write = planner.TensorWriteData(chunk, data.properties, data.size)
                index = metadata.MetadataIndex(name, offsets, number)
                kind = planner.WriteItemType.SHARD
                items.append(planner.WriteItem(index, kind, tensor_data=write))
        self.plan = planner.SavePlan(items, planner_data=plan.planner_data)
        return self.plan

    def resolve_data(self, write_item: planner.WriteItem) -> Any:
        if write_item.tensor_data is None:
            return super().resolve_data(write_item)
        chunk = write_item.tensor_data.chunk
        whole = self.state_dict[write_item.index.fqn]
        return cut(whole, (tuple(chunk.offsets), tuple(chunk.sizes))).clone()


class _Load(DefaultLoadPlanner):
    """Fill the tensors with the boxes given for them."""

    def __init__(self, boxes: Mapping[str, Box]) -> None:
        super().__init__()
        self.boxes = boxes

    def create_local_plan(self) -> planner.LoadPlan:
        assert self.metadata is not None
        items = []
        for name, (offsets, sizes) in self.boxes.items():
            chunk = metadata.ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
            facts = self.metadata.state_dict_metadata[name]
            assert isinstance(facts, metadata.TensorStorageMetadata)
            items += create_read_items_for_chunk_list(name, facts, [chunk])
        return planner.LoadPlan(items)

    def resolve_tensor(self, read_item: planner.ReadItem) -> torch.Tensor:
        target = self.state_dict[read_item.dest_index.fqn]
        return cut(target, (tuple(read_item.dest_offsets), tuple(read_item.lengths)))


def save(
    folder: Path,
    state: dict[str, Any],
    boxes: Mapping[str, list[Box]] | None = None,
    files: int = 1,
    flatten: bool = True,
) -> Path:
    """Let torch save ``state`` in these chunks (whole tensors else), in so many files or more.

    ``flatten`` makes an item of everything in a list or dict, as torch does and megatron-core does
    not.
    """
    writer = filesystem.FileSystemWriter(folder, thread_count=files, sync_files=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is only this process
        state_dict_saver.save(
            state, storage_writer=writer, planner=_Save(boxes or {}, flatten), no_dist=True
        )
    return folder


def load(folder: Path, state: dict[str, Any], boxes: Mapping[str, Box] | None = None) -> None:
    """Let torch load into ``state``: whole, or into each tensor the box that is given for it."""
    how = DefaultLoadPlanner() if boxes is None else _Load(boxes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state_dict_loader.load(
            state, storage_reader=filesystem.FileSystemReader(folder), planner=how, no_dist=True
        )


class Run:
    """What pickles as the call of a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def refused(folder: Path, found: str) -> BadCheckpointError:
    with pytest.raises(BadCheckpointError, match=re.escape(found) or ".") as caught:
        read_metadata(folder)
    assert caught.value.message.startswith(f"{folder / '.metadata'}: ")
    assert caught.value.hint
    return caught.value
