"""Describing an ``fsdp_dtensor`` checkpoint before any weight is touched.

Megatron-FSDP cuts the parameters of a layer into as many equal shares as it has ranks, each a few
rows of a few arrays. torch loads an array in whatever cuts it was saved, but reads a chunk whole
even where a rank wants one row of it. So arrays are cut into chunks of some megabytes: a run of any
size then reads little that is not its own. There is a file for each layer (of each tensor rank),
and one for all that is of no layer: many workers write at once, an interrupted run loses a layer,
and ranks that load do not all wait for one file.

What is written is what megatron-core 0.16 to 0.19 ask for (``load_checkpoint`` of Megatron-LM, and
``DistributedOptimizer.sharded_param_state_fsdp_dtensor``): the main weights as the model's, states
and settings of every parameter, and Adam's steps both as torch's Adam and as Transformer Engine's
looks for them.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from flmgrow.errors import UsageError
from flmgrow.formats.checkpoint import (
    WITHOUT_OPTIMIZER,
    Checkpoint,
    Dropped,
    OptimizerState,
    TargetModel,
)
from flmgrow.formats.dcp.writer import NewChunk, NewObject
from flmgrow.formats.layout.chunks import chunks_of, cut_rows, whole_placement, without_copies
from flmgrow.formats.layout.lags import has_state, lag_of, with_state
from flmgrow.formats.layout.placements import Placement, placements
from flmgrow.formats.megatron.arguments.run_rows import FSDP_DTENSOR
from flmgrow.formats.megatron.carried import carried_content, dropped_content
from flmgrow.formats.megatron.content import EXTRA_STATE
from flmgrow.formats.megatron.folders import folder_name
from flmgrow.formats.megatron.fsdp_dtensor.names import SCHEDULE, StoredNames
from flmgrow.formats.megatron.param_groups import by_group
from flmgrow.formats.megatron.torch_dist.integrity import INTEGRITY, encode_integrity
from flmgrow.formats.megatron.torch_dist.pieces import halves_of
from flmgrow.formats.megatron.torch_dist.shards import DcpShard, Entry, listed_items
from flmgrow.formats.tables.gpt import ROWS
from flmgrow.formats.tables.row import Home
from flmgrow.formats.targets import PlannedFile, TargetArray, TargetBytes, TargetSums
from flmgrow.model.axes import Axis, Sizes
from flmgrow.model.states import MOMENTS, State
from flmgrow.model.tensors import logical_tensors
from flmgrow.text import Setting, Text

CHUNK_ELEMENTS = 4 << 20
"""The most elements of a chunk, 16 MiB in float32; more only where a group of heads has more."""

_MAIN = "float32"
_STEP = "step"
_WAYS_OUT = Text(Setting("format", "torch_dist"), " holds it; ", WITHOUT_OPTIMIZER)


@dataclass(frozen=True)
class _Kept:
    """What is kept of parameters: a state, its dtype, and what it is called; None for a weight."""

    state: State
    dtype: str
    called: str | None = None


@dataclass(frozen=True)
class _Parameter:
    """A parameter as it is stored: the key it has as an array, and what one tensor rank has."""

    key: str
    placement: Placement

    @property
    def shard(self) -> tuple[int, int]:
        """The file that it is in: the number of its layer (0 for none, then 1), its rank."""
        layered = self.placement.row.home is Home.LAYER
        layer = self.placement.ranges[Axis.LAYER][0] + 1 if layered else 0
        return layer, self.placement.tensor_rank

    def whole(self, sizes: Sizes) -> tuple[int, ...]:
        """Return the shape of the array, of all tensor ranks."""
        return whole_placement(self.placement.row, self.placement.parts, sizes).shape

    def chunks(self, sizes: Sizes) -> Iterator[tuple[Placement, tuple[int, ...], tuple[int, ...]]]:
        """Yield the chunks that the rank's part of it is cut into: (placement, offsets, sizes)."""
        for chunk, offsets, _ in chunks_of(self.placement, sizes):
            layered = int(self.placement.row.home is Home.LAYER)
            yield from cut_rows(chunk, offsets[layered:], CHUNK_ELEMENTS)


def fsdp_dropped(source: Checkpoint, target: TargetModel) -> list[Dropped]:
    """Return what of the source's carried content the target will not have."""
    found = [own for own in dropped_content(source, target) if EXTRA_STATE not in own.name]
    if EXTRA_STATE in source.carried:
        found.append(Dropped(EXTRA_STATE, f"Megatron-FSDP keeps none in {FSDP_DTENSOR}"))
    return found


def fsdp_files(source: Checkpoint, target: TargetModel) -> list[PlannedFile]:
    """Return every file of the target checkpoint, described but not produced.

    Raises:
        UsageError: For a layout that Megatron-FSDP cannot save, and for an optimizer that it cannot
            hold.
    """
    _refuse_stages(target)
    dtype = target.dtype or source.dtype
    names = StoredNames(dtype != _MAIN)
    sizes = {**target.config.sizes, Axis.VOCAB: target.padded_vocab}
    wanted = placements(ROWS, logical_tensors(target.config), sizes, target.layout, source.fused)
    own = list(without_copies(wanted))
    entries: dict[tuple[int, int], list[Entry]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for kept in _kept(dtype, target.optimizer):
        for parameter in _stored(own, kept, target.optimizer):
            key = parameter.key
            name = names.state(key, kept.called) if kept.called else names.weight(key)
            shapes[name] = parameter.whole(sizes)
            entries.setdefault(parameter.shard, []).extend(
                (
                    NewChunk(name, kept.dtype, offsets, extents),
                    TargetArray.alone(chunk, kept.dtype, kept.state),
                )
                for chunk, offsets, extents in parameter.chunks(sizes)
            )
    first = entries[min(entries)]
    if target.optimizer is not None:
        steps = list(_steps(own, target.optimizer, names))
        shapes |= {item.name: () for item, _ in steps}
        first += steps
        first += [(item, None) for item in _settings(own, target.optimizer, names)]
    first += [(item, None) for item in _once(source, target)]
    return _files(folder_name(source.iteration), entries, shapes)


def _files(
    folder: str,
    entries: Mapping[tuple[int, int], Sequence[Entry]],
    shapes: Mapping[str, tuple[int, ...]],
) -> list[PlannedFile]:
    shards = [
        DcpShard(f"{folder}/__{number}_0.distcp", tuple(entries[place]))
        for number, place in enumerate(sorted(entries))
    ]
    listing = TargetBytes(f"{folder}/.metadata", listed_items(shards, shapes))
    files: list[PlannedFile] = [*shards, listing]
    listed = tuple(file.path for file in files)
    return [*files, TargetSums(f"{folder}/{INTEGRITY}", listed, encode_integrity)]


def _refuse_stages(target: TargetModel) -> None:
    layout = target.layout
    for setting, size in (("pp", layout.pp), ("vpp", layout.vpp)):
        if size > 1:
            raise UsageError(
                Text(Setting(setting), f" {size}: {FSDP_DTENSOR} has no pipeline stages"),
                Text(
                    "Megatron-FSDP numbers the layers of each stage from 0, so they overwrite one "
                    "another; write ",
                    Setting("pp", 1),
                    ", or another format",
                ),
            )


def _kept(dtype: str, optimizer: OptimizerState | None) -> list[_Kept]:
    """Return the states that the checkpoint shall hold, the weights first: an optimizer's masters
    are the weights of such a checkpoint.

    Raises:
        UsageError: For an optimizer of which something would be lost.
    """
    if optimizer is None:
        return [_Kept(State.WEIGHT, dtype)]
    main = optimizer.dtypes.get(State.MASTER)
    if main is None and dtype != _MAIN:
        raise UsageError(
            f"the optimizer has no {_MAIN} masters of its {dtype} weights: {FSDP_DTENSOR} has a "
            "place for masters alone",
            _WAYS_OUT,
        )
    if optimizer.other:
        held = ", ".join(map(str, optimizer.other))
        raise UsageError(
            f"the optimizer holds {held}: {FSDP_DTENSOR} has no place for it", _WAYS_OUT
        )
    weights = _Kept(State.MASTER, main) if main else _Kept(State.WEIGHT, dtype)
    return [weights, *(_Kept(kind, optimizer.dtypes[kind], str(kind)) for kind in MOMENTS)]


def _stored(
    own: Sequence[Placement], kept: _Kept, optimizer: OptimizerState | None
) -> Iterator[_Parameter]:
    """Yield every parameter that is kept, the halves of a fused pair apart."""
    for placement in own:
        if kept.called is None or optimizer is None or has_state(placement, optimizer.lags):
            yield from _apart(placement)


def _apart(placement: Placement) -> list[_Parameter]:
    apart = halves_of(placement.key, placement) or [(placement.key, placement)]
    return [_Parameter(key, part) for key, part in apart]


def _once_each(own: Sequence[Placement], optimizer: OptimizerState) -> list[_Parameter]:
    """Return the parameters with a state, each once and whole."""
    first = (_Parameter(p.key, p) for p in own if not p.tensor_rank)
    return with_state(first, optimizer.lags)


def _steps(
    own: Sequence[Placement], optimizer: OptimizerState, names: StoredNames
) -> Iterator[tuple[NewChunk, bytes]]:
    """Yield what torch's Adam counts, for every array that has moments."""
    for parameter in _once_each(own, optimizer):
        lag = lag_of(parameter.placement, optimizer.lags) or 0
        counted = struct.pack("<f", optimizer.step_count - lag)
        for part in _apart(parameter.placement):
            yield NewChunk(names.state(part.key, _STEP), _MAIN, (), ()), counted


def _settings(
    own: Sequence[Placement], optimizer: OptimizerState, names: StoredNames
) -> Iterator[NewObject]:
    """Yield every setting of every parameter, Transformer Engine's count of steps among them.

    Raises:
        UsageError: For settings of no parameter.
    """
    grouped = by_group(optimizer.groups, _once_each(own, optimizer))
    for group, members in zip(optimizer.groups, grouped, strict=True):
        if not members:
            raise UsageError(
                f"a param group has no parameters: {FSDP_DTENSOR} has settings of parameters alone",
                _WAYS_OUT,
            )
        settings = {**group, _STEP: optimizer.step_count}
        for parameter in members:
            for name, value in settings.items():
                yield NewObject(names.setting(parameter.key, str(name)), value)


def _once(source: Checkpoint, target: TargetModel) -> Iterator[NewObject]:
    """Yield what all ranks share, as the items that torch makes of it."""
    content = carried_content(source, target, {"optimizer": None})
    for key, value in content.items():
        if key == SCHEDULE and isinstance(value, Mapping):
            yield from (NewObject(f"{SCHEDULE}.{name}", inner) for name, inner in value.items())
        elif key != "optimizer":
            yield NewObject(str(key), value)
