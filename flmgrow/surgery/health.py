"""Looking a checkpoint over: copies that drifted apart, values that are not finite, dead
tensors.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.model.axes import Box, full_box, split
from flmgrow.surgery.finite import non_finite
from flmgrow.surgery.replicas import Replicated, check_replicas

_BLOCK = 1 << 22


@dataclass(frozen=True)
class Health:
    """``drift`` has a line per unequal copy. The rest is None unless all weights were read.

    ``non_finite`` counts by tensor; ``all_zero`` names tensors (of one layer) without any value.
    """

    replicas: int
    drift: list[str] = field(default_factory=list)
    non_finite: dict[str, int] | None = None
    all_zero: list[str] = field(default_factory=list)


def _boxes(checkpoint: Checkpoint, name: str) -> list[tuple[str, Box]]:
    whole = full_box(checkpoint.reader.shape(name))
    if not checkpoint.reader.tensors[name].layered:
        return [(name, whole)]
    return [
        (f"{name}[{layer}]", Box(((layer, layer + 1), *whole.ranges[1:])))
        for layer in range(*whole.ranges[0])
    ]


def examine(
    checkpoint: Checkpoint, deep: bool = False, progress: Callable[[int], None] = lambda _: None
) -> Health:
    """Return a checkpoint's health; with ``deep``, all weights are read."""
    reader = checkpoint.reader
    copies = sum(len(group) - 1 for group in reader.replicas())
    drift = check_replicas(reader, Replicated.RANK0)
    if not deep:
        return Health(copies, drift)
    bad: dict[str, int] = {}
    zero: list[str] = []
    for name in reader.tensors:
        for label, whole in _boxes(checkpoint, name):
            anything = False
            for box in split(whole, _BLOCK):
                values = reader.read(name, box)
                anything = anything or bool(values.any())
                if count := non_finite(values):
                    bad[label] = bad.get(label, 0) + count
                progress(values.nbytes)
            if not anything:
                zero.append(label)
    return Health(copies, drift, bad, zero)
