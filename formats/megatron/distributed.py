"""The distributed optimizer of a legacy Megatron checkpoint: flat buffers that name no parameter.

``distrib_optim.pt``, beside a rank's weights, holds for each model chunk three flat arrays: masters
and Adam's two moments, gathered from all data-parallel ranks. They are the chunk's buckets (see
:mod:`flmgrow.formats.megatron.gradient_buffers`) one behind the other, with nothing in between. So
where a bucket is closed moves what follows only if a size is no multiple of 64.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import NoReturn

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.checkpoint import OptimizerState
from flmgrow.formats.megatron.gradient_buffers import (
    BELONG,
    BUFFERS,
    DTYPE,
    GRADIENTS,
    Bucket,
    BucketRule,
    Item,
    prove_masters,
)
from flmgrow.formats.pieces import Piece, StoredArray
from flmgrow.formats.targets import TargetArray
from flmgrow.formats.torch_file.file import TorchFile
from flmgrow.formats.torch_file.file_writer import new_tensor
from flmgrow.formats.torch_file.values import Global, TensorRecord
from flmgrow.model.states import State
from flmgrow.text import Found, Pass, Text

SIZE = "numel_unpadded"
COALESCED = "buckets_coalesced"


def _flat_order(buckets: Sequence[Bucket[Item]]) -> tuple[list[tuple[Item, int]], int]:
    """Return a chunk's parameters with their starts in its buffers, and how long those are."""
    order: list[tuple[Item, int]] = []
    begin = 0
    for bucket in buckets:
        order += [(item, begin + start) for item, start in bucket.parameters]
        begin += bucket.size
    return order, begin


class DistributedRank:
    """Reads one rank's distributed optimizer; ``pieces`` are its weights in order of modules.

    ``dtype`` is that of the weights, of which a rank may have none. ``file`` is the rank's own,
    ``content`` the ``optimizer`` in it, and ``flat`` holds the buffers: as all that is in it, or as
    ``root``, called ``where`` in messages.

    Raises:
        BadCheckpointError: For anything else than expected; the message names either.
    """

    def __init__(
        self,
        file: TorchFile,
        content: Mapping[object, object],
        flat: TorchFile,
        pieces: Sequence[Piece],
        dtype: str,
        cut: BucketRule,
        root: object = None,
        where: str = "",
    ) -> None:
        self.file = file
        self.flat = flat
        self.root = flat.root if root is None else root
        self.flat_where = where or str(flat.file.path)
        self.where = where or f"{file.file.path}: optimizer"
        self.content = content
        self.dtype = dtype
        self.mixed_precision = dtype != DTYPE
        self.groups = self._groups()
        self.gradients: str | None = DTYPE
        self._pieces: dict[State, list[StoredArray]] = {state: [] for state in BUFFERS}
        self._find([_flat_order(buckets) for buckets in cut.chunks(pieces)])

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
            mixed_precision=self.mixed_precision,
            other={k: v for k, v in self.content.items() if k != "optimizer"},
            gradient_dtype=self.gradients,
        )

    def _refuse(self, what: str, hint: str = BELONG, wanted: object = "") -> NoReturn:
        raise BadCheckpointError(what, hint, where=self.flat_where, wanted=wanted)

    def _groups(self) -> list[Mapping[object, object]]:
        inner = self.content.get("optimizer")
        groups = inner.get("param_groups") if isinstance(inner, dict) else None
        known = isinstance(inner, dict) and set(inner) == {"param_groups"}
        if not known or not isinstance(groups, list) or not groups:
            raise BadCheckpointError("is no distributed optimizer's, or damaged", where=self.where)
        for group in groups:
            if not isinstance(group, dict):
                raise BadCheckpointError(
                    f"param group: is no dict: {group!r:.60}", where=self.where
                )
        return groups

    def _find(self, chunks: Sequence[tuple[list[tuple[Piece, int]], int]]) -> None:
        root = self.root
        if not isinstance(root, dict) or root.get(COALESCED) is not True:
            self._refuse(
                f"is not a file of one optimizer with {COALESCED}",
                Text("load and save it with a recent Megatron-LM, or ", Pass("no_optimizer", True)),
            )
        found, wanted = set(root) - {COALESCED}, set(range(len(chunks)))
        if found != wanted:
            names = ", ".join(sorted(map(str, found))) or "none"
            self._refuse(
                Text("holds model chunks ", Found(names)), wanted=f"{len(chunks)} from 0 on"
            )
        for number, (order, total) in enumerate(chunks):
            buffers = self._buffers(root[number], number, total)
            for state, record in buffers.items():
                self._pieces[state] += [self._view(record, piece, at) for piece, at in order]
            masters = self._pieces[State.MASTER][-len(order) :]
            pairs = [(master, w) for master, (w, _) in zip(masters, order, strict=True)]
            prove_masters(pairs, f"{self.flat_where}: chunk {number}")

    def _buffers(self, by_dtypes: object, number: int, total: int) -> dict[State, TensorRecord]:
        """Check the three buffers of one chunk and return them."""
        pairs = [(Global("torch", self.dtype), Global("torch", other)) for other in GRADIENTS]
        if not isinstance(by_dtypes, dict) or len(by_dtypes) != 1:
            self._refuse(f"chunk {number}: holds not one buffer", "8-bit weights are not supported")
        ((pair, entry),) = by_dtypes.items()
        if pair not in pairs:
            self._refuse(
                Text(f"chunk {number}: buffer of ", Found(f"{pair!r:.120}")),
                wanted=f"one of {self.dtype}",
            )
        self.gradients = pair[1].name
        if not isinstance(entry, dict) or set(entry) != {*BUFFERS.values(), SIZE}:
            self._refuse(f"chunk {number}: is not {', '.join(BUFFERS.values())} and {SIZE}")
        if entry[SIZE] != total:
            self._refuse(
                Text(f"chunk {number}: {SIZE} ", Found(f"{entry[SIZE]!r:.40}")), wanted=total
            )
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
    state: OptimizerState, weights: Sequence[TargetArray], cut: BucketRule
) -> tuple[dict[object, object], list[TargetArray]]:
    """Return the content of a new rank's ``distrib_optim.pt``, and the arrays in it.

    ``weights`` are the rank's, in the order of its modules.
    """
    content: dict[object, object] = {COALESCED: True}
    arrays: list[TargetArray] = []
    for number, (order, total) in enumerate(map(_flat_order, cut.chunks(weights))):
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
