"""Adam's state in an ``fsdp_dtensor`` checkpoint.

Each parameter has its moments, cut as its weight is, and, where torch's own Adam counts, its step.
The weights themselves are the masters. Param groups are not stored: every parameter has the
settings of its group, each an item by itself (``DistributedOptimizer``,
``sharded_param_state_fsdp_dtensor`` in megatron-core 0.16 to 0.19).
"""

import re
from collections.abc import Iterable, Mapping

from flmgrow.errors import BadCheckpointError, UsageError
from flmgrow.formats.checkpoint import WITHOUT_OPTIMIZER, Checkpoint, OptimizerState
from flmgrow.formats.layout.lags import Lags, lag_of
from flmgrow.formats.megatron.fsdp_dtensor.names import fused_key, setting_of
from flmgrow.formats.megatron.gradient_buffers import BELONG
from flmgrow.formats.megatron.torch_dist.contents import DistFolder
from flmgrow.formats.megatron.torch_dist.objects import is_of_optimizer, unread_state
from flmgrow.formats.megatron.torch_dist.optimizer import gradient_dtype, with_states
from flmgrow.formats.megatron.torch_dist.pieces import find_pieces, of_halves
from flmgrow.formats.pieces import Piece
from flmgrow.formats.torch_file.file import scalar
from flmgrow.model.axes import Axis
from flmgrow.model.states import MOMENTS, State
from flmgrow.text import Found, Text

_STATE = "optimizer.state."
_COUNT = f"{_STATE}step."
_KNOWN = re.compile(r"optimizer\.state\.(exp_avg|exp_avg_sq|step)\..+", re.DOTALL)
_MAIN = "float32"
_STEP = "step"

Settings = dict[object, object]


def with_fsdp_states(checkpoint: Checkpoint, contents: DistFolder, lags: Lags) -> Checkpoint:
    """Return ``checkpoint`` with the optimizer state in ``contents`` found.

    ``lags`` say which parameters have less of it, or none.

    Raises:
        BadCheckpointError: If it does not fit the weights.
        UsageError: If it is of a kind that is not read.
    """
    for name, tensor in contents.metadata.tensors.items():
        if is_of_optimizer(name) and not _KNOWN.fullmatch(name):
            raise unread_state(contents.folder, tensor.name)
    tensors, sizes = checkpoint.reader.tensors, checkpoint.stored_sizes
    prefixes = {State.MASTER: ""} | {moment: f"{_STATE}{moment}." for moment in MOMENTS}
    pieces = {
        state: find_pieces(contents, tensors, sizes, prefix, lags)
        for state, prefix in prefixes.items()
    }
    _check_masters(pieces[State.MASTER])
    found = OptimizerState(
        groups=_groups(contents, _lags_by_key(pieces[State.EXP_AVG], lags)),
        step=None,
        mixed_precision=checkpoint.dtype != _MAIN,
        gradient_dtype=gradient_dtype(contents, checkpoint.dtype),
        lags=lags,
    )
    return with_states(checkpoint, contents, pieces, found)


def _check_masters(weights: list[Piece]) -> None:
    for piece in weights:
        if piece.dtype != _MAIN:
            raise UsageError(
                f"{piece}: weights of {piece.dtype} are the optimizer's own, without {_MAIN} "
                "masters, which is not read",
                WITHOUT_OPTIMIZER,
            )


def _groups(contents: DistFolder, lags: Mapping[str, int]) -> tuple[Settings, ...]:
    """Return the param groups, in the order in which the model's parameters first name them.

    ``lags`` say by key of which parameters less steps were counted.

    Raises:
        BadCheckpointError: If there are none, or parameters have counted differently.
    """
    settings: dict[str, Settings] = {}
    for name, item in contents.metadata.objects.items():
        if setting := setting_of(name):
            key, name_of = setting
            settings.setdefault(key, {})[name_of] = contents.open_object(item)
    if not settings:
        raise BadCheckpointError(
            "optimizer: has no param_to_group_meta", BELONG, where=contents.folder
        )
    groups: list[Settings] = []
    for key in _in_order(contents, settings):
        if settings[key] not in groups:
            groups.append(settings[key])
    step = _step(contents, lags)
    if step is not None:
        return tuple({**group, _STEP: step} for group in groups)
    if not all(_STEP in group for group in groups):
        raise BadCheckpointError("optimizer: has no step", BELONG, where=contents.folder)
    return tuple(groups)


def _in_order(contents: DistFolder, settings: dict[str, Settings]) -> list[str]:
    """Return the parameters in the order of the model's modules."""
    keys = (key for chunks in contents.models.values() for own in chunks.values() for key in own)
    places = {fused_key(key): place for place, key in enumerate(keys)}
    return sorted(settings, key=lambda key: places.get(key, len(places)))


def _lags_by_key(pieces: Iterable[Piece], lags: Lags) -> dict[str, int]:
    """Return the lag of each parameter that has one, by its key with the layer's number."""
    placements = [piece.placement for piece in pieces if lags]
    return {p.key.format(layer=p.ranges[Axis.LAYER][0]): lag_of(p, lags) or 0 for p in placements}


def _step(contents: DistFolder, lags: Mapping[str, int]) -> int | None:
    """Return what torch's Adam has counted, or would have without its lag, for every parameter
    alike; None if it has not.
    """
    first: tuple[str, float] | None = None
    for name, tensor in contents.metadata.tensors.items():
        if not name.startswith(_COUNT):
            continue
        (chunk,) = tensor.chunks
        _, record = contents.items.open_item(tensor.name, tensor.dtype, chunk)
        count = scalar(record) + lags.get(of_halves(name.removeprefix(_COUNT)), 0)
        if first is not None and first[1] != count:
            raise BadCheckpointError(
                Text("counts ", Found(f"{count:g} steps")),
                Text(BELONG, "; ", WITHOUT_OPTIMIZER),
                where=(contents.folder, tensor.name),
                wanted=f"{first[1]:g} as {first[0]}",
            )
        first = first or (tensor.name, count)
    return None if first is None else int(first[1])
