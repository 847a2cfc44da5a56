"""Proving that two opened checkpoints compute the same: the one way in which it is done.

torch is imported here, as both models are run; :func:`flmgrow.verify` and the command import this
module when they are called.
"""

import xxhash

from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.surgery.evidence.check import Verdict
from flmgrow.surgery.verify import Verification, computing_dtype, verify

__all__ = ["Verification", "compare", "computing_dtype"]


def compare(source: Checkpoint, result: Checkpoint, how: Verification) -> Verdict:
    """Return whether ``result`` computes what ``source`` does; all ranks of ``how`` call it, and
    come to the same.

    Raises UsageError if they want different things.
    """
    asked = (source.contents.digest(), result.contents.digest(), how.asked)
    how.ranks.meet(xxhash.xxh3_128_hexdigest(repr(asked).encode()))
    return Verdict(verify(source, result, how))
