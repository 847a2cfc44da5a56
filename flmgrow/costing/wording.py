"""A cost in words: the rows that ``flmgrow cost`` and ``flmgrow run --dry-run`` show."""

from collections.abc import Sequence
from dataclasses import asdict

from flmgrow.costing.accelerators import Accelerator
from flmgrow.costing.estimate import NOT_EQUAL_LOSS, Between, RunCost, StageCost
from flmgrow.costing.memory import Memory
from flmgrow.costing.operations import Operations
from flmgrow.costing.rates import Bill, Rates
from flmgrow.model.tensors import parameter_count
from flmgrow.model.wording import amount, decimal_size, model_text, size
from flmgrow.text import Setting, Text

Rows = list[tuple[str, str]]

ZETTA = 1e21


def blocks(cost: RunCost) -> list[Rows]:
    """Return the rows of a cost, stage by stage, with what lies between them, and in all."""
    found = [stage_rows(cost.stages[0])]
    for between, stage in zip(cost.between, cost.stages[1:], strict=True):
        found += [[between_row(between)], stage_rows(stage)]
    return [*found, [*total_rows(cost), *supposed_rows(cost.rates)]]


def stage_rows(cost: StageCost) -> Rows:
    """Return what a person wants to know of a stage's cost, by name."""
    planned = cost.planned
    return [
        ("stage", planned.stage.name),
        ("model", f"{amount(parameter_count(planned.config))} parameters: "
                  f"{model_text(planned.config)}"),
        ("tokens", amount(cost.tokens)),
        ("operations", operations_text(cost.operations)),
        ("time", stage_time_text(cost)),
        ("memory", memory_text(cost)),
    ]  # fmt: skip


def stage_time_text(cost: StageCost) -> str:
    """Return what a stage takes in hours and days, and on what."""
    share = f"{100 * cost.utilisation:.3g} % of the peak"
    return f"{bill_text(cost.bill)} on {cost.gpus:,} at {share}"


def between_row(between: Between) -> tuple[str, str]:
    """Return what lies between two stages."""
    return ("between", f"expand and verify move {decimal_size(between.moved)}: "
                       f"{time_text(between.seconds)}")  # fmt: skip


def total_rows(cost: RunCost) -> Rows:
    """Return the sums, and the same tokens at the final size beside them."""
    counted, bill = cost.operations, cost.bill
    saved = 1 - 1 / cost.ratio
    return [
        ("all stages", f"{amount(cost.tokens)} tokens"),
        ("operations", operations_text(counted)),
        ("time", bill_text(bill)),
        *_prices(bill),
        ("ungrown", f"the same tokens at the final size: {operations_text(cost.scratch)}"),
        ("time", bill_text(cost.scratch_bill)),
        *_prices(cost.scratch_bill),
        ("compared", f"{cost.ratio:.2f} times the GPU hours, {100 * saved:.0f} % saved; "
                     f"{NOT_EQUAL_LOSS}"),
    ]  # fmt: skip


def supposed_rows(rates: Rates) -> Rows:
    """Return what was supposed, because nobody said it."""
    rows: Rows = [("device", device_text(rates.accelerator))]
    if not rates.utilisations:
        share = f"{100 * rates.utilisation(0):g} % of the peak"
        rows.append(("supposed", Text(f"{share}: give ", Setting("utilisation"), ", or ",
                                      Setting("calibrate"), " with a run")))  # fmt: skip
    return rows


def device_text(device: Accelerator) -> str:
    """Return a device and what it can do."""
    return (
        f"{device.name}: {device.bfloat16:g} TFLOP/s in bfloat16, {size(int(device.memory))}, "
        f"{device.watts:g} W"
    )


def operations_text(counted: Operations) -> str:
    """Return the counts of some operations, all in one unit."""
    zetta = counted.products >= ZETTA / 100
    unit, divisor = ("zFLOP", ZETTA) if zetta else ("FLOP", 1.0)
    products, recomputed, six_n, without = (
        f"{count / divisor:.4g}"
        for count in (
            counted.products,
            counted.recomputed,
            counted.six_n,
            counted.six_n_without_table,
        )
    )
    return (
        f"{products} {unit} in matrix products; {recomputed} with recomputation, {six_n} by 6N, "
        f"{without} by 6N without tables"
    )


def bill_text(bill: Bill) -> str:
    """Return hours and days."""
    hours = f"{bill.hours:,.0f}" if bill.hours >= 100 else f"{bill.hours:.3g}"
    return f"{hours} GPU hours, {time_text(bill.days * 86400)}"


def _prices(bill: Bill) -> Rows:
    rows: Rows = [("energy", f"{_energy(bill.energy)}")]
    if bill.tonnes is not None:
        rows = [("energy", f"{_energy(bill.energy)}, {bill.tonnes:,.4g} t of CO2")]
    return rows if bill.dollars is None else [("price", f"${bill.dollars:,.2f}"), *rows]


def _energy(mwh: float) -> str:
    return f"{mwh:,.4g} MWh" if mwh >= 1 else f"{1000 * mwh:.3g} kWh"


def memory_text(cost: StageCost) -> str:
    """Return what the fullest device holds, of what, and whether it fits."""
    free = round(cost.room) - cost.largest.total
    verdict = "left for kernels" if cost.fits else "too much: does not fit"
    return f"{fullest_text(cost.memory)}: {size(abs(free))} {verdict}"


def fullest_text(memory: Sequence[Memory]) -> str:
    """Return what a device of the fullest pipeline rank holds, and of what."""
    held = max(memory, key=lambda each: each.total)
    parts = ", ".join(f"{name} {size(count)}" for name, count in asdict(held).items())
    return f"{size(held.total)} on pipeline rank {memory.index(held)} ({parts})"


def time_text(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    for length, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * length:
            return f"{seconds / length:.4g} {unit}"
    return f"{seconds:.3g} seconds"
