"""From a budget to schedules: what is known is put together, and every schedule is judged by it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flmgrow.costing.accelerators import Accelerator
from flmgrow.costing.cluster import device_of
from flmgrow.costing.rates import HOUR
from flmgrow.errors import UsageError
from flmgrow.model.config import ModelConfig
from flmgrow.model.tensors import parameter_count
from flmgrow.prediction.law import Law
from flmgrow.proposing.candidates import Candidate, ScheduleKind, ScheduleLimits, candidates, sizes
from flmgrow.proposing.growth_laws import GrowthLaw
from flmgrow.proposing.knowledge import growth_laws, laws_of
from flmgrow.proposing.layouts import layout_for
from flmgrow.proposing.request import BudgetFile, read_budget
from flmgrow.proposing.verdict import ScheduleVerdict, expected, verdict
from flmgrow.proposing.writing import schedule_of
from flmgrow.storage.strict_json import Json
from flmgrow.trainer.stage.file import StageFile, read_stage


@dataclass(frozen=True, eq=False)
class Judged:
    """What a law of growth says of the schedules that a budget allows."""

    growth: GrowthLaw
    verdict: ScheduleVerdict

    def to_json(self) -> Json:
        """Return it as plain data."""
        return {
            "growth_law": self.growth.name,
            "verdict": self.verdict.text,
            "growth_wins": self.verdict.grows,
            "schedules": [each.to_json() for each in self.verdict.best],
        }


@dataclass(frozen=True, eq=False)
class Proposal:
    """What each law of growth says of a budget, the one that is used first; what the losses rest
    on; and the winner as a schedule file's content.
    """

    file: BudgetFile
    limits: ScheduleLimits
    judged: Sequence[Judged]
    law_text: str
    schedule: Json

    @property
    def verdict(self) -> ScheduleVerdict:
        """What the law says that is used."""
        return self.judged[0].verdict

    @property
    def supposed(self) -> list[str]:
        """What the losses rest on, of each law."""
        return [self.law_text, *(each.growth.told for each in self.judged)]

    def to_json(self) -> Json:
        """Return it as plain data."""
        return {
            "flops": self.limits.flops,
            **self.judged[0].to_json(),
            "others": [each.to_json() for each in self.judged[1:]],
            "supposed": self.supposed,
            "schedule": self.schedule,
        }


def propose(path: Path) -> Proposal:
    """Return what to do with the budget in a file.

    Raises:
        UsageError: For a budget that allows nothing, runs that no law can be fitted to, and a model
            that fits no layout.
    """
    file = read_budget(path)
    stage = read_stage(file.stage)
    if stage.training.batch_ramp is not None:
        raise UsageError(
            "training.batch_ramp: a proposal counts in steps of one batch",
            "leave it out, and put it into the schedule that is proposed",
            where=file.stage,
        )
    smallest = _model(stage, file.stage)
    device = device_of(file.cluster.model_dump(exclude_none=True))
    limits = ScheduleLimits(
        _flops(file, device, stage), file.tokens, stage.data.sequence_length, stage.tokens_per_step
    )
    models = sizes(smallest, file.final_size)
    final = models[-1] if file.final_size is not None else None
    allowed = list(candidates(models, final, limits))
    if all(each.kind is ScheduleKind.SMALLER for each in allowed):
        end = smallest if final is None else final
        raise UsageError(
            f"a budget of {limits.flops:.3g} operations and {limits.tokens:,.0f} tokens allows no "
            f"schedule that trains {parameter_count(end):,} parameters for a hundred steps",
            "a larger budget, or a smaller model",
            where=path,
        )
    laws, law_text = laws_of(file)
    judged = [
        Judged(growth, _judged(allowed, laws, growth, limits.length))
        for growth in growth_laws(file, laws)
    ]
    winner = judged[0].verdict.winner.candidate
    layouts = [
        layout_for(stage, model, file.cluster.gpus, device.memory) for model in winner.models
    ]
    return Proposal(file, limits, judged, law_text, schedule_of(stage, winner, layouts))


def _judged(
    allowed: Sequence[Candidate], laws: Sequence[Law], growth: GrowthLaw, length: int
) -> ScheduleVerdict:
    found = [expected(each, laws, growth, length) for each in allowed]
    return verdict([each for each in found if each is not None])


def _model(stage: StageFile, where: Path) -> ModelConfig:
    if stage.model.vocab_size is None:
        raise UsageError(
            "model.vocab_size: is not given", "a budget is planned before data is read", where=where
        )
    return stage.model.config(stage.model.vocab_size, stage.data.sequence_length)


def _flops(file: BudgetFile, device: Accelerator, stage: StageFile) -> float:
    budget, cluster = file.budget, file.cluster
    if budget.flops is not None:
        return budget.flops
    per_hour = HOUR * device.peak(stage.training.precision) * cluster.utilisation
    if budget.gpu_days is not None:
        return budget.gpu_days * 24 * per_hour
    assert budget.dollars is not None
    assert cluster.price is not None
    return budget.dollars / cluster.price * per_hour
