"""From a budget to schedules: what is known is put together, and every schedule is judged by it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

import numpy as np

from flmgrow.costing.accelerators import Accelerator
from flmgrow.costing.cluster import device_of
from flmgrow.costing.rates import HOUR
from flmgrow.errors import UsageError
from flmgrow.model.config import ModelConfig
from flmgrow.model.tensors import parameter_count
from flmgrow.prediction.forecast import DRAWS, forecaster
from flmgrow.prediction.law import SIZES_AND_TOKENS, Law, form_for, prior
from flmgrow.prediction.points import points_of
from flmgrow.proposing.candidates import Kind, Limits, candidates, sizes
from flmgrow.proposing.carrying import carried_by, ends_of
from flmgrow.proposing.layouts import layout_for
from flmgrow.proposing.request import BudgetFile, read_budget
from flmgrow.proposing.verdict import Knowledge, Verdict, expected, verdict
from flmgrow.proposing.writing import schedule_of
from flmgrow.storage.strict_json import Json
from flmgrow.trainer.stage.file import StageFile, read_stage


@dataclass(frozen=True, eq=False)
class Proposal:
    """A verdict on a budget, what it supposes, and the winner as a schedule file's content."""

    file: BudgetFile
    limits: Limits
    verdict: Verdict
    supposed: Sequence[str]
    schedule: Json

    def to_json(self) -> Json:
        """Return it as plain data."""
        return {
            "flops": self.limits.flops,
            "verdict": self.verdict.text,
            "growth_wins": self.verdict.grows,
            "schedules": [each.to_json(self.limits.length) for each in self.verdict.best],
            "supposed": list(self.supposed),
            "schedule": self.schedule,
        }


def propose(path: Path) -> Proposal:
    """Return what to do with the budget in a file.

    Raises UsageError for a budget that allows nothing, runs that no law can be fitted to, and a
    model that fits no layout.
    """
    file = read_budget(path)
    stage = read_stage(file.stage)
    smallest = _model(stage, file.stage)
    device = device_of(file.cluster.model_dump(exclude_none=True))
    limits = Limits(
        _flops(file, device, stage), file.tokens, stage.data.sequence_length, stage.tokens_per_step
    )
    models = sizes(smallest, file.final_size)
    final = models[-1] if file.final_size is not None else None
    known, supposed = _knowledge(file)
    found = [expected(each, known) for each in candidates(models, final, limits)]
    if not any(each.candidate.kind is not Kind.SMALLER for each in found):
        end = smallest if final is None else final
        raise UsageError(
            f"a budget of {limits.flops:.3g} operations and {limits.tokens:,.0f} tokens allows no "
            f"schedule that trains {parameter_count(end):,} parameters for a hundred steps",
            "a larger budget, or a smaller model",
            where=path,
        )
    result = verdict(found)
    winner = result.winner.candidate
    layouts = [
        layout_for(stage, model, file.cluster.gpus, device.memory) for model in winner.models
    ]
    return Proposal(file, limits, result, supposed, schedule_of(stage, winner, layouts))


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


def _knowledge(file: BudgetFile) -> tuple[Knowledge, list[str]]:
    laws, law_text = _laws(file)
    random = np.random.default_rng(0)
    if not file.grown:
        low, high = file.carried
        drawn = random.uniform(low, high, len(laws))
        text = f"growth carries over {low:g} to {high:g} of what the small model has learned"
        return Knowledge(laws, drawn), [law_text, f"{text}: no run that grew was given"]
    runs = [ends_of(run) for run in file.grown]
    shares = [share for ends in runs for share in carried_by(laws[0], ends)]
    # What a run has carried over is read off a law, so each draw of the law has shares of its own.
    drawn = np.array(
        [random.choice([each for ends in runs for each in carried_by(law, ends)]) for law in laws]
    )
    text = f"growth carries over {min(shares):.2f} to {max(shares):.2f}"
    return Knowledge(laws, drawn), [law_text, f"{text}, as {len(shares)} growths tell"]


def _laws(file: BudgetFile) -> tuple[list[Law], str]:
    if file.law is None:
        laws = prior()
        text = (
            "published laws of other models and data (Hoffmann et al., 2022, and the replication "
        )
        repeated = [laws[number % len(laws)] for number in range(DRAWS)]
        return repeated, f"{text}by Besiroglu et al., 2024): losses are theirs, not yours"
    points = points_of(file.law, None)
    form = form_for(points)
    if form is not SIZES_AND_TOKENS:
        raise UsageError(
            "the runs of the law all end at one length",
            "a schedule trades size for tokens: add runs of two other lengths",
        )
    found = forecaster(points, form)
    largest = max(point.parameters for point in points)
    far = inf if file.final_size is None else file.final_size / largest
    beyond = "" if far is inf else f", {far:.3g} times the largest of them"
    return [found.law, *found.draws[1:]], f"a law of {len(points)} runs{beyond}"
