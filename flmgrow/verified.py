"""Proving that two opened checkpoints compute the same: the one way in which it is done.

torch is imported here, as both models are run; :func:`flmgrow.verify` and the command import this
module when they are called.
"""

from typing import Any

import torch
import xxhash

from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.surgery.evidence.check import Verdict
from flmgrow.surgery.verify import Verification, computing_dtype, verify


def compare(
    source: Checkpoint, result: Checkpoint, dtype: torch.dtype | None, **how: Any
) -> Verdict:
    """Return whether ``result`` computes what ``source`` does; all ranks call it, and come to the
    same.

    ``how`` are fields of :class:`Verification`; the ``dtype`` follows from the models if None.

    Raises:
        UsageError: For what cannot be, and where ranks want different things.
    """
    chosen = computing_dtype(source, result) if dtype is None else dtype
    asked = Verification(dtype=chosen, **how)
    wanted = (source.contents.digest(), result.contents.digest(), asked.asked)
    asked.ranks.meet(xxhash.xxh3_128_hexdigest(repr(wanted).encode()))
    return Verdict(verify(source, result, asked))
