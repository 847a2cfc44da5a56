"""The places of parameters in megatron-core's flat gradient buffers.

megatron-core keeps gradients in flat buffers, and a distributed optimizer its states like them.

Such buffers name no parameter. Where one lies follows from how they are filled, for every model
chunk of a rank, with its parameters in the reverse order of its modules:

- Each lies at the next multiple of 64 from where its bucket begins.
- With a pipeline, the two copies of a tied embedding are a bucket each. What comes before such a
  copy is first filled up to a multiple of 64.
- If gradients are reduced while others are computed, the first chunk of the first stage closes a
  bucket as soon as it has ``ddp_bucket_size`` elements (by default 40 million, or a million per
  data-parallel rank if that is more).

In memory buckets are padded for the data-parallel ranks, in checkpoints they are not. So a
parameter's place depends on the data-parallel size only where that decides on a bucket's. Every
place is proved on reading: masters, cast, must be the weights.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Generic, TypeVar

import numpy as np

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.layout.placements import Placed
from flmgrow.formats.megatron.content import chunk_key
from flmgrow.formats.megatron.rank_contents import rank_content
from flmgrow.formats.pieces import DTYPES, Piece, as_bytes
from flmgrow.model.arrays import Array
from flmgrow.model.states import State

BUFFERS = {State.MASTER: "param", State.EXP_AVG: "exp_avg", State.EXP_AVG_SQ: "exp_avg_sq"}
DTYPE = "float32"
"""That of the states' buffers, whatever the weights have."""

GRADIENTS = ("float32", "bfloat16", "float16")
BELONG = "the optimizer and the weights do not belong together"

_ALIGNMENT = 64
_TIED = ("embedding.word_embeddings.weight", "output_layer.weight")
_PROBE = 4096
"""Elements compared at each end of a parameter: enough to tell that it lies there."""


Item = TypeVar("Item", bound=Placed)


@dataclass
class Bucket(Generic[Item]):
    """Parameters, each with its start in the bucket, and how many elements all of it has."""

    parameters: list[tuple[Item, int]] = field(default_factory=list)
    size: int = 0


def bucket_size(arguments: Mapping[str, object], parameters: int) -> int | None:
    """Return how many elements close a bucket in a run with ``arguments``, None if none do.

    ``parameters`` is how many elements the rank holds.
    """
    if not arguments.get("overlap_grad_reduce"):
        return None
    number, size = arguments.get("ddp_num_buckets"), arguments.get("ddp_bucket_size")
    if isinstance(number, int) and number > 0:
        return parameters // number
    if isinstance(size, int):
        return size
    replicas = arguments.get("data_parallel_size")
    return max(40_000_000, 1_000_000 * (replicas if isinstance(replicas, int) else 1))


def fill_buckets(items: Sequence[Item], size: int | None, split: bool) -> list[Bucket[Item]]:
    """Return a chunk's parameters in buckets.

    ``items`` are in the order of the modules, ``size`` closes a bucket, and ``split`` says that
    tied embeddings lie on two stages.
    """
    buckets: list[Bucket[Item]] = []
    bucket: Bucket[Item] = Bucket()
    for item in reversed(items):
        start = -(-bucket.size // _ALIGNMENT) * _ALIGNMENT
        alone = split and item.placement.key in _TIED
        if alone and bucket.parameters:
            bucket.size = start
            buckets.append(bucket)
            bucket, start = Bucket(), 0
        bucket.parameters.append((item, start))
        bucket.size = start + prod(item.placement.shape)
        if alone or (size is not None and bucket.size >= size):
            buckets.append(bucket)
            bucket = Bucket()
    return [*buckets, bucket] if bucket.parameters else buckets


@dataclass(frozen=True)
class BucketRule:
    """What decides on a run's buckets: its arguments, and whether tied embeddings are split."""

    arguments: Mapping[str, object]
    split: bool

    def chunks(self, items: Sequence[Item]) -> Iterator[list[Bucket[Item]]]:
        """Yield the buckets of each chunk of a rank that has parameters, ``items`` in all."""
        size = bucket_size(self.arguments, sum(prod(item.placement.shape) for item in items))
        for chunk in sorted({item.placement.chunk for item in items}):
            inside = [item for item in items if item.placement.chunk == chunk]
            first = chunk == 0 and inside[0].placement.pipeline_rank == 0
            yield fill_buckets(inside, size if first else None, self.split)


def module_order(
    checkpoint: Checkpoint, rank: tuple[int, int], items: Iterable[Item]
) -> list[Item]:
    """Return the ``items`` of one rank in the order of its modules: that of its state dicts."""
    content = rank_content(checkpoint, rank)
    own = {
        (item.placement.chunk, item.placement.key): item
        for item in items
        if item.placement.rank == rank
    }
    order: list[Item] = []
    for chunk in range(checkpoint.layout.vpp):
        state = content[chunk_key(chunk, checkpoint.layout)]
        assert isinstance(state, Mapping)
        order += [own[chunk, key] for key in state if (chunk, key) in own]
    return order


def prove_masters(pairs: Iterable[tuple[Piece, Piece]], where: str) -> None:
    """Raise BadCheckpointError, naming ``where``, unless each (master, weight) belongs together."""
    for master, weight in pairs:
        if not _is_master(master, weight):
            raise BadCheckpointError(
                "what should be the master of "
                f"{weight.placement.key} is not what the weights are made of",
                BELONG,
                where=(where, BUFFERS[State.MASTER]),
            )


def _values(piece: Piece, start: int, count: int) -> Array:
    values = np.empty(count, DTYPES[piece.dtype])
    piece.read_into(start * values.itemsize, as_bytes(values))
    return values


def _is_master(master: Piece, weight: Piece) -> bool:
    """Whether both ends of a parameter are what both ends of its master are cast to."""
    total = prod(weight.placement.shape)
    probe = min(total, _PROBE)
    for start in {0, total - probe}:
        stored = _values(weight, start, probe)
        with np.errstate(all="ignore"):
            cast = _values(master, start, probe).astype(stored.dtype)
        wide = (cast.astype(np.float64), stored.astype(np.float64))
        if not np.array_equal(*wide, equal_nan=True):
            return False
    return True
