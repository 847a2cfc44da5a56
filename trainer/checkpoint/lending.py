"""The states of a model rank, wherever among its replicas they lie, a block at a time.

In a distributed optimizer each replica keeps a stretch of every state, cut anywhere. Whoever writes
an array has the rest of it lent by the other replicas, a block at a time, while it writes: no rank
holds more than what is its own and one block. Beside it a thread for each of the others answers
what that one asks for until it has done, whatever has failed; one that is lost ends the waiting.

Where the files' format lets several replicas write, each writes the arrays of which it keeps most,
and little has to be lent.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from math import prod
from typing import Protocol, Self

import torch
from torch import Tensor

from flmgrow.formats.layout.placements import Slice
from flmgrow.formats.pieces import DTYPES, as_bytes
from flmgrow.formats.targets import TargetArray
from flmgrow.model.states import State
from flmgrow.storage.crc import Bytes
from flmgrow.trainer.megatron.core import parallel_state
from flmgrow.trainer.megatron.parameters import (
    ModelRank,
    OptimizerView,
    Parameter,
    own_model_rank,
)
from flmgrow.trainer.ranks.agreement import NewsWire, gathered

BLOCK = 4 << 20
"""Bytes that are written, or asked for, at once."""

_KINDS = tuple(State)
_ASKED, _LENT = 1, 2
_DONE = -1

Elements = tuple[int, int]
"""The elements of a flat parameter from one to another."""

Shares = Mapping[tuple[ModelRank, Slice], int]
"""Which replica of a model rank keeps most of an array, named by any slice in it."""


class Wire(Protocol):
    """Carries flat tensors from rank to rank; what has another tag does not come in between."""

    def send(self, values: Tensor, rank: int, tag: int) -> None:
        """Send a flat tensor (elements,) on the host."""

    def receive(self, values: Tensor, rank: int, tag: int) -> None:
        """Fill a flat tensor (elements,) on the host with what a rank sends."""


class LentStates:
    """The weights of this rank, and the states that ``replicas`` keep of them together.

    Those are the ranks of the processes that hold the same weights; ``replica`` is this one's place
    among them. ``kept`` has for each of them the elements that it keeps of every parameter, (0, 0)
    of one of which it keeps none.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        optimizer: OptimizerView,
        replicas: Sequence[int],
        replica: int,
        kept: Sequence[Sequence[Elements]],
        wire: Wire,
    ) -> None:
        self._parameters, self._optimizer = parameters, optimizer
        self._replicas, self.replica = replicas, replica
        self._kept, self._wire = kept, wire
        self._numbers: dict[Slice, int] = {
            each: number for number, p in enumerate(parameters) for each in p.placement.slices
        }

    @classmethod
    def here(cls, parameters: Sequence[Parameter], optimizer: OptimizerView) -> Self:
        """Return those of this process and its replicas. On all ranks at once."""
        group = parallel_state.get_data_parallel_group()
        replicas = torch.distributed.get_process_group_ranks(group)
        found = [optimizer.kept(parameter.tensor) for parameter in parameters]
        own = [(0, 0) if kept is None else (kept.start, kept.stop) for kept in found]
        met = gathered(own if optimizer.distributed else [])
        kept_by_each = [met[rank] for rank in replicas]
        replica = replicas.index(torch.distributed.get_rank())
        return cls(parameters, optimizer, replicas, replica, kept_by_each, NewsWire())

    def shares(self) -> Shares:
        """Return who keeps most of what, of all model ranks; 0 where it is not said.

        On all ranks at once.
        """
        rank = own_model_rank()
        own = {
            (rank, each): replica
            for parameter, replica in zip(self._parameters, most_of(self._kept), strict=False)
            for each in parameter.placement.slices
        }
        return {key: replica for met in gathered(own) for key, replica in met.items()}

    @contextmanager
    def lent(self) -> Iterator[Callable[[TargetArray], Iterator[Bytes]]]:
        """Give what yields the bytes of a stored array, or of a part of one, front to back.

        On all replicas at once, whether they write or not.
        """
        if not self._optimizer.distributed or len(self._replicas) == 1:
            yield self._blocks
            return
        others = [rank for place, rank in enumerate(self._replicas) if place != self.replica]
        with ThreadPoolExecutor(len(others), "flmgrow-lending") as pool:
            lending = [pool.submit(self._lend_to, rank) for rank in others]
            with ExitStack() as done:  # all hear of it, even if one is lost
                for rank in others:
                    done.callback(self._wire.send, torch.tensor([_DONE, 0, 0, 0]), rank, _ASKED)
                yield self._blocks
            for each in lending:
                each.result()

    def _lend_to(self, rank: int) -> None:
        """Send another replica what it asks for, until it has done."""
        asked = torch.empty(4, dtype=torch.int64)
        while True:
            self._wire.receive(asked, rank, _ASKED)
            number, kind, start, stop = asked.tolist()
            if number == _DONE:
                return
            self._wire.send(self._own(number, _KINDS[kind], (start, stop)).cpu(), rank, _LENT)

    def _blocks(self, array: TargetArray) -> Iterator[Bytes]:
        number = self._numbers[array.placement.slices[0]]
        placement = self._parameters[number].placement
        first = next(s for s in placement.segments if s.tensor == array.placement.parts[0].name)
        start, stop = first.start, first.start + prod(array.placement.shape)
        if array.state is State.WEIGHT or not self._optimizer.distributed:
            parts = [(self.replica, (start, stop))]
        else:
            parts = self._parts(number, start, stop)
        step = BLOCK // DTYPES[array.dtype].itemsize
        for replica, (begin, end) in parts:
            for low in range(begin, end, step):
                values = self._values(replica, number, array.state, (low, min(low + step, end)))
                yield as_bytes(values.view(torch.uint8).numpy())

    def _parts(self, number: int, start: int, stop: int) -> list[tuple[int, Elements]]:
        """Return, in order, which replica keeps which elements of a parameter."""
        parts = []
        for replica, stretches in enumerate(self._kept):
            low, high = stretches[number]
            if max(low, start) < min(high, stop):
                parts.append((replica, (max(low, start), min(high, stop))))
        return sorted(parts, key=lambda part: part[1])

    def _values(self, replica: int, number: int, state: State, part: Elements) -> Tensor:
        """Return elements of a state, flat (elements,), on the host."""
        if replica == self.replica:
            return self._own(number, state, part).cpu()
        rank = self._replicas[replica]
        self._wire.send(torch.tensor([number, _KINDS.index(state), *part]), rank, _ASKED)
        values = torch.empty(part[1] - part[0], dtype=torch.float32)
        self._wire.receive(values, rank, _LENT)
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


def most_of(kept: Sequence[Sequence[Elements]]) -> list[int]:
    """Return for every parameter which replica keeps most of it: of several the first."""
    by_parameter = zip(*kept, strict=True)
    lengths = ([stop - start for start, stop in each] for each in by_parameter)
    return [each.index(max(each)) for each in lengths]
