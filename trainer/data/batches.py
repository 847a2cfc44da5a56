"""The batches of each step and replica, resumable at any sample.

Sample n is always the same, whatever the batch is (:mod:`flmgrow.trainer.data.samples`). So all
that a checkpoint must remember is how many samples were consumed, and of which sequence
(:class:`Position`), and a stage with another batch goes on at the very next one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from flmgrow.errors import BadDataError, UsageError
from flmgrow.storage.strict_json import Json
from flmgrow.trainer.data.samples import Keys, Sample, Samples, digest_of, digests_of

MicroBatches = Sequence[Mapping[str, npt.NDArray[Any]]]


@dataclass(frozen=True)
class Batching:
    """How a stage takes samples: ``batch`` per step, of which a replica computes its own.

    A replica computes ``micro_batch`` samples at once.

    Raises:
        UsageError: If that does not divide.
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
    the next one shall remember of what decides on ``samples``. ``other_data`` is added to the hint
    of the error below, and says how that may be all the same.

    Raises:
        UsageError: If ``begin`` speaks of another sequence, naming what differs: its number would
            mean other samples.
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
    """Return ``micro_batches``, which hold no ids that a model of ``vocab`` ids has not.

    Tensor ranks would look none of these up, and train on something else without a word.

    Raises:
        BadDataError: If they hold such ids.
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
