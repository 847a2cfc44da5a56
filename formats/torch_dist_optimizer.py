"""The optimizer state of a distributed checkpoint: arrays like the parameters', under names of
their own.

``optimizer.state.exp_avg.KEY`` and so on have the shape and the chunks of parameter ``KEY``:
megatron-core writes a non-distributed optimizer so, and a distributed one if it is told to be fully
reshardable; param groups and steps then lie in ``common.pt``. Its default for the latter are flat
buffers bound to one layout: see :mod:`flmgrow.formats.torch_dist_buckets`.
"""

import re
from dataclasses import replace

from flmgrow.errors import BadCheckpointError, UsageError
from flmgrow.formats.checkpoint import Checkpoint, OptimizerState
from flmgrow.formats.gradient_buffers import BELONG
from flmgrow.formats.megatron import arguments_in
from flmgrow.formats.reading import LogicalReader, Piece
from flmgrow.formats.torch_dist import find_pieces
from flmgrow.formats.torch_dist_buckets import has_buckets, read_buckets
from flmgrow.formats.torch_dist_contents import COMMON, DistFolder, param_groups
from flmgrow.model.states import State

_ENTRY = re.compile(r"optimizer\.state\.(param|fp32_param|exp_avg|exp_avg_sq)\..+")
_MASTERS = {True: "param", False: "fp32_param"}


def _check_names(contents: DistFolder) -> None:
    for name in contents.metadata.tensors:
        if name.startswith("optimizer.") and not _ENTRY.fullmatch(name):
            raise UsageError(
                f"{contents.folder}: {name}: optimizer state of a kind that is not read",
                "save it with --dist-ckpt-optim-fully-reshardable, or pass --no-optimizer",
            )


def _state(contents: DistFolder, weights: str) -> OptimizerState:
    """Return what ``common.pt`` says of the optimizer of a model with such ``weights``."""
    half = weights in ("bfloat16", "float16")
    where = str(contents.folder / COMMON)
    common = contents.root.get("optimizer")
    if not isinstance(common, dict):
        raise BadCheckpointError(f"{where}: optimizer: not there, wanted a dict", BELONG)
    inner = common.get("optimizer", common)
    groups = param_groups(inner, where)
    if "param_state_sharding_type" in common:
        wide = arguments_in(contents.root, where).get("accumulate_allreduce_grads_in_fp32")
        gradients = "float32" if wide or weights == "float32" else weights
        return OptimizerState(groups, None, half=half, gradient_dtype=gradients)
    steps = inner.get("state")
    step = steps.get("common_step") if isinstance(steps, dict) else None
    if step is None:
        raise BadCheckpointError(f"{where}: optimizer: has no state.common_step", BELONG)
    other = {} if inner is common else {k: v for k, v in common.items() if k != "optimizer"}
    return OptimizerState(groups, step, half=half, other=other)


def _read_arrays(
    checkpoint: Checkpoint, contents: DistFolder
) -> tuple[dict[State, list[Piece]], OptimizerState]:
    """Return every parameter's pieces of each state, and what is not per parameter."""
    _check_names(contents)
    names = contents.metadata.tensors
    distributed = any(name.startswith("optimizer.state.param.") for name in names)
    halves = any(name.startswith("optimizer.state.fp32_param.") for name in names)
    prefixes = {State.EXP_AVG: "exp_avg", State.EXP_AVG_SQ: "exp_avg_sq"}
    if distributed or halves:
        prefixes = {State.MASTER: _MASTERS[distributed], **prefixes}
    tensors, sizes = checkpoint.reader.tensors, checkpoint.stored_sizes
    pieces = {
        state: find_pieces(contents, tensors, sizes, f"optimizer.state.{prefix}.")
        for state, prefix in prefixes.items()
    }
    return pieces, _state(contents, checkpoint.dtype)


def with_distributed_states(checkpoint: Checkpoint, contents: DistFolder) -> Checkpoint:
    """Return ``checkpoint`` with the optimizer state in ``contents`` found.

    Raises BadCheckpointError if it does not fit the weights, UsageError if it is of another kind.
    """
    read = read_buckets if has_buckets(contents) else _read_arrays
    pieces, found = read(checkpoint, contents)
    tensors = checkpoint.reader.tensors
    plain = {name: replace(tensor, shift=0.0) for name, tensor in tensors.items()}
    readers = {
        state: LogicalReader(
            tensors if state is State.MASTER else plain, checkpoint.stored_sizes, own
        )
        for state, own in pieces.items()
    }
    dtypes = {state: own[0].dtype for state, own in pieces.items()}
    return replace(checkpoint, optimizer=replace(found, dtypes=dtypes), state_readers=readers)
