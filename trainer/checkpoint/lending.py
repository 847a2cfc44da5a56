"""The states of a model rank, wherever among its replicas they lie, a block at a time.

In a distributed optimizer each replica keeps a stretch of every state. The first one writes the
model rank's file, which may be larger than its memory: while it writes it asks the others for what
comes next, and holds a block of that at most. All but it only answer, until it has done, so that
whatever fails there ends the others' waiting, too.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Self

import torch
from torch import Tensor

from flmgrow.formats.layout.placements import Slice
from flmgrow.formats.pieces import DTYPES, as_bytes
from flmgrow.formats.targets import TargetArray
from flmgrow.model.states import State
from flmgrow.storage.crc import Bytes
from flmgrow.trainer.megatron.core import parallel_state
from flmgrow.trainer.megatron.parameters import OptimizerView, Parameter
from flmgrow.trainer.ranks.agreement import receive, send

BLOCK = 4 << 20
"""Bytes that are written, or asked for, at once."""

_KINDS = tuple(State)
_DONE = -1

Elements = tuple[int, int]
"""The elements of a flat parameter from one to another."""


class LentStates:
    """The weights of this rank, and the states that ``replicas`` keep of them together.

    Those are the ranks of the processes that hold the same weights, this one's among them. The
    first of them ``writes``.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        optimizer: OptimizerView,
        replicas: Sequence[int],
        *,
        writes: bool,
    ) -> None:
        self._parameters, self._optimizer = parameters, optimizer
        self._replicas, self.writes = replicas, writes
        self._numbers: dict[Slice, int] = {
            each: number for number, p in enumerate(parameters) for each in p.placement.slices
        }
        self._kept: dict[int, list[Elements]] = {}

    @classmethod
    def here(cls, parameters: Sequence[Parameter], optimizer: OptimizerView) -> Self:
        """Return those of this process and its replicas."""
        group = parallel_state.get_data_parallel_group()
        replicas = torch.distributed.get_process_group_ranks(group)
        writes = torch.distributed.get_rank() == replicas[0]
        return cls(parameters, optimizer, replicas, writes=writes)

    def lend(self) -> None:
        """Give the writer what it asks for, until it has done. On replicas that do not write."""
        if not self._optimizer.distributed:
            return
        writer = self._replicas[0]
        send(torch.tensor(self._own_stretches(), dtype=torch.int64).view(-1), writer)
        asked = torch.empty(4, dtype=torch.int64)
        while True:
            receive(asked, writer)
            number, kind, start, stop = asked.tolist()
            if number == _DONE:
                return
            send(self._own(number, _KINDS[kind], (start, stop)).cpu(), writer)

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """Let :meth:`blocks` be asked for. On the replica that writes, while the others lend."""
        if not self._optimizer.distributed:
            yield
            return
        own = self._own_stretches()
        self._kept = {self._replicas[0]: own}
        for replica in self._replicas[1:]:
            found = torch.empty(2 * len(own), dtype=torch.int64)
            receive(found, replica)
            self._kept[replica] = [(start, stop) for start, stop in found.view(-1, 2).tolist()]
        try:
            yield
        finally:
            for replica in self._replicas[1:]:
                send(torch.tensor([_DONE, 0, 0, 0]), replica)

    def blocks(self, array: TargetArray) -> Iterator[Bytes]:
        """Yield the bytes of a stored array, or of a part of one, from front to back."""
        number = self._numbers[array.placement.slices[0]]
        placement = self._parameters[number].placement
        first = next(s for s in placement.segments if s.tensor == array.placement.parts[0].name)
        start, stop = first.start, first.start + prod(array.placement.shape)
        if array.state is State.WEIGHT or not self._optimizer.distributed:
            parts = [(self._replicas[0], (start, stop))]
        else:
            parts = self._parts(number, start, stop)
        for replica, (begin, end) in parts:
            step = BLOCK // DTYPES[array.dtype].itemsize
            for low in range(begin, end, step):
                values = self._values(replica, number, array.state, (low, min(low + step, end)))
                yield as_bytes(values.view(torch.uint8).numpy())

    def _parts(self, number: int, start: int, stop: int) -> list[tuple[int, Elements]]:
        """Return, in order, which replica keeps which elements of a parameter."""
        parts = []
        for replica, stretches in self._kept.items():
            low, high = stretches[number]
            if max(low, start) < min(high, stop):
                parts.append((replica, (max(low, start), min(high, stop))))
        return sorted(parts, key=lambda part: part[1])

    def _values(self, replica: int, number: int, state: State, part: Elements) -> Tensor:
        """Return elements of a state, flat (elements,), on the host."""
        if replica == self._replicas[0]:
            return self._own(number, state, part).cpu()
        send(torch.tensor([number, _KINDS.index(state), *part]), replica)
        values = torch.empty(part[1] - part[0], dtype=torch.float32)
        receive(values, replica)
        return values

    def _own(self, number: int, state: State, part: Elements) -> Tensor:
        """Return elements of a state that are kept here, flat (elements,)."""
        start, stop = part
        tensor = self._parameters[number].tensor
        if state is State.WEIGHT:
            return tensor.detach().view(-1)[start:stop]
        kept = self._optimizer.kept(tensor)
        assert kept is not None, f"{self._parameters[number].placement.key}: is kept elsewhere"
        values: Tensor = kept.master if state is State.MASTER else kept.entry[state]
        return values.detach().view(-1)[start - kept.start : stop - kept.start]

    def _own_stretches(self) -> list[Elements]:
        """Return which elements of each parameter are kept here; (0, 0) of one that has none."""
        found = [self._optimizer.kept(parameter.tensor) for parameter in self._parameters]
        return [(0, 0) if kept is None else (kept.start, kept.stop) for kept in found]
