"""A distributed optimizer's state as one object for each model rank, gathered from its replicas.

Megatron-LM with megatron-core up to 0.14 saves it so where it is not to save in parallel
(``dp_zero_gather_scatter``): the object is what a legacy checkpoint has as ``distrib_optim.pt``,
buckets joined (:mod:`flmgrow.formats.megatron.distributed`), and param groups are another.
"""

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.checkpoint import Checkpoint, OptimizerState
from flmgrow.formats.megatron.content import arguments_in
from flmgrow.formats.megatron.distributed import DistributedRank
from flmgrow.formats.megatron.gradient_buffers import BELONG, BUFFERS, DTYPE, BucketRule
from flmgrow.formats.megatron.torch_dist.contents import DistFolder
from flmgrow.formats.megatron.torch_dist.ranks import (
    PREFIX,
    STATE,
    common_state,
    rank_entries,
    rank_weights,
)
from flmgrow.formats.pieces import Piece
from flmgrow.formats.torch_file.bounds import describe
from flmgrow.model.states import State
from flmgrow.text import Found, Text


def _name(rank: str) -> str:
    return f"{PREFIX}{rank}.{STATE}/shard_0_1"


def is_gathered(contents: DistFolder) -> bool:
    """Whether the optimizer state in a checkpoint is in one object for each rank."""
    return any(
        name.startswith(PREFIX) and f".{STATE}/" in name for name in contents.metadata.objects
    )


def read_gathered(
    checkpoint: Checkpoint, contents: DistFolder
) -> tuple[dict[State, list[Piece]], OptimizerState]:
    """Return every parameter's piece of each state, and what is not per parameter.

    Raises:
        BadCheckpointError: If it is not what arguments and weights say; the message names the
            object.
    """
    arguments = arguments_in(contents.root, contents.where)
    cut = BucketRule(arguments, checkpoint.config.tied and checkpoint.layout.pp > 1)
    weights = {rank: own for rank, own in rank_weights(checkpoint).items() if own}
    entries = rank_entries(contents, rank_weights(checkpoint))
    pieces: dict[State, list[Piece]] = {state: [] for state in BUFFERS}
    gradients = DTYPE
    for rank, own in weights.items():
        item = contents.metadata.objects.get(_name(rank))
        if item is None:
            raise BadCheckpointError("not there", BELONG, where=(contents.folder, _name(rank)))
        file = contents.items.open_object(item)
        where = f"{file.file.path}: {item.name}"
        if not isinstance(file.root, list) or len(file.root) != 1:
            raise BadCheckpointError(
                Text("found ", Found(describe(file.root))), where=where, wanted="a list of one"
            )
        (root,) = file.root
        entry: dict[object, object] = dict(entries[rank].items())
        found = DistributedRank(
            file, entry, file, own, checkpoint.dtype, cut, root=root, where=where
        )
        gradients = found.gradients or DTYPE
        for state in BUFFERS:
            pieces[state] += found.pieces(state)
    dtypes = (checkpoint.dtype, gradients)
    return pieces, common_state(contents, {rank: entries[rank] for rank in weights}, dtypes)
