"""How far a step moves what a model had before it grew, and how far what it was given.

After a growth the old parameters have learned and the fresh ones have not. Whether a ramp, a
warm-up or a learning rate suits both shows in how far a step moves each, relative to its size: the
norm of what the optimizer changed over the norm of the weights afterwards. (Afterwards, because
fresh weights may begin with zeros.) Some 1e-3 is usual; a part that moves by much more is torn, one
that moves by much less does not learn.

Growth has several dimensions, and each is told alone, too: of the tensors that have its axes, what
is fresh along them, and what is not. Of depth that is the new layers and the old ones.

Every element counts once, in the precision that the optimizer changes, whatever ranks hold it:
neither a replica nor padding counts. So the layout makes no difference. It takes the memory of one
more copy of this rank's masters.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import sqrt

import numpy as np
import torch
from torch import Tensor

from flmgrow.formats.layout.placements import Placement
from flmgrow.formats.tables.row import Home
from flmgrow.model.axes import Axis, Sizes
from flmgrow.model.config import ModelConfig
from flmgrow.model.frozen import Booleans, Frozen, FrozenPart, old_axes
from flmgrow.model.masks import AXES, Fresh
from flmgrow.model.tensors import LogicalTensor, logical_tensors
from flmgrow.trainer.megatron.core import parallel_state
from flmgrow.trainer.megatron.held import closed_entries, frozen_entries
from flmgrow.trainer.megatron.parameters import OptimizerView, Parameter

OLD, FRESH = "old", "fresh"


@dataclass(frozen=True)
class UpdateRatios:
    """The norm of a step relative to that of the weights after it, of what is old and fresh: of all
    parameters, and by the dimension that grew.
    """

    whole: Mapping[str, float] = field(default_factory=dict)
    by_dimension: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Watched:
    """What the optimizer changes of a parameter, flat, and which of it each part is, by its number.

    None is all of it; a part that has none of it is left out. One that is frozen stands ``still``.
    """

    values: Tensor
    parts: Mapping[int, Tensor | None]
    still: bool


class Updates:
    """Measures the steps of the parameters of this rank; of no parameters, it measures nothing."""

    def __init__(
        self,
        parameters: Sequence[Parameter],
        optimizer: OptimizerView,
        config: ModelConfig,
        padded_vocab: int,
        fresh: Fresh,
    ) -> None:
        sizes = {**config.sizes, Axis.VOCAB: padded_vocab}
        padding = {Axis.VOCAB: np.arange(padded_vocab) >= config.vocab}
        tensors = logical_tensors(config)
        old = {"": FrozenPart(old_axes(fresh, sizes)), **_old_by_dimension(fresh, sizes, tensors)}
        self._names = [(dimension, part) for dimension in old for part in (OLD, FRESH)]
        self._watched: list[_Watched] = []
        for parameter in parameters:
            own = _own_part(parameter, optimizer)
            if own is None or _is_copy(parameter.placement):
                continue
            values, inside = own
            place = parameter.placement
            real = ~closed_entries(place, tensors, padding)
            entries: list[Booleans] = []
            for part in old.values():
                had = frozen_entries(place, tensors, Frozen([part]))
                meant = frozen_entries(place, tensors, Frozen([FrozenPart(tensors=part.tensors)]))
                entries += [real & had, real & meant & ~had]
            chosen = _chosen([found[inside] for found in entries], values.device)
            self._watched.append(_Watched(values, chosen, still=not parameter.trains))
        device = self._watched[0].values.device if self._watched else None
        self._sums = torch.zeros(2 * len(self._names), dtype=torch.float64, device=device)

    @property
    def count(self) -> int:
        """How many numbers ``sums`` has, on every rank."""
        return 2 * len(self._names)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Measure what the optimizer changes in between."""
        before = [each.values if each.still else each.values.clone() for each in self._watched]
        yield
        self._sums.zero_()
        for each, old in zip(self._watched, before, strict=True):
            moved, size = (_squares(found) for found in (each.values - old, each.values))
            for number, where in each.parts.items():
                self._sums[2 * number] += _sum(moved, where)
                self._sums[2 * number + 1] += _sum(size, where)

    @property
    def sums(self) -> list[float]:
        """This rank's share of the squares that :meth:`ratios` makes ratios of."""
        found: list[float] = self._sums.tolist()
        return found

    def ratios(self, sums: Sequence[float]) -> UpdateRatios:
        """Return how far each part has moved, from the sums over all ranks."""
        return update_ratios(self._names, sums)


def update_ratios(names: Sequence[tuple[str, str]], sums: Sequence[float]) -> UpdateRatios:
    """Return how far each part has moved, relative to its size, from sums of squares.

    ``names`` are those of the parts: a dimension, or nothing for all, and old or fresh. A part that
    nothing is of is left out.
    """
    found: dict[str, dict[str, float]] = {}
    for (dimension, part), moved, size in zip(names, sums[::2], sums[1::2], strict=True):
        if size:
            found.setdefault(dimension, {})[part] = sqrt(moved / size)
    return UpdateRatios(found.pop("", {}), found)


def _old_by_dimension(
    fresh: Fresh, sizes: Sizes, tensors: Mapping[str, LogicalTensor]
) -> dict[str, FrozenPart]:
    """Return what is old along each dimension that grew, of the tensors that have its axes."""
    dimensions = {**{str(name): axes for name, axes in AXES.items()}, "vocab": (Axis.VOCAB,)}
    found = {}
    for name, axes in dimensions.items():
        if own := {axis: fresh[axis] for axis in axes if axis in fresh}:
            having = {each.name for each in tensors.values() if own.keys() & set(each.axes)}
            found[name] = FrozenPart(old_axes(own, sizes), frozenset(having))
    return found


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


def _chosen(entries: Sequence[Booleans], device: torch.device) -> dict[int, Tensor | None]:
    """Return which entries each part has, by its number, None for all; those that have none are
    left out, and what parts have alike is kept once.
    """
    found: dict[int, Tensor | None] = {}
    for number, own in enumerate(entries):
        if own.any():
            same = next((n for n in found if np.array_equal(entries[n], own)), None)
            new = None if own.all() else torch.from_numpy(own.copy()).to(device)
            found[number] = new if same is None else found[same]
    return found


def _squares(values: Tensor) -> Tensor:
    return values.double().square()


def _sum(squares: Tensor, where: Tensor | None) -> Tensor:
    return (squares if where is None else squares[where]).sum()
