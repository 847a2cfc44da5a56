"""Watching losses and gradient norms, and stopping a run that has diverged.

A run that has diverged burns its budget until somebody looks; this looks at every step. Two
findings stop a run: a loss or gradient norm that is not finite, always; and, if a ``spike`` is
given, a loss that lies further than that above the mean of the latest ones. The mean counts only
once there are ``FEWEST`` losses behind it (or a whole window, where windows are shorter): the first
losses of a run are few and fall fast. A loss that stopped the run is not remembered.

A batch's loss is a mean over its samples, and strays from the expected one as the root of their
number falls. So where a batch is smaller than those remembered (growth may have made it so),
``spike`` is worth as much more, until the window holds batches of its own size.

What is remembered belongs into a checkpoint, so that a resumed run stops where an undisturbed one
would, and a stage whose model grew out of it where the one before would have.
"""

import math
from collections import deque
from collections.abc import Sequence
from itertools import repeat

from flmgrow.errors import DivergenceError
from flmgrow.text import Found, Text

FEWEST = 10


SAME = {"float32": 1e-3, "bfloat16": 5e-2, "fp8": 5e-2}
"""How far apart the losses of a batch may be, in nats per token, that a model and what grew out of
it have, by the dtype they compute in: several times what rounding was ever seen to make of it (of 8
bits, as of bfloat16: they were seen in a stand-in only).
"""


def check_growth(step: int, before: float, after: float, *dtypes: str) -> None:
    """Take the losses of one batch before a growth that changes no function, and after it.

    Raises:
        DivergenceError: They are not equal in these ``dtypes``; it has no hint.
    """
    within = max(SAME[dtype] for dtype in dtypes)
    if not abs(after - before) <= within:  # which no NaN is
        raise DivergenceError(
            Text(f"step {step}: grown, the loss of the same batch is ", Found(f"{after:.6g}")),
            wanted=f"{before:.6g}, as before, within {within:g}",
        )


class LossGuard:
    """Watches the losses of a run, in nats per token."""

    def __init__(
        self,
        spike: float | None,
        window: int,
        batch: int,
        losses: Sequence[float] = (),
        batches: Sequence[int] = (),
    ) -> None:
        """Begin with ``losses``, and the samples in the ``batches`` of each, of a guard before.

        Those of the last ``window`` steps count; without ``batches`` all are taken to be of
        ``batch`` samples, as those to come are. With ``spike`` None, any finite loss passes; it is
        remembered all the same.
        """
        self._spike, self._batch = spike, batch
        sizes = batches or repeat(batch, len(losses))
        self._known = deque(zip(losses, sizes, strict=True), maxlen=window)
        self._needed = min(FEWEST, window)

    @property
    def losses(self) -> list[float]:
        """The losses that the next step is compared with, oldest first."""
        return [loss for loss, _ in self._known]

    @property
    def batches(self) -> list[int]:
        """The samples that each of them is a mean of."""
        return [batch for _, batch in self._known]

    def check(self, step: int, loss: float, grad_norm: float, batch: int | None = None) -> None:
        """Take the loss of a step, of ``batch`` samples where that is not the guard's own.

        Raises:
            DivergenceError: To stop the run; the message lacks a hint.
        """
        for name, value in (("loss", loss), ("gradient norm", grad_norm)):
            if not math.isfinite(value):
                raise DivergenceError(
                    Text(f"step {step}: {name} ", Found(value)), wanted="a finite number"
                )
        if self._spike is not None and len(self._known) >= self._needed:
            mean = math.fsum(self.losses) / len(self._known)
            most = mean + self._spike * self._noise(batch or self._batch)
            if loss > most:
                raise DivergenceError(
                    Text(
                        f"step {step}: loss ",
                        Found(f"{loss:.6g}"),
                        f", mean of the last {len(self._known)} is {mean:.6g}",
                    ),
                    wanted=f"at most {most:.6g}",
                )
        self._known.append((loss, batch or self._batch))

    def _noise(self, batch: int) -> float:
        """Return how much further a batch's loss strays than those remembered did, at least 1."""
        return math.sqrt(max(1.0, sum(self.batches) / len(self._known) / batch))
