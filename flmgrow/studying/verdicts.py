"""What was found of an arm, in sentences: each with its interval, and none that claims without.

A difference that was found is called so; one that was not is no proof that there is none, and its
interval says how large it may be.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flmgrow.studying.comparison import AgainstScratch, ComparedQuantity, SeedVerdict
from flmgrow.studying.outcomes import Expense
from flmgrow.studying.report import Final, StudyReport
from flmgrow.studying.statistics import Estimate


@dataclass(frozen=True)
class AxisWords:
    """How an axis is spoken of: ``fewer`` of it, and as ``many`` of it."""

    name: str
    fewer: str
    many: str


AXES: Mapping[Expense, AxisWords] = {
    Expense.FLOPS: AxisWords("FLOPs", "fewer FLOPs", "as many FLOPs"),
    Expense.TOKENS: AxisWords("tokens", "fewer tokens", "as many tokens"),
    Expense.SECONDS: AxisWords("wall time", "less wall time", "as much wall time"),
}


def sentences(report: StudyReport) -> dict[str, list[str]]:
    """Return what is to be said of each arm that is not from scratch, and was trained."""
    return {
        final.arm.name: list(_of_arm(report, final))
        for final in report.finals
        if not final.arm.scratch and final.seeds
    }


def _of_arm(report: StudyReport, final: Final) -> list[str]:
    if final.diverged:
        return [
            f"diverged in {len(final.diverged)} of {_seeds(final.seeds)}, and is compared with "
            "nothing"
        ]
    rows = [row for row in report.against if row.arm == final.arm.name]
    if not any(row.seeds for row in rows):
        return ["there is nothing from scratch to compare it with"]
    return [sentence for row in rows for sentence in (_ratio(row, final), _difference(row))]


def _ratio(row: AgainstScratch, final: Final) -> str:
    """Return how much scratch needs for the arm's loss."""
    words, found = AXES[row.axis], row.ratio.estimate
    loss = "its loss" if final.loss is None else f"a loss of {final.loss.value:.3f}"
    if row.ratio.verdict is SeedVerdict.BEYOND:
        return _beyond(row)
    if found is None or row.ratio.verdict is SeedVerdict.ONE_SEED:
        return _unknown(row.ratio, f"{words.name} to the same loss")
    if row.ratio.verdict is SeedVerdict.BETTER:
        return (
            f"reaches {loss} with {found.value:.2f} times {words.fewer} than from scratch "
            f"{interval(found, 2)}"
        )
    if row.ratio.verdict is SeedVerdict.WORSE:
        more = Estimate(1 / found.value, 1 / found.high, 1 / found.low, found.seeds, found.p)
        return (
            f"worse: needs {more.value:.2f} times {words.many} as scratch for {loss} "
            f"{interval(more, 2)}"
        )
    return (
        f"no difference found in {words.name} to the same loss: scratch needs {found.value:.2f} "
        f"times {words.many} {interval(found, 2)}"
    )


def _beyond(row: AgainstScratch) -> str:
    words = AXES[row.axis]
    counted = [
        f"{side} in {count} of {_seeds(row.seeds)}"
        for side, count in (
            ("lower than any run from scratch", row.below),
            ("higher than any run from scratch", row.above),
        )
        if count
    ]
    more = (
        f"; scratch needs more than {row.least:.2f} times {words.many}"
        if row.least is not None and row.below == row.seeds
        else ""
    )
    return (
        f"beyond the frontier, so that no ratio of {words.name} is known: its loss is "
        f"{' and '.join(counted)}{more}"
    )


def _difference(row: AgainstScratch) -> str:
    """Return how its loss differs from that of scratch for as much."""
    words, found = AXES[row.axis], row.difference.estimate
    if row.difference.verdict is SeedVerdict.BEYOND:
        side = "fewer than the shortest" if row.shorter else "more than the longest"
        return (
            f"beyond the frontier, so that no loss for equal {words.name} is known: it took "
            f"{side} run from scratch in {row.shorter or row.longer} of {_seeds(row.seeds)}"
        )
    if found is None or row.difference.verdict is SeedVerdict.ONE_SEED:
        return _unknown(row.difference, f"loss for equal {words.name}")
    return f"for equal {words.name}, {_side(row.difference, found)}"


def _side(compared: ComparedQuantity, found: Estimate) -> str:
    if compared.verdict is SeedVerdict.NO_DIFFERENCE:
        return (
            f"no difference found: its loss is that of scratch {found.value:+.3f} "
            f"{interval(found, 3)}"
        )
    side = "lower" if compared.verdict is SeedVerdict.BETTER else "worse: higher"
    low, high = sorted((abs(found.low), abs(found.high)))
    shown = Estimate(abs(found.value), low, high, found.seeds, found.p)
    return f"its loss is {side} than from scratch by {shown.value:.3f} {interval(shown, 3)}"


def _unknown(compared: ComparedQuantity, what: str) -> str:
    """Return why nothing is claimed."""
    if compared.verdict is SeedVerdict.ONE_SEED:
        return f"nothing is claimed of the {what}: one seed has no interval"
    return f"nothing is known of the {what}: {compared.verdict}"


def interval(found: Estimate, places: int) -> str:
    """Return the interval in brackets."""
    return f"[{found.low:.{places}f}, {found.high:.{places}f}]"


def _seeds(count: int) -> str:
    return f"{count} seed{'' if count == 1 else 's'}"


def held_sentences(report: StudyReport) -> Sequence[str]:
    """Return what was held equal, and then what was not."""
    unequal = [
        f"Not equal: {each.what} ({', '.join(each.arms)}): {each.detail}."
        for each in report.findings
    ]
    return [*report.measured.held, *unequal]
