"""Computing the blocks of an output: by several workers, a few ahead of who writes them.

Blocks are computed by the pool and come out in order, so their bytes do not depend on the number of
workers. A window of them is in flight; its size and theirs follow from the memory budget.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.layout.segments import Strip
from flmgrow.formats.pieces import DTYPES
from flmgrow.formats.targets import Buffer, TargetArray
from flmgrow.model.arrays import Array
from flmgrow.model.axes import Box
from flmgrow.surgery.execution import Execution
from flmgrow.surgery.finite import non_finite
from flmgrow.surgery.plan import GrowthPlan
from flmgrow.surgery.states import ModelValues
from flmgrow.text import Setting, Text

T = TypeVar("T")


def in_order(
    pool: ThreadPoolExecutor, tasks: Iterable[Callable[[], T]], window: int
) -> Iterator[T]:
    """Run ``tasks`` on the pool and yield their results in order, at most ``window`` ahead."""
    waiting: deque[Future[T]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(task))
            if len(waiting) >= window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


class Blocks:
    """Computes what lies in the buffers of a plan's files."""

    def __init__(self, plan: GrowthPlan, execution: Execution, values: ModelValues) -> None:
        self._plan, self._execution, self._values = plan, execution, values

    def of(
        self, pool: ThreadPoolExecutor, buffer: Buffer, arrays: Sequence[TargetArray]
    ) -> Iterator[Array]:
        """Yield the values of a buffer from front to back (elements,), computed ahead by the pool.

        ``arrays`` fill it, in this order; what lies between them is zero.
        """
        limit = self._execution.block_elements
        dtype = DTYPES[arrays[0].dtype]

        def gap(start: int, stop: int) -> Iterator[Callable[[], Array]]:
            assert start <= stop, "arrays overlap"
            for low in range(start, stop, limit):
                yield partial(np.zeros, min(limit, stop - low), dtype)

        def tasks() -> Iterator[Callable[[], Array]]:
            position = 0
            for array in arrays:
                yield from gap(position, array.start)
                for strip in array.placement.strips(limit):
                    yield partial(self._strip, array, strip)
                position = array.stop
            yield from gap(position, buffer.nbytes // dtype.itemsize)

        return in_order(pool, tasks(), self._execution.workers + 1)

    def _block(self, array: TargetArray, name: str, box: Box) -> Array:
        with np.errstate(all="ignore"):  # what is not finite is found below, in any thread
            values = self._values.box(array.state, name, box, DTYPES[array.dtype])
        if not self._execution.allow_nonfinite and (count := non_finite(values)):
            raise self._not_finite(name, box, values, count)
        return values

    def _strip(self, array: TargetArray, strip: Strip) -> Array:
        parts = zip(strip.segments, strip.boxes, strict=True)
        return strip.arrange([self._block(array, part.tensor, box) for part, box in parts])

    def _not_finite(self, name: str, box: Box, values: Array, count: int) -> BadCheckpointError:
        inside = np.argwhere(~np.isfinite(values.astype(np.float64)))[0].tolist()
        place = [start + i for (start, _), i in zip(box.ranges, inside, strict=True)]
        cast = self._plan.target.dtype
        return BadCheckpointError(
            f"{name}{place}: {values[tuple(inside)]}, the first of {count} that are not finite",
            Text(
                f"it may not fit {cast}, or " if cast else "",
                "the source is damaged or has diverged; ",
                Setting("allow_nonfinite", True),
                " carries them over",
            ),
            where=self._plan.source.folder,
        )
