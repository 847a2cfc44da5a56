"""What a table of an architecture consists of: rows, each with every fact about one stored
parameter.

Parts a model does not have (a gate, a bias) are left out, and a row with no part left does not
exist; so one table serves every variant of an architecture.
"""

from dataclasses import dataclass
from enum import StrEnum

from flmgrow.model.axes import Axis


class Home(StrEnum):
    """Which pipeline ranks own a row."""

    FIRST = "first"
    LAYER = "layer"
    LAST = "last"
    LAST_COPY = "last copy"
    """On the last pipeline rank, and only if that is not also the first (the shared embedding
    table).
    """


@dataclass(frozen=True)
class Row:
    """A stored parameter, under its ``key``; or under ``fused_key`` in a naming that fuses norms.

    ``parts`` are the logical tensors in it, one behind the other along the stored rows. ``outer``
    axes lie in front of that concatenation: all parts of one index, then all parts of the next.
    ``columns`` are the axes of the array's second dimension, if it has one. ``inputs`` are the axes
    of its first dimension where it is stored the other way round, (in, out): its parts then lie one
    behind the other along the second. ``shard`` is the axis tensor parallelism splits; a row
    without one is replicated on every tensor rank.
    """

    key: str
    parts: tuple[str, ...]
    home: Home
    shard: Axis | None = None
    outer: tuple[Axis, ...] = ()
    columns: tuple[Axis, ...] = ()
    inputs: tuple[Axis, ...] = ()
    fused_key: str = ""

    def name(self, fused: bool) -> str:
        """Return the key under the naming that fuses norms if ``fused``, else under the other."""
        return self.fused_key if fused and self.fused_key else self.key
