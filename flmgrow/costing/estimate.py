"""A schedule's cost, stage by stage, and that of the model without growth.

The comparison is between equal tokens: the final size trained on all that the stages read. That is
what the paper compares (3.56 times, 72 % saved), and it supposes that a token read by the small
model is worth one read by the large one. Equal tokens are not equal loss, and every output that
shows the ratio says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from flmgrow.costing.memory import Memory, memory_of
from flmgrow.costing.operations import NONE, Operations, executed, operations
from flmgrow.costing.rates import Bill, Rates
from flmgrow.errors import UsageError
from flmgrow.model.tensors import parameter_count
from flmgrow.stages.planned_stage import PlannedStage
from flmgrow.storage.strict_json import Json
from flmgrow.text import Setting, Text
from flmgrow.trainer.stage.file import checkpoint_bytes

NOT_EQUAL_LOSS = "equal tokens are not equal loss: what growth costs in loss, this does not say"


@dataclass(frozen=True)
class StageCost:
    """What one stage costs, and what the devices of each pipeline rank hold meanwhile.

    ``executed`` are the operations with those that its recomputation repeats.
    """

    planned: PlannedStage
    tokens: int
    operations: Operations
    executed: float
    gpus: int
    utilisation: float
    bill: Bill
    memory: Sequence[Memory]
    room: float

    @property
    def largest(self) -> Memory:
        """What the fullest device holds."""
        return max(self.memory, key=lambda each: each.total)

    @property
    def fits(self) -> bool:
        """Whether the fullest device holds it, with nothing set aside for kernels."""
        return self.largest.total <= self.room

    def to_json(self) -> Json:
        """Return the figures as plain data."""
        return {
            "name": self.planned.stage.name,
            "parameters": parameter_count(self.planned.config),
            "tokens": self.tokens,
            "operations": {**self.operations.to_json(), "executed": self.executed},
            "gpus": self.gpus,
            "utilisation": self.utilisation,
            **self.bill.to_json(),
            "memory": [each.to_json() for each in self.memory],
            "fits": self.fits,
        }


@dataclass(frozen=True)
class Between:
    """The time between two stages: ``expand`` reads one checkpoint and writes the other, ``verify``
    reads both.
    """

    moved: int
    seconds: float

    def to_json(self) -> Json:
        """Return the figures as plain data."""
        return {"bytes": self.moved, "seconds": self.seconds}


@dataclass(frozen=True)
class RunCost:
    """What a schedule costs: its stages, what lies between them, and the same without growth."""

    stages: Sequence[StageCost]
    between: Sequence[Between]
    scratch: Operations
    scratch_bill: Bill
    rates: Rates

    @property
    def tokens(self) -> int:
        """The tokens of all stages."""
        return sum(each.tokens for each in self.stages)

    @property
    def operations(self) -> Operations:
        """The operations of all stages."""
        first, *others = (each.operations for each in self.stages)
        return sum(others, first)

    @property
    def bill(self) -> Bill:
        """What all stages cost together, without the time between them."""
        first, *others = (each.bill for each in self.stages)
        return sum(others, first)

    @property
    def ratio(self) -> float:
        """How many times the device hours the same tokens take at the final size."""
        return self.scratch_bill.hours / self.bill.hours

    def to_json(self) -> Json:
        """Return the figures as plain data."""
        return {
            "stages": [each.to_json() for each in self.stages],
            "between": [each.to_json() for each in self.between],
            "all": {"tokens": self.tokens, "operations": self.operations.to_json(),
                    **self.bill.to_json()},
            "same_tokens_at_the_final_size": {
                "operations": self.scratch.to_json(),
                **self.scratch_bill.to_json(),
                "times_the_hours": self.ratio,
                "note": NOT_EQUAL_LOSS,
            },
        }  # fmt: skip


def cost_of(stages: Sequence[PlannedStage], rates: Rates) -> RunCost:
    """Return what the stages of a schedule cost at these rates.

    Raises:
        UsageError: For utilisations that are neither one nor one for each stage.
    """
    given = len(rates.utilisations)
    if given > 1 and given != len(stages):
        raise UsageError(
            Text(Setting("utilisation"), f" has {given} shares for {len(stages)} stages"),
            "give one for all, or one for each",
        )
    costs = [_stage_cost(number, planned, rates) for number, planned in enumerate(stages)]
    sizes = [checkpoint_bytes(each.stage, each.config, each.still) for each in stages]
    moved = [2 * (before + after) for before, after in pairwise(sizes)]
    last, tokens = costs[-1], sum(each.tokens for each in costs)
    final = last.planned
    scratch = operations(final.config, final.stage.data.sequence_length, tokens)
    precision = last.planned.stage.training.precision
    bill = rates.bill(scratch.products, precision, last.gpus, last.utilisation)
    between = [Between(each, each / rates.storage) for each in moved]
    return RunCost(costs, between, scratch, bill, rates)


def _stage_cost(number: int, planned: PlannedStage, rates: Rates) -> StageCost:
    stage = planned.stage
    tokens = stage.tokens_after(planned.steps)
    length = stage.data.sequence_length
    counted = sum(
        (operations(planned.config, length, *part) for part in planned.trained), start=NONE
    )
    gpus, utilisation = rates.gpus or stage.layout.world, rates.utilisation(number)
    carried_out = sum(
        some * executed(planned.config, length, stage.training.recompute, trained)
        for some, trained in planned.trained
    )
    return StageCost(
        planned,
        tokens,
        counted,
        carried_out,
        gpus,
        utilisation,
        rates.bill(counted.products, stage.training.precision, gpus, utilisation),
        memory_of(planned),
        rates.accelerator.memory,
    )
