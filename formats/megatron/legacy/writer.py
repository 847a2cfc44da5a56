"""Describing the legacy Megatron files of a new checkpoint, before any weight is touched.

Each target rank's file is a copy of a source rank's content, with the arguments brought up to date,
the state dicts rebuilt for the new model and layout, and everything else carried unchanged. The
weights in it are records whose bytes are still to be produced; sizes and offsets follow from shapes
alone.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from flmgrow.formats.checkpoint import Checkpoint, OptimizerState, TargetModel
from flmgrow.formats.layout.lags import lag_of, with_state
from flmgrow.formats.layout.placements import Placement, placements
from flmgrow.formats.megatron.carried import (
    chunk_extra_states,
    dropped,
    extra_states,
    keeps_tensor_ranks,
    rebuilt_content,
    source_chunk_states,
    target_arguments,
)
from flmgrow.formats.megatron.content import arguments_in, chunk_key
from flmgrow.formats.megatron.distributed import distributed_entry, flat_content
from flmgrow.formats.megatron.folders import DISTRIBUTED, folder_name, rank_path
from flmgrow.formats.megatron.gradient_buffers import BucketRule
from flmgrow.formats.megatron.legacy.adam import MASTERS
from flmgrow.formats.megatron.param_groups import by_group
from flmgrow.formats.megatron.rank_contents import rank_content
from flmgrow.formats.tables.gpt import ROWS
from flmgrow.formats.tables.row import Home
from flmgrow.formats.targets import TargetArray, TargetFile
from flmgrow.formats.torch_file.file_writer import new_scalar, new_tensor
from flmgrow.formats.torch_file.values import (
    OrderedMap,
    TensorRecord,
)
from flmgrow.model.axes import Axis
from flmgrow.model.states import MOMENTS, State
from flmgrow.model.tensors import logical_tensors

_LAYER_NUMBER = re.compile(r"\.\d+\.")


class _OptimizerBuilder:
    """Builds the optimizer state of one target rank, and lists the arrays in it."""

    def __init__(self, state: OptimizerState, weights: Sequence[TargetArray]) -> None:
        self.state = state
        self.grouped = by_group(state.groups, with_state(weights, state.lags))
        self.arrays: list[TargetArray] = []

    def _record(self, weight: TargetArray, state: State) -> TensorRecord:
        dtype = self.state.dtypes[state]
        record = new_tensor(dtype, weight.placement.shape)
        self.arrays.append(TargetArray(weight.placement, dtype, record.storage, state))
        return record

    def _step(self, weight: TargetArray) -> object:
        """Return a step count of its own: shared, it would be counted up once per parameter."""
        step = self.state.step
        if lag := lag_of(weight.placement, self.state.lags):
            return new_scalar(self.state.step_count - lag)
        if isinstance(step, TensorRecord):
            return replace(step, storage=replace(step.storage))
        return step

    def content(self) -> dict[object, object]:
        """Return the rank's ``optimizer`` entry."""
        entries: dict[object, object] = {}
        groups: list[object] = []
        for group, members in zip(self.state.groups, self.grouped, strict=True):
            numbers = range(len(entries), len(entries) + len(members))
            groups.append({**group, "params": list(numbers)})
            for number, weight in zip(numbers, members, strict=True):
                moments = {str(kind): self._record(weight, kind) for kind in MOMENTS}
                step = {} if self.state.step is None else {"step": self._step(weight)}
                entries[number] = {**step, **moments}
        inner: dict[object, object] = {"state": entries, "param_groups": groups}
        if not self.state.mixed_precision:
            return inner
        masters = [[self._record(w, State.MASTER) for w in members] for members in self.grouped]
        return {"optimizer": inner, **self.state.other, MASTERS: masters}


def _module_positions(source: Checkpoint) -> dict[str, int]:
    """Return the place of every key among the source's modules, with layer numbers left out."""
    positions: dict[str, int] = {}
    for _, _, state in source_chunk_states(source):
        for key in state:
            positions.setdefault(_LAYER_NUMBER.sub(".", str(key)), len(positions))
    return positions


def _in_module_order(
    placements: Sequence[Placement], positions: Mapping[str, int]
) -> list[Placement]:
    """Sort one chunk's placements as its modules hold them: optimizers count parameters so."""
    sections = {Home.FIRST: 0, Home.LAYER: 1}

    def place(placement: Placement) -> tuple[int, int, int]:
        layer = placement.ranges[Axis.LAYER][0] if placement.row.home is Home.LAYER else 0
        key = _LAYER_NUMBER.sub(".", placement.key)
        return sections.get(placement.row.home, 2), layer, positions.get(key, len(positions))

    return sorted(placements, key=place)


def target_files(source: Checkpoint, target: TargetModel) -> list[TargetFile]:
    """Return every file of the target checkpoint, described but not produced.

    Raises:
        UsageError: For a layout that the model cannot take.
    """
    tensors = logical_tensors(target.config)
    sizes = {**target.config.sizes, Axis.VOCAB: target.padded_vocab}
    wanted = placements(ROWS, tensors, sizes, target.layout, source.fused)
    kept = keeps_tensor_ranks(source, target.layout, target.format)
    states = [extra_states(source, rank if kept else 0) for rank in range(target.layout.tp)]
    positions = _module_positions(source)
    left_out = dropped(source, target)
    by_rank: dict[tuple[int, int], list[Placement]] = {rank: [] for rank in target.layout.ranks}
    for placement in wanted:
        by_rank[placement.rank].append(placement)
    files = []
    for (tensor, pipeline), owned in by_rank.items():
        same = tensor < source.layout.tp and pipeline < source.layout.pp
        template = rank_content(source, (tensor, pipeline) if same else (0, 0))
        chunks: dict[str, OrderedMap] = {}
        arrays = []
        for chunk in range(target.layout.vpp):
            state = OrderedMap()
            chunks[chunk_key(chunk, target.layout)] = state
            inside = [placement for placement in owned if placement.chunk == chunk]
            for placement in _in_module_order(inside, positions):
                dtype = target.dtype or source.dtype
                record: TensorRecord = new_tensor(dtype, placement.shape)
                state[placement.key] = record
                arrays.append(TargetArray(placement, dtype, record.storage))
            state.update(chunk_extra_states(states[tensor], target, pipeline, chunk))
        rebuilt = {"args": target_arguments(template, target)}
        folder = folder_name(source.iteration)
        optimizer = target.optimizer
        if optimizer is not None and optimizer.gradient_dtype is not None:
            rebuilt["optimizer"] = distributed_entry(optimizer)
            split = target.config.tied and target.layout.pp > 1
            cut = BucketRule(arguments_in(template, "the source"), split)
            flat, inside_it = flat_content(optimizer, with_state(arrays, optimizer.lags), cut)
            path = rank_path(target.layout, folder, tensor, pipeline, DISTRIBUTED)
            files.append(TargetFile(path, flat, tuple(inside_it)))
        elif optimizer is not None:
            builder = _OptimizerBuilder(optimizer, arrays)
            rebuilt["optimizer"] = builder.content()
            arrays += builder.arrays
        root = rebuilt_content(source, template, rebuilt, chunks, left_out)
        path = rank_path(target.layout, folder, tensor, pipeline)
        files.append(TargetFile(path, root, tuple(arrays)))
    return files
