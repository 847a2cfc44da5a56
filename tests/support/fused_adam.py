"""A stand-in for Transformer Engine's ``FusedAdam`` on a CPU, after its source: steps are counted
by param groups, and a parameter's state has moments alone.
"""

from collections.abc import Iterable
from typing import Any

import torch


class FusedAdam(torch.optim.Optimizer):
    """AdamW, with a count of steps in each param group that has taken one."""

    def __init__(
        self, params: Iterable[Any], lr: float, weight_decay: float, betas: tuple[float, float],
        eps: float, adam_w_mode: bool,
    ) -> None:  # fmt: skip
        assert adam_w_mode
        settings = {"bias_correction": True, "betas": betas, "eps": eps}
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, **settings})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step."""
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)

    def _move(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        first, second = (
            state.setdefault(name, torch.zeros_like(parameter))
            for name in ("exp_avg", "exp_avg_sq")
        )
        rates = group["betas"]
        first.mul_(rates[0]).add_(gradient, alpha=1 - rates[0])
        second.mul_(rates[1]).addcmul_(gradient, gradient, value=1 - rates[1])
        mean, square = (
            moment / (1 - rate ** group["step"])
            for moment, rate in zip((first, second), rates, strict=True)
        )
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.addcdiv_(mean, square.sqrt() + group["eps"], value=-group["lr"])
