"""megatron-core's distributed optimizer saves, unless told otherwise, the buckets it works on.

In a distributed checkpoint its state is then (``dp_reshardable``) three one-dimensional arrays for
each bucket of each model chunk (``gbuf``) of each model rank (``dp_group``: tensor ranks first,
then stages)::

    optimizer.distributed.dp_group_idx_0.gbuf_idx_0.dtype_(torch.bfloat16, torch.float32)
        .bucket_idx_0.{param, exp_avg, exp_avg_sq}

They are bound to one tensor- and pipeline-parallel layout, name no parameter, and are cut wherever
a data-parallel rank's share ends. What fills them is the rule of
:mod:`flmgrow.formats.gradient_buffers`, which every size and every master must bear out. Param
groups are an object per model rank.
"""

import re
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import NoReturn

from flmgrow.errors import BadCheckpointError, UsageError
from flmgrow.formats.checkpoint import Checkpoint, OptimizerState
from flmgrow.formats.dcp_items import DcpItems
from flmgrow.formats.dcp_metadata import DcpTensor
from flmgrow.formats.gradient_buffers import (
    BELONG,
    BUFFERS,
    DTYPE,
    GRADIENTS,
    Bucket,
    Cut,
    module_order,
    prove_masters,
)
from flmgrow.formats.layout import Placement, placements
from flmgrow.formats.megatron import arguments_in
from flmgrow.formats.reading import DTYPES, AssembledArray, Piece
from flmgrow.formats.tables.gpt import ROWS
from flmgrow.formats.torch_dist_contents import DistFolder, ItemPiece, param_groups
from flmgrow.model.states import State

_PREFIX = "optimizer.distributed."
_BUCKET = re.compile(
    r"optimizer\.distributed\.dp_group_idx_\d+\.gbuf_idx_\d+"
    r"\.dtype_\(torch\.(\w+), torch\.(\w+)\)\.bucket_idx_\d+"
    rf"\.({'|'.join(BUFFERS.values())})"
)
_OBJECT = re.compile(r"optimizer\.distributed\.(dp_group_idx_\d+)\.(\w+)/shard_0_1")
_LENGTHS = ("per_bucket_numel", "per_bucket_numel_unpadded")
_OTHER_RUN = (
    "where buckets end follows from args (overlap_grad_reduce, ddp_bucket_size and so on), which "
    "seem to be another run's; --no-optimizer goes on without"
)


@dataclass(frozen=True, eq=False)
class BucketPiece:
    """A parameter in a bucket: ``chunks`` are all that it lies in, in order.

    ``start`` is the element of the bucket that it begins with.
    """

    placement: Placement
    chunks: tuple[ItemPiece, ...]
    start: int

    @property
    def dtype(self) -> str:
        """Its dtype, by torch's name."""
        return self.chunks[0].dtype

    def __str__(self) -> str:
        return f"{self.chunks[0]}: {self.placement.key}"

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill ``target`` with the array's bytes from byte ``offset`` on."""
        width = DTYPES[self.dtype].itemsize
        begin = self.start * width + offset
        end = begin + len(target)
        for piece in self.chunks:
            first = piece.chunk.offsets[0] * width
            low, high = max(begin, first), min(end, first + piece.chunk.sizes[0] * width)
            if low < high:
                piece.read_into(low - first, target[low - begin : high - begin])

    def checksum(self) -> int | None:
        """None: a bucket's bytes are no parameter's alone."""
        return None


def has_buckets(contents: DistFolder) -> bool:
    """Whether the optimizer state in a checkpoint is in buckets."""
    return any(name.startswith(_PREFIX) for name in contents.metadata.tensors)


def read_buckets(
    checkpoint: Checkpoint, contents: DistFolder
) -> tuple[dict[State, list[Piece]], OptimizerState]:
    """Return every parameter's piece of each state, and what is not per parameter.

    Raises BadCheckpointError, naming the bucket, if it is not what arguments and weights say;
    UsageError for optimizer state of another kind.
    """
    arguments = arguments_in(contents.root, contents.where)
    cut = Cut(arguments, checkpoint.config.tied and checkpoint.layout.pp > 1)
    dtypes = _dtypes(contents, checkpoint.dtype)
    ranks = _ranks(checkpoint)
    left = {n: t for n, t in contents.metadata.tensors.items() if n.startswith(_PREFIX)}
    pieces: dict[State, list[Piece]] = {state: [] for state in BUFFERS}
    for group, weights in ranks.items():
        for number, buckets in enumerate(cut.chunks(weights)):
            for index, bucket in enumerate(buckets):
                stem = (
                    f"{_PREFIX}{group}.gbuf_idx_{number}"
                    f".dtype_(torch.{dtypes[0]}, torch.{dtypes[1]}).bucket_idx_{index}"
                )
                found = _bucket_pieces(stem, bucket, left, contents)
                pairs = zip(found[State.MASTER], (w for w, _ in bucket.parameters), strict=True)
                prove_masters(pairs, f"{contents.folder}: {stem}")
                for state, own in found.items():
                    pieces[state] += own
    for name in left:
        _refuse(contents, name, "the args and the layout make no such bucket", _OTHER_RUN)
    return pieces, _state(contents, ranks, dtypes)


def _refuse(contents: DistFolder, name: str, what: str, hint: str = BELONG) -> NoReturn:
    raise BadCheckpointError(f"{contents.folder}: {name}: {what}", hint)


def _ranks(checkpoint: Checkpoint) -> dict[str, list[AssembledArray]]:
    """Return the weights of every model rank in order of modules, by the rank's ``dp_group``."""
    tensors, sizes, layout = checkpoint.reader.tensors, checkpoint.stored_sizes, checkpoint.layout
    arrays = [
        AssembledArray(placement, checkpoint.reader)
        for placement in placements(ROWS, tensors, sizes, layout, checkpoint.fused)
    ]
    return {
        f"dp_group_idx_{pipeline * layout.tp + tensor}": module_order(
            checkpoint, (tensor, pipeline), arrays
        )
        for tensor, pipeline in layout.ranks
    }


def _dtypes(contents: DistFolder, weights: str) -> tuple[str, str]:
    """Return the one dtype of all weights in buckets, and that of their gradients."""
    pairs = set()
    for name in contents.metadata.tensors:
        if name.startswith("optimizer."):
            match = _BUCKET.fullmatch(name)
            if not match:
                raise UsageError(
                    f"{contents.folder}: {name}: optimizer state of a kind that is not read",
                    "save it with --dist-ckpt-optim-fully-reshardable, or pass --no-optimizer",
                )
            pairs.add((match[1], match[2]))
            if len(pairs) > 1 or match[1] != weights or match[2] not in GRADIENTS:
                _refuse(contents, name, f"wanted buckets of {weights}, of gradients of one dtype")
    (pair,) = pairs
    return pair


def _bucket_pieces(
    stem: str, bucket: Bucket[AssembledArray], left: dict[str, DcpTensor], contents: DistFolder
) -> dict[State, list[BucketPiece]]:
    """Return the pieces of a bucket's parameters, of each state; takes its arrays out of
    ``left``.
    """
    found = {}
    for state, buffer in BUFFERS.items():
        name = f"{stem}.{buffer}"
        tensor = left.pop(name, None)
        if tensor is None:
            _refuse(contents, name, f"not there, wanted {bucket.size} elements", _OTHER_RUN)
        if tensor.shape != (bucket.size,):
            what = f"shape {tensor.shape}, wanted {(bucket.size,)}"
            _refuse(contents, name, what, _OTHER_RUN)
        if tensor.dtype != DTYPE:
            _refuse(contents, name, f"dtype {tensor.dtype}, wanted {DTYPE}")
        found[state] = list(_cut_out(tensor, bucket, contents.items))
    return found


def _cut_out(
    tensor: DcpTensor, bucket: Bucket[AssembledArray], items: DcpItems
) -> Iterator[BucketPiece]:
    """Yield a piece of ``tensor`` for each of the parameters of a bucket."""
    chunks = sorted(tensor.chunks, key=lambda chunk: chunk.offsets)
    starts = [chunk.offsets[0] for chunk in chunks]
    for item, start in bucket.parameters:
        place, stop = item.placement, start + prod(item.placement.shape)
        inside = chunks[bisect_right(starts, start) - 1 : bisect_right(starts, stop - 1)]
        parts = tuple(ItemPiece(place, tensor.dtype, tensor.name, c, items) for c in inside)
        yield BucketPiece(place, parts, start)


def _entries(contents: DistFolder, ranks: Collection[str]) -> dict[str, dict[str, object]]:
    """Return what the optimizer of each model rank holds beside buckets."""
    found: dict[str, dict[str, object]] = {group: {} for group in ranks}
    for name, item in contents.metadata.objects.items():
        if not name.startswith("optimizer."):
            continue
        match = _OBJECT.fullmatch(name)
        if not match or match[1] not in found:
            _refuse(contents, name, "the args and the layout make no such rank")
        if match[2] not in _LENGTHS:
            found[match[1]][match[2]] = contents.object(item)
    return found


def _state(
    contents: DistFolder, ranks: Mapping[str, Sequence[Piece]], dtypes: tuple[str, str]
) -> OptimizerState:
    """Return what is not per parameter, alike on every rank that has parameters."""
    entries = _entries(contents, ranks)
    alike = {group: own for group, own in entries.items() if ranks[group]}
    (first, entry), *others = alike.items()
    for group, own in others:
        if own != entry:
            _refuse(
                contents,
                f"{_PREFIX}{group}",
                f"its optimizer is unlike that of {first}",
                "ranks of one checkpoint must agree; --no-optimizer goes on without",
            )
    where = f"{contents.folder}: {_PREFIX}{first}"
    return OptimizerState(
        groups=param_groups(entry.get("optimizer"), where),
        step=None,
        half=dtypes[0] != DTYPE,
        other={key: value for key, value in entry.items() if key != "optimizer"},
        gradient_dtype=dtypes[1],
    )
