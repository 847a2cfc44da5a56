"""The learning rate of each size of a study: what was found by ``flmgrow search``, or is given.

Arms of different sizes are compared fairly only if each size has a rate that suits it, chosen in
the same way. A study that has a grid tries it at each size, in a folder of its own, before the
first leg is trained: as a search file that could be given to ``flmgrow search``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flmgrow.searching.report import report_of
from flmgrow.searching.request import read_search
from flmgrow.searching.running import Told, run_search
from flmgrow.searching.trials import SearchFolder, check_all_ended
from flmgrow.searching.writing import write_report
from flmgrow.stages.pool import Pool
from flmgrow.stages.trial_folder import TrialState
from flmgrow.storage.durable import write_small
from flmgrow.storage.folders import make_folders
from flmgrow.storage.hidden import held
from flmgrow.storage.strict_json import Json
from flmgrow.storage.strict_yaml import dump_yaml
from flmgrow.studying.arms import PeakRates, flops_per_token, sized_stage, tokens_per_step
from flmgrow.studying.folder import StudyFolder
from flmgrow.studying.request import StudyFile, used_sizes
from flmgrow.trainer.stage.file import stage_of

PEAK = "learning_rate.peak"
PROXY, SEARCH = "proxy.yaml", "search.yaml"


@dataclass(frozen=True)
class ChosenRate:
    """A size's ``peak``, the ``grid`` of those that were tried, and which were as good (``flat``).

    ``source`` says where it comes from, ``edge`` whether it was the largest or the smallest tried.
    """

    size: str
    peak: float
    source: str
    grid: tuple[float, ...] = ()
    flat: tuple[float, ...] = ()
    edge: str = ""


def provisional(study: StudyFile) -> PeakRates:
    """Return rates with which a study can be planned before any search: they cost the same."""
    grid = sorted(study.rates.grid)
    middle = grid[len(grid) // 2] if grid else 0.0
    return {size: study.rates.values.get(size, middle) for size in used_sizes(study)}


def given(study: StudyFile) -> list[ChosenRate]:
    """Return the rates that the study says itself; none if they are searched."""
    values = study.rates.values
    return [ChosenRate(size, values[size], study.rates.source)
            for size in used_sizes(study) if values]  # fmt: skip


def search_rates(
    study: StudyFile, path: Path, folder: StudyFolder, pools: Callable[[], Pool], told: Told
) -> list[ChosenRate]:
    """Return the rates of all sizes, after what is not done of their searches.

    Raises:
        FlmgrowError: As ``run_search`` does.
        UsageError: For what no stage can be.
        BadDataError: If none of a size has come to its end.
    """
    found = given(study)
    for search in searches(study, path, folder).values():
        with held(search.path):
            search.prepare(search.path / SEARCH)
            run_search(search, pools(), told)
            found.append(_chosen(study, search))
    return found


def open_searches(study: StudyFile, path: Path, folder: StudyFolder) -> list[SearchFolder]:
    """Return the searches that have not come to their end; none if rates are given.

    Raises:
        UsageError: For what no stage can be.
        StorageError: The file system failed.
    """
    return [
        search
        for search in searches(study, path, folder).values()
        if any(each.state is TrialState.OPEN for each in search.outcomes())
    ]


def known_rates(study: StudyFile, path: Path, folder: StudyFolder) -> list[ChosenRate]:
    """Return the rates of all sizes if they are given, or were searched before.

    Raises:
        BadDataError: If none of a size's trials has come to its end.
    """
    found = given(study)
    for search in searches(study, path, folder).values():
        found.append(_chosen(study, search))
    return found


def search_cost(study: StudyFile) -> tuple[int, float]:
    """Return how many trials are searched, and their operations."""
    trials, flops = 0, 0.0
    for size in used_sizes(study) if study.rates.grid else []:
        stage = sized_stage(study, size)
        count = len(study.rates.grid) * len(study.rates.seeds)
        trials += count
        steps, per_step = stage["training"]["steps"], tokens_per_step(stage)
        flops += count * steps * per_step * flops_per_token(stage)
    return trials, flops


def searches(study: StudyFile, path: Path, folder: StudyFolder) -> dict[str, SearchFolder]:
    """Write the search file of each size, and return them read; none if rates are given.

    Raises:
        UsageError: For what no stage can be.
        StorageError: The file system failed.
    """
    found = {}
    for size in used_sizes(study) if study.rates.grid else []:
        own = folder.rates_of(size)
        make_folders(Path(own.absolute().anchor), own.absolute())
        stage: Json = stage_of(
            sized_stage(study, size), path
        ).model_dump(mode="json", exclude_none=True)  # fmt: skip
        file: Json = {
            "stage": PROXY,
            "grid": {PEAK: list(study.rates.grid)},
            "seeds": list(study.rates.seeds),
        }
        write_small(own / PROXY, dump_yaml(stage).encode())
        write_small(own / SEARCH, dump_yaml(file).encode())
        found[size] = SearchFolder(own, read_search(own / SEARCH))
    return found


def _chosen(study: StudyFile, folder: SearchFolder) -> ChosenRate:
    outcomes = folder.outcomes()
    check_all_ended(outcomes)
    report = report_of(folder.search, outcomes)
    write_report(folder.path, report)
    best = report.best[-1]
    peak, flat = float(best.result.point.settings[PEAK]), best.intervals[PEAK]
    tried = f"the best of {len(study.rates.grid)} that flmgrow search tried"
    grid, edge = tuple(study.rates.grid), best.edges.get(PEAK, "")
    return ChosenRate(folder.path.name, peak, tried, grid, tuple(map(float, flat)), edge)
