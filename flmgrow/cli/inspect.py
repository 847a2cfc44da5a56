"""``flmgrow inspect``: what a checkpoint is, where it comes from, and whether it is healthy."""

from pathlib import Path
from typing import Annotated

import typer

from flmgrow.cli import options, report
from flmgrow.cli.grouped import grouped
from flmgrow.cli.printing import in_columns, json_text
from flmgrow.cli.progress import progress_bar
from flmgrow.cli.reading import SourceOptions
from flmgrow.errors import BadCheckpointError, printable
from flmgrow.formats.history.parts import verdict_text
from flmgrow.formats.layout.lags import parameters_in
from flmgrow.inspection import Inspection, inspect_source, stored_data, stored_in
from flmgrow.model.axes import Sizes
from flmgrow.model.masks import Fresh
from flmgrow.model.wording import amount
from flmgrow.surgery.health import Health

Tensors = Annotated[
    bool,
    typer.Option(
        "--tensors",
        help="List the logical tensors; of a model that is not supported, the stored arrays.",
    ),
]
HealthOption = Annotated[
    bool, typer.Option("--health", help="Read all weights and look for values that are not finite.")
]


@grouped
def inspect(
    path: options.Source,
    tensors: Tensors = False,
    health: HealthOption = False,
    iteration: options.Iteration = None,
    as_json: options.AsJson = False,
    *,
    reading: SourceOptions,
) -> None:
    """Show a checkpoint's model, layout, masks, family tree and health.

    \b
    Example: flmgrow inspect ckpt-51b --tensors
    """
    try:
        opened = reading.open(path, iteration, look_only=True)
    except BadCheckpointError as error:
        raise _with_arrays(error, path, iteration, tensors, as_json) from None
    with opened as source:
        found = inspect_source(source, health, progress_bar)
        if as_json:
            print(json_text(found.to_json(tensors)))
            return
        rows = [*report.model_rows(found.checkpoint), *_history(found), *_health(found.health)]
        print("\n".join(in_columns(rows)))
        if tensors:
            print("\n" + "\n".join(report.tensor_lines(found.checkpoint)))


def _with_arrays(
    error: BadCheckpointError, path: Path, iteration: int | None, wanted: bool, as_json: bool
) -> BadCheckpointError:
    """Print, if ``wanted``, what a checkpoint that cannot be used holds all the same; return why
    it cannot.
    """
    files = stored_in(path, iteration)
    if not files:
        return error
    if not wanted:
        more = "inspect --tensors lists the arrays that are stored"
        return error.with_more_hint(more)
    if as_json:
        listed = stored_data(files)
        print(json_text({"path": str(path), "why_not": error.message, "stored": listed}))
        return error
    for name, arrays in files.items():
        rows = [(printable(a.name), f"{a.dtype} {list(a.shape)}") for a in arrays]
        print("\n".join([printable(name), *(f"  {row}" for row in in_columns(rows))]))
    return error


def _history(found: Inspection) -> list[tuple[str, str]]:
    rows = []
    sizes = found.checkpoint.config.sizes
    if found.fresh:
        rows.append(("fresh", f"{_shares(found.fresh, sizes)}, made by the last growth"))
    rows += _late(found)
    for dimension, mask in found.masks.items():
        ramp = f"at {mask.value:g}, ramp of {mask.ramp_steps} steps"
        text = f"{_shares(mask.fresh, sizes)} fresh, {ramp}"
        rows.append((f"{dimension} mask", text))
    line = [f"{member.name} ({amount(member.parameters)})" for member in found.family]
    rows.append(("family", " -> ".join(line) or "unknown: no flmgrow.json"))
    if found.has_manifest:
        receipt = found.receipt
        verdict = "not verified yet" if receipt is None else verdict_text(receipt)
        rows.append(("verified", verdict))
    return rows


def _late(found: Inspection) -> list[tuple[str, str]]:
    """Return how many parameters have no optimizer state, and how many a later one."""
    config, lags = found.checkpoint.config, found.lags.items()
    absent = parameters_in((each for each, lag in lags if lag is None), config)
    late = parameters_in((each for each, lag in lags if lag), config)
    rows = []
    if absent:
        rows.append(("frozen", f"{amount(absent)} parameters have no optimizer state"))
    if late:
        rows.append(("unfrozen", f"{amount(late)} parameters count fewer steps than the others"))
    return rows


def _shares(fresh: Fresh, sizes: Sizes) -> str:
    """Return how many indices of each axis are fresh."""
    return ", ".join(
        f"{len(indices)} of {sizes[axis]} {axis}" for axis, indices in fresh.items() if len(indices)
    )


def _health(found: Health) -> list[tuple[str, str]]:
    rows = [("replicas", "; ".join(found.drift) or f"{found.replicas} copies agree")]
    if found.non_finite is not None:
        bad = ", ".join(f"{name}: {count}" for name, count in found.non_finite.items())
        rows.append(("not finite", bad or "none"))
        rows.append(("all zero", ", ".join(found.all_zero) or "none"))
    return rows
