"""What a budget file makes known of losses: laws of sizes and tokens, and laws of growth."""

from collections.abc import Iterator, Sequence
from math import inf

import numpy as np

from flmgrow.errors import UsageError
from flmgrow.prediction.forecast import DRAWS, forecaster
from flmgrow.prediction.law import SIZES_AND_TOKENS, Law, form_for, prior
from flmgrow.prediction.points import RunPoint, points_of
from flmgrow.proposing.carrying import carried_by, ends_of
from flmgrow.proposing.growth_laws import CarriedShare, GrowthLaw, Mixing, TwoStages
from flmgrow.proposing.request import BudgetFile, TwoStageSection
from flmgrow.proposing.two_stage import (
    FEWEST,
    FORMULA,
    GrownRun,
    TwoStageLaw,
    drawn,
    grown_of,
    intervals,
)


def laws_of(file: BudgetFile) -> tuple[list[Law], str]:
    """Return a law of sizes and tokens for each draw, and what they rest on.

    Raises:
        UsageError: For runs that no such law can be fitted to.
    """
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


def growth_laws(file: BudgetFile, laws: Sequence[Law]) -> list[GrowthLaw]:
    """Return the laws of growth that can be had, that by which the proposal is made first.

    Raises:
        UsageError: For one that is asked for and cannot be had.
    """
    runs = [ends_of(run) for run in file.grown]
    found = list(_growth_laws(file, laws, runs))
    if file.growth_law not in (each.name for each in found):
        raise UsageError(
            f"growth_law: {file.growth_law} needs {FEWEST} runs that grew (grown), or constants "
            "(two_stage)",
            "flmgrow propose shows what the other laws say without it",
        )
    return sorted(found, key=lambda each: each.name != file.growth_law)


def _growth_laws(
    file: BudgetFile, laws: Sequence[Law], runs: Sequence[Sequence[RunPoint]]
) -> Iterator[GrowthLaw]:
    yield _carried(file, laws, runs)
    if file.two_stage is not None:
        yield _given(file.two_stage, len(laws))
    elif len(runs) >= FEWEST:
        yield _fitted([grown_of(ends) for ends in runs], laws)
    yield Mixing()


def _carried(
    file: BudgetFile, laws: Sequence[Law], runs: Sequence[Sequence[RunPoint]]
) -> CarriedShare:
    random = np.random.default_rng(0)
    if not runs:
        low, high = file.carried
        text = f"growth carries over {low:g} to {high:g} of what the small model has learned"
        shares = random.uniform(low, high, len(laws))
        return CarriedShare(shares, f"{text}: no run that grew was given")
    found = [share for ends in runs for share in carried_by(laws[0], ends)]
    # What a run has carried over is read off a law, so each draw of the law has shares of its own.
    shares = np.array(
        [random.choice([each for ends in runs for each in carried_by(law, ends)]) for law in laws]
    )
    text = f"growth carries over {min(found):.2f} to {max(found):.2f}"
    return CarriedShare(shares, f"{text}, as {len(found)} growths tell")


def _given(said: TwoStageSection, draws: int) -> TwoStages:
    law = TwoStageLaw(float(np.log(said.A)), said.a1, said.a2, said.a3, said.E)
    constants = f"a1 {said.a1:g}, a2 {said.a2:g}, a3 {said.a3:g}"
    return TwoStages([law] * draws, said.factors, f"{FORMULA}: {constants}, of {said.source}")


def _fitted(grown: Sequence[GrownRun], laws: Sequence[Law]) -> TwoStages:
    draws = drawn(laws[0], laws, grown)
    constants = ", ".join(
        f"{name} {low:.3g} to {high:.3g}" for name, (low, high) in intervals(draws).items()
    )
    least, most = min(each.factor for each in grown), max(each.factor for each in grown)
    text = (
        f"{FORMULA}: {constants}, as {len(grown)} growths by {least:.3g} to {most:.3g} times tell"
    )
    return TwoStages(draws, (least, most), text)
