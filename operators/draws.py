"""Drawing fresh values from counters, so that each depends on its place alone.

Fresh weights must not depend on how the work is split. A value drawn for a fresh entry depends only
on the seed, the logical tensor's name and the entry's logical index, so that any source layout,
target layout, number of workers or resumed run gives the same model, bit for bit. An ordinary
random stream cannot do that; a hash of the index can: each index is mixed into a 64-bit state (the
finaliser of SplitMix64, Steele et al. 2014), which is made into one normal value.

How it is made has a version, which manifests record, since their values must be derived again:

2. The upper half of the state is a sign and a probability, of which the normal quantile is looked
   up in a table and interpolated. A dozen simple operations on integers and float32, equal on any
   machine.
1. Both halves give one value by logarithm and cosine (Box and Muller 1958). Ten times slower.
"""

import hashlib
from collections.abc import Sequence
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from flmgrow.model.arrays import FloatArray, IntArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = np.uint64(0x94D049BB133111EB)

_FRACTION = 7
"""Bits of a float32 behind its leading one that tell apart the intervals of the table."""


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble ``state`` in place and return it."""
    state ^= state >> np.uint64(30)
    state *= _MULTIPLY_1
    state ^= state >> np.uint64(27)
    state *= _MULTIPLY_2
    state ^= state >> np.uint64(31)
    return state


def _hashes(seed: int, name: str, indices: Sequence[IntArray]) -> NDArray[np.uint64]:
    """Return one 64-bit hash for each entry of the outer product of ``indices``."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    state = np.frombuffer(digest, np.uint64).copy()
    for axis in indices:
        step = (axis.astype(np.uint64) + np.uint64(1)) * _GOLDEN
        state = _mix(np.add.outer(state, step).reshape(-1))
    return state


@cache
def _quantiles() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return intercept and slope of the magnitude over each interval of ``_interpolated``.

    Intervals are bounded by the float32 with ``_FRACTION`` bits behind the leading one, from 1 to
    2^32: a tail as thin as 2^-33 is cut as finely, for its size, as the middle.
    """
    bounds = [2.0**e * (1 + i * 2.0**-_FRACTION) for e in range(32) for i in range(1 << _FRACTION)]
    y = np.array([*bounds, 2.0**32])
    x = np.array([-NormalDist().inv_cdf(each * 2.0**-33) for each in y.tolist()])
    slope = np.append(np.diff(x) / np.diff(y), 0.0)
    return (x - slope * y).astype(np.float32), slope.astype(np.float32)


def _interpolated(state: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Return a normal value for each state: its sign, and the probability of a larger one."""
    intercept, slope = _quantiles()
    words = (state >> np.uint64(32)).astype(np.uint32)
    sign = words & np.uint32(1 << 31)
    words <<= np.uint32(1)
    words |= np.uint32(1)
    y = words.astype(np.float32)  # 2^33 times the probability
    interval = (y.view(np.uint32) >> np.uint32(23 - _FRACTION)).astype(np.intp)
    interval -= 127 << _FRACTION
    values = slope.take(interval)
    values *= y
    values += intercept.take(interval)
    bits = values.view(np.uint32)
    bits ^= sign
    return values


def _box_muller(state: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Return a normal value for each state; rounding hides in what mathematical libraries
    differ.
    """
    radius = ((state >> np.uint64(32)).astype(np.float64) + 0.5) * 2.0**-32
    np.sqrt(-2.0 * np.log(radius), out=radius)
    angle = (state & np.uint64(0xFFFFFFFF)).astype(np.float64) * (2.0 * np.pi * 2.0**-32)
    values: NDArray[np.float32] = (radius * np.cos(angle)).astype(np.float32)
    return values


_DRAWS = {1: _box_muller, 2: _interpolated}

DRAW = 2
"""The version that fresh values are drawn by, unless a manifest says otherwise."""

DRAWS = frozenset(_DRAWS)
"""All versions that can be derived again."""


def normal(seed: int, name: str, indices: Sequence[IntArray], draw: int = DRAW) -> FloatArray:
    """Return standard normal values (n1, n2, ...) for the outer product of ``indices``, one array
    (n1,), (n2,) ... per axis.

    The values are those of float32. Their magnitude is at most 6.4 (6.8 in version 1).
    """
    values = _DRAWS[draw](_hashes(seed, name, indices))
    return values.astype(np.float64).reshape([len(axis) for axis in indices])


def split_weights(seed: int, name: str, source: IntArray) -> FloatArray:
    """Return unequal weights (n,), one per entry of ``source`` (n,), that sum to one over equal
    entries.

    Weights lie within a factor of three of each other, so that no copy starts out negligible; an
    entry with a source of its own gets exactly one. Negative sources get one, too.
    """
    raw = _hashes(seed, name, [np.arange(len(source), dtype=np.int64)])
    weights = 0.5 + (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
    _, inverse = np.unique(source, return_inverse=True)
    weights /= np.bincount(inverse, weights)[inverse]
    weights[source < 0] = 1.0
    return weights
