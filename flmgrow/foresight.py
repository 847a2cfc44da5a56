"""Before the money is spent: which settings, what a schedule costs, and what loss it will reach."""

import json
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
from flmgrow.searching.picture import picture
from flmgrow.searching.report import Report, report_of
from flmgrow.searching.request import read_search
from flmgrow.searching.running import run_search
from flmgrow.searching.trials import SearchFolder, check_all_ended
from flmgrow.searching.wording import markdown
from flmgrow.stages.alone import read_stages
from flmgrow.stages.pool import Pool, Watched
from flmgrow.storage.durable import write_small

PathLike = str | os.PathLike[str]


def propose(budget: PathLike) -> Proposal:
    """Return what to do with the budget in a file: schedules compared, a verdict, and a schedule.

    Raises UsageError for a budget that allows nothing, for runs that no law can be fitted to, and
    for a model that fits no layout.
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
    picture are written into ``out``. Raises UsageError for what no stage can be; TrialFailedError;
    OutputExistsError if another search is at ``out``; BadDataError if all trials diverged.
    """
    folder = search_folder(search, out, transfer)
    with folder.held():
        folder.prepare(Path(search))
        run_search(folder, Pool(parallel, watched), told, halving=halving)
        outcomes = folder.outcomes()
        check_all_ended(outcomes)
        report = report_of(folder.search, outcomes)
        write_small(folder.path / "report.md", markdown(report).encode())
        write_small(folder.path / "results.json", json.dumps(report.to_json(), indent=1).encode())
        write_small(folder.path / "search.png", picture(report, "png"))
    return report


def search_folder(search: PathLike, out: PathLike, transfer: Sequence[int] = ()) -> SearchFolder:
    """Return a search and its folder; nothing is written. Raises UsageError as ``search``."""
    return SearchFolder(Path(out), read_search(Path(search), transfer))


def cost(schedule: PathLike, **cluster: Unpack[ClusterGiven]) -> RunCost:
    """Return what a schedule, or a stage file alone, costs on a cluster, by stage and in all.

    ``to_json()`` of it is what ``flmgrow cost --json`` prints. Raises UsageError for a schedule
    that cannot be carried out, and for rates that cannot be.
    """
    stages = read_stages(Path(schedule))
    return cost_of(stages, rates_of(stages, **cluster))


def predict(runs: Sequence[PathLike], *, step: int | None = None) -> Forecaster:
    """Return a law fitted to runs of small models, or tables of points, that foretells larger ones.

    ``predict(runs).at(16e9)`` is the loss of that size, with its interval. ``step`` is where runs
    are compared; where each ends if None. Raises UsageError for runs that no law can be fitted to,
    BadDataError for what is damaged.
    """
    points = points_of([Path(run) for run in runs], step)
    return forecaster(points, form_for(points))
