"""A model in training as a source to grow from: its states lie with the ranks that train them.

Whoever grows a checkpoint reads boxes of its logical tensors, from any file. Here they lie in the
memory of other processes, which have to give them at the moment they are asked: so all ranks of a
replica take the same way through the model, one stored parameter after the other, and at each stop
those that hold a piece of what is needed there give it to all. Between two stops no rank holds more
than what is its own.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.companions import NO_COMPANIONS, Companions
from flmgrow.formats.layout.placements import Placement, Slice, placements
from flmgrow.formats.megatron.new_model import new_model
from flmgrow.formats.pieces import as_bytes
from flmgrow.formats.reading import LogicalReader
from flmgrow.formats.tables.gpt import ROWS
from flmgrow.model.arrays import Array
from flmgrow.model.states import State
from flmgrow.model.tensors import logical_tensors
from flmgrow.trainer.checkpoint.saving import optimizer_state
from flmgrow.trainer.components import arguments_of
from flmgrow.trainer.live import LiveModel
from flmgrow.trainer.megatron.core import parallel_state
from flmgrow.trainer.megatron.parameters import ModelRank, Parameter, own_model_rank, state_of
from flmgrow.trainer.ranks.agreement import gathered
from flmgrow.trainer.run_config import RunConfig


@dataclass(eq=False)
class MemoryPiece:
    """An array that lies in no file; its ``values``, flat, are there only where they are at hand.

    ``dtype`` is torch's name of theirs.
    """

    placement: Placement
    dtype: str
    values: Array | None = None

    def __str__(self) -> str:
        return self.placement.key

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill ``target`` with the array's bytes from byte ``offset`` on."""
        assert self.values is not None, f"{self} is not at hand"
        target[:] = as_bytes(self.values)[offset : offset + len(target)]

    def checksum(self) -> int | None:
        """Return None: the array lies in no file."""
        return None


def described(run: RunConfig, iteration: int, companions: Companions = NO_COMPANIONS) -> Checkpoint:
    """Return the model of a run as an opened checkpoint of which nothing can be read."""
    model = new_model(
        run.stage.name,
        run.config,
        arguments_of(run),
        run.padded_vocab,
        run.stage.training.precision,
        iteration,
        {},
        companions,
    )
    return replace(model, layout=run.layout, format=run.stage.checkpoint.format)


class LiveSource:
    """The model of a run, on all of its ranks, as an opened checkpoint.

    What ``checkpoint`` reads must be :meth:`at_hand`.
    """

    def __init__(self, live: LiveModel) -> None:
        """On all ranks at once."""
        self._live = live
        self._own = {(p.placement.chunk, p.placement.key): p for p in live.parameters}
        self._ranks = _ranks_of_replica()
        named = described(live.run, live.iteration, live.companions)
        state = optimizer_state(live.optimizer, named.dtype, live.counted)
        dtypes = {State.WEIGHT: named.dtype, **state.dtypes}
        tensors, sizes = logical_tensors(named.config), named.stored_sizes
        placed = _without_copies(placements(ROWS, tensors, sizes, named.layout))
        self._pieces = {
            kind: [MemoryPiece(place, dtype) for place in placed] for kind, dtype in dtypes.items()
        }
        self._numbers: dict[Slice, list[int]] = defaultdict(list)
        for number, place in enumerate(placed):
            for each in place.slices:
                self._numbers[each].append(number)
        readers = {
            kind: LogicalReader(tensors, sizes, pieces) for kind, pieces in self._pieces.items()
        }
        self.checkpoint = replace(
            named, reader=readers.pop(State.WEIGHT), state_readers=readers, optimizer=state
        )

    @contextmanager
    def at_hand(self, needed: Collection[Slice], *, wanted: bool) -> Iterator[None]:
        """Let all states of the slices that are ``needed`` be readable, if this rank wants them.

        On all ranks at once, for the same slices: those that want nothing give what is theirs.
        """
        numbers = sorted({number for each in needed for number in self._numbers[each]})
        for kind, pieces in self._pieces.items():
            for number in numbers:
                values = self._shared(kind, pieces[number])
                pieces[number].values = _on_host(values) if wanted else None
        try:
            yield
        finally:
            for pieces in self._pieces.values():
                for number in numbers:
                    pieces[number].values = None

    @torch.no_grad()
    def _shared(self, kind: State, piece: MemoryPiece) -> torch.Tensor:
        """Return the bytes of a piece on every rank of its replica; replicas do the same."""
        owner, place = piece.placement.rank, piece.placement
        if owner == own_model_rank():
            parameter: Parameter = self._own[place.chunk, place.key]
            values = state_of(parameter, self._live.optimizer, kind, to_host=False)
            values = values.detach().reshape(-1).contiguous()
            assert str(values.dtype) == f"torch.{piece.dtype}", f"{piece}: {values.dtype}"
        else:
            count = int(np.prod(place.shape))
            device = torch.cuda.current_device()
            values = torch.empty(count, dtype=getattr(torch, piece.dtype), device=device)
        data = values.view(torch.uint8)
        if len(self._ranks) > 1:
            group = parallel_state.get_model_parallel_group()
            torch.distributed.broadcast(data, self._ranks[owner], group=group)
        return data


def _without_copies(placed: list[Placement]) -> list[Placement]:
    """Leave out arrays that hold the same as one before: of tensor ranks, or of a shared table."""
    first = {(p.segments[0].tensor, p.segments[0].box): p for p in reversed(placed)}
    return [p for p in placed if first[p.segments[0].tensor, p.segments[0].box] is p]


def _ranks_of_replica() -> dict[ModelRank, int]:
    """Return the number of each process of this replica by its tensor and pipeline rank."""
    own = parallel_state.get_data_parallel_rank()
    met = enumerate(gathered((own, own_model_rank())))
    return {place: rank for rank, (replica, place) in met if replica == own}


def _on_host(data: torch.Tensor) -> Array:
    values: Array = data.cpu().numpy()
    return values
