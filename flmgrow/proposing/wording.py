"""A proposal as the rows that ``flmgrow propose`` shows."""

from collections.abc import Iterator

from flmgrow.model.wording import amount
from flmgrow.proposing.candidates import ScheduleLimits
from flmgrow.proposing.proposal import Judged, Proposal
from flmgrow.proposing.verdict import UNGROWN, Expected

Rows = list[tuple[str, str]]

NEARLY_ALL = 0.995
"""Of the budget: a schedule that takes less says so."""


def rows(found: Proposal) -> Rows:
    """Return the budget, the best schedule of each kind, what was supposed, and the verdicts."""
    limits, used = found.limits, found.judged[0]
    return [
        ("budget", f"{limits.flops:.4g} FLOP, {amount(round(limits.tokens))} tokens of data"),
        *_schedules(used, limits),
        ("law", found.law_text),
        (f"used: {used.growth.name}", used.growth.told),
        ("verdict", used.verdict.text),
        *(row for other in found.judged[1:] for row in _other_rows(other, limits)),
        ("proposed", f"{used.verdict.winner.candidate.kind}, by the law {used.growth.name}"),
    ]


def _schedules(judged: Judged, limits: ScheduleLimits) -> Iterator[tuple[str, str]]:
    for each in judged.verdict.best:
        yield str(each.candidate.kind), schedule_text(each, limits)


def _other_rows(judged: Judged, limits: ScheduleLimits) -> Iterator[tuple[str, str]]:
    """Yield what another law of growth says: its best growth, and its verdict."""
    yield f"other: {judged.growth.name}", judged.growth.told
    best = judged.verdict.best
    grown = next((each for each in best if each.candidate.kind not in UNGROWN), None)
    if grown is not None:
        yield str(grown.candidate.kind), schedule_text(grown, limits)
    yield "verdict", judged.verdict.text


def schedule_text(each: Expected, limits: ScheduleLimits) -> str:
    """Return a schedule and its expected loss."""
    low, high = each.band
    stages = ", then ".join(
        f"{amount(round(leg.parameters))} for {amount(round(leg.tokens))}"
        for leg in each.candidate.legs
    )
    spent = each.flops / limits.flops
    share = "" if spent >= NEARLY_ALL else f", {spent:.0%} of the budget"
    return f"loss {each.loss:.4f} ({low:.4f} to {high:.4f}): {stages} tokens{share}"
