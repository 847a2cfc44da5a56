"""How far a step moves what a model had before it grew, and how far what it was given.

After a growth the old parameters have learned and the fresh ones have not. Whether a ramp, a
warm-up or a learning rate suits both shows in how far a step moves each, relative to its size: the
norm of what the optimizer changed over the norm of the weights afterwards. (Afterwards, because
fresh weights may begin with zeros.) Some 1e-3 is usual; a part that moves by much more is torn, one
that moves by much less does not learn.

Every element counts once, in the precision that the optimizer changes, whatever ranks hold it:
neither a replica nor padding counts. So the layout makes no difference. It takes the memory of one
more copy of this rank's masters.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from torch import Tensor

from flmgrow.formats.layout.placements import Placement
from flmgrow.formats.tables.row import Home
from flmgrow.model.axes import Axis
from flmgrow.model.config import ModelConfig
from flmgrow.model.frozen import Booleans
from flmgrow.model.masks import Fresh
from flmgrow.model.tensors import logical_tensors
from flmgrow.trainer.megatron.core import parallel_state
from flmgrow.trainer.megatron.held import closed_entries
from flmgrow.trainer.megatron.parameters import OptimizerView, Parameter

PARTS = ("old", "fresh")


@dataclass(frozen=True, eq=False)
class _Watched:
    """What the optimizer changes of a parameter, flat, and which of it each part is.

    None is all of it; a part that has none of it is left out. One that is frozen stands ``still``.
    """

    values: Tensor
    parts: Mapping[str, Tensor | None]
    still: bool


class Updates:
    """Measures the steps of the parameters of this rank; of no parameters, it measures nothing."""

    NUMBERS = 2 * len(PARTS)
    """How many numbers ``sums`` has."""

    def __init__(
        self,
        parameters: Sequence[Parameter],
        optimizer: OptimizerView,
        config: ModelConfig,
        padded_vocab: int,
        fresh: Fresh,
    ) -> None:
        sizes = {**config.sizes, Axis.VOCAB: padded_vocab}
        grown = {axis: np.isin(np.arange(sizes[axis]), indices) for axis, indices in fresh.items()}
        padding = {Axis.VOCAB: np.arange(padded_vocab) >= config.vocab}
        tensors = logical_tensors(config)
        self._watched: list[_Watched] = []
        for parameter in parameters:
            own = _own_part(parameter, optimizer)
            if own is None or _is_copy(parameter.placement):
                continue
            values, inside = own
            real = ~closed_entries(parameter.placement, tensors, padding)
            new = closed_entries(parameter.placement, tensors, grown)
            entries = dict(zip(PARTS, (real & ~new, real & new), strict=True))
            parts = {
                name: _chosen(found[inside], values.device)
                for name, found in entries.items()
                if found[inside].any()
            }
            self._watched.append(_Watched(values, parts, still=not parameter.trains))
        device = self._watched[0].values.device if self._watched else None
        self._sums = torch.zeros(self.NUMBERS, dtype=torch.float64, device=device)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Measure what the optimizer changes in between."""
        before = [each.values if each.still else each.values.clone() for each in self._watched]
        yield
        self._sums.zero_()
        for each, old in zip(self._watched, before, strict=True):
            moved = each.values - old
            for place, name in enumerate(PARTS):
                if name in each.parts:
                    where = each.parts[name]
                    self._sums[2 * place] += _square(moved, where)
                    self._sums[2 * place + 1] += _square(each.values, where)

    @property
    def sums(self) -> list[float]:
        """This rank's share of the squares that :func:`update_ratios` makes ratios of."""
        found: list[float] = self._sums.tolist()
        return found


def update_ratios(sums: Sequence[float]) -> dict[str, float]:
    """Return by part how far it has moved, relative to its size, from the sums over all ranks.

    A part that nothing is of is left out.
    """
    return {
        name: sqrt(moved / size)
        for name, moved, size in zip(PARTS, sums[::2], sums[1::2], strict=True)
        if size
    }


def _own_part(parameter: Parameter, optimizer: OptimizerView) -> tuple[Tensor, slice] | None:
    """Return which values of a parameter this rank counts, flat, and where they lie in it; None if
    another replica does.
    """
    first = parallel_state.get_data_parallel_rank() == 0
    if not parameter.trains:
        return (parameter.tensor.detach().view(-1), slice(None)) if first else None
    kept = optimizer.kept(parameter.tensor)
    if kept is None or not (optimizer.distributed or first):
        return None
    return kept.master.detach().view(-1), slice(kept.start, kept.stop)


def _is_copy(placement: Placement) -> bool:
    """Whether another rank of this replica has the very same parameter, and counts it."""
    replicated = placement.row.shard is None and placement.tensor_rank > 0
    return replicated or placement.row.home is Home.LAST_COPY


def _chosen(entries: Booleans, device: torch.device) -> Tensor | None:
    return None if entries.all() else torch.from_numpy(entries.copy()).to(device)


def _square(values: Tensor, where: Tensor | None) -> Tensor:
    chosen = values if where is None else values[where]
    return chosen.double().square().sum()
