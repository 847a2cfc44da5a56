"""What the legs of an arm reported, put together: the arm as if it had been trained alone.

Metrics count tokens and operations over all that a checkpoint has behind it. So a leg's records
need no correction: an arm's are those of its legs, one after the other.
"""

from collections.abc import Iterator, Sequence
from math import isfinite
from pathlib import Path

from flmgrow.errors import BadDataError
from flmgrow.model.tensors import parameter_count
from flmgrow.stages.trial_folder import TrialState
from flmgrow.studying.arms import PlannedArm, method_of, words_of
from flmgrow.studying.folder import StudyFolder
from flmgrow.studying.legs import Leg, Legs
from flmgrow.studying.outcomes import Arm, GrowthInArm, Outcome, Reading, StepLoss
from flmgrow.trainer.metrics.log import read_metrics
from flmgrow.trainer.metrics.records import Record, StepRecord, ValidationRecord
from flmgrow.trainer.stage.file import StageFile
from flmgrow.trainer.stage.watching import METRICS

AROUND = 50
"""Steps before and after a growth whose losses are kept."""


def arm_of(arms: Sequence[PlannedArm]) -> Arm:
    """Return what an arm is, from itself with any seed."""
    arm = arms[0]
    sizes = tuple(parameter_count(each.config) for each in arm.stages)
    words, flops = words_of(arm), float(arm.flops)
    return Arm(arm.name, words, sizes, arm.tokens, flops, arm.section.scratch)


def outcome_of(arm: PlannedArm, legs: Legs, folder: StudyFolder) -> Outcome | None:
    """Return how an arm went, None if it has not come to its end.

    Raises:
        BadDataError: For a leg that is done and lacks records.
    """
    path = legs.last[arm.name, arm.seed].path
    ends = [folder.of(leg).end() for leg in path]
    diverged = any(end is not None and end.state is TrialState.DIVERGED for end in ends)
    if not diverged and None in ends:
        return None
    records = [_records(folder, leg) for leg in path]
    steps = [each for own in records for each in own if isinstance(each, StepRecord)]
    return Outcome(
        arm=arm.name,
        seed=arm.seed,
        parameters=parameter_count(arm.stages[-1].config),
        readings=tuple(_readings(records)),
        growths=tuple(_growths(path, records)),
        seconds=sum(each.seconds for each in steps),
        decayed=is_decayed(arm.stages[-1].stage),
        diverged=diverged,
    )


def is_decayed(stage: StageFile) -> bool:
    """Whether a stage's learning rate has reached its floor where it ends, well below its peak."""
    rate = stage.learning_rate
    return (
        rate.style != "constant"
        and stage.decay_steps <= stage.steps
        and rate.floor <= rate.peak / 4
    )


def _records(folder: StudyFolder, leg: Leg) -> list[Record]:
    """Return a leg's records, in their order; none if it was never begun."""
    place = folder.of(leg)
    file: Path = place.path / METRICS
    if not file.exists() and place.end() is None:
        return []
    found = read_metrics(file)
    end = place.end()
    last = max((each.step for each in found if isinstance(each, StepRecord)), default=0)
    if end is not None and end.state is TrialState.DONE and last != leg.planned.last:
        raise BadDataError(
            f"ends at step {last:,}, and its leg at {leg.planned.last:,}",
            "remove the leg's folder: the same command trains it again",
            where=file,
        )
    return found


def _readings(records: Sequence[Sequence[Record]]) -> Iterator[Reading]:
    """Yield the validations of all legs, one for each step: before a growth, where both are."""
    reached = -1
    for own in records:
        for each in own:
            if not isinstance(each, ValidationRecord) or each.step <= reached:
                continue
            if isfinite(each.validation_loss):
                reached = each.step
                yield Reading(each.step, each.tokens, float(each.flops), each.validation_loss)


def _growths(path: Sequence[Leg], records: Sequence[Sequence[Record]]) -> Iterator[GrowthInArm]:
    losses = {each.step: each.loss for own in records for each in own
              if isinstance(each, StepRecord) and isfinite(each.loss)}  # fmt: skip
    for number, leg in enumerate(path):
        if leg.planned.target is None or not records[number]:
            continue
        first = leg.planned.first
        before, after = (
            [each for each in own if isinstance(each, ValidationRecord) and each.step == first]
            for own in (records[number - 1], records[number])
        )
        begun = [each for each in records[number - 1] if isinstance(each, StepRecord)][-1]
        around = range(max(1, first + 1 - AROUND), first + 1 + AROUND)
        yield GrowthInArm(
            stage=leg.part.planned.stage.name,
            method=method_of(leg.planned),
            tokens=begun.tokens,
            flops=float(begun.flops),
            before=before[-1].validation_loss if before else None,
            after=after[0].validation_loss if after else None,
            around=tuple(
                StepLoss(step - first - 1, losses[step]) for step in around if step in losses
            ),
        )
