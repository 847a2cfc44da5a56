"""Samples: rows of tokens in one endless order, and what tells one such sequence from another.

A run may be resumed, or go on as a larger model with other batches, and must repeat no sample. So
the order of samples is a function of their number alone. A run's data is one endless sequence of
samples; sample n is always the same, whatever the batch size, the replicas, or how long a stage is.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from flmgrow.model.arrays import IntArray
from flmgrow.storage.strict_json import Json

Keys = Mapping[str, str | int | float | bool | None]
SHOWN = 8
"""Digits of a checksum that people are shown."""


@dataclass(frozen=True)
class Sample:
    """One row of a batch: four arrays of the sequence length.

    ``labels[i]`` is the token after ``tokens[i]``, and counts in the loss ``loss_mask[i]`` times.
    ``positions`` restart at 0 where attention must not look back further (:func:`attention_mask`).
    ``taught`` says that its loss is the teacher's signal.
    ``source`` is the number of the corpus that it comes from, where several are read.
    """

    tokens: IntArray
    labels: IntArray
    loss_mask: npt.NDArray[np.float32]
    positions: IntArray
    taught: bool = False
    source: int = 0


class Samples(Protocol):
    """An endless sequence of samples; ``identity`` is all, as JSON, that decides on them."""

    @property
    def identity(self) -> Json:
        """Equal for equal sequences."""

    @property
    def earlier(self) -> Json:
        """The identity that earlier versions gave the same sequence: checkpoints remember it."""

    def __getitem__(self, index: int) -> Sample:
        """Return sample ``index``, counted from 0."""


class Numbered:
    """The same samples, which say that they come from source ``number``."""

    def __init__(self, samples: Samples, number: int) -> None:
        self._samples = samples
        self._number = number

    @property
    def identity(self) -> Json:
        """That of the samples."""
        return self._samples.identity

    @property
    def earlier(self) -> Json:
        """The same, of what earlier versions said."""
        return self._samples.earlier

    def __getitem__(self, index: int) -> Sample:
        """Return sample ``index``."""
        return replace(self._samples[index], source=self._number)


def digest_of(samples: Samples) -> str:
    """Return a short digest of what decides on a sequence of samples."""
    return digest(samples.identity)


def digests_of(samples: Samples) -> tuple[str, str]:
    """Return its digest, and the one that earlier versions gave the same sequence."""
    return digest_of(samples), digest(samples.earlier)


def digest(identity: Json) -> str:
    """Return a short digest of what identifies something."""
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def changes(before: Mapping[str, object], now: Mapping[str, object]) -> str:
    """Return, in a line, each key whose value differs, with both; nothing if none does."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return "; ".join(f"{n} is {_shown(before.get(n))}, now {_shown(now.get(n))}" for n in names)


def _shown(value: object) -> str:
    """Return a value as people write it."""
    if value is None:
        return "not given"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def is_packed(positions: IntArray) -> bool:
    """Whether a row of ``positions`` (samples, length) holds several texts."""
    return bool((positions[:, 1:] == 0).any())


def attention_mask(positions: Any) -> Any:
    """Return (samples, 1, length, length): True where a token (row) must not see another (column).

    It sees what is not after it, back to the last place where ``positions`` (samples, length)
    restarted. This is the sense of megatron-core's masks. ``positions`` may be numpy's or torch's,
    and so is the result, on the same device.
    """
    segments = (positions == 0).cumsum(1)
    order = (segments >= 0).cumsum(1)
    apart = segments[:, :, None] != segments[:, None, :]
    after = order[:, :, None] < order[:, None, :]
    return (apart | after)[:, None]


def seed_of(seed: int, epoch: int) -> int:
    """Return the seed of an epoch's shuffle: 32 bits, unlike those of its neighbours."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
