"""Computing again what was not kept, sources of chance, and what tensor ranks exchange."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as compute_again


def checkpoint(
    function: Callable[..., Any], *arguments: Any, distribute_saved_activations: bool = False,
    get_rng_state_tracker: Any = None, tp_group: Any = None, **settings: Any,
) -> Any:  # fmt: skip
    """Return what ``function`` does, and compute it again on the way back."""
    assert not distribute_saved_activations, "not in the stand-in"
    return compute_again(function, *arguments, use_reentrant=False, **settings)


def activation_recompute_forward(**_: Any) -> Any:
    """Return a context that says nothing here."""
    return nullcontext()


class CudaRNGStatesTracker:
    """megatron-core derives from it, and uses it where it is asked to."""


class _Exchange(torch.autograd.Function):
    """One exchange on the way forward, and its dual on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Any, back: Any, group: Any) -> Tensor:
        ctx.back, ctx.group = back, group
        result: Tensor = there(x, group)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.back(gradient.contiguous(), ctx.group), None, None, None


def _same(x: Tensor, _: Any) -> Tensor:
    return x.clone()


def _sum(x: Tensor, group: Any) -> Tensor:
    total = x.clone()
    torch.distributed.all_reduce(total, group=group)
    return total


def _all(x: Tensor, group: Any) -> Tensor:
    parts = [torch.empty_like(x) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(parts, x.contiguous(), group=group)
    return torch.cat(parts)


def _own_sum(x: Tensor, group: Any) -> Tensor:
    parts = _sum(x, group).chunk(torch.distributed.get_world_size(group))
    return parts[torch.distributed.get_rank(group)].contiguous()


BEFORE_COLUMNS = {False: (_same, _sum), True: (_all, _own_sum)}
BEHIND_ROWS = {False: (_sum, _same), True: (_own_sum, _all)}
"""By whether positions, the first axis, are cut between linear layers."""


def exchanged(x: Tensor, functions: Any, group: Any) -> Tensor:
    """Return what tensor ranks have of ``x`` (positions, batch, channels) after an exchange."""
    result: Tensor = _Exchange.apply(x, *functions, group)  # type: ignore[no-untyped-call]
    return result
