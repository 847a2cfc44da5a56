"""Growing and padding the vocabulary.

Old ids keep their rows and so their logits. What new ids get decides on the loss all the same, as
every id has its share of the softmax. Old rows may point one way, so that all old logits are far
below zero; those of rows drawn around zero are not, and would take the softmax. So new rows are
the mean of the old ones (Hewitt 2021): at any input, a new id's logit is then the mean of the old
logits, and by Jensen's inequality ::

    exp(mean z) <= mean(exp z)

no new id is likelier than the average old one. ``new`` of them beside ``old`` take at most
``new / (new + old)`` of the softmax, and the loss rises by ``log(1 + new / old)`` at most (in a
trained model, by far less). The mean is taken over the rows of the true vocabulary as they grow:
centred, scaled, split over copies. A little noise, relative to the spread of the table, lets new
ids part that are never seen alone. The same is done with the rows of a separate embedding: a new id
starts as the average one.

Behind the true vocabulary, Megatron pads the table to a multiple that depends on tensor
parallelism. A padding row that the source has is kept where the target has room for it, so that
resharding there and back is bit-equal; a padding row it lacks is zero.
"""

import numpy as np

from flmgrow.errors import UsageError
from flmgrow.model.axes import FRESH, PADDING, AxisMap, Fill, Role
from flmgrow.operators.choices import FreshRows

ROW_NOISE = 1e-3
"""Noise on the rows of new ids, relative to the spread that entries of their table are drawn with.

A draw has at most 6.8 times its spread (``draws.py``). If old rows differ from each other as drawn
ones do, old logits have a spread L and new ones noise of 0.001 L: then even the worst draw makes no
new id likelier than the average old one by more than max(0.0068 L - L^2 / 2) = 0.000023.
"""


def vocab_map(
    old: int, old_padded: int, new: int, new_padded: int, rows: FreshRows = FreshRows.MEAN
) -> AxisMap:
    """Return the map of the stored (padded) vocabulary axis from ``old`` to ``new`` true ids."""
    if new < old:
        raise UsageError(f"vocabulary of {new}, the source has {old}", "a vocabulary can only grow")
    index = np.arange(new_padded, dtype=np.int64)
    source = np.where(index < old_padded, index, PADDING)
    source[old:new] = FRESH
    fill = {Role.PLAIN: Fill.NEAR} if rows is FreshRows.MEAN else {}
    return AxisMap(old_padded, source, fill=fill)
