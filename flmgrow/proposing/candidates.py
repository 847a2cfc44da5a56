"""Schedules that a budget allows: the honest baselines, and growth of several shapes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import exp, gcd, log

from flmgrow.errors import UsageError
from flmgrow.model.config import ModelConfig
from flmgrow.model.flops import training_flops
from flmgrow.model.tensors import parameter_count
from flmgrow.operators.shape import shape_for
from flmgrow.proposing.carrying import ReadStage

SIZES = 12
"""Sizes between the smallest model and the largest, evenly in their logarithm."""

LARGEST = 1000
"""Times the smallest model, where no final size is asked for."""

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Of what is scarce, operations or tokens, that the stage before the growth may take."""

MOST_TENSOR, MOST_PIPELINE = 8, 16
"""Ranks that a larger model should divide by, if the smaller one does."""

LATE = 0.9
PAPER = (0.787, 0.128, 0.085)
"""Of the tokens, in FLM-101B's three stages (Li et al., 2023, table 1)."""


class ScheduleKind(StrEnum):
    """What a schedule is an example of."""

    SCRATCH = "from scratch"
    SMALLER = "smaller, for longer"
    GROWN = "grown once"
    LATE = "grown once, late"
    PAPER = "grown twice, in the paper's shares"


@dataclass(frozen=True)
class Candidate:
    """A schedule: the models of its stages, and the tokens that each reads."""

    kind: ScheduleKind
    models: tuple[ModelConfig, ...]
    tokens: tuple[float, ...]

    @property
    def legs(self) -> list[ReadStage]:
        """The stages as a law sees them."""
        return [
            ReadStage(parameter_count(model), tokens)
            for model, tokens in zip(self.models, self.tokens, strict=True)
        ]

    def flops(self, length: int) -> float:
        """Return the operations that it takes."""
        return sum(
            tokens * training_flops(model, length)
            for model, tokens in zip(self.models, self.tokens, strict=True)
        )


@dataclass(frozen=True)
class ScheduleLimits:
    """What bounds a schedule: operations, tokens of data, and tokens of a batch."""

    flops: float
    tokens: float
    length: int
    batch_tokens: int

    def reads(self, model: ModelConfig, share: float = 1.0) -> float:
        """Return the tokens that a model may read with a share of the operations."""
        return share * self.flops / training_flops(model, self.length)

    def allows(self, candidate: Candidate) -> bool:
        """Whether a schedule stays within the operations and the data, and every stage takes a
        hundred steps.
        """
        enough = all(tokens >= 100 * self.batch_tokens for tokens in candidate.tokens)
        paid = candidate.flops(self.length) <= self.flops * (1 + 1e-9)
        return enough and paid and sum(candidate.tokens) <= self.tokens * (1 + 1e-9)


def sizes(smallest: ModelConfig, final: float | None) -> list[ModelConfig]:
    """Return models from the smallest to the final size, each of which can grow into the next.

    Raises:
        UsageError: For a final size below the smallest model's.
    """
    least = parameter_count(smallest)
    if final is not None and final < least:
        raise UsageError(
            f"final_size: {final:,.0f} is below the stage's own {least:,}",
            "give a smaller stage to begin with",
        )
    most = final or LARGEST * least
    found = [smallest]
    for number in range(1, SIZES + 1):
        wanted = exp(log(least) + (log(most) - log(least)) * number / SIZES)
        model = _at(found[-1], max(wanted, parameter_count(found[-1])))
        if parameter_count(model) > parameter_count(found[-1]):
            found.append(model)
    return found


def _at(model: ModelConfig, parameters: float) -> ModelConfig:
    """Return a larger model, whose heads and layers divide by what those of the smaller do."""
    tp, chunks = gcd(model.kv_groups, MOST_TENSOR), gcd(model.layers, MOST_PIPELINE)
    shape = shape_for(model, parameters, tp, chunks)
    return replace(
        model, layers=shape.layers, hidden=shape.hidden, ffn=shape.ffn, kv_groups=shape.kv_groups
    )


def candidates(
    models: Sequence[ModelConfig], final: ModelConfig | None, limits: ScheduleLimits
) -> Iterator[Candidate]:
    """Yield the schedules that the limits allow; grown ones end at ``final`` if there is one."""
    for candidate in (*_ungrown(models, final, limits), *_grown(models, final, limits)):
        if limits.allows(candidate):
            yield candidate


def _ungrown(
    models: Sequence[ModelConfig], final: ModelConfig | None, limits: ScheduleLimits
) -> Iterator[Candidate]:
    for model in models:
        kind = ScheduleKind.SCRATCH if final is None or model == final else ScheduleKind.SMALLER
        yield Candidate(kind, (model,), (min(limits.reads(model), limits.tokens),))


def _grown(
    models: Sequence[ModelConfig], final: ModelConfig | None, limits: ScheduleLimits
) -> Iterator[Candidate]:
    ends = models if final is None else [final]
    for end in ends:
        smaller = models[: models.index(end)]
        for begin in smaller:
            for share in SHARES:
                kind = ScheduleKind.LATE if share >= LATE else ScheduleKind.GROWN
                for tokens in _reads(begin, end, share, limits):
                    yield Candidate(kind, (begin, end), tokens)
        for place, begin in enumerate(smaller):
            for middle in smaller[place + 1 :]:
                yield _in_the_papers_shares((begin, middle, end), limits)


def _reads(
    begin: ModelConfig, end: ModelConfig, share: float, limits: ScheduleLimits
) -> Iterator[tuple[float, float]]:
    """Yield the tokens of two stages, the first of which takes a ``share``: of all operations, and
    of all data. Where one of them breaks the other limit, it is not allowed.
    """
    yield limits.reads(begin, share), limits.reads(end, 1 - share)
    yield share * limits.tokens, (1 - share) * limits.tokens


def _in_the_papers_shares(
    models: tuple[ModelConfig, ModelConfig, ModelConfig], limits: ScheduleLimits
) -> Candidate:
    each = [
        share * training_flops(model, limits.length)
        for share, model in zip(PAPER, models, strict=True)
    ]
    whole = min(limits.flops / sum(each), limits.tokens)
    return Candidate(ScheduleKind.PAPER, models, tuple(share * whole for share in PAPER))
