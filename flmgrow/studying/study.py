"""A study from its file to what it measured."""

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flmgrow.costing.cluster import rates_of
from flmgrow.costing.estimate import cost_of
from flmgrow.searching.running import Told
from flmgrow.stages.past import STAGE
from flmgrow.stages.planned_stage import PlannedStage
from flmgrow.stages.pool import Pool
from flmgrow.stages.steps import launched, submitted
from flmgrow.storage.strict_json import Json
from flmgrow.studying.arms import PeakRates, PlannedArm, planned_arms
from flmgrow.studying.fairness import held_and_findings
from flmgrow.studying.folder import StudyFolder
from flmgrow.studying.legs import Legs, legs_of
from flmgrow.studying.measuring import arm_of, outcome_of
from flmgrow.studying.outcomes import MeasuredStudy
from flmgrow.studying.rates import (
    SEARCH,
    ChosenRate,
    known_rates,
    open_searches,
    provisional,
    search_cost,
    search_rates,
)
from flmgrow.studying.request import StudyFile, read_study
from flmgrow.studying.running import run_legs
from flmgrow.text import COMMAND_LINE


@dataclass(frozen=True, eq=False)
class Study:
    """A study: its file, its arms with each seed, and their legs."""

    file: StudyFile
    path: Path
    arms: tuple[PlannedArm, ...]
    legs: Legs


def plan(file: StudyFile, path: Path, rates: PeakRates) -> Study:
    """Return a study as it is trained with these rates.

    Raises:
        UsageError: For what cannot be.
    """
    arms = planned_arms(file, path, rates)
    return Study(file, path, tuple(arms), legs_of(arms))


def read(path: Path, scale: float = 1.0) -> Study:
    """Return the study in a file, planned before its learning rates are known.

    Raises:
        UsageError: For what cannot be carried out; the message names file, arm and stage.
    """
    file = read_study(path, scale)
    return plan(file, path, provisional(file))


def with_known_rates(study: Study, folder: StudyFolder) -> Study:
    """Return a study with the rates that its folder knows.

    Raises:
        BadDataError: If it has none.
    """
    rates = known_rates(study.file, study.path, folder)
    return plan(study.file, study.path, {each.size: each.peak for each in rates})


def carry_out(
    study: Study, folder: StudyFolder, pools: Callable[[], Pool], told: Told
) -> tuple[Study, list[ChosenRate]]:
    """Search the rates, and train all legs that are not done; return what was trained.

    Raises:
        TrialFailedError: A trial of the search for rates failed.
        LegFailedError: The training of a leg failed.
        UsageError: For a folder of another study.
    """
    rates = search_rates(study.file, study.path, folder, pools, told)
    planned = plan(study.file, study.path, {each.size: each.peak for each in rates})
    folder.prepare(planned.legs, study.path)
    run_legs(folder, planned.legs, pools(), told)
    return planned, rates


def measured(study: Study, folder: StudyFolder, rates: list[ChosenRate]) -> MeasuredStudy:
    """Return what a study measured so far: the arms that have come to their end."""
    found = [outcome_of(arm, study.legs, folder) for arm in study.arms]
    held, findings = held_and_findings(study.arms, rates)
    by_name: dict[str, list[PlannedArm]] = {}
    for arm in study.arms:
        by_name.setdefault(arm.name, []).append(arm)
    return MeasuredStudy(
        arms=tuple(map(arm_of, by_name.values())),
        outcomes=tuple(each for each in found if each is not None),
        axes=tuple(study.file.compare),
        held=held,
        findings=findings,
    )


def plan_data(study: Study) -> Json:
    """Return what a study will do, as data: its arms, and how much of them is trained once."""
    arms = [arm for arm in study.arms if arm.seed == study.file.seeds[0]]
    trials, trial_flops = search_cost(study.file)
    return {
        "seeds": list(study.file.seeds),
        "legs": len(study.legs.every),
        "steps": sum(leg.planned.steps for leg in study.legs.every),
        "flops": sum(leg.cost for leg in study.legs.every),
        "flops_alone": float(sum(arm.flops for arm in study.arms)),
        "searched": trials,
        "search_flops": trial_flops,
        "arms": [_arm_data(arm) for arm in arms],
    }


@dataclass(frozen=True)
class Hours:
    """GPU hours of each arm, trained alone, with one seed; and those of each leg."""

    arms: Mapping[str, float]
    legs: Sequence[float]


def hours_of(study: Study, accelerator: str, utilisation: float | None) -> Hours:
    """Return what a study takes on such devices.

    Raises:
        UsageError: For one that nobody knows.
    """
    share = None if utilisation is None else (utilisation,)

    def hours(stages: Sequence[PlannedStage]) -> float:
        rates = rates_of(stages, accelerator=accelerator, utilisation=share)
        return cost_of(stages, rates).bill.hours

    arms = {arm.name: hours(arm.stages) for arm in study.arms}
    return Hours(arms, [hours([leg.planned]) for leg in study.legs.every])


def search_commands(study: Study, folder: StudyFolder) -> list[str]:
    """Return the commands of the searches for learning rates that are not done, if any."""
    return [
        shlex.join(("flmgrow", "search", str(each.path / SEARCH), *_out(each.path)))
        for each in open_searches(study.file, study.path, folder)
    ]


def _out(path: Path) -> Iterable[str]:
    return COMMAND_LINE.arguments("out", str(path))


def commands_of(
    study: Study, folder: StudyFolder, launcher: str, gpus_per_node: int
) -> Iterator[str]:
    """Yield the commands of all legs that are not done, each behind those that it begins with."""
    for leg in study.legs.every:
        if folder.of(leg).end() is not None:
            continue
        if leg.before is not None:
            yield f"# after {leg.before.name}"
        for step in folder.growth_steps(leg):
            if not step.done():
                yield submitted(step, launcher, gpus_per_node)
        stage = shlex.quote(str(folder.of(leg).path / STAGE))
        yield launched(stage, leg.planned.stage.layout.world, launcher, gpus_per_node)


def _arm_data(arm: PlannedArm) -> Json:
    told = arm_of([arm])
    return {
        "name": told.name,
        "words": told.words,
        "sizes": list(told.sizes),
        "steps": sum(each.steps for each in arm.stages),
        "tokens": told.tokens,
        "flops": told.flops,
        "scratch": told.scratch,
    }
