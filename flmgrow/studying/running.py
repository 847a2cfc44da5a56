"""Carrying out a study: all legs, each when what it begins with is there.

A leg that diverged ends nothing but what would begin with it: its arms count as diverged.
"""

from flmgrow.errors import DivergenceError, FlmgrowError, LostRankError
from flmgrow.model.wording import clock_text
from flmgrow.searching.running import Told
from flmgrow.stages.pool import JobEnd, Pool
from flmgrow.stages.trial_folder import TrialState
from flmgrow.studying.folder import StudyFolder
from flmgrow.studying.legs import Legs


class LegFailedError(FlmgrowError):
    """A leg ended for a reason that is none of its settings'."""


def run_legs(folder: StudyFolder, legs: Legs, pool: Pool, told: Told) -> None:
    """Train what is not done.

    Raises:
        LegFailedError: For one that failed; the message has what it told.
    """
    by_name = {leg.name: leg for leg in legs.every}

    def ended(one: JobEnd, left: int, seconds: float) -> None:
        leg = by_name.get(one.job.name)
        if leg is None:
            return
        if one.code == DivergenceError.exit_code:
            folder.of(leg).keep(TrialState.DIVERGED, one.told.removeprefix("error: "))
        told(f"{leg.name}  {_how(one)}  ({left} left, {clock_text(seconds)})")

    for one in pool.run(folder.jobs(legs.every), ended):
        diverged = one.job.steps and one.code == DivergenceError.exit_code
        if one.code not in one.job.fine and not diverged:
            kind = LostRankError if one.code == LostRankError.exit_code else LegFailedError
            raise kind(
                one.told.removeprefix("error: ") or f"ended with exit code {one.code}",
                f"its output is in {one.job.log}; the same command goes on",
                where=one.job.name,
            )


def _how(one: JobEnd) -> str:
    if one.code == DivergenceError.exit_code:
        return "diverged"
    if one.code > 128:
        return "stopped"
    return "failed" if one.code else one.told.partition("  ")[2] or "done"
