"""The optimizer state of a distributed checkpoint: arrays like the parameters', under names of
their own.

``optimizer.state.exp_avg.KEY`` and so on have the shape and the chunks of parameter ``KEY``:
megatron-core writes a non-distributed optimizer so, and a distributed one if it is told to be fully
reshardable. Its default for the latter, flat buffers bound to one layout (``dp_reshardable``), is
refused. Param groups and steps lie in the common part.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

from flmgrow.errors import BadCheckpointError, UsageError
from flmgrow.formats.checkpoint import Checkpoint, OptimizerState
from flmgrow.formats.megatron import arguments_in
from flmgrow.formats.reading import LogicalReader
from flmgrow.formats.torch_dist import find_pieces
from flmgrow.formats.torch_dist_contents import DistFolder
from flmgrow.model.states import State

_ENTRY = re.compile(r"optimizer\.state\.(param|fp32_param|exp_avg|exp_avg_sq)\..+")
_MASTERS = {True: "param", False: "fp32_param"}
_BELONG = "the optimizer and the weights do not belong together"


def _check_names(contents: DistFolder) -> None:
    for name in contents.metadata.tensors:
        if name.startswith("optimizer.") and not _ENTRY.fullmatch(name):
            raise UsageError(
                f"{contents.folder}: {name}: optimizer state of a kind that is not read",
                "save it with --dist-ckpt-optim-fully-reshardable, or pass --no-optimizer",
            )


def _groups(inner: object, where: str) -> tuple[Mapping[object, object], ...]:
    groups = inner.get("param_groups") if isinstance(inner, dict) else None
    if not isinstance(groups, list) or not groups or not all(isinstance(g, dict) for g in groups):
        raise BadCheckpointError(f"{where}: optimizer: has no param_groups", _BELONG)
    return tuple({k: v for k, v in group.items() if k != "params"} for group in groups)


def _state(contents: DistFolder, weights: str) -> OptimizerState:
    """Return what the common part says of the optimizer of a model with such ``weights``."""
    half = weights in ("bfloat16", "float16")
    where = contents.where
    common = contents.root.get("optimizer")
    if not isinstance(common, dict):
        raise BadCheckpointError(f"{where}: optimizer: not there, wanted a dict", _BELONG)
    inner = common.get("optimizer", common)
    groups = _groups(inner, where)
    if "param_state_sharding_type" in common:
        wide = arguments_in(contents.root, where).get("accumulate_allreduce_grads_in_fp32")
        gradients = "float32" if wide or weights == "float32" else weights
        return OptimizerState(groups, None, half=half, gradient_dtype=gradients)
    steps = inner.get("state")
    step = steps.get("common_step") if isinstance(steps, dict) else None
    if step is None:
        raise BadCheckpointError(f"{where}: optimizer: has no state.common_step", _BELONG)
    other = {} if inner is common else {k: v for k, v in common.items() if k != "optimizer"}
    return OptimizerState(groups, step, half=half, other=other)


def with_distributed_states(checkpoint: Checkpoint, contents: DistFolder) -> Checkpoint:
    """Return ``checkpoint`` with the optimizer state in ``contents`` found.

    Raises BadCheckpointError if it does not fit the weights, UsageError if it is of another kind.
    """
    _check_names(contents)
    names = contents.metadata.tensors
    distributed = any(name.startswith("optimizer.state.param.") for name in names)
    halves = any(name.startswith("optimizer.state.fp32_param.") for name in names)
    prefixes = {State.EXP_AVG: "exp_avg", State.EXP_AVG_SQ: "exp_avg_sq"}
    if distributed or halves:
        prefixes = {State.MASTER: _MASTERS[distributed], **prefixes}
    tensors = checkpoint.reader.tensors
    plain = {name: replace(tensor, shift=0.0) for name, tensor in tensors.items()}
    sizes = checkpoint.stored_sizes
    readers, dtypes = {}, {}
    for state, prefix in prefixes.items():
        own = tensors if state is State.MASTER else plain
        pieces = find_pieces(contents, own, sizes, f"optimizer.state.{prefix}.")
        readers[state] = LogicalReader(own, sizes, pieces)
        dtypes[state] = pieces[0].dtype
    found = _state(contents, checkpoint.dtype)
    return replace(checkpoint, optimizer=replace(found, dtypes=dtypes), state_readers=readers)
