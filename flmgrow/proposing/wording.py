"""A proposal as the rows that ``flmgrow propose`` shows."""

from flmgrow.model.wording import amount
from flmgrow.proposing.proposal import Proposal
from flmgrow.proposing.verdict import Expected

Rows = list[tuple[str, str]]


def rows(found: Proposal) -> Rows:
    """Return the budget, the best schedule of each kind, what was supposed, and the verdict."""
    limits = found.limits
    return [
        ("budget", f"{limits.flops:.4g} FLOP, {amount(round(limits.tokens))} tokens of data"),
        *((str(each.candidate.kind), schedule_text(each)) for each in found.verdict.best),
        *(("supposed", text) for text in found.supposed),
        ("verdict", found.verdict.text),
        ("proposed", str(found.verdict.winner.candidate.kind)),
    ]


def schedule_text(each: Expected) -> str:
    """Return a schedule and its expected loss."""
    low, high = each.band
    stages = ", then ".join(
        f"{amount(round(leg.parameters))} for {amount(round(leg.tokens))}"
        for leg in each.candidate.legs
    )
    return f"loss {each.loss:.4f} ({low:.4f} to {high:.4f}): {stages} tokens"
