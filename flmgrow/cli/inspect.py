"""``flmgrow inspect``: what a checkpoint is, where it comes from, and whether it is healthy."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from flmgrow.cli import options, report
from flmgrow.cli.grouped import grouped
from flmgrow.cli.printing import in_columns, json_text
from flmgrow.cli.progress import progress_bar
from flmgrow.cli.reading import Reading
from flmgrow.errors import BadCheckpointError, FlmgrowError, printable
from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.history.manifest import family, manifest_of, masks_of
from flmgrow.formats.history.parts import verdict_text
from flmgrow.formats.stored_listing import Listed, stored_arrays
from flmgrow.model.tensors import parameter_count
from flmgrow.model.wording import amount
from flmgrow.opened import local_folder
from flmgrow.storage.strict_json import Json
from flmgrow.surgery.health import Health, examine

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
    reading: Reading,
) -> None:
    """Show a checkpoint's model, layout, masks, family tree and health.

    \b
    Example: flmgrow inspect ckpt-51b --tensors
    """
    try:
        opened = reading.open(path, iteration, look_only=True)
    except BadCheckpointError as error:
        raise _with_arrays(error, path, iteration, tensors, as_json) from None
    with opened as checkpoint:
        with progress_bar(checkpoint.nbytes, "reading") as progress:
            found = examine(checkpoint, health, progress)
        if as_json:
            print(json_text(_data(checkpoint, found, tensors)))
            return
        rows = [*report.model_rows(checkpoint), *_history(checkpoint), *_health(found)]
        print("\n".join(in_columns(rows)))
        if tensors:
            print("\n" + "\n".join(report.tensor_lines(checkpoint)))


def _with_arrays(
    error: BadCheckpointError, path: Path, iteration: int | None, wanted: bool, as_json: bool
) -> BadCheckpointError:
    """Print, if ``wanted``, what a checkpoint that cannot be used holds all the same; return why
    it cannot.
    """
    try:
        files = stored_arrays(local_folder(path)[0], iteration)
    except FlmgrowError:
        return error
    if not any(files.values()):
        return error
    if not wanted:
        more = "inspect --tensors lists the arrays that are stored"
        return error.with_more_hint(more)
    if as_json:
        listed = {name: {a.name: _array(a) for a in arrays} for name, arrays in files.items()}
        print(json_text({"path": str(path), "why_not": error.message, "stored": listed}))
        return error
    for name, arrays in files.items():
        rows = [(printable(a.name), f"{a.dtype} {list(a.shape)}") for a in arrays]
        print("\n".join([printable(name), *(f"  {row}" for row in in_columns(rows))]))
    return error


def _array(array: Listed) -> Json:
    return {"dtype": array.dtype, "shape": list(array.shape)}


def _history(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    rows = []
    sizes = checkpoint.config.sizes
    for dimension, mask in masks_of(checkpoint).items():
        fresh = ", ".join(
            f"{len(indices)} of {sizes[axis]} {axis}"
            for axis, indices in mask.fresh.items()
            if len(indices)
        )
        text = f"{fresh} fresh, at {mask.value:g}, ramp of {mask.ramp_steps} steps"
        rows.append((f"{dimension} mask", text))
    line = [f"{member.name} ({amount(member.parameters)})" for member in family(checkpoint)]
    rows.append(("family", " -> ".join(line) or "unknown: no flmgrow.json"))
    manifest = manifest_of(checkpoint)
    if manifest is not None:
        receipt = manifest.receipt
        verdict = "not verified yet" if receipt is None else verdict_text(receipt)
        rows.append(("verified", verdict))
    return rows


def _health(found: Health) -> list[tuple[str, str]]:
    rows = [("replicas", "; ".join(found.drift) or f"{found.replicas} copies agree")]
    if found.non_finite is not None:
        bad = ", ".join(f"{name}: {count}" for name, count in found.non_finite.items())
        rows.append(("not finite", bad or "none"))
        rows.append(("all zero", ", ".join(found.all_zero) or "none"))
    return rows


def _data(checkpoint: Checkpoint, found: Health, tensors: bool) -> Json:
    shapes = {
        name: dict(zip(tensor.axes, tensor.shape(checkpoint.stored_sizes), strict=True))
        for name, tensor in checkpoint.reader.tensors.items()
    }
    manifest = manifest_of(checkpoint)
    receipt = None if manifest is None else manifest.receipt
    return {
        "path": str(checkpoint.folder),
        "iteration": checkpoint.iteration,
        "model": asdict(checkpoint.config),
        "layout": asdict(checkpoint.layout),
        "parameters": parameter_count(checkpoint.config),
        "padded_vocab": checkpoint.padded_vocab,
        "dtype": checkpoint.dtype,
        "bytes": checkpoint.nbytes,
        "also_holds": list(checkpoint.carried),
        "masks": {d: mask.to_json() for d, mask in masks_of(checkpoint).items()},
        "family": [member.to_json() for member in family(checkpoint)],
        "receipt": None if receipt is None else receipt.to_json(),
        "health": asdict(found),
        **({"tensors": shapes} if tensors else {}),
    }
