"""The parameters and optimizer states of a rank, as boxes of logical tensors.

A rank's parameters live in megatron-core; checkpoints know logical tensors. Here the two meet.
Every parameter of a rank is one placement of the layout (:mod:`flmgrow.formats.layout.placements`),
and beside it lies what the optimizer keeps: a float32 master and Adam's moments, for the whole
parameter, or, in a distributed optimizer, for a stretch of it on each replica. All of it can be
filled from, and seen as, logical tensors; so any checkpoint that flmgrow can read begins a run, in
any layout.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from flmgrow.formats.layout.lags import Lags, lag_of
from flmgrow.formats.layout.placements import Layout, Placement, placements
from flmgrow.formats.tables.gpt import ROWS
from flmgrow.model.axes import Axis
from flmgrow.model.config import ModelConfig
from flmgrow.model.states import State
from flmgrow.model.tensors import logical_tensors
from flmgrow.trainer.megatron.core import parallel_state

MOMENTS = (State.EXP_AVG, State.EXP_AVG_SQ)

Stretches = Callable[[int, int], Iterator[tuple[int, Tensor]]]
"""Gives the elements from one to another of something flat, a stretch at a time: the place of its
first element, and its values (elements,)."""

ModelRank = tuple[int, int]
"""Which tensor and which pipeline rank."""


@dataclass(frozen=True, eq=False)
class Parameter:
    """A parameter of this rank, and where in the model it belongs."""

    placement: Placement
    tensor: Tensor

    @property
    def trains(self) -> bool:
        """Whether an optimizer has it: one that is frozen as a whole is none's."""
        return self.tensor.requires_grad

    @property
    def gradient(self) -> Tensor:
        """The sum of its gradients, flat (elements,), in megatron-core's buffer, if it trains."""
        main: Tensor = self.tensor.main_grad  # type: ignore[attr-defined]
        return main.view(-1)


@dataclass(frozen=True, eq=False)
class Kept:
    """What this rank's optimizer keeps of a parameter: of its flat elements [start, stop).

    ``master`` is the tensor that Adam changes. ``entry`` has the moments, by name, and torch's
    count of steps; it is empty before the first step.
    """

    start: int
    stop: int
    master: Tensor
    entry: dict[str, Any]


def own_model_rank() -> ModelRank:
    """Return the tensor and the pipeline rank of this process."""
    return (
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_pipeline_model_parallel_rank(),
    )


def parameters_of(
    models: Sequence[Any], config: ModelConfig, layout: Layout, padded_vocab: int
) -> list[Parameter]:
    """Return this rank's parameters in the order of its modules, chunk by chunk."""
    sizes = {**config.sizes, Axis.VOCAB: padded_vocab}
    own, tensors = own_model_rank(), logical_tensors(config)
    named = [(chunk, *each) for chunk, m in enumerate(models) for each in m.named_parameters()]
    plain, fused = (placements(ROWS, tensors, sizes, layout, by) for by in (False, True))
    here = {(chunk, name) for chunk, name, _ in named}
    # Under Transformer Engine's names too it is stored as any: a norm with its own name.
    placed = {
        (own_name if (own_name := (f.chunk, f.key)) in here else (p.chunk, p.key)): p
        for p, f in zip(plain, fused, strict=True)
        if p.rank == own
    }
    found = [Parameter(placed.pop((chunk, name)), tensor) for chunk, name, tensor in named]
    assert not placed, f"megatron-core has no {', '.join(key for _, key in placed)}"
    return found


@dataclass(frozen=True)
class Counted:
    """How many steps Adam has counted, and what it has counted less of, or has no state of: on all
    ranks the same.
    """

    steps: int = 0
    lags: Lags = field(default_factory=dict)

    def of(self, parameter: Parameter) -> int:
        """Return the steps that are counted for a parameter."""
        lag = lag_of(parameter.placement, self.lags)
        return 0 if lag is None else self.steps - lag


class OptimizerView:
    """megatron-core's optimizer of any kind, seen from the parameters."""

    def __init__(self, optimizer: Any) -> None:
        self._members = getattr(optimizer, "chained_optimizers", [optimizer])
        self.distributed = hasattr(self._members[0], "model_param_group_index_map")

    @property
    def groups(self) -> list[dict[str, Any]]:
        """All param groups."""
        return [group for member in self._members for group in member.optimizer.param_groups]

    @property
    def counts_by_group(self) -> bool:
        """Whether the step count lies in the param groups, as fused kernels have it."""
        return not isinstance(self._members[0].optimizer, torch.optim.AdamW | torch.optim.Adam)

    def kept(self, parameter: Tensor) -> Kept | None:
        """Return what is kept of a parameter of any shape; None if another replica keeps all of it,
        or nobody any, since it is frozen.
        """
        if not parameter.requires_grad:
            return None
        for member in self._members:
            if self.distributed:
                place = member.model_param_group_index_map.get(parameter)
                if place is None:
                    continue
                span = member._get_model_param_range_map(parameter)["param"]
                master = member.optimizer.param_groups[place[0]]["params"][place[1]]
                return Kept(span.start, span.end, master, member.optimizer.state[master])
            master = getattr(parameter, "main_param", parameter)
            return Kept(0, parameter.numel(), master, member.optimizer.state[master])
        return None


def state_of(
    parameter: Parameter, optimizer: OptimizerView, state: State, *, to_host: bool
) -> Tensor:
    """Return a state of a parameter as a whole, in its shape or flat; not to be changed.

    On all replicas at once. What they put together is on the host if it shall be. Of a frozen
    parameter it is what training would begin with.
    """
    if state is State.WEIGHT:
        return parameter.tensor
    if not parameter.trains:
        master = parameter.tensor.detach().float()
        return master if state is State.MASTER else torch.zeros_like(master)
    kept = optimizer.kept(parameter.tensor)
    own = None
    if kept is not None:
        own = kept.master if state is State.MASTER else kept.entry[state]
    if not optimizer.distributed:
        assert own is not None
        return own
    # As integers: of all replicas but one the bits are zero, and a sum of those changes none.
    whole = torch.zeros(parameter.tensor.numel(), dtype=torch.int32, device=parameter.tensor.device)
    if kept is not None and own is not None:
        whole[kept.start : kept.stop] = own.detach().view(-1).view(torch.int32)
    torch.distributed.all_reduce(whole, group=parallel_state.get_data_parallel_group())
    values = whole.view(torch.float32)
    return values.cpu() if to_host else values


@torch.no_grad()
def fill(
    parameter: Parameter, optimizer: OptimizerView, stored: Mapping[State, Stretches], step: int
) -> None:
    """Give a parameter, and what is kept of it here, the values that are ``stored``.

    A master is taken where there is one, otherwise the weight; without moments, Adam begins anew.
    Of the moments no more is read than is kept here.
    """
    best = stored.get(State.MASTER, stored[State.WEIGHT])
    weight, kept = parameter.tensor.view(-1), optimizer.kept(parameter.tensor)
    for at, values in best(0, weight.numel()):
        stop = at + values.numel()
        weight[at:stop].copy_(values)
        if kept is not None and kept.start < stop and at < kept.stop:
            low, high = max(at, kept.start), min(stop, kept.stop)
            inside = slice(low - kept.start, high - kept.start)
            kept.master.view(-1)[inside].copy_(values[low - at : high - at])
    if kept is None or State.EXP_AVG not in stored:
        return
    for state in MOMENTS:
        moment = torch.empty_like(kept.master, dtype=torch.float32, requires_grad=False)
        for at, values in stored[state](kept.start, kept.stop):
            begin = at - kept.start
            moment.view(-1)[begin : begin + values.numel()].copy_(values)
        kept.entry[str(state)] = moment
    if not optimizer.counts_by_group:
        kept.entry["step"] = torch.tensor(float(step), device=kept.master.device)
