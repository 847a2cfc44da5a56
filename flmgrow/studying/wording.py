"""A study's report in Markdown."""

from collections.abc import Iterator, Sequence

from flmgrow.model.wording import amount, table
from flmgrow.studying.comparison import AgainstScratch, ComparedQuantity
from flmgrow.studying.outcomes import Expense
from flmgrow.studying.report import Final, ReportedGrowth, StudyReport
from flmgrow.studying.statistics import COVERAGE, LEVEL, Estimate
from flmgrow.studying.verdicts import AXES, held_sentences, interval, sentences

METHOD = (
    f"Brackets hold the true value in {100 * COVERAGE:.0f} of 100 studies (Student's t over "
    "seeds; differences are taken seed by seed, ratios by their logarithms). Something counts as "
    f"found where its p value, corrected by Holm for all rows of its table, is below {LEVEL:g}. "
    "From scratch means the ends of runs whose learning rate decayed, interpolated over the "
    "logarithm of FLOPs, tokens or seconds; beyond the shortest and the longest nothing is said."
)


def markdown(report: StudyReport) -> str:
    """Return the whole report."""
    parts = ["# Does growth pay?", "", *_found(report), "## What was held equal", ""]
    parts += [f"* {each}" for each in held_sentences(report)] or ["Nothing is told of it."]
    parts += ["", METHOD, "", "## How the arms ended", "", *_arms(report), ""]
    for axis in report.measured.axes:
        parts += _against(report, axis)
    return "\n".join([*parts, *_pairs(report), *_growths(report)]).rstrip("\n") + "\n"


def told(report: StudyReport) -> str:
    """Return what a terminal shows: how the arms ended, and what was found."""
    return "\n".join([*_arms(report), "", *_found(report)]).rstrip("\n")


def _found(report: StudyReport) -> Iterator[str]:
    for arm, found in sentences(report).items():
        yield f"**{arm}** ({report.final(arm).arm.words})"
        yield ""
        yield from (f"* {sentence}" for sentence in found)
        yield ""


def _arms(report: StudyReport) -> list[str]:
    head = ["arm", "what it is", "parameters", "tokens", "FLOPs", "final loss", "seeds"]
    return _table(head, [_arm(final) for final in report.finals])


def _arm(final: Final) -> list[str]:
    arm = final.arm
    sizes = " to ".join(amount(size) for size in dict.fromkeys(arm.sizes))
    return [
        arm.name, arm.words, sizes, amount(arm.tokens), f"{arm.flops:.3g}", _loss(final),
        str(final.seeds),
    ]  # fmt: skip


def _loss(final: Final) -> str:
    if final.diverged:
        return f"diverged in {len(final.diverged)} of {final.seeds}"
    if final.loss is None:
        return "not trained"
    return _estimate(final.loss, 3)


def _against(report: StudyReport, axis: Expense) -> list[str]:
    rows = [row for row in report.against if row.axis is axis]
    if not any(row.seeds for row in rows):
        return []
    name = AXES[axis].name
    head = [
        "arm", f"loss less that of scratch for equal {name}", "p", "",
        f"times the {name} that scratch needs for its loss", "p", "",
    ]  # fmt: skip
    table = _table(
        head, [[row.arm, *_cells(row.difference, 3), *_ratio_cells(row)] for row in rows]
    )
    return [f"## Beside scratch, by {name}", "", *table, ""]


def _ratio_cells(row: AgainstScratch) -> list[str]:
    value, p, verdict = _cells(row.ratio, 2)
    if row.least is not None and row.below == row.seeds:
        value = f"more than {row.least:.2f}"
    return [value, p, verdict]


def _cells(compared: ComparedQuantity, places: int) -> list[str]:
    found, p = compared.estimate, compared.corrected
    return [
        "-" if found is None else _estimate(found, places),
        "-" if p is None else f"{p:.2g}",
        str(compared.verdict),
    ]


def _pairs(report: StudyReport) -> Iterator[str]:
    if not report.pairs:
        return
    yield from ("## Arms that took as much", "")
    rows = [
        [
            f"{pair.one} less {pair.other}", ", ".join(AXES[axis].name for axis in pair.axes),
            *_cells(pair.difference, 3),
        ]
        for pair in report.pairs
    ]  # fmt: skip
    yield from _table(["arms", "equal", "loss", "p", ""], rows)
    yield ""


def _growths(report: StudyReport) -> Iterator[str]:
    if not report.growths:
        return
    yield from ("## The loss around growths", "")
    head = ["arm", "into", "by", "after tokens", "before", "after", "jump", "training loss"]
    yield from _table(head, [_growth(each) for each in report.growths])


def _growth(each: ReportedGrowth) -> list[str]:
    return [
        each.arm, each.stage, each.method, amount(each.tokens),
        *("-" if found is None else f"{found.value:.4f}" for found in (each.before, each.after)),
        "-" if each.jump is None else _estimate(each.jump, 4),
        _around(each),
    ]  # fmt: skip


def _around(each: ReportedGrowth) -> str:
    """Return the training loss just before a growth, its highest after it, and its last one."""
    before = [found.value for step, found in each.around if step < 0]
    after = [found.value for step, found in each.around if step >= 0]
    if not before or not after:
        return "-"
    return f"{before[-1]:.3f}, then at most {max(after):.3f}, at last {after[-1]:.3f}"


def _estimate(found: Estimate, places: int) -> str:
    bounds = "" if found.seeds == 1 else f" {interval(found, places)}"
    return f"{found.value:.{places}f}{bounds}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return table(head, ([cell.replace("|", "/") for cell in row] for row in rows))
