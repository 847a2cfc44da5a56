"""The distributed optimizer of a legacy Megatron checkpoint: flat buffers that name no parameter.

``distrib_optim.pt``, beside a rank's weights, holds for each model chunk three flat arrays: masters
and Adam's two moments, gathered from all data-parallel ranks. Where a parameter lies in them
follows from how megatron-core lays out its gradient buffers:

- Parameters lie in the reverse order of the chunk's modules, each at the next multiple of 64.
- Now and then a bucket is closed. Buckets are padded in memory and not in the file, so the next one
  begins where the last parameter ended, and multiples of 64 count from there.
- With a pipeline, the two copies of a tied embedding are a bucket each. What comes before such a
  copy is first filled up to a multiple of 64.
- If gradients are reduced while others are computed, the first chunk of the first stage closes a
  bucket as soon as it has ``ddp_bucket_size`` elements (by default 40 million, or a million per
  data-parallel rank if that is more).

Closing a bucket therefore moves what follows only if a size is no multiple of 64, and nothing else
depends on the data-parallel size. Every parameter's place is proved on reading: masters, cast, must
be the weights.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import NoReturn, Protocol, TypeVar

import numpy as np

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.checkpoint import OptimizerState
from flmgrow.formats.inert_values import Global, TensorRecord
from flmgrow.formats.layout import Placement
from flmgrow.formats.reading import DTYPES, Array, Piece, StoredArray, as_bytes
from flmgrow.formats.targets import TargetArray
from flmgrow.formats.torch_zip import TorchFile, new_tensor
from flmgrow.model.states import State

ALIGNMENT = 64
TIED = ("embedding.word_embeddings.weight", "output_layer.weight")
BUFFERS = {State.MASTER: "param", State.EXP_AVG: "exp_avg", State.EXP_AVG_SQ: "exp_avg_sq"}
SIZE = "numel_unpadded"
COALESCED = "buckets_coalesced"
DTYPE = "float32"
"""That of all three buffers, whatever the weights have."""

_GRADIENTS = ("float32", "bfloat16", "float16")
_PROBE = 4096
"""Elements compared at each end of a parameter: enough to tell that it lies there."""

_BELONG = "the optimizer and the weights do not belong together"


class Placed(Protocol):
    """Anything that has a placement."""

    @property
    def placement(self) -> Placement:
        """Where it belongs."""


Item = TypeVar("Item", bound=Placed)


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


def flat_order(
    items: Sequence[Item], size: int | None, split: bool
) -> tuple[list[tuple[Item, int]], int]:
    """Return a chunk's parameters with their starts in its buffers, and how long those are.

    ``items`` are in the order of the modules, ``size`` closes a bucket, and ``split`` says that
    tied embeddings lie on two stages.
    """
    order: list[tuple[Item, int]] = []
    begin, end = 0, 0  # where the open bucket begins, and how far it is filled
    for item in reversed(items):
        start = -(-end // ALIGNMENT) * ALIGNMENT
        alone = split and item.placement.key in TIED
        if alone:
            begin, start = begin + start, 0
        order.append((item, begin + start))
        end = start + prod(item.placement.shape)
        if alone or (size is not None and end >= size):
            begin, end = begin + end, 0
    return order, begin + end


@dataclass(frozen=True)
class Cut:
    """What decides on a run's buckets: its arguments, and whether tied embeddings are split."""

    arguments: Mapping[str, object]
    split: bool

    def chunks(self, items: Sequence[Item]) -> Iterator[tuple[list[tuple[Item, int]], int]]:
        """Yield, for each chunk of a rank that has parameters, what :func:`flat_order` returns."""
        size = bucket_size(self.arguments, sum(prod(item.placement.shape) for item in items))
        for chunk in sorted({item.placement.chunk for item in items}):
            inside = [item for item in items if item.placement.chunk == chunk]
            first = chunk == 0 and inside[0].placement.pipeline_rank == 0
            yield flat_order(inside, size if first else None, self.split)


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


class DistributedRank:
    """Reads one rank's distributed optimizer; ``pieces`` are its weights in order of modules.

    ``dtype`` is that of the weights, of which a rank may have none. ``file`` is the rank's own,
    ``content`` the ``optimizer`` in it, and ``flat`` holds the buffers. Raises BadCheckpointError,
    naming either file, for anything else than expected.
    """

    def __init__(
        self,
        file: TorchFile,
        content: Mapping[object, object],
        flat: TorchFile,
        pieces: Sequence[Piece],
        dtype: str,
        cut: Cut,
    ) -> None:
        self.file = file
        self.flat = flat
        self.where = f"{file.file.path}: optimizer"
        self.content = content
        self.dtype = dtype
        self.half = dtype != DTYPE
        self.groups = self._groups()
        self.gradients: str | None = DTYPE
        self._pieces: dict[State, list[StoredArray]] = {state: [] for state in BUFFERS}
        self._find(list(cut.chunks(pieces)))

    @property
    def kinds(self) -> tuple[State, ...]:
        """The states that are kept for every parameter."""
        return tuple(BUFFERS)

    def pieces(self, kind: State) -> list[StoredArray]:
        """Return one state of every parameter."""
        return self._pieces[kind]

    def steps(self) -> list[object]:
        """Return what Adam counted, for every param group."""
        return [group.get("step") for group in self.groups]

    def state(self) -> OptimizerState:
        """Return what is not per parameter."""
        return OptimizerState(
            groups=tuple(self.groups),
            step=None,
            half=self.half,
            other={k: v for k, v in self.content.items() if k != "optimizer"},
            gradient_dtype=self.gradients,
        )

    def _refuse(self, what: str, hint: str = _BELONG) -> NoReturn:
        raise BadCheckpointError(f"{self.flat.file.path}: {what}", hint)

    def _groups(self) -> list[Mapping[object, object]]:
        inner = self.content.get("optimizer")
        groups = inner.get("param_groups") if isinstance(inner, dict) else None
        known = isinstance(inner, dict) and set(inner) == {"param_groups"}
        if not known or not isinstance(groups, list) or not groups:
            raise BadCheckpointError(f"{self.where}: is no distributed optimizer's, or damaged")
        for group in groups:
            if not isinstance(group, dict):
                raise BadCheckpointError(f"{self.where}: param group: is no dict: {group!r:.60}")
        return groups

    def _find(self, chunks: Sequence[tuple[list[tuple[Piece, int]], int]]) -> None:
        root = self.flat.root
        if not isinstance(root, dict) or root.get(COALESCED) is not True:
            self._refuse(
                f"is not a file of one optimizer with {COALESCED}",
                "load and save it with a recent Megatron-LM, or pass --no-optimizer",
            )
        found, wanted = set(root) - {COALESCED}, set(range(len(chunks)))
        if found != wanted:
            names = ", ".join(sorted(map(str, found))) or "none"
            self._refuse(f"holds model chunks {names}, wanted {len(chunks)} from 0 on")
        for number, (order, total) in enumerate(chunks):
            buffers = self._buffers(root[number], number, total)
            for state, record in buffers.items():
                self._pieces[state] += [self._view(record, piece, at) for piece, at in order]
            for (weight, _), master in zip(
                order, self._pieces[State.MASTER][-len(order) :], strict=True
            ):
                if not _is_master(master, weight):
                    self._refuse(
                        f"chunk {number}: {BUFFERS[State.MASTER]}: what should be the master of "
                        f"{weight.placement.key} is not what the weights are made of"
                    )

    def _buffers(self, by_dtypes: object, number: int, total: int) -> dict[State, TensorRecord]:
        """Check the three buffers of one chunk and return them."""
        pairs = [(Global("torch", self.dtype), Global("torch", other)) for other in _GRADIENTS]
        if not isinstance(by_dtypes, dict) or len(by_dtypes) != 1:
            self._refuse(f"chunk {number}: holds not one buffer", "8-bit weights are not supported")
        ((pair, entry),) = by_dtypes.items()
        if pair not in pairs:
            self._refuse(f"chunk {number}: buffer of {pair!r:.120}, wanted one of {self.dtype}")
        self.gradients = pair[1].name
        if not isinstance(entry, dict) or set(entry) != {*BUFFERS.values(), SIZE}:
            self._refuse(f"chunk {number}: is not {', '.join(BUFFERS.values())} and {SIZE}")
        if entry[SIZE] != total:
            self._refuse(f"chunk {number}: {SIZE} {entry[SIZE]!r:.40}, wanted {total}")
        for name in BUFFERS.values():
            record = entry[name]
            plain = isinstance(record, TensorRecord) and record.is_contiguous
            if not plain or (record.dtype, record.shape) != (DTYPE, (total,)):
                self._refuse(f"chunk {number}: {name}: is not {total} numbers of {DTYPE}")
        return {state: entry[name] for state, name in BUFFERS.items()}

    def _view(self, record: TensorRecord, piece: Piece, start: int) -> StoredArray:
        shape = piece.placement.shape
        strides = tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
        view = replace(record, shape=shape, stride=strides, start=record.start + start)
        return StoredArray(piece.placement, self.flat, view)


def flat_content(
    state: OptimizerState, weights: Sequence[TargetArray], cut: Cut
) -> tuple[dict[object, object], list[TargetArray]]:
    """Return the content of a new rank's ``distrib_optim.pt``, and the arrays in it.

    ``weights`` are the rank's, in the order of its modules.
    """
    content: dict[object, object] = {COALESCED: True}
    arrays: list[TargetArray] = []
    for number, (order, total) in enumerate(cut.chunks(weights)):
        buffers: dict[object, object] = {}
        for kind, name in BUFFERS.items():
            record = buffers[name] = new_tensor(DTYPE, (total,))
            arrays += [
                TargetArray(weight.placement, DTYPE, record.storage, kind, start)
                for weight, start in order
            ]
        buffers[SIZE] = total
        pair = (Global("torch", order[0][0].dtype), Global("torch", state.gradient_dtype or DTYPE))
        content[number] = {pair: buffers}
    return content, arrays


def distributed_entry(state: OptimizerState) -> dict[object, object]:
    """Return the ``optimizer`` of a new rank's own file: what is not in the buffers."""
    return {"optimizer": {"param_groups": list(state.groups)}, **state.other}
