"""Carrying out a search: all trials, or the better half again and again.

Halving (Jamieson and Talwalkar, 2016) trains every trial for a part of its steps, drops the worse
half, and goes on with the rest. It saves most of the cost, and may drop what would have won late:
the report says so.
"""

from collections.abc import Callable, Sequence
from math import ceil, inf
from statistics import fmean

from flmgrow.errors import DivergenceError, FlmgrowError, LostRankError
from flmgrow.model.wording import clock_text
from flmgrow.searching.request import GridPoint, Trial
from flmgrow.searching.trials import SearchFolder
from flmgrow.stages.pool import JobEnd, Pool
from flmgrow.stages.trial_folder import TrialState

RUNGS = (0.25, 0.5)
"""Shares of the steps after which half of the trials are dropped."""

FEWEST = 2
"""Points that halving leaves."""

ASKED = (0, 130, 143)
"""Exit codes of a training that came to its end, or was asked to stop and saved."""

Told = Callable[[str], object]


class TrialFailedError(FlmgrowError):
    """A trial ended for a reason that is none of its settings'."""


def run_search(folder: SearchFolder, pool: Pool, told: Told, *, halving: bool = False) -> None:
    """Train what is not done.

    A trial that diverged counts as such, and ends nothing but itself.

    Raises:
        TrialFailedError: For one that failed; the message has what it told.
    """
    if halving:
        for share in RUNGS:
            _climb(folder, pool, told, share)
    _train(folder, pool, told, _open(folder), None)


def _open(folder: SearchFolder) -> list[Trial]:
    return [each.trial for each in folder.outcomes() if each.state is TrialState.OPEN]


def _climb(folder: SearchFolder, pool: Pool, told: Told, share: float) -> None:
    """Train all open trials for a share of their steps, and stop the worse half of the points.

    Those that were stopped here before an interruption count: the half is of all that came so far.
    """
    waiting = _open(folder)
    rungs = {trial.name: ceil(share * trial.stage.steps) for trial in waiting}
    below = [each for each in waiting if folder.job(each).taken < rungs[each.name]]
    _train(folder, pool, told, below, share)
    outcomes = folder.outcomes()
    losses: dict[GridPoint, list[float]] = {}
    for each in outcomes:
        if each.state is TrialState.OPEN:
            loss = folder.loss(each.trial, rungs[each.trial.name])
            losses.setdefault(each.trial.point, []).append(loss)
    # A point counts as diverged if one of its seeds did: the report would say so of it anyway.
    hopeless = {each.trial.point for each in outcomes if each.state is TrialState.DIVERGED}
    ranked = sorted(losses, key=lambda point: inf if point in hopeless else fmean(losses[point]))
    reason = f"in the worse half after {share:.0%} of its steps"
    gone = {each.trial.point for each in outcomes if each.told == reason} - losses.keys()
    kept = set(ranked[: max(FEWEST, ceil((len(ranked) + len(gone)) / 2))])
    for each in outcomes:
        if each.state is TrialState.OPEN and each.trial.point not in kept:
            folder.keep(each.trial, TrialState.STOPPED, reason)


def _train(
    folder: SearchFolder, pool: Pool, told: Told, trials: Sequence[Trial], share: float | None
) -> None:
    by_name = {trial.name: trial for trial in trials}

    def ended(one: JobEnd, left: int, seconds: float) -> None:
        trial = by_name[one.job.name]
        if one.code == DivergenceError.exit_code:
            folder.keep(trial, TrialState.DIVERGED, one.told.removeprefix("error: "))
        told(_line(folder, trial, one, left, seconds))

    jobs = [
        folder.job(each, None if share is None else ceil(share * each.stage.steps))
        for each in trials
    ]
    for one in pool.run(jobs, ended):
        asked = one.job.until is not None and one.code in ASKED
        if one.code and one.code != DivergenceError.exit_code and not asked:
            kind = LostRankError if one.code == LostRankError.exit_code else TrialFailedError
            raise kind(
                one.told.removeprefix("error: ") or f"ended with exit code {one.code}",
                f"its output is in {one.job.folder}; the same command goes on",
                where=one.job.name,
            )


def _line(folder: SearchFolder, trial: Trial, one: JobEnd, left: int, seconds: float) -> str:
    outcome = folder.outcome(trial)
    loss = f"loss {outcome.loss:.4f}" if outcome.state is TrialState.DONE else str(outcome.state)
    if outcome.state is TrialState.OPEN:
        loss = f"at step {folder.job(trial).taken:,}"
    return f"{trial.name}  {trial.point.text}  {loss}  ({left} left, {clock_text(seconds)})"
