"""Growing and padding the vocabulary.

Old ids keep their rows and so their logits; new ids get drawn rows. Behind the true vocabulary,
Megatron pads the table to a multiple that depends on tensor parallelism. A padding row that the
source has is kept where the target has room for it, so that resharding there and back is bit-equal;
a padding row it lacks is zero.
"""

import numpy as np

from flmgrow.errors import UsageError
from flmgrow.model.axes import FRESH, PADDING, AxisMap


def vocab_map(old: int, old_padded: int, new: int, new_padded: int) -> AxisMap:
    """Return the map of the stored (padded) vocabulary axis from ``old`` to ``new`` true ids."""
    if new < old:
        raise UsageError(f"vocabulary of {new}, the source has {old}", "a vocabulary can only grow")
    index = np.arange(new_padded, dtype=np.int64)
    source = np.where(index < old_padded, index, PADDING)
    source[old:new] = FRESH
    return AxisMap(old_padded, source)
