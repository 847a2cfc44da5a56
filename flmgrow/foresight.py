"""Before the money is spent: which settings, what a schedule costs, and what loss it will reach."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Unpack

from flmgrow.costing.cluster import rates_of
from flmgrow.costing.estimate import RunCost, cost_of
from flmgrow.given import ClusterGiven
from flmgrow.prediction.forecast import Forecaster, forecaster
from flmgrow.prediction.law import form_for
from flmgrow.prediction.points import points_of
from flmgrow.proposing.proposal import Proposal
from flmgrow.proposing.proposal import propose as proposed
from flmgrow.searching.report import Report, report_of
from flmgrow.searching.request import read_search
from flmgrow.searching.running import run_search
from flmgrow.searching.trials import SearchFolder, check_all_ended
from flmgrow.searching.writing import write_report
from flmgrow.stages.alone import read_stages
from flmgrow.stages.drawing import check_can_draw
from flmgrow.stages.pool import Pool, Watched
from flmgrow.storage.hidden import held
from flmgrow.storage.outputs import check_results_folder
from flmgrow.studying.folder import StudyFolder
from flmgrow.studying.report import StudyReport as StudyReport
from flmgrow.studying.report import report_of as study_report
from flmgrow.studying.study import (
    Study,
    carry_out,
    commands_of,
    measured,
    search_commands,
    with_known_rates,
)
from flmgrow.studying.study import read as read_planned
from flmgrow.studying.writing import check_packages
from flmgrow.studying.writing import write_report as write_study

PathLike = str | os.PathLike[str]


def propose(budget: PathLike) -> Proposal:
    """Return what to do with the budget in a file: schedules compared, a verdict, and a schedule.

    Raises:
        UsageError: For a budget that allows nothing, for runs that no law can be fitted to, and for
            a model that fits no layout.
    """
    return proposed(Path(budget))


def search(
    search: PathLike,
    out: PathLike,
    *,
    parallel: int = 1,
    halving: bool = False,
    transfer: Sequence[int] = (),
    told: Callable[[str], object] = lambda _: None,
    watched: Watched = lambda *_: None,
) -> Report:
    """Train what is not done of a search, ``parallel`` trials at a time, and return what it found.

    ``halving`` stops the worse half after a quarter of the steps, and again; ``transfer`` are
    widths at which the same grid is tried. ``told`` hears of each trial; ``watched`` hears every
    second of the steps taken, of all, and of the seconds that the rest takes. Report, figures and a
    picture are written into ``out``.

    Raises:
        UsageError: For what no stage can be.
        TrialFailedError: A trial failed.
        OutputExistsError: If another search is at ``out``.
        BadDataError: If all trials diverged.
    """
    check_can_draw()
    folder = search_folder(search, out, transfer)
    with held(folder.path):
        folder.prepare(Path(search))
        run_search(folder, Pool(parallel, watched), told, halving=halving)
        outcomes = folder.outcomes()
        check_all_ended(outcomes)
        report = report_of(folder.search, outcomes)
        write_report(folder.path, report)
    return report


def search_folder(search: PathLike, out: PathLike, transfer: Sequence[int] = ()) -> SearchFolder:
    """Return a search and its folder; nothing is written.

    Raises:
        UsageError: As ``search`` does.
    """
    check_results_folder(Path(out))
    return SearchFolder(Path(out), read_search(Path(search), transfer))


def study(
    study: PathLike,
    out: PathLike,
    *,
    parallel: int = 1,
    scale: float = 1.0,
    told: Callable[[str], object] = lambda _: None,
    watched: Watched = lambda *_: None,
) -> StudyReport:
    """Train what is not done of a study, ``parallel`` legs at a time, and return its report.

    It is written into ``out`` as well. ``scale`` multiplies all lengths. ``told`` hears of each leg
    and of each trial of a search for learning rates; ``watched`` as in :func:`search`.

    Raises:
        UsageError: For what cannot be carried out.
        LegFailedError: A leg failed.
        TrialFailedError: A trial of a search for learning rates failed.
        OutputExistsError: If another study is at ``out``.
    """
    folder = StudyFolder(Path(out))
    planned = read_planned(Path(study), scale)
    check_packages()
    with held(folder.path):
        trained, rates = carry_out(
            planned, folder, lambda: Pool(parallel, watched, warm=True), told
        )
        report = study_report(measured(trained, folder, rates))
        write_study(folder.path, report)
    return report


def study_plan(study: PathLike, *, scale: float = 1.0) -> Study:
    """Return a study as it would be carried out; nothing is written.

    Raises:
        UsageError: What was asked for cannot be.
    """
    return read_planned(Path(study), scale)


def study_commands(
    study: PathLike,
    out: PathLike,
    *,
    scale: float = 1.0,
    launcher: str = "torchrun",
    gpus_per_node: int = 8,
) -> list[str]:
    """Write a study's files, and return the commands of what is not done, for a scheduler.

    Where learning rates are searched, and that is not done, they are the commands of the searches:
    those of the legs depend on what is found.

    Raises:
        FlmgrowError: As :func:`study` does.
    """
    folder = StudyFolder(Path(out))
    with held(folder.path):
        provisional = read_planned(Path(study), scale)
        if searches := search_commands(provisional, folder):
            return searches
        planned = with_known_rates(provisional, folder)
        folder.prepare(planned.legs, planned.path)
        return list(commands_of(planned, folder, launcher, gpus_per_node))


def cost(schedule: PathLike, **cluster: Unpack[ClusterGiven]) -> RunCost:
    """Return what a schedule, or a stage file alone, costs on a cluster, by stage and in all.

    ``to_json()`` of it is what ``flmgrow cost --json`` prints.

    Raises:
        UsageError: For a schedule that cannot be carried out, and for rates that cannot be.
    """
    stages = read_stages(Path(schedule))
    return cost_of(stages, rates_of(stages, **cluster))


def predict(runs: Sequence[PathLike], *, step: int | None = None) -> Forecaster:
    """Return a law fitted to runs of small models, or tables of points, that foretells larger ones.

    ``predict(runs).at(16e9)`` is the loss of that size, with its interval. ``step`` is where runs
    are compared; where each ends if None.

    Raises:
        UsageError: For runs that no law can be fitted to.
        BadDataError: For what is damaged.
    """
    points = points_of([Path(run) for run in runs], step)
    return forecaster(points, form_for(points))
