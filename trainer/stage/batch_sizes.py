"""How many samples each step of a stage reads, where its batch grows at the beginning.

Small batches learn more from a sample while the loss falls fast, large ones keep more devices busy
later. A ramp grows the batch by equal amounts, each after an equal number of samples, as
Megatron-LM's ``--rampup-batch-size`` does; here the samples are those that the stage has trained
on, so that stages can be put together, and a step's batch follows from what a checkpoint remembers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from flmgrow.trainer.stage.section import nearest


@dataclass(frozen=True)
class BatchSizes:
    """Batches from ``start`` to ``end``, ``increment`` larger after each equal part of the first
    ``samples``; with none the batch is ``end`` from the first step on.
    """

    end: int
    start: int = 0
    increment: int = 0
    samples: int = 0

    def at(self, samples: int) -> int:
        """Return how many samples the step reads before which the stage had so many."""
        if samples >= self.samples:
            return self.end
        return self.start + samples * self._parts // self.samples * self.increment

    def after(self, steps: int, samples: int = 0) -> int:
        """Return the samples that the stage has had so many ``steps`` after it had ``samples``."""
        for batch, room in self._levels(samples):
            taken = steps if room is None else min(steps, room)
            samples, steps = samples + taken * batch, steps - taken
        return samples

    def steps_until(self, samples: Fraction, begin: int = 0) -> int:
        """Return the steps from ``begin`` to the nearest end of one to ``samples``, the later of
        two.
        """
        steps, now = 0, begin
        for batch, room in self._levels(begin):
            left = nearest(Fraction(samples - now) / batch)
            taken = left if room is None else min(left, room)
            steps, now = steps + taken, now + taken * batch
        return steps

    def all(self) -> range:
        """Return all sizes of batches, smallest first, equally far apart."""
        first, apart = (self.start, self.increment) if self.samples else (self.end, 1)
        return range(first, self.end + 1, apart)

    @property
    def _parts(self) -> int:
        return (self.end - self.start) // self.increment if self.samples else 0

    def _levels(self, samples: int) -> Iterator[tuple[int, int | None]]:
        """Yield each size from ``samples`` on, and how many steps have it; None for the last."""
        while samples < self.samples:
            batch = self.at(samples)
            part = (batch - self.start) // self.increment + 1
            end = -(-part * self.samples // self._parts)
            steps = -(-(end - samples) // batch)
            yield batch, steps
            samples += steps * batch
        yield self.end, None
