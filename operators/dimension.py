"""What growing one dimension comes to: the common result of the width, heads, FFN and depth
operators.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf

from flmgrow.model.axes import Axis, AxisMap
from flmgrow.model.masks import Mask
from flmgrow.text import unlike


@dataclass(frozen=True, eq=False)
class DimensionGrowth:
    """Axis maps, a mask if the method uses one, and what must change in the config to go with them.

    ``eps_factor`` multiplies the norm epsilon. ``preserves`` is False for a method that changes the
    function.
    """

    maps: Mapping[Axis, AxisMap] = field(default_factory=dict)
    mask: Mask | None = None
    eps_factor: float = 1.0
    preserves: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.eps_factor < inf:
            raise ValueError(unlike("a factor of the norm epsilon", self.eps_factor, "above 0"))
