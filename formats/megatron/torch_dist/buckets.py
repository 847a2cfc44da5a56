"""Reading optimizer states that a torch_dist checkpoint keeps as buckets.

megatron-core's distributed optimizer saves, unless told otherwise, the buckets it works on.

In a distributed checkpoint its state is then (``dp_reshardable``) three one-dimensional arrays for
each bucket of each model chunk (``gbuf``) of each model rank (``dp_group``: tensor ranks first,
then stages)::

    optimizer.distributed.dp_group_idx_0.gbuf_idx_0.dtype_(torch.bfloat16, torch.float32)
        .bucket_idx_0.{param, exp_avg, exp_avg_sq}

Up to megatron-core 0.14 (``fully_sharded_bucket_space``) they have the padding of the data-parallel
ranks as well. They are bound to one tensor- and pipeline-parallel layout, name no parameter, and
are cut wherever a data-parallel rank's share ends. What fills them is the rule of
:mod:`flmgrow.formats.megatron.gradient_buffers`, which every size and every master must bear out.
Param groups are an object per model rank (:mod:`flmgrow.formats.megatron.torch_dist.ranks`).
"""

import re
from collections.abc import Iterator
from math import prod
from typing import NoReturn

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.checkpoint import WITHOUT_OPTIMIZER, Checkpoint, OptimizerState
from flmgrow.formats.dcp.items import DcpItems
from flmgrow.formats.dcp.metadata import DcpTensor
from flmgrow.formats.megatron.content import arguments_in
from flmgrow.formats.megatron.gradient_buffers import (
    BELONG,
    BUFFERS,
    DTYPE,
    GRADIENTS,
    Bucket,
    BucketRule,
    prove_masters,
)
from flmgrow.formats.megatron.torch_dist.contents import DistFolder
from flmgrow.formats.megatron.torch_dist.flat_pieces import FlatPiece, Line
from flmgrow.formats.megatron.torch_dist.item_pieces import ItemPiece
from flmgrow.formats.megatron.torch_dist.objects import is_of_optimizer, unread_state
from flmgrow.formats.megatron.torch_dist.ranks import (
    IN_MEMORY,
    PREFIX,
    common_state,
    rank_entries,
    rank_weights,
    sharding,
)
from flmgrow.formats.pieces import Piece
from flmgrow.formats.reading import AssembledArray
from flmgrow.model.states import State
from flmgrow.text import Found, Text

_BUCKET = re.compile(
    r"optimizer\.distributed\.dp_group_idx_\d+\.gbuf_idx_\d+"
    r"\.dtype_\(torch\.(\w+), torch\.(\w+)\)\.bucket_idx_\d+"
    rf"\.({'|'.join(BUFFERS.values())})"
)
_OTHER_RUN = (
    "where buckets end follows from args (overlap_grad_reduce, ddp_bucket_size and so on), which "
    "seem to be another run's; " + WITHOUT_OPTIMIZER
)


def has_buckets(contents: DistFolder) -> bool:
    """Whether the optimizer state in a checkpoint is in buckets."""
    return any(name.startswith(PREFIX) for name in contents.metadata.tensors)


def read_buckets(
    checkpoint: Checkpoint, contents: DistFolder
) -> tuple[dict[State, list[Piece]], OptimizerState]:
    """Return every parameter's piece of each state, and what is not per parameter.

    Raises:
        BadCheckpointError: If it is not what arguments and weights say; the message names the
            bucket.
        UsageError: For optimizer state of another kind.
    """
    arguments = arguments_in(contents.root, contents.where)
    cut = BucketRule(arguments, checkpoint.config.tied and checkpoint.layout.pp > 1)
    dtypes = _dtypes(contents, checkpoint.dtype)
    ranks = rank_weights(checkpoint)
    left = {n: t for n, t in contents.metadata.tensors.items() if n.startswith(PREFIX)}
    pieces: dict[State, list[Piece]] = {state: [] for state in BUFFERS}
    for group, weights in ranks.items():
        for number, buckets in enumerate(cut.chunks(weights)):
            for index, bucket in enumerate(buckets):
                stem = (
                    f"{PREFIX}{group}.gbuf_idx_{number}"
                    f".dtype_(torch.{dtypes[0]}, torch.{dtypes[1]}).bucket_idx_{index}"
                )
                found = _bucket_pieces(stem, bucket, left, contents)
                pairs = zip(found[State.MASTER], (w for w, _ in bucket.parameters), strict=True)
                prove_masters(pairs, f"{contents.folder}: {stem}")
                for state, own in found.items():
                    pieces[state] += own
    for name in left:
        _refuse(contents, name, "the args and the layout make no such bucket", _OTHER_RUN)
    entries = rank_entries(contents, ranks)
    filled = [group for group, weights in ranks.items() if weights]
    return pieces, common_state(contents, {g: entries[g] for g in filled}, dtypes)


def _refuse(
    contents: DistFolder, name: str, what: str, hint: str = BELONG, wanted: object = ""
) -> NoReturn:
    raise BadCheckpointError(what, hint, where=(contents.folder, name), wanted=wanted)


def _dtypes(contents: DistFolder, weights: str) -> tuple[str, str]:
    """Return the one dtype of all weights in buckets, and that of their gradients."""
    pairs = set()
    for name in contents.metadata.tensors:
        if is_of_optimizer(name):
            match = _BUCKET.fullmatch(name)
            if not match:
                raise unread_state(contents.folder, name)
            pairs.add((match[1], match[2]))
            if len(pairs) > 1 or match[1] != weights or match[2] not in GRADIENTS:
                _refuse(contents, name, f"wanted buckets of {weights}, of gradients of one dtype")
    (pair,) = pairs
    return pair


def _bucket_pieces(
    stem: str, bucket: Bucket[AssembledArray], left: dict[str, DcpTensor], contents: DistFolder
) -> dict[State, list[FlatPiece]]:
    """Return the pieces of a bucket's parameters, of each state; takes its arrays out of
    ``left``.
    """
    found = {}
    for state, buffer in BUFFERS.items():
        name = f"{stem}.{buffer}"
        tensor = left.pop(name, None)
        if tensor is None:
            _refuse(
                contents,
                name,
                Text(Found("not there")),
                _OTHER_RUN,
                wanted=f"{bucket.size} elements",
            )
        if tensor.shape != (bucket.size,) and not _padded(tensor, bucket.size, contents):
            what = Text("shape ", Found(tensor.shape))
            _refuse(contents, name, what, _OTHER_RUN, wanted=(bucket.size,))
        if tensor.dtype != DTYPE:
            _refuse(contents, name, Text("dtype ", Found(tensor.dtype)), wanted=DTYPE)
        found[state] = list(_cut_out(tensor, bucket, contents.items))
    return found


def _padded(tensor: DcpTensor, size: int, contents: DistFolder) -> bool:
    """Whether an array is a bucket as it was in memory: padded for the data-parallel ranks, their
    equal shares in front of each other or in a row.
    """
    padded = len(tensor.shape) in (1, 2) and prod(tensor.shape) >= size
    return padded and sharding(contents) == IN_MEMORY


def _cut_out(
    tensor: DcpTensor, bucket: Bucket[AssembledArray], items: DcpItems
) -> Iterator[FlatPiece]:
    """Yield a piece of ``tensor`` for each of the parameters of a bucket."""
    line = Line(tensor.chunks, tensor.shape)
    for item, start in bucket.parameters:
        where = item.placement
        chunks = line.covering(start, start + prod(where.shape))
        parts = ((at, ItemPiece(where, tensor.dtype, tensor.name, c, items)) for at, c in chunks)
        yield FlatPiece(where, tuple(parts), start)
