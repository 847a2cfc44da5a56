"""The optimizer state of a distributed checkpoint: arrays like the parameters', under names of
their own.

``optimizer.state.exp_avg.KEY`` and so on have the shape and the chunks of parameter ``KEY``:
megatron-core writes a non-distributed optimizer so, and a distributed one if it is told to be fully
reshardable, or with megatron-core up to 0.14 in local shards; param groups and steps then lie in
the common part. Today's default for the latter are flat buffers bound to one layout: see
:mod:`flmgrow.formats.megatron.torch_dist.buckets` and
:mod:`flmgrow.formats.megatron.torch_dist.gathered`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.checkpoint import Checkpoint, OptimizerState
from flmgrow.formats.layout.lags import Lags
from flmgrow.formats.megatron.arguments.mup_rows import is_native
from flmgrow.formats.megatron.content import arguments_in
from flmgrow.formats.megatron.gradient_buffers import BELONG
from flmgrow.formats.megatron.stand_ins import stand_ins
from flmgrow.formats.megatron.torch_dist.buckets import has_buckets, read_buckets
from flmgrow.formats.megatron.torch_dist.contents import DistFolder, param_groups
from flmgrow.formats.megatron.torch_dist.gathered import is_gathered, read_gathered
from flmgrow.formats.megatron.torch_dist.objects import is_of_optimizer, unread_state
from flmgrow.formats.megatron.torch_dist.pieces import find_pieces
from flmgrow.formats.megatron.torch_dist.ranks import SHARDING
from flmgrow.formats.pieces import Piece
from flmgrow.formats.reading import LogicalReader
from flmgrow.model.states import MOMENTS, State
from flmgrow.text import Found, Text

_ENTRY = re.compile(r"optimizer\.state\.(param|fp32_param|exp_avg|exp_avg_sq)\..+")
_STATE = "optimizer.state."
_MASTERS = {True: "param", False: "fp32_param"}
_RESHARDABLE = "fully_reshardable"
_STEP = "common_step"


def _prefix(state: State, distributed: bool) -> str:
    name = _MASTERS[distributed] if state is State.MASTER else state
    return f"{_STATE}{name}."


def state_prefixes(optimizer: OptimizerState) -> dict[State, str]:
    """Return what stands before a parameter's key in the name of each of its states."""
    distributed = optimizer.gradient_dtype is not None
    return {state: _prefix(state, distributed) for state in optimizer.dtypes}


def common_entry(optimizer: OptimizerState) -> dict[object, object]:
    """Return the ``optimizer`` of a new ``common.pt``: groups, steps, and what is carried."""
    inner: dict[object, object] = {"param_groups": list(optimizer.groups)}
    if optimizer.gradient_dtype is not None:
        return {"optimizer": inner, **optimizer.other, SHARDING: _RESHARDABLE}
    inner = {"state": {} if optimizer.step is None else {_STEP: optimizer.step}, **inner}
    return {"optimizer": inner, **optimizer.other} if optimizer.mixed_precision else inner


def content_entry(optimizer: OptimizerState | None) -> dict[object, object]:
    """Return what megatron-core's loader must be told about a distributed optimizer's content."""
    if optimizer is None or optimizer.gradient_dtype is None:
        return {}
    return {"distrib_optim_sharding_type": _RESHARDABLE}


def gradient_dtype(contents: DistFolder, weights: str) -> str:
    """Return the dtype of gradients that the args say of a model with such ``weights``."""
    arguments = arguments_in(contents.root, contents.where)
    wide = arguments.get("accumulate_allreduce_grads_in_fp32")
    return "float32" if wide or weights == "float32" else weights


def _check_names(contents: DistFolder) -> None:
    for name in contents.metadata.tensors:
        if is_of_optimizer(name) and not _ENTRY.fullmatch(name):
            raise unread_state(contents.folder, name)


def _state(contents: DistFolder, weights: str) -> OptimizerState:
    """Return what the common part says of the optimizer of a model with such ``weights``."""
    where = contents.where
    common = contents.root.get("optimizer")
    if not isinstance(common, dict):
        raise BadCheckpointError("optimizer: not there", BELONG, where=where, wanted="a dict")
    inner = common.get("optimizer", common)
    groups = param_groups(inner, where)
    known = ("optimizer", SHARDING)
    other = {} if inner is common else {k: v for k, v in common.items() if k not in known}
    if SHARDING in common:
        gradients = gradient_dtype(contents, weights)
        mixed = weights != "float32"
        return OptimizerState(
            groups, None, mixed_precision=mixed, other=other, gradient_dtype=gradients
        )
    steps = inner.get("state")
    step = steps.get(_STEP) if isinstance(steps, dict) else None
    if step is None and not all("step" in group for group in groups):
        raise BadCheckpointError(f"optimizer: has no state.{_STEP}", BELONG, where=where)
    return OptimizerState(groups, step, mixed_precision=inner is not common, other=other)


def _read_arrays(
    checkpoint: Checkpoint, contents: DistFolder, lags: Lags
) -> tuple[dict[State, list[Piece]], OptimizerState]:
    """Return the pieces of each state, of every parameter that has one by ``lags``, and what is
    not per parameter.
    """
    _check_names(contents)
    names = contents.metadata.tensors
    masters = [
        name for name in _MASTERS.values() if any(n.startswith(f"{_STATE}{name}.") for n in names)
    ]
    if len(masters) > 1:
        raise BadCheckpointError(
            Text("found ", Found(" and ".join(masters))),
            BELONG,
            where=(contents.folder, _STATE),
            wanted="one of them",
        )
    tensors, sizes = checkpoint.reader.tensors, checkpoint.stored_sizes
    prefixes = {State.MASTER: f"{_STATE}{masters[0]}."} if masters else {}
    prefixes |= {moment: f"{_STATE}{moment}." for moment in MOMENTS}
    pieces = {
        state: find_pieces(contents, tensors, sizes, prefix, lags)
        for state, prefix in prefixes.items()
    }
    return pieces, _state(contents, checkpoint.dtype)


def with_distributed_states(checkpoint: Checkpoint, contents: DistFolder, lags: Lags) -> Checkpoint:
    """Return ``checkpoint`` with the optimizer state in ``contents`` found.

    ``lags`` say which parameters have less of it, or none.

    Raises:
        BadCheckpointError: If it does not fit the weights.
        UsageError: If it is of another kind.
    """
    if has_buckets(contents):
        pieces, found = read_buckets(checkpoint, contents)
    elif is_gathered(contents):
        pieces, found = read_gathered(checkpoint, contents)
    else:
        pieces, found = _read_arrays(checkpoint, contents, lags)
        found = replace(found, lags=lags)
    return with_states(checkpoint, contents, pieces, found)


def with_states(
    checkpoint: Checkpoint,
    contents: DistFolder,
    pieces: Mapping[State, Sequence[Piece]],
    found: OptimizerState,
) -> Checkpoint:
    """Return ``checkpoint``, of these ``contents``, with the optimizer that ``found`` describes,
    whose states are these ``pieces``.
    """
    tensors = checkpoint.reader.tensors
    plain = {name: replace(tensor, shift=0.0) for name, tensor in tensors.items()}
    dtypes = {state: own[0].dtype for state, own in pieces.items()}
    weights = checkpoint.reader.arrays
    readers = {
        state: LogicalReader(
            tensors if state is State.MASTER else plain,
            checkpoint.stored_sizes,
            [*own, *stand_ins(state, dtypes[state], weights, found.lags)],
        )
        for state, own in pieces.items()
    }
    native = is_native(arguments_in(contents.root, contents.where))
    state = replace(found, dtypes=dtypes, native_mup=native)
    return replace(checkpoint, optimizer=state, state_readers=readers)
