"""Drawing fresh values from counters, so that each depends on its place alone.

Fresh weights must not depend on how the work is split. A value drawn for a fresh entry depends only
on the seed, the logical tensor's name and the entry's logical index, so that any source layout,
target layout, number of workers or resumed run gives the same model, bit for bit. An ordinary
random stream cannot do that; a hash of the index can: each index is mixed into a 64-bit state (the
finaliser of SplitMix64, Steele et al. 2014), whose two halves give one normal value (Box and Muller
1958).
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = np.uint64(0x94D049BB133111EB)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble ``state`` in place and return it."""
    state ^= state >> np.uint64(30)
    state *= _MULTIPLY_1
    state ^= state >> np.uint64(27)
    state *= _MULTIPLY_2
    state ^= state >> np.uint64(31)
    return state


def _hashes(seed: int, name: str, indices: Sequence[NDArray[np.int64]]) -> NDArray[np.uint64]:
    """Return one 64-bit hash for each entry of the outer product of ``indices``."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    state = np.frombuffer(digest, np.uint64).copy()
    for axis in indices:
        step = (axis.astype(np.uint64) + np.uint64(1)) * _GOLDEN
        state = _mix(np.add.outer(state, step).reshape(-1))
    return state


def normal(seed: int, name: str, indices: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
    """Return standard normal values for the outer product of ``indices``, one array of indices per
    axis.

    The values are float64 rounded to float32, which hides the last bits in which mathematical
    libraries differ. Their magnitude is at most 6.8.
    """
    state = _hashes(seed, name, indices)
    radius = ((state >> np.uint64(32)).astype(np.float64) + 0.5) * 2.0**-32
    np.sqrt(-2.0 * np.log(radius), out=radius)
    angle = (state & np.uint64(0xFFFFFFFF)).astype(np.float64) * (2.0 * np.pi * 2.0**-32)
    values = radius * np.cos(angle)
    return values.astype(np.float32).astype(np.float64).reshape([len(axis) for axis in indices])


def split_weights(seed: int, name: str, source: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return unequal weights, one per entry of ``source``, that sum to one over equal entries.

    Weights lie within a factor of three of each other, so that no copy starts out negligible; an
    entry with a source of its own gets exactly one. Negative sources get one, too.
    """
    raw = _hashes(seed, name, [np.arange(len(source), dtype=np.int64)])
    weights = 0.5 + (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
    _, inverse = np.unique(source, return_inverse=True)
    weights /= np.bincount(inverse, weights)[inverse]
    weights[source < 0] = 1.0
    return weights
