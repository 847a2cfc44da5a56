"""The samples of each step and replica, blended from corpora, resumable at any sample.

A run may be resumed, or go on as a larger model with other batches, and must repeat no sample. So
the order of samples is a function of their number alone. A run's data is one endless sequence of
samples; sample n is always the same, whatever the batch size, the replicas, or how long a stage is.
All that a checkpoint must remember is how many were consumed, and of which sequence
(:class:`Position`). megatron-core's own blends do not have that property: the length of a run is an
input of their shuffle, so a stage that is made longer starts another order.

**Blends.** Of the first n samples of a blend, source one has floor(n * w), computed in fractions;
of the rest, source two has its share of the remaining weights in the same way; and so on. Sample n
comes from the source whose count rises there. Hence any k samples in a row hold floor(k * w) or
ceil(k * w) of source one, every source is taken from its start without a gap, and nothing has to be
stored.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import floor
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from flmgrow.errors import BadDataError, UsageError
from flmgrow.storage.strict_json import Json
from flmgrow.text import Found, Text

Keys = Mapping[str, str | int | float | bool | None]
Integers = npt.NDArray[np.int64]
SHOWN = 8
"""Digits of a checksum that people are shown."""

MicroBatches = Sequence[Mapping[str, npt.NDArray[Any]]]


@dataclass(frozen=True)
class Sample:
    """One row of a batch: four arrays of the sequence length.

    ``labels[i]`` is the token after ``tokens[i]``, and counts in the loss ``loss_mask[i]`` times.
    ``positions`` restart at 0 where attention must not look back further (:func:`attention_mask`).
    """

    tokens: Integers
    labels: Integers
    loss_mask: npt.NDArray[np.float32]
    positions: Integers


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


def weights_of(texts: Sequence[str]) -> tuple[Fraction, ...]:
    """Return the weights that ``texts`` such as "53.5" say, exactly, scaled to a sum of 1.

    Raises UsageError unless all are numbers above 0.
    """
    try:
        weights = [Fraction(text) for text in texts]
    except (ValueError, ZeroDivisionError):
        weights = []
    if not weights or min(weights) <= 0:
        raise UsageError(f"weights {' '.join(texts)}: wanted numbers above 0", "such as 53.5 46.5")
    return tuple(weight / sum(weights) for weight in weights)


def blended(index: int, weights: Sequence[Fraction]) -> tuple[int, int]:
    """Return the source of a blend's sample ``index``, and its own index in that source."""
    rest = Fraction(1)
    for source, weight in enumerate(weights[:-1]):
        share = weight / rest
        before, after = floor(index * share), floor((index + 1) * share)
        if after > before:
            return source, before
        index -= before
        rest -= weight
    return len(weights) - 1, index


def counted(samples: int, weights: Sequence[Fraction]) -> list[int]:
    """Return how many of a blend's first ``samples`` come from each source."""
    rest, counts = Fraction(1), []
    for weight in weights[:-1]:
        counts.append(floor(samples * (weight / rest)))
        samples -= counts[-1]
        rest -= weight
    return [*counts, samples]


class Blend:
    """Several sequences as one, in proportion to ``weights``, which sum to 1."""

    def __init__(self, sources: Sequence[Samples], weights: Sequence[Fraction]) -> None:
        if len(sources) != len(weights):
            raise UsageError(
                Text(f"{len(sources)} corpora and ", Found(f"{len(weights)} weights")),
                wanted="as many",
            )
        self._sources = list(sources)
        self._weights = list(weights)

    @property
    def identity(self) -> Json:
        """The sources' own, and their weights."""
        return self._of([source.identity for source in self._sources])

    @property
    def earlier(self) -> Json:
        """The same, of what earlier versions said of the sources."""
        return self._of([source.earlier for source in self._sources])

    def _of(self, sources: list[Json]) -> Json:
        return {"blend": sources, "weights": [str(weight) for weight in self._weights]}

    def __getitem__(self, index: int) -> Sample:
        """Return sample ``index`` of the blend."""
        source, place = blended(index, self._weights)
        return self._sources[source][place]


@dataclass(frozen=True)
class Batching:
    """How a stage takes samples: ``batch`` per step, of which a replica computes its own.

    A replica computes ``micro_batch`` samples at once. Raises UsageError if that does not divide.
    """

    batch: int
    micro_batch: int
    replicas: int = 1
    replica: int = 0

    def __post_init__(self) -> None:
        if min(self.batch, self.micro_batch, self.replicas) < 1:
            raise UsageError("batch, micro-batch and replicas: wanted at least 1 of each")
        if self.batch % (self.micro_batch * self.replicas):
            raise UsageError(
                f"a batch of {self.batch} does not divide into micro-batches of "
                f"{self.micro_batch} on {self.replicas} replicas"
            )
        if not 0 <= self.replica < self.replicas:
            raise UsageError(f"replica {self.replica} of {self.replicas}: counted from 0")

    def micro_batches(self, consumed: int) -> Iterator[range]:
        """Yield the samples of each of the replica's micro-batches, after ``consumed`` samples."""
        stride = self.micro_batch * self.replicas
        first = consumed + self.replica * self.micro_batch
        for start in range(first, consumed + self.batch, stride):
            yield range(start, start + self.micro_batch)


@dataclass(frozen=True)
class Position:
    """How far a run is: samples ``consumed``, of the sequence with the digest ``data``.

    ``keys`` are the values that decide on that sequence, by names that people know.
    """

    consumed: int
    data: str
    keys: Keys = field(default_factory=dict)

    def to_json(self) -> Json:
        """Return what a checkpoint remembers."""
        return {"consumed_samples": self.consumed, "data": self.data, "keys": dict(self.keys)}


class Batches:
    """The batches of a stage, as micro-batches of one replica; its state is one number.

    ``begin`` is what the checkpoint before remembers (:meth:`position`), or None; ``keys`` are what
    the next one shall remember of what decides on ``samples``. Raises UsageError if ``begin``
    speaks of another sequence, naming what differs: its number would mean other samples.
    ``other_data`` is added to its hint, which says how that may be all the same.
    """

    def __init__(
        self,
        samples: Samples,
        batching: Batching,
        begin: Json | None = None,
        keys: Keys | None = None,
        other_data: str = "",
    ) -> None:
        self._samples = samples
        self._batching = batching
        self._digest = digest_of(samples)
        self._keys = keys or {}
        self.consumed = 0 if begin is None else int(begin["consumed_samples"])
        if begin is not None and begin["data"] not in digests_of(samples):
            differing = changes(begin["keys"], self._keys) if begin.get("keys") else ""
            digests = f"its digest is {begin['data']}, now {self._digest}"
            raise UsageError(
                f"the checkpoint consumed {self.consumed} samples of other data: "
                f"{differing or digests}",
                f"give the same data: samples are counted on through all stages{other_data}",
            )

    @property
    def position(self) -> Position:
        """Where the next batch begins."""
        return Position(self.consumed, self._digest, self._keys)

    def __iter__(self) -> Iterator[MicroBatches]:
        """Yield the micro-batches of one step after the other, for ever."""
        while True:
            ranges = self._batching.micro_batches(self.consumed)
            step = [stacked([self._samples[index] for index in indices]) for indices in ranges]
            self.consumed += self._batching.batch  # before the step is seen: a save comes after it
            yield step


def digest_of(samples: Samples) -> str:
    """Return a short digest of what decides on a sequence of samples."""
    return _digest(samples.identity)


def digests_of(samples: Samples) -> tuple[str, str]:
    """Return its digest, and the one that earlier versions gave the same sequence."""
    return digest_of(samples), _digest(samples.earlier)


def _digest(identity: Json) -> str:
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


def stacked(samples: Sequence[Sample]) -> dict[str, npt.NDArray[Any]]:
    """Return a micro-batch: the four arrays of :class:`Sample`, each (samples, sequence length)."""
    names = ("tokens", "labels", "loss_mask", "positions")
    return {name: np.stack([getattr(sample, name) for sample in samples]) for name in names}


def blank(batching: Batching, length: int) -> MicroBatches:
    """Return micro-batches of the right shapes, as :class:`Batches` has them, that hold nothing."""
    row = np.zeros(length, np.int64)
    sample = Sample(row, row, np.ones(length, np.float32), np.arange(length))
    return [stacked([sample] * len(indices)) for indices in batching.micro_batches(0)]


def checked(micro_batches: MicroBatches, vocab: int) -> MicroBatches:
    """Return ``micro_batches``. Raises BadDataError for ids that a model of ``vocab`` ids has not.

    Tensor ranks would look none of them up, and train on something else without a word.
    """
    for batch in micro_batches:
        for ids in (batch["tokens"], batch["labels"]):
            if ids.min() < 0 or ids.max() >= vocab:
                wrong = int(ids.min() if ids.min() < 0 else ids.max())
                raise BadDataError(
                    f"the corpora hold token {wrong}, the model has 0 to {vocab - 1}",
                    "prepare them with the tokenizer of the model, or make vocab_size larger",
                )
    return micro_batches


def is_packed(positions: Integers) -> bool:
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
