"""What a study measured, as data: its arms, and how each training of them went.

An arm is a way to train a model, trained once for each seed. Everything a report says is computed
from these values alone, whoever trained: so a report can be written again, and tested with
outcomes that were made up. Tokens, FLOPs and seconds count from an arm's first step, over all of
its stages; those of a stage that several arms share count for each of them.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cached_property
from itertools import pairwise

from flmgrow.errors import UsageError
from flmgrow.model.checks import check_finite, check_whole
from flmgrow.storage.strict_json import Json
from flmgrow.text import Found, Text


class Expense(StrEnum):
    """What arms can be compared at equal amounts of."""

    FLOPS = "flops"
    TOKENS = "tokens"
    SECONDS = "seconds"


@dataclass(frozen=True)
class Reading:
    """The ``loss`` of validation (nats per token) after so much of an arm."""

    step: int
    tokens: int
    flops: float
    loss: float

    def __post_init__(self) -> None:
        check_whole("step", self.step, least=0)
        check_whole("tokens", self.tokens, least=0)
        check_finite("flops", self.flops, least=0)
        check_finite("loss", self.loss, above=0)


@dataclass(frozen=True)
class StepLoss:
    """The loss of one training step; ``step`` counts from a growth: 0 is the first one after it."""

    step: int
    loss: float

    def __post_init__(self) -> None:
        check_whole("step", self.step, least=-(2**63))
        check_finite("loss", self.loss, above=0)


@dataclass(frozen=True)
class GrowthInArm:
    """A growth into a ``stage``, by a ``method``, after so many ``tokens`` and ``flops``.

    ``before`` and ``after`` are losses of validation of one model, as it was and grown; None where
    nothing was measured. ``around`` are the training losses on both sides of it.
    """

    stage: str
    method: str
    tokens: int
    flops: float
    before: float | None
    after: float | None
    around: tuple[StepLoss, ...] = ()

    def __post_init__(self) -> None:
        check_whole("tokens", self.tokens, least=0)
        check_finite("flops", self.flops, least=0)
        for name in ("before", "after"):
            if getattr(self, name) is not None:
                check_finite(name, getattr(self, name), above=0)
        _check_rising("around", [each.step for each in self.around])


@dataclass(frozen=True)
class Outcome:
    """How the training of an arm with one seed went.

    ``parameters`` are those of the last stage. A training that ``diverged`` ends where it did, and
    its last reading is no result. One that was not ``decayed`` ended with a learning rate from
    which its loss would still have fallen.
    """

    arm: str
    seed: int
    parameters: int
    readings: tuple[Reading, ...]
    growths: tuple[GrowthInArm, ...]
    seconds: float
    decayed: bool
    diverged: bool

    def __post_init__(self) -> None:
        check_whole("seed", self.seed, least=0)
        check_whole("parameters", self.parameters)
        check_finite("seconds", self.seconds, least=0)
        if not self.readings and not self.diverged:
            raise UsageError("has no reading", where=self.name)
        _check_rising(f"{self.name}: readings", [each.step for each in self.readings])

    @property
    def name(self) -> str:
        """Arm and seed, as messages call them."""
        return f"{self.arm}, seed {self.seed}"

    @property
    def final(self) -> Reading:
        """The last reading.

        Raises:
            UsageError: For a training that diverged: it has no result.
        """
        if self.diverged:
            raise UsageError("diverged, and has no final loss", where=self.name)
        return self.readings[-1]

    def spent(self, axis: Expense) -> float:
        """Return how much of an axis the whole training took."""
        return self.seconds if axis is Expense.SECONDS else float(getattr(self.final, axis))


@dataclass(frozen=True)
class Arm:
    """What an arm is: in ``words``, the ``sizes`` (parameters) of its stages, what is planned.

    ``scratch``: its end is a point of the frontier that all others are compared with. It is then of
    the size that the study is about, and never grown.
    """

    name: str
    words: str
    sizes: tuple[int, ...]
    tokens: int
    flops: float
    scratch: bool

    def __post_init__(self) -> None:
        if not self.sizes:
            raise UsageError("has no size", where=self.name)
        for size in self.sizes:
            check_whole("sizes", size)
        check_whole("tokens", self.tokens)
        check_finite("flops", self.flops, above=0)
        if self.scratch and len(self.sizes) > 1:
            raise UsageError(
                Text("is grown, in ", Found(f"{len(self.sizes)} stages")),
                "the frontier consists of models that are trained from scratch",
                where=self.name,
            )


@dataclass(frozen=True)
class Finding:
    """Something that was not held equal: ``what``, between or in which ``arms``, in ``detail``."""

    what: str
    arms: tuple[str, ...]
    detail: str


@dataclass(frozen=True)
class MeasuredStudy:
    """A study's arms and outcomes, along which ``axes`` they are compared, and what was unequal.

    ``held`` says in sentences what was equal for all arms.
    """

    arms: tuple[Arm, ...]
    outcomes: tuple[Outcome, ...]
    axes: tuple[Expense, ...]
    held: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()

    def __post_init__(self) -> None:
        if not self.axes:
            raise UsageError("compares along no axis")
        names = [arm.name for arm in self.arms]
        _check_single("arm", names)
        _check_single("outcome of", [each.name for each in self.outcomes])
        _check_single("axis", [str(axis) for axis in self.axes])
        for each in self.outcomes:
            if each.arm not in names:
                raise UsageError("is no arm of the study", where=each.arm)
        scratch = [arm for arm in self.arms if arm.scratch]
        _check_single("an arm from scratch of", [f"{arm.tokens:,} tokens" for arm in scratch])
        sizes = {arm.sizes for arm in scratch}
        if len(sizes) > 1:
            raise UsageError(
                Text("the arms from scratch are of ", Found(f"{len(sizes)} sizes")),
                "a frontier is one size trained for several lengths",
                wanted="one",
            )

    @cached_property
    def by_arm(self) -> dict[str, tuple[Outcome, ...]]:
        """The outcomes of each arm, in the order of their seeds."""
        ordered = sorted(self.outcomes, key=lambda each: each.seed)
        return {arm.name: tuple(each for each in ordered if each.arm == arm.name)
                for arm in self.arms}  # fmt: skip

    def to_json(self) -> Json:
        """Return it as plain data."""
        return asdict(self)


def _check_rising(name: str, steps: Sequence[int]) -> None:
    for one, other in pairwise(steps):
        if other <= one:
            raise UsageError(
                Text(f"{name}: step ", Found(other), f" follows step {one}"), wanted="a later one"
            )


def _check_single(what: str, names: Sequence[str]) -> None:
    for number, name in enumerate(names):
        if name in names[:number]:
            raise UsageError(f"{what} {name} is there twice")
