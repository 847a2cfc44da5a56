"""A run that has diverged burns its budget until somebody looks; this looks at every step.

Two findings stop a run: a loss or gradient norm that is not finite, always; and, if a ``spike`` is
given, a loss that lies further than that above the mean of the latest ones. The mean counts only
once there are ``FEWEST`` losses behind it (or a whole window, where windows are shorter): the first
losses of a run are few and fall fast. A loss that stopped the run is not remembered.

What is remembered belongs into a checkpoint, so that a resumed run stops where an undisturbed one
would.
"""

import math
from collections import deque
from collections.abc import Iterable

from flmgrow.errors import DivergenceError

FEWEST = 10


class LossGuard:
    """Watches the losses of a run, in nats per token."""

    def __init__(self, spike: float | None, window: int, losses: Iterable[float] = ()) -> None:
        """Begin with ``losses``, the ``state`` of a guard before, of which ``window`` count.

        With ``spike`` None, any finite loss passes; it is remembered all the same.
        """
        self._spike = spike
        self._losses = deque(losses, maxlen=window)
        self._needed = min(FEWEST, window)

    def state(self) -> list[float]:
        """Return the losses that the next step is compared with, oldest first."""
        return list(self._losses)

    def check(self, step: int, loss: float, grad_norm: float) -> None:
        """Take the loss of a step. Raises DivergenceError, without a hint, to stop the run."""
        for name, value in (("loss", loss), ("gradient norm", grad_norm)):
            if not math.isfinite(value):
                raise DivergenceError(f"step {step}: {name} {value}, wanted a finite number")
        if self._spike is not None and len(self._losses) >= self._needed:
            mean = math.fsum(self._losses) / len(self._losses)
            if loss > mean + self._spike:
                raise DivergenceError(
                    f"step {step}: loss {loss:.6g}, mean of the last {len(self._losses)} is "
                    f"{mean:.6g}, wanted at most {mean + self._spike:.6g}"
                )
        self._losses.append(loss)
